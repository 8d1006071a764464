#!/usr/bin/env bash
# Try the package with Debian's stock kernels, one machine each, as root.
#
# usage: kernels.sh OUT [SUITE...]. What each kernel did is in OUT/<suite>/
# (../guest/kernel.sh). The machines have no network; ours are the box's disk, unchanged, and
# direct kernel boot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=vagrant/vm/common.sh
source vagrant/vm/common.sh

out=$(realpath -m "$1")
shift
suites=("$@")
[ $# -gt 0 ] || suites=(bullseye bookworm bookworm-backports)
within_s=2400
pid=

end_machine() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    rm -rf "${scratch:-}"
}

# A disk with the package and the script, and one that results are written to as a tar.
make_disks() {
    mkdir -p "$scratch/in"
    cp dist/moa-interceptor_*.deb "$scratch/in/moa.deb"
    cp vagrant/guest/kernel.sh "$scratch/in/"
    rm -f "$scratch/in.img"
    truncate -s 64M "$scratch/in.img"
    mke2fs -q -t ext4 -d "$scratch/in" "$scratch/in.img"
    truncate -s 16M "$scratch/out.img"
}

boot() {
    local suite=$1 script
    script='mount -o ro /dev/vdb /mnt; mkdir /tmp/r; bash /mnt/kernel.sh /mnt/moa.deb /tmp/r; tar -C /tmp/r -cf /dev/vdc .; sync'
    timeout "$within_s" qemu-system-x86_64 "${accelerator[@]}" -m 1024 -nographic -no-reboot -nic none \
        -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
        -kernel "$work/boot/$suite/vmlinuz" -initrd "$work/boot/$suite/initrd.img" \
        -append "$(sed 's/ quiet / /' "$work/boot/cmdline") systemd.run_success_action=poweroff systemd.run_failure_action=poweroff \"systemd.run=/bin/bash -c '$script'\"" \
        -drive "file=$scratch/box.img,if=virtio,snapshot=on" \
        -drive "file=$scratch/in.img,if=virtio,format=raw" \
        -drive "file=$scratch/out.img,if=virtio,format=raw" \
        </dev/null >"$out/$suite.console" 2>&1 &
    pid=$!
    wait "$pid" || fail "the machine with the kernel of $suite ended with $?: $(tail -n 5 "$out/$suite.console")"
    pid=
}

[ "$(id -u)" = 0 ] || fail "needs root, to build the box"
require_package
vagrant/vm/packages.sh
make_box
scratch=$(mktemp -d "$work/kernels.XXXXXX")
trap end_machine EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# QEMU 7.2 emulates cmpxchg16b so that Linux 6.12 loses its flags, and panics at boot.
accelerator=(-accel tcg -cpu "max,-cx16")
if kvm_works; then
    accelerator=(-accel kvm -cpu host)
fi
tar -C "$scratch" -xf "$box" box.img
mkdir -p "$out"
for suite in "${suites[@]}"; do
    rm -rf "${out:?}/$suite"
    mkdir "$out/$suite"
    make_disks
    boot "$suite"
    tar -C "$out/$suite" -xf "$scratch/out.img"
    printf 'kernels: %s: %s: %s\n' "$suite" "$(cat "$out/$suite/kernel")" \
        "$(tr '\n' ' ' <"$out/$suite/exit-codes")"
done
