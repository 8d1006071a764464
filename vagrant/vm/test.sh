#!/usr/bin/env bash
# `make test-vm`: build a box, start its machines, run the demo in them, take all of it away.
#
# usage: test.sh [SUITE...], as root. A SUITE is where the guests' stock kernel comes from:
# bookworm, which is the default, bullseye, bookworm-backports.
#
# All of it runs in namespaces of its own (processes, mounts, network), without a way out of
# the machine, so nothing of the machine's own is touched, and whatever ends this script ends
# all of it. The transcript is in build/test-vm.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck source=vagrant/vm/common.sh
source vagrant/vm/common.sh

suites=("$@")
[ $# -gt 0 ] || suites=(bookworm)
log=$PWD/build/test-vm.log
pid=

# unshare does not listen to SIGTERM while its child lives; when it is killed, the child is, and
# with process 1 of their namespace all of them.
end_guests() {
    [ -n "$pid" ] || return 0
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    rm -rf "$work/pool" "$work/dot"
}

run_in_guests() {
    unshare --pid --fork --kill-child --mount-proc --mount --net --propagation private \
        vagrant/vm/inside.sh "$work" "$1" "$kvm" &
    pid=$!
    wait "$pid" || fail "failed with the kernel of $1"
    pid=
}

[ "$(id -u)" = 0 ] || fail "needs root, for namespaces and to build the box"
mkdir -p build
exec > >(tee "$log") 2>&1
trap end_guests EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

require_package
vagrant/vm/packages.sh
make_box
kvm=no
kvm_works && kvm=yes
printf 'test-vm: KVM works: %s\n' "$kvm"
for suite in "${suites[@]}"; do
    [ -e "$work/boot/$suite/vmlinuz" ] || fail "no kernel of $suite in $work/boot"
    run_in_guests "$suite"
done
printf 'test-vm: passed with the kernels of %s, %s s\n' "${suites[*]}" "$SECONDS"
