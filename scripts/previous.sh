#!/bin/sh
# Builds the version of metastore to upgrade from, and says where it lies:
# previous.sh DIRECTORY [REVISION]. Without a revision it is the newest release
# and, before there is one, the commit that froze the formats. Ends with code 77
# where there is no such revision.
set -eu

dir=$1
revision=${2:-}
# The commit that froze the formats brought these.
fixtures=tests/fixtures/raft-1.state-1.protocol-1

not_run() { echo "NOT RUN: $*" >&2; exit 77; }

command -v git >/dev/null 2>&1 || not_run "there is no git to have a previous version from"
cd "$(dirname "$0")/.."
git rev-parse --git-dir >/dev/null 2>&1 || not_run "this is no git repository"
if [ -z "$revision" ]; then
    revision=$(git tag --list 'v[0-9]*' --sort=-version:refname | head -n 1)
    revision=${revision:-$(git log --format=%h -- "$fixtures" | tail -n 1)}
fi
commit=$(git rev-parse --verify --quiet "$revision^{commit}") || not_run "there is no revision $revision here"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
program=$dir/$commit/metastore
if [ ! -x "$program" ]; then
    echo "previous: building $revision" >&2
    rm -rf "$dir/source"
    mkdir -p "$dir/source" "$dir/$commit"
    git archive "$commit" | tar -x -C "$dir/source"
    # One target directory for all of them, so that RocksDB is compiled once.
    CARGO_TARGET_DIR=$dir/target cargo build --quiet --manifest-path "$dir/source/Cargo.toml" \
        --package metastore --bin metastore >&2
    cp "$dir/target/debug/metastore" "$program.new"
    mv "$program.new" "$program"
    rm -rf "$dir/source"
fi
ln -sf "$commit/metastore" "$dir/metastore"
echo "$program"
