#!/usr/bin/env bash
# The VM test in namespaces of its own: libvirt -> vagrant up -> demo -> destroy.
#
# usage: inside.sh WORK SUITE KVM, by test.sh alone, as process 1 of a pid namespace, with a
# mount and a network namespace; when it ends the kernel ends every other process in there.
set -euo pipefail

work=$1 suite=$2 kvm=$3
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
export LIBVIRT_DEFAULT_URI=qemu:///system
export VAGRANT_HOME=$work/home VAGRANT_DOTFILE_PATH=$work/dot VAGRANT_CWD=$here/..
export VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_BOX_UPDATE_CHECK_DISABLE=1 VAGRANT_NO_COLOR=1
export MOA_VM_BOOT=$work/boot/$suite

say() { printf '\n##### [%s s] %s\n' "$SECONDS" "$*"; }

# The machine's own libvirt, if it has one, is neither seen nor changed.
hide_libvirt() {
    local directory
    for directory in /etc/libvirt /run/libvirt /var/cache/libvirt /var/lib/libvirt /var/log/libvirt; do
        mkdir -p "$directory"
        mount -t tmpfs -o mode=755 moa-vm "$directory"
    done
    # Root, as the disks may lie where nobody else can read. No cgroups and no namespaces of
    # its own: there is no systemd here to ask for them, and /dev/kvm may be hidden.
    cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
namespaces = []
cgroup_controllers = []
max_core = 0
CONF
    cat >/etc/libvirt/libvirtd.conf <<'CONF'
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
CONF
}

# A /dev/kvm that opens and cannot run a kernel makes libvirt probe QEMU at each look-up.
hide_kvm() {
    [ -e /dev/kvm ] || return 0
    : >"$work/no-kvm"
    mount --bind "$work/no-kvm" /dev/kvm
}

start_libvirt() {
    ip link set lo up
    echo 1 >/proc/sys/net/ipv4/ip_forward
    virtlogd -d
    libvirtd -d
    timeout 60 sh -c 'until virsh version >/dev/null 2>&1; do sleep 0.2; done' || {
        cat /var/log/libvirt/libvirtd.log
        exit 1
    }
    mkdir -p "$work/pool"
    virsh -q pool-define-as default dir --target "$work/pool"
    virsh -q pool-start default
}

# Also of a node on which the installation failed: then it says why.
doctor() {
    say "moactl doctor on node-a"
    vagrant ssh-config node-a >"$work/ssh"
    ssh -n -F "$work/ssh" node-a "uname -r; sudo moactl doctor" || true
}

forget_guests() {
    rm -rf "$work/pool" "$work/dot"
}

trap forget_guests EXIT
trap 'exit 143' TERM INT
forget_guests
hide_libvirt
if [ "$kvm" = yes ]; then
    export MOA_VM_DRIVER=kvm
else
    export MOA_VM_DRIVER=qemu MOA_DEMO_CALLS=8 MOA_DEMO_WITHIN_S=300
    hide_kvm
fi
start_libvirt

say "vagrant up, kernel of $suite"
up=yes
vagrant up --no-tty --provider=libvirt || up=no
doctor
[ "$up" = yes ] || exit 1
say "demo.sh"
"$here/../demo.sh"
say "vagrant destroy"
vagrant destroy --force
say "done"
