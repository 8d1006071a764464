#!/usr/bin/env bash
# Try the package with Debian's stock kernels, one machine each, all at once, as root.
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
within_s=3600
pids=()

end_machines() {
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    rm -rf "${scratch:-}"
}

# A disk with the package and the scripts, and one for each that results are written to as a tar.
make_disks() {
    local suite
    mkdir -p "$scratch/in"
    cp dist/moa-interceptor_*.deb "$scratch/in/moa.deb"
    cp vagrant/guest/{kernel,trial}.sh "$scratch/in/"
    truncate -s 64M "$scratch/in.img"
    mke2fs -q -t ext4 -d "$scratch/in" "$scratch/in.img"
    for suite in "${suites[@]}"; do
        truncate -s 16M "$scratch/$suite.img"
    done
}

# The trial is a unit of its own: the one of systemd.run ends when units are read again.
boot() {
    local suite=$1 script
    script='mount -o ro /dev/vdb /mnt && systemd-run --quiet --unit=trial bash /mnt/trial.sh'
    timeout "$within_s" qemu-system-x86_64 "${accelerator[@]}" -m 1024 -nographic -no-reboot -nic none \
        -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
        -kernel "$work/boot/$suite/vmlinuz" -initrd "$work/boot/$suite/initrd.img" \
        -append "$(sed 's/ quiet / /' "$work/boot/cmdline") systemd.run_success_action=none systemd.run_failure_action=poweroff \"systemd.run=/bin/bash -c '$script'\"" \
        -drive "file=$scratch/box.img,if=virtio,snapshot=on" \
        -drive "file=$scratch/in.img,if=virtio,format=raw,readonly=on" \
        -drive "file=$scratch/$suite.img,if=virtio,format=raw" \
        </dev/null >"$out/$suite.console" 2>&1 &
    pids+=($!)
}

[ "$(id -u)" = 0 ] || fail "needs root, to build the box"
require_package
vagrant/vm/packages.sh
make_box
scratch=$(mktemp -d "$work/kernels.XXXXXX")
trap end_machines EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# QEMU 7.2 emulates cmpxchg16b so that Linux 6.12 loses its flags, and panics at boot.
accelerator=(-accel tcg -cpu "max,-cx16")
if kvm_works; then
    accelerator=(-accel kvm -cpu host)
fi
tar -C "$scratch" -xf "$box" box.img
mkdir -p "$out"
make_disks
for suite in "${suites[@]}"; do
    rm -rf "${out:?}/$suite"
    mkdir "$out/$suite"
    boot "$suite"
done
for i in "${!suites[@]}"; do
    suite=${suites[i]}
    wait "${pids[i]}" || printf 'kernels: the machine with the kernel of %s ended with %s:\n%s\n' \
        "$suite" $? "$(tail -n 5 "$out/$suite.console")"
    tar -C "$out/$suite" -xf "$scratch/$suite.img"
    printf 'kernels: %s: %s: %s\n' "$suite" "$(cat "$out/$suite/kernel")" \
        "$(tr '\n' ' ' <"$out/$suite/exit-codes")"
done
pids=()
