#!/bin/sh
# Installs the clients that tests/clients.rs runs, into the directory given:
# a Python one in a virtual environment and a Node one. Etcdctl is a package of
# the system. What is there already stays.
set -eu

if [ $# -ne 1 ]; then
    echo "usage: install.sh DIRECTORY" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
if ! cmp -s "$here/requirements.txt" requirements.txt; then
    python3 -m venv python
    python/bin/pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" requirements.txt
fi
if [ ! -d node_modules/etcd3 ] || ! cmp -s "$here/package.json" package.json; then
    cp "$here/package.json" package.json
    npm install --silent --no-audit --no-fund
fi
cp "$here/client.py" "$here/client.js" .
