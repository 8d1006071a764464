#!/usr/bin/env bash
# Try MOA Interceptor with the kernel that runs: install, doctor, selftest, purge.
#
# usage: kernel.sh PACKAGE.deb RESULTS. Each command's output is a file in RESULTS; nothing
# that fails ends this, as it is the product.
set -u

package=$1 results=$2

try() {
    local name=$1
    shift
    "$@" >"$results/$name" 2>"$results/$name.err"
    printf "%s %s\n" "$name" "$?" >>"$results/exit-codes"
    tail -n 1 "$results/exit-codes" >/dev/console
}

there() {
    find /sys/fs/bpf /opt/moa /etc/moa /var/lib/moa /run/moa -mindepth 1 2>/dev/null | sort
}

uname -r >"$results/kernel"
there >"$results/before"
try dpkg dpkg --install "$package"
try doctor-pre.json moactl doctor --pre -o json
# Emulated, an agent may start slower than the installer waits; the next run ends it.
try install sh -c "moactl install --yes || moactl install --yes"
try doctor.json moactl doctor -o json
try status.json moactl status -o json
try selftest.json moactl selftest -o json
try journal journalctl --no-pager --lines 60 --unit 'moa-*'
try purge dpkg --purge moa-interceptor
there | comm -13 "$results/before" - >"$results/left"
