#!/usr/bin/env bash
# Try MOA Interceptor with the kernel that runs: doctor, selftest, install, purge.
#
# usage: kernel.sh PACKAGE.deb RESULTS [AFTER]. Each command's output is a file in RESULTS, and
# AFTER is called after each; nothing that fails ends this, as it is the product.
set -u

package=$1 results=$2 after=${3:-true}

try() {
    local name=$1
    shift
    "$@" >"$results/$name" 2>"$results/$name.err"
    printf "%s %s\n" "$name" "$?" >>"$results/exit-codes"
    tail -n 1 "$results/exit-codes" >/dev/console
    "$after"
}

there() {
    find /sys/fs/bpf /opt/moa /etc/moa /var/lib/moa /run/moa -mindepth 1 2>/dev/null | sort
}

uname -r >"$results/kernel"
there >"$results/before"
try dpkg dpkg --install "$package"
try doctor-pre.json moactl doctor --pre -o json
try selftest.json moactl selftest -o json
# Emulated, an agent starts slowly.
printf '[ops]\nstart_s = 900\nsilent_s = 900\nadopt_s = 600\n' >/tmp/agent.toml
try install sh -c "moactl -c /tmp/agent.toml install --yes || moactl -c /tmp/agent.toml install --yes"
try doctor.json moactl doctor -o json
try status.json moactl status -o json
try journal journalctl --no-pager --lines 60 --unit 'moa-*'
try purge dpkg --purge moa-interceptor
there | comm -13 "$results/before" - >"$results/left"
