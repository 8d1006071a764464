#!/usr/bin/env bash
# Call /service/demo with redis-cli, over a new connection each time, and print who answered.
#
# usage: caller.sh HOST CALLS [mesh]
#
# With `mesh` it runs as a unit in the mesh's slice; nothing else is different.
set -euo pipefail

host=$1 calls=$2
if [ "${3:-}" = mesh ]; then
    exec systemd-run --quiet --wait --pipe --collect --slice=moa-mesh.slice "$0" "$host" "$calls"
fi

request='{"action":"/service/demo","params":{"m":"whoami","args":[]}}'
for ((i = 0; i < calls; i++)); do
    reply=$(timeout 20 redis-cli -h "$host" -p 5000 GET "$request" 2>&1 | tr -d '\n') || true
    who=$(sed -n 's/.*"ec": *200.*"name": *"\([^"]*\)".*/\1/p' <<<"$reply")
    printf '%s\n' "${who:-failed: ${reply:-no reply within 20 s}}"
done
