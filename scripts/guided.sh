#!/bin/sh
# Fuzzes decoders, and a member that listens, with inputs that are guided by what
# they reach: guided.sh DIRECTORY RUNS SEED TARGET... builds in the directory, keeps
# each target's corpus there, and starts from the one that is there. Fails when an
# input failed, or when fewer were read than were asked for.
set -eu

mkdir -p "$1"
dir=$(cd "$1" && pwd) runs=$2 seed=$3
shift 3
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')

# With the checks of a debug build. Without a sanitizer, which would want a
# nightly compiler: what reads bytes here is safe Rust, and RocksDB, which is not,
# would not be compiled with it.
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo fuzz build --sanitizer none --target "$host" \
    --target-dir "$dir" --features guided guided

echo "seed $seed"
echo
echo "| target | inputs | kept, for new code | counters of code reached | seconds |"
echo "|---|---|---|---|---|"
failed=
for target; do
    corpus=$dir/corpus/$target failures=$dir/failures/$target log=$dir/$target.log
    mkdir -p "$corpus" "$failures"
    started=$(date +%s)
    # libFuzzer's lines of progress are of the powers of two.
    METASTORE_FUZZ_TARGET=$target "$dir/$host/release/guided" "$corpus" \
        -runs="$runs" -seed="$seed" -max_len=65536 -len_control=0 -timeout=60 \
        -rss_limit_mb=4096 -reload=0 -artifact_prefix="$failures/" \
        >"$log" 2>&1 &
    fuzzer=$!
    trap 'kill "$fuzzer"' EXIT
    told=
    while kill -0 "$fuzzer" 2>/dev/null; do
        sleep 1
        line=$(grep -a '^#' "$log" | tail -n 1)
        [ "$line" = "$told" ] || echo "$target: $line" >&2
        told=$line
    done
    trap - EXIT
    code=0
    wait "$fuzzer" || code=$?
    done=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log")
    cover=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    kept=$(find "$corpus" -type f | wc -l)
    echo "| $target | ${done:-0} | $kept | ${cover:-0} | $(($(date +%s) - started)) |"
    if [ "$code" -ne 0 ] || [ "${done:-0}" -lt "$runs" ]; then
        failed="$failed $target"
        tail -n 40 "$log" >&2
        echo "guided: $target ended with code $code after ${done:-fewer than $runs} inputs; again:" >&2
        echo "    METASTORE_FUZZ_TARGET=$target $dir/$host/release/guided $failures/crash-..." >&2
    fi
done
if [ -n "$failed" ]; then
    echo "guided: failed:$failed" >&2
    exit 1
fi
