#!/usr/bin/env bash
# Install those of some Debian packages that are missing. usage: need.sh PACKAGE..., as root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/debian-packages.sh
source .ci/debian-packages.sh

mapfile -t missing < <(missing_debian "$@")
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
    printf 'missing Debian packages: %s; run this as root\n' "${missing[*]}" >&2
    exit 1
fi
printf 'installing Debian packages: %s\n' "${missing[*]}"
install_debian "${missing[@]}" --
