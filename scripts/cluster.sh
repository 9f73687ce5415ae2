#!/bin/sh
# Starts the processes of the Procfile, or only those named as arguments, puts
# their names before their output, and stops them on Ctrl-C or SIGTERM.
# The process ids are in data/cluster/NAME.pid while they run.
set -eu
cd "$(dirname "$0")/.."

pid_dir=data/cluster
mkdir -p "$pid_dir"
started=

stop() {
    trap '' INT TERM
    for name in $started; do
        # One that has stopped by itself is as well.
        { read -r pid < "$pid_dir/$name.pid" && kill -TERM "$pid"; } 2>/dev/null || true
    done
}
trap stop INT TERM

# Goes on until the last line of the process, whatever signals the group gets.
prefix() {
    trap '' INT TERM
    while IFS= read -r line; do printf '%s | %s\n' "$1" "$line"; done
}

# The shell's own id is the program's, because every command begins with exec.
start() {
    started="$started $1"
    rm -f "$pid_dir/$1.pid"
    sh -c "echo \$\$ > '$pid_dir/$1.pid'; $2" 2>&1 | prefix "$1" &
}

while IFS= read -r line; do
    name=${line%%:*}
    case $line in
        '#'* | '') continue ;;
    esac
    case " ${*:-$name} " in
        *" $name "*) start "$name" "${line#*: }" ;;
    esac
done < Procfile

if [ -z "$started" ]; then
    echo "cluster: no process of the Procfile is called $*" >&2
    exit 1
fi
# A signal ends the first wait; the second lasts until everything has stopped.
wait || true
wait
for name in $started; do rm -f "$pid_dir/$name.pid"; done
