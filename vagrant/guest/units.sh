#!/usr/bin/env bash
# Units of systemd join the mesh and leave it: an instance of a template, one by its alias, one
# whose drop-in was changed since, and those that may not. Leaves nothing behind.
#
# usage: units.sh, as root on a node of the demo.
set -euo pipefail

etc=/etc/systemd/system
unit=demo@5000.service

fail() {
    printf 'units: %s\n' "$*" >&2
    exit 1
}

slice_of() { systemctl show --property Slice --value "$1"; }

# refused WORDS COMMAND...: the command fails and says these words.
refused() {
    local words=$1 said
    shift
    said=$("$@" 2>&1) && fail "$*: expected a failure, saw: $said"
    [[ $said == *"$words"* ]] || fail "$*: expected '$words', saw: $said"
}

left_nothing() { [ ! -e "$etc/$1.d" ] || fail "$etc/$1.d is still there"; }

[ "$(slice_of "$unit")" = system-demo.slice ] || fail "$unit is in $(slice_of "$unit")"
moactl mesh join "$unit"
[ "$(slice_of "$unit")" = moa-mesh.slice ] || fail "joined, $unit is in $(slice_of "$unit")"
moactl mesh leave "$unit"
[ "$(slice_of "$unit")" = system-demo.slice ] || fail "left, $unit is in $(slice_of "$unit")"
left_nothing "$unit"

systemctl set-property --runtime system-demo.slice MemoryHigh=8G
refused "--cgroup /system.slice/system-demo.slice/$unit" moactl mesh join "$unit"
systemctl revert system-demo.slice
refused "part of MOA Interceptor" moactl mesh join moa-opsd

ln -s caller.service "$etc/asker.service"
systemctl daemon-reload
moactl mesh join asker
[ -e "$etc/caller.service.d/50-moa-mesh.conf" ] || fail "asker: no drop-in for caller.service"
moactl mesh leave caller
left_nothing caller.service
left_nothing asker.service
rm "$etc/asker.service"

moactl mesh join caller
echo "# x" >>"$etc/caller.service.d/50-moa-mesh.conf"
refused "50-moa-mesh.conf stays" moactl mesh leave caller
moactl install status | grep -q "caller.service.d/50-moa-mesh.conf" || fail "it is forgotten"
sed -i /^Slice=/d "$etc/caller.service.d/50-moa-mesh.conf"
moactl mesh leave caller | grep -q "stays" || fail "not told that it stays"
rm "$etc/caller.service.d/50-moa-mesh.conf"
moactl mesh leave caller
left_nothing caller.service
systemctl daemon-reload
echo "units: passed"
