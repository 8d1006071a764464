# shellcheck shell=bash
# The box, and whether KVM works here: what test.sh and kernels.sh share. Sourced, from the
# top of the repository.

work=$PWD/build/vm
box=$work/moa.box

fail() {
    printf 'vm: %s\n' "$*" >&2
    exit 1
}

require_package() {
    [ -n "$(find dist -name 'moa-interceptor_*.deb' 2>/dev/null)" ] ||
        fail "no package in dist/: make package"
}

# A box is good until what makes it changes, or for a week, as Debian does change.
make_box() {
    local stamp
    stamp=$work/box-$(cat vagrant/vm/{box,kernel-of}.sh vagrant/vm/box.Vagrantfile | sha256sum | cut -c -16)
    [ -z "$(find "$stamp" -mtime -7 2>/dev/null)" ] || return 0
    rm -rf "$work"
    mkdir -p "$work"
    vagrant/vm/box.sh "$box" bullseye bookworm-backports
    VAGRANT_HOME=$work/home VAGRANT_CHECKPOINT_DISABLE=1 \
        vagrant box add --force --provider libvirt --name debian/bookworm64 "$box"
    touch "$stamp"
}

# The kernel's own answer counts: /dev/kvm may open and yet not run a kernel.
kvm_works() {
    [ -w /dev/kvm ] || return 1
    timeout --kill-after=1 20 qemu-system-x86_64 -accel kvm -cpu host -m 256 -display none \
        -no-reboot -serial stdio -monitor none -kernel "$work/boot/bookworm/vmlinuz" \
        -append 'console=ttyS0 panic=-1' </dev/null 2>/dev/null | grep -qm1 'Linux version'
}
