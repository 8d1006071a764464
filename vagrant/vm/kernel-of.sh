#!/usr/bin/env bash
# Add the stock kernel of another Debian suite to a root file system; a hook of mmdebstrap.
#
# usage: kernel-of.sh ROOT SUITE MIRROR
#
# Writes the kernel's version to ROOT/boot/kernel-of-SUITE.
set -euo pipefail

root=$1 suite=$2 mirror=$3
list=$root/etc/apt/sources.list.d/kernel.list
pin=$root/etc/apt/preferences.d/kernel

printf 'deb %s %s main\n' "$mirror" "$suite" >"$list"
# Nothing else comes from there, unless it is asked for by name and version.
printf 'Package: *\nPin: release n=%s*\nPin-Priority: 1\n' "$suite" >"$pin"
chroot "$root" apt-get -qq -o Acquire::Check-Valid-Until=false update
offer=$(chroot "$root" apt-cache madison linux-image-cloud-amd64 |
    awk -F ' *[|] *' -v suite="$suite/main" '{ split($3, where, " ") } where[2] == suite { print $2; exit }')
[ -n "$offer" ] || {
    printf 'kernel-of: %s has no linux-image-cloud-amd64\n' "$suite" >&2
    exit 1
}
image=$(chroot "$root" apt-cache show "linux-image-cloud-amd64=$offer" |
    sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes \
    --no-install-recommends "$image=$offer" >/dev/null
printf '%s\n' "${image#linux-image-}" >"$root/boot/kernel-of-$suite"
rm "$list" "$pin"
