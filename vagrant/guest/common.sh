# shellcheck shell=bash
# What the guests' scripts share; sourced.

# Give this guest a name. Vagrant's own way takes 40 s where machines are emulated.
name_this() {
    hostname "$1"
    echo "$1" >/etc/hostname
    grep -qw "$1" /etc/hosts || echo "127.0.1.1 $1" >>/etc/hosts
}

# Install packages from Debian; a box that has them needs no network.
need_packages() {
    dpkg-query --show "$@" >/dev/null 2>&1 && return
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@"
}
