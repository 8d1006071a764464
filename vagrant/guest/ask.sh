#!/usr/bin/env bash
# Have the unit `caller` call /service/demo, and print who answered. usage: ask.sh HOST CALLS
set -euo pipefail

rm -f /moa/answers
printf '%s %s\n' "$1" "$2" >/moa/ask
timeout 300 sh -c 'until [ -e /moa/answers ]; do sleep 0.2; done'
cat /moa/answers
