# shellcheck shell=bash
# Install missing Debian packages without starting the daemons that come with them; sourced.
#
#   missing_debian PACKAGE...           prints those that are not installed
#   install_debian PACKAGE... -- DAEMON...   installs, needs root; a DAEMON (a systemd unit) that
#                                       this brought is disabled at the next boot as well
#   debian_mirror                       prints the mirror that this machine uses itself

policy=/usr/sbin/policy-rc.d
policy_saved=$policy.before-moa-setup
policy_mark="moa-interceptor setup"

missing_debian() {
    local package status
    for package in "$@"; do
        status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || printf '%s\n' "$package"
    done
}

restore_policy() {
    if [ -e "$policy_saved" ]; then
        mv -f "$policy_saved" "$policy"
    elif grep -qs "$policy_mark" "$policy"; then
        rm -f "$policy"
    fi
}

# Debian starts a daemon as soon as its package is configured; tests start their own, and one
# on its standard port is nobody's wish. invoke-rc.d asks policy-rc.d first. A policy of the
# machine's own is put aside and comes back on every way out; after a kill -9 the next run
# brings it back.
forbid_service_starts() {
    restore_policy
    trap restore_policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ -e "$policy" ]; then
        cp --preserve=all --no-dereference "$policy" "$policy_saved.tmp"
        mv "$policy_saved.tmp" "$policy_saved"
        rm -f "$policy"
    fi
    printf '#!/bin/sh\n# %s: no service starts while packages are installed\nexit 101\n' \
        "$policy_mark" >"$policy"
    chmod 755 "$policy"
}

# In a subshell: its traps are not the caller's.
install_debian() (
    packages=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        packages+=("$1")
        shift
    done
    shift
    forbid_service_starts
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --yes \
        --no-install-recommends "${packages[@]}" >/dev/null
    # Not started now, and not at the next boot either.
    if [ $# -gt 0 ] && command -v systemctl >/dev/null; then
        systemctl --quiet disable "$@" 2>/dev/null || true
    fi
)

debian_mirror() {
    local found
    # shellcheck disable=SC2016 # apt's own variables
    found=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' |
        awk '$2 == "Debian" { print $1; exit }')
    printf '%s\n' "${found:-http://deb.debian.org/debian/}"
}
