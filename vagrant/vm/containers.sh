#!/usr/bin/env bash
# `make test-systemd`: the machines of the Vagrantfile as containers with systemd as process 1,
# the same scripts in them and the same demo, in minutes without KVM. The kernel is this one.
#
# usage: containers.sh, as root. All of it runs in namespaces of its own (processes, mounts,
# network), and whatever ends this script ends all of it; only its cgroups are the machine's,
# and they are removed. The transcript is in build/test-systemd.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=vagrant/vm/common.sh
source vagrant/vm/common.sh
# shellcheck source=.ci/debian-packages.sh
source .ci/debian-packages.sh

work=$PWD/build/systemd
log=$PWD/build/test-systemd.log
id=moa-systemd-$$
cgroups=$(findmnt --noheadings --types cgroup2 --output TARGET | head -n 1)
pid=

packages=(
    bpftool ca-certificates dbus iproute2 iputils-ping kmod libbpf1 netbase nftables procps
    python3 redis-server redis-tools sudo systemd-sysv
)
masked=(
    apt-daily.timer apt-daily-upgrade.timer console-getty.service dpkg-db-backup.timer
    e2scrub_all.timer e2scrub_reap.service fstrim.timer redis-server.service
)

# Debian's userland, good for a week.
make_root() {
    local unit stamp
    stamp=$work/root-$(sha256sum vagrant/vm/containers.sh | cut -c -16)
    [ -z "$(find "$stamp" -mtime -7 2>/dev/null)" ] || return 0
    rm -rf "$work"
    mkdir -p "$work"
    # A TMPDIR that is not there in the chroot ends mmdebstrap without a word.
    env -u TMPDIR mmdebstrap --quiet --mode=root --variant=apt \
        --include="$(printf '%s,' "${packages[@]}")" --aptopt='APT::Install-Recommends "false"' \
        bookworm "$work/root" "$(debian_mirror)"
    for unit in "${masked[@]}"; do
        ln -sf /dev/null "$work/root/etc/systemd/system/$unit"
    done
    : >"$work/root/etc/machine-id"
    touch "$stamp"
}

end_containers() {
    if [ -n "$pid" ]; then
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    rm -rf "$work/layers"
    for ((i = 0; i < 50; i++)); do
        find "$cgroups/$id" -depth -type d -exec rmdir {} + 2>/dev/null || true
        [ -d "$cgroups/$id" ] || return 0
        sleep 0.1 # a cgroup is busy for a moment after its last process
    done
    fail "$cgroups/$id is still in use"
}

[ "$(id -u)" = 0 ] || fail "needs root, for namespaces"
[ -n "$cgroups" ] || fail "no cgroup2 is mounted"
mkdir -p build
exec > >(tee "$log") 2>&1
require_package
.ci/need.sh iproute2 mmdebstrap util-linux
make_root
trap end_containers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$cgroups/$id"
unshare --pid --fork --kill-child --mount-proc --mount --net --propagation private \
    vagrant/vm/containers-inside.sh "$work" "$cgroups/$id" &
pid=$!
wait "$pid" || fail "failed"
pid=
printf 'test-systemd: passed, %s s\n' "$SECONDS"
