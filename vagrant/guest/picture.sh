#!/usr/bin/env bash
# Print a picture of this node, one fact a line, sorted, to be compared with another: files,
# units, programs in the kernel, pins, cgroups, links, listening sockets, users, sysctls, nft.
#
# Left out is what changes by itself, and what apt and dpkg write of every package.
set -euo pipefail

files() {
    find / -xdev \( -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache \
        -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/systemd \
        -o -path /vagrant -o -path /moa -o -path /home -o -path /root \
        -o -path /etc/ld.so.cache \) -prune -o \
        \( -type d -printf 'file %p d %m %U:%G\n' -o -printf 'file %p %y %m %U:%G %s %l\n' \)
    find /etc -type f ! -name ld.so.cache -exec sha256sum {} + | sed 's/^/content /'
    find /run -maxdepth 1 -printf 'run %p %y %m\n'
}

units() {
    systemctl list-units --all --no-legend --plain --type service,socket,timer,slice |
        awk '$1 !~ /^(session|user|run-|systemd-|ifup@|apt|dpkg|man-db)/ { print "unit", $1, $2 }'
}

# systemd's own programs have other names, and come and go with its units.
kernel() {
    # A container sees those of the whole machine.
    if ! systemd-detect-virt --quiet --container; then
        bpftool prog show | sed -n 's/.* name \(moa[^ ]*\).*/program \1/p'
        bpftool map show | sed -n 's/.* name \([^ ]*\).*/map \1/p'
    fi
    find /sys/fs/bpf -mindepth 1 -printf 'pin %p\n'
    find /sys/fs/cgroup -type d -path '*moa*' -printf 'cgroup %p\n' || true # they come and go
    ip -o link | awk '{ print "link", $2 }'
    ip rule | sed 's/^/rule /'
    ip route show table all | sed 's/^/route /'
}

rest() {
    ss -Hlntu | awk '{ print "listens", $1, $5 }'
    # Those of a session come and go with it.
    ss -Hlx | awk '$5 ~ "^/" && $5 !~ "^/run/user/" { print "listens", $1, $5 }'
    cut -d : -f 1 /etc/passwd | sed 's/^/user /'
    find /proc/sys/net /proc/sys/kernel /proc/sys/vm -type f -readable \
        ! -path '*random*' ! -name 'ns_last_pid' ! -path '*stat*' ! -name '*nr*' \
        ! -path '/proc/sys/net/ipv6/*/stable_secret' ! -path '/proc/sys/vm/compact_memory' \
        ! -name 'pty' -exec sh -c 'grep -sH . "$@" || true' sh {} + | sed 's/^/sysctl /'
    if command -v nft >/dev/null; then
        nft list ruleset | sed 's/^/nft /'
    fi
    { cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true; } |
        sed 's/^/xtables /'
}

{
    files
    units
    kernel
    rest
} | sort
