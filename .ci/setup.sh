#!/usr/bin/env bash
# Make this checkout ready to build and test: Debian packages, the private Python
# environment in .venv, and the Node client of the end-to-end tests. Installs only what is
# missing and takes about a second when nothing is.
#
# MOA_SKIP_SYSTEM=1 leaves the system's packages alone (they are then yours to provide).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/debian-packages.sh
source .ci/debian-packages.sh

debian_packages=(
    bpftool clang clang-format curl gcc git haproxy iproute2 libbpf-dev libbpf1 libc6-dev
    libhessian-java libhiredis-dev llvm make nftables openssl php-cli php-redis protobuf-compiler
    python3-dev python3-venv redis-server redis-tools shellcheck systemd
)
daemons=(haproxy redis-server)

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

node_is_recent() {
    command -v npm >/dev/null && command -v node >/dev/null &&
        [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ]
}

missing_packages() {
    missing_debian "${debian_packages[@]}"
    node_is_recent || printf '%s\n' nodejs npm
    command -v javac >/dev/null || printf '%s\n' default-jdk-headless
}

install_packages() {
    local missing daemon new_daemons=()
    command -v dpkg-query >/dev/null ||
        fail "no dpkg-query: this is not Debian or Ubuntu; provide ${debian_packages[*]}, node >= 18, npm and javac, then run MOA_SKIP_SYSTEM=1 make setup"
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] ||
        fail "missing Debian packages: ${missing[*]}; install them as root, or run make setup as root"
    say "installing Debian packages: ${missing[*]}"
    for daemon in "${daemons[@]}"; do
        [[ " ${missing[*]} " != *" $daemon "* ]] || new_daemons+=("$daemon.service")
    done
    install_debian "${missing[@]}" -- "${new_daemons[@]}"
}

find_python() {
    local python
    # Debian's first: it is built with profile-guided optimisation, which is worth a tenth.
    for python in /usr/bin/python3 python3; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            printf '%s\n' "$python"
            return 0
        fi
    done
    return 1
}

version_of() {
    if command -v "$1" >/dev/null; then "$1" -V 2>&1; else echo "not there"; fi
}

make_venv() {
    local python stamp
    stamp=.venv/.ready-$(cat requirements-dev.lock pyproject.toml .ci/setup.sh | sha256sum | cut -c -16)
    if [ -e "$stamp" ] && .venv/bin/python -c 'import pytest' 2>/dev/null; then
        return 0
    fi
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(find_python) ||
            fail "no python >= 3.11 with venv: tried python3 ($(version_of python3)) and /usr/bin/python3 ($(version_of /usr/bin/python3)); install python3.11 and python3.11-venv"
        say "making .venv with $python"
        "$python" -m venv --clear .venv
    fi
    say "installing requirements-dev.lock into .venv"
    .venv/bin/python -m pip -qq --disable-pip-version-check install \
        --no-deps --require-hashes --requirement requirements-dev.lock
    .venv/bin/python -m pip -qq --disable-pip-version-check install \
        --no-deps --no-build-isolation --editable .
    # -I: a module of the caller's, in PYTHONPATH or beside the script, can never stand in
    # for ours (docs/adr/0003-top-level-names-and-private-environment.md).
    sed -i '1s/ -I$//; 1s/$/ -I/' .venv/bin/moa*
    # What `make compile` made comes before the sources, while it is there.
    printf '%s\n' "$PWD/build/compiled" >"$(echo .venv/lib/python3.*/site-packages)/moa-compiled.pth"
    rm -f .venv/.ready-*
    touch "$stamp"
}

install_node_client() {
    local stamp
    stamp=node_modules/.ready-$(sha256sum tests/e2e/node/package-lock.json | cut -c -16)
    (
        cd tests/e2e/node
        [ ! -e "$stamp" ] || exit 0
        say "installing the Node client of the end-to-end tests"
        npm ci --silent --ignore-scripts --no-audit --no-fund
        touch "$stamp"
    )
}

# One at a time in one checkout.
exec 9<.
flock 9

[ "${MOA_SKIP_SYSTEM:-}" = 1 ] || install_packages
make_venv
install_node_client
