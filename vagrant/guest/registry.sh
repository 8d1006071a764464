#!/usr/bin/env bash
# Make this guest the registry: a Redis for the private network. usage: registry.sh ADDRESS
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source /vagrant/guest/common.sh

name_this registry
need_packages redis-server redis-tools
# The last one counts. A registry of a test needs nothing on the disk.
printf 'bind %s 127.0.0.1\nprotected-mode no\nsave ""\n' "$1" >/etc/redis/moa.conf
grep -qx 'include /etc/redis/moa.conf' /etc/redis/redis.conf ||
    echo 'include /etc/redis/moa.conf' >>/etc/redis/redis.conf
systemctl unmask --quiet redis-server
systemctl enable --quiet redis-server
systemctl restart redis-server
