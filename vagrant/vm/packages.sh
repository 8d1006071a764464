#!/usr/bin/env bash
# Install what building a box and running virtual machines takes, as root; only what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source-path=SCRIPTDIR/../..
source .ci/debian-packages.sh

packages=(
    dnsmasq-base e2fsprogs fdisk grub-common grub-pc-bin iproute2 libvirt-clients
    libvirt-daemon-system mmdebstrap openssh-client qemu-system-x86 qemu-utils rsync slirp4netns
    vagrant vagrant-libvirt zstd
)
# Those of the system's own libvirt, which the test never uses.
daemons=(
    libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
    libvirt-guests.service virtlogd.socket virtlogd-admin.socket virtlockd.socket
    virtlockd-admin.socket
)

mapfile -t missing < <(missing_debian "${packages[@]}")
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
    printf 'vm: missing Debian packages: %s; run this as root\n' "${missing[*]}" >&2
    exit 1
fi
printf 'vm: installing Debian packages: %s\n' "${missing[*]}"
[[ " ${missing[*]} " == *" libvirt-daemon-system "* ]] || daemons=()
install_debian "${missing[@]}" -- "${daemons[@]}"
