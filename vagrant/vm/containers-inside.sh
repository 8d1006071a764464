#!/usr/bin/env bash
# The containers of containers.sh, as process 1 of its namespaces: up, then units
# that join and leave, then the demo.
#
# usage: containers-inside.sh WORK CGROUP
set -euo pipefail

work=$1 cgroup=$2
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
top=$(realpath "$here/../..")
declare -A addresses=([registry]=192.168.56.10 [node-a]=192.168.56.11 [node-b]=192.168.56.12)

say() { printf '\n##### [%s s] %s\n' "$SECONDS" "$*"; }

# What systemd needs below its root, and then systemd; runs in the container's namespaces.
boot() {
    local name=$1 layers=$work/layers/$1
    mkdir -p "$layers/new" "$layers/work" "$layers/root"
    mount -t overlay overlay \
        -o "lowerdir=$work/root,upperdir=$layers/new,workdir=$layers/work" "$layers/root"
    cd "$layers/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t bpf bpf sys/fs/bpf
    mount -t tmpfs -o mode=755 tmpfs dev
    mount -t tmpfs -o mode=755 tmpfs run
    # Nodes of its own: systemd changes the modes of some.
    mknod -m 666 dev/null c 1 3
    mknod -m 666 dev/zero c 1 5
    mknod -m 666 dev/full c 1 7
    mknod -m 666 dev/random c 1 8
    mknod -m 666 dev/urandom c 1 9
    mknod -m 666 dev/tty c 5 0
    mknod -m 666 dev/console c 1 3
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    mkdir -p vagrant moa/dist moa/samples old
    cp -a "$top"/vagrant/{demo.sh,guest} vagrant/
    cp "$top"/dist/moa-interceptor_*.deb moa/dist/
    cp -a "$top"/tests/samples/. moa/samples/
    hostname "$name"
    echo "$name" >etc/hostname
    echo "127.0.0.1 localhost $name" >etc/hosts
    pivot_root . old
    umount -l /old
    rmdir /old
    exec env -i container=moa PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init
}

start() {
    local name=$1
    mkdir "$cgroup/$name"
    ip netns add "$name"
    ip link add "$name" type veth peer name eth1 netns "$name"
    ip link set "$name" master bridge up
    ip -n "$name" addr add "${addresses[$name]}/24" dev eth1
    ip -n "$name" link set eth1 up
    ip -n "$name" link set lo up
    (
        echo "$BASHPID" >"$cgroup/$name/cgroup.procs"
        exec ip netns exec "$name" unshare --mount --propagation private --pid --fork --uts --ipc \
            --cgroup --kill-child "$0" "$work" "$cgroup" boot "$name"
    ) >"$work/layers/$name.log" 2>&1 &
    echo $! >"$work/layers/$name.pid"
}

# For demo.sh: `ssh -n -F FILE MACHINE WORD...` and `vagrant ssh-config`.
make_commands() {
    mkdir -p "$work/layers/bin"
    cat >"$work/layers/bin/ssh" <<SSH
#!/bin/bash
shift 3
name=\$1
shift
init=\$(pgrep -P "\$(cat "$work/layers/\$name.pid")" | head -n 1)
exec nsenter -t "\$init" -m -u -i -n -p -C -r -w \\
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \\
    sh -c "\$*" </dev/null
SSH
    printf '#!/bin/sh\n' >"$work/layers/bin/vagrant"
    chmod +x "$work"/layers/bin/*
    export PATH=$work/layers/bin:$PATH
}

is_up() { ssh -n -F - "$1" systemctl is-system-running 2>/dev/null | grep -Eqx 'running|degraded'; }

if [ "${3:-}" = boot ]; then
    boot "$4"
fi
rm -rf "$work/layers"
mkdir -p "$work/layers"
mount -t tmpfs tmpfs /run
make_commands
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
say "systemd in three containers"
for name in "${!addresses[@]}"; do
    start "$name"
done
for name in "${!addresses[@]}"; do
    for ((i = 0; i < 300; i++)); do
        is_up "$name" && break
        [ $i -lt 299 ] || {
            cat "$work/layers/$name.log"
            exit 1
        }
        sleep 0.2
    done
done
ssh -n -F - registry /vagrant/guest/registry.sh "${addresses[registry]}"
for name in node-a node-b; do
    ssh -n -F - "$name" /vagrant/guest/node.sh "$name" "${addresses[$name]}" "${addresses[registry]}"
done
say "units join and leave"
ssh -n -F - node-a /vagrant/guest/units.sh
say "demo.sh"
"$top/vagrant/demo.sh"
say "done"
