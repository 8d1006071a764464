#!/usr/bin/env bash
# What the unit `caller` runs: it calls whom ask.sh names, from the cgroup that the unit is in.
set -euo pipefail

exec 3<>/moa/ask
while read -r host calls <&3; do
    /vagrant/guest/caller.sh "$host" "$calls" >/moa/answers.new
    mv /moa/answers.new /moa/answers
done
