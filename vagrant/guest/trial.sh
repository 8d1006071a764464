#!/usr/bin/env bash
# Runs in a machine of ../vm/kernels.sh: the trial, its results onto the third disk, and off.
set -u

results=/tmp/results

# Also of a trial that does not come to its end.
save() {
    tar -C "$results" -cf /dev/vdc .
    sync
}

export -f save
export results
mkdir "$results"
bash /mnt/kernel.sh /mnt/moa.deb "$results" save
save
systemctl poweroff --force --force
