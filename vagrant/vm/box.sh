#!/usr/bin/env bash
# Build a base box for vagrant-libvirt out of Debian packages alone, as root.
#
# usage: box.sh OUT.box [SUITE...]
#
# The box is Debian 12 with its own kernel. Each further SUITE (bullseye, bookworm-backports)
# adds that suite's stock kernel. Every kernel and its initrd is also laid into
# boot/<suite>/ beside the box, for direct kernel boot, with boot/cmdline.
#
# No loop device, no mount, no boot loader run in a chroot: the file system is written by
# mke2fs from a directory, the boot loader's two pieces by dd.
set -euo pipefail
# shellcheck source=.ci/debian-packages.sh
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/../../.ci/debian-packages.sh"

out=$(realpath -m "$1")
shift
suites=("$@")
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
disk_gb=8
first_sector=2048
boot=$(dirname "$out")/boot
uuid=$(cat /proc/sys/kernel/random/uuid)
cmdline="root=UUID=$uuid ro net.ifnames=0 biosdevname=0 console=tty0 console=ttyS0,115200 quiet mitigations=off random.trust_cpu=on"

packages=(
    bpftool ca-certificates dbus ifupdown initramfs-tools iproute2 iputils-ping
    isc-dhcp-client kmod less linux-image-cloud-amd64 netbase openssh-server procps python3 rsync
    sudo systemd-sysv udev zstd
    # What the demo installs elsewhere: apt takes minutes in an emulated machine.
    libbpf1 redis-server redis-tools
)
masked=(
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer
    e2scrub_reap.service fstrim.timer getty@tty1.service redis-server.service
)

say() { printf 'box: [%s s] %s\n' "$SECONDS" "$*"; }

joined() {
    local IFS=,
    printf '%s' "$*"
}

make_root() {
    local hooks=() suite
    for suite in "${suites[@]}"; do
        hooks+=(--customize-hook="'$here/kernel-of.sh' \"\$1\" $suite '$(debian_mirror)'")
    done
    # A TMPDIR that is not there in the chroot ends mmdebstrap without a word.
    unset TMPDIR
    # shellcheck disable=SC2016 # mmdebstrap's $1
    mmdebstrap --quiet --mode=root --variant=apt --include="$(joined "${packages[@]}")" \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"' \
        --essential-hook='echo MODULES=most >"$1/etc/initramfs-tools/conf.d/box.conf"' \
        "${hooks[@]}" bookworm "$root" "$(debian_mirror)"
}

# What Vagrant expects of a box: the user vagrant, its well-known key, sudo, and one device
# that asks for an address.
configure() {
    local unit key
    for key in /usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub; do :; done
    chroot "$root" useradd --create-home --shell /bin/bash vagrant
    install -d -m 700 "$root/home/vagrant/.ssh"
    install -m 600 "$key" "$root/home/vagrant/.ssh/authorized_keys"
    chroot "$root" chown -R vagrant:vagrant /home/vagrant
    echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
    chmod 440 "$root/etc/sudoers.d/vagrant"
    echo bookworm >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 bookworm\n' >"$root/etc/hosts"
    cat >"$root/etc/network/interfaces" <<'INTERFACES'
auto lo
iface lo inet loopback

allow-hotplug eth0
iface eth0 inet dhcp

source /etc/network/interfaces.d/*
INTERFACES
    echo "UUID=$uuid / ext4 defaults,noatime 0 1" >"$root/etc/fstab"
    printf 'UseDNS no\nGSSAPIAuthentication no\n' >"$root/etc/ssh/sshd_config.d/box.conf"
    : >"$root/etc/machine-id"
    for unit in "${masked[@]}"; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    trust_what_we_trust
    rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb \
        "$root"/var/lib/apt/lists/*
}

# A mirror may stand behind a proxy with a certificate of its own.
trust_what_we_trust() {
    local certificate found=
    for certificate in /usr/local/share/ca-certificates/*.crt; do
        [ -e "$certificate" ] || continue
        cp "$certificate" "$root/usr/local/share/ca-certificates/"
        found=yes
    done
    [ -z "$found" ] || chroot "$root" update-ca-certificates >/dev/null 2>&1
}

# boot/<suite>/{vmlinuz,initrd.img}; the suite of each kernel was noted when it was installed.
lay_out_kernels() {
    local suite version
    rm -rf "$boot"
    mkdir -p "$boot"
    find "$root/boot" -name 'vmlinuz-*' -printf '%f\n' | sed 's/^vmlinuz-//' >"$work/versions"
    for suite in "${suites[@]}"; do
        version=$(cat "$root/boot/kernel-of-$suite")
        keep_kernel "$suite" "$version"
        sed -i "/^$version\$/d" "$work/versions"
        rm "$root/boot/kernel-of-$suite"
    done
    version=$(cat "$work/versions")
    keep_kernel bookworm "$version"
    printf '%s\n' "$cmdline" >"$boot/cmdline"
    mkdir -p "$root/boot/grub"
    cat >"$root/boot/grub/grub.cfg" <<GRUB
set timeout=0
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
linux /boot/vmlinuz-$version $cmdline
initrd /boot/initrd.img-$version
boot
GRUB
}

keep_kernel() {
    mkdir "$boot/$1"
    cp "$root/boot/vmlinuz-$2" "$boot/$1/vmlinuz"
    cp "$root/boot/initrd.img-$2" "$boot/$1/initrd.img"
    say "kernel of $1: $2"
}

make_disk() {
    local raw=$work/disk.raw
    truncate -s "${disk_gb}G" "$raw"
    echo "$first_sector,,83,*" | sfdisk --quiet "$raw"
    mke2fs -q -t ext4 -U "$uuid" -L root -m 0 \
        -E "offset=$((first_sector * 512)),lazy_itable_init=1,lazy_journal_init=1" \
        -d "$root" "$raw" "$(((disk_gb * 1024 - 1) * 1024))k"
    grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" \
        biosdisk part_msdos ext2 normal linux boot echo serial terminal
    dd if=/usr/lib/grub/i386-pc/boot.img of="$raw" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$raw" bs=512 seek=1 conv=notrunc status=none
    qemu-img convert -m 2 -W -O qcow2 -c -o compression_type=zstd "$raw" "$work/box.img"
    rm "$raw"
}

# What this kind of machine needs stands here, and the user's Vagrantfile stays ordinary.
pack() {
    printf '{"provider":"libvirt","format":"qcow2","virtual_size":%s}\n' "$disk_gb" \
        >"$work/metadata.json"
    cp "$here/box.Vagrantfile" "$work/Vagrantfile"
    tar -C "$work" -cf "$out" metadata.json Vagrantfile box.img
}

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$(dirname "$out")/box.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
root=$work/root

make_root
say "root file system: $(du -sm "$root" | cut -f1) MB"
configure
lay_out_kernels
make_disk
pack
say "$out: $(du -m "$out" | cut -f1) MB"
