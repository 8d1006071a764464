#!/usr/bin/env bash
# Runs in a machine of ../vm/kernels.sh: the trial, its results onto the third disk, and off.
set -u

results=/tmp/results

finish() {
    tar -C "$results" -cf /dev/vdc .
    sync
    systemctl poweroff --force --force
}

trap finish EXIT
mkdir "$results"
bash /mnt/kernel.sh /mnt/moa.deb "$results"
