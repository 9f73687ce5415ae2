#!/bin/sh
# Starts a fresh cluster of one and then of three nodes on this machine, with
# data in a temporary directory, loads each with the program of
# examples/load.rs, and stops it. Arguments: the programs metastore and load.
# SECONDS_EACH (5), KEYS (20000) and VALUE_SIZE (256) may be set.
set -eu
metastore=$1
load=$2
seconds=${SECONDS_EACH:-5}
dir=$(mktemp -d)
pids=

stop() {
    # Those that ended by themselves are gone as well.
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do wait "$pid" || true; done
    pids=
}
trap 'stop; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM

peer_url() { echo "http://127.0.0.1:$((23790 + $1))"; }
client_url() { echo "http://127.0.0.1:$((23890 + $1))"; }

list() { # kind size
    all=
    for id in $(seq "$2"); do all="$all,$("$1" "$id")"; done
    echo "${all#,}"
}

start() { # size
    for id in $(seq "$1"); do
        "$metastore" --id "$id" --cluster "$(list peer_url "$1")" --port $((23890 + id)) \
            --data-dir "$dir/$1" 2>"$dir/log-$1-$id" &
        pids="$pids $!"
    done
    for id in $(seq "$1"); do
        tries=0
        until curl -sf -m 5 "$(client_url "$id")/-/readyz" >/dev/null; do
            tries=$((tries + 1))
            if [ "$tries" -gt 100 ]; then
                echo "bench: node $id of $1 is not ready; its log:" >&2
                cat "$dir/log-$1-$id" >&2
                exit 1
            fi
            sleep 0.1
        done
    done
}

for size in 1 3; do
    start "$size"
    for workload in put get stale-get; do
        for clients in 1 256; do
            echo "== nodes: $size, workload: $workload, clients: $clients"
            "$load" --endpoints "$(list client_url "$size")" --workload "$workload" \
                --clients "$clients" --seconds "$seconds" \
                --keys "${KEYS:-20000}" --value-size "${VALUE_SIZE:-256}"
        done
    done
    stop
done
