#!/usr/bin/env bash
# Build dist/: a wheel, and a .deb for this Debian with everything that a node needs.
# Needs what `make build` made; the packager and the writer of man pages come from PyPI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf 'package: %s\n' "$*" >&2
    exit 1
}

python=.venv/bin/python
tree=build/package
home=$tree/usr/lib/moa-interceptor
# Isolated: an egg-info of another version may lie here.
version=$("$python" -I -c 'from importlib.metadata import version; print(version("moa-interceptor"))')
system=$(/usr/bin/python3 -c 'import sys; print("{}.{}".format(*sys.version_info))')
ours=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
[ "$system" = "$ours" ] ||
    fail ".venv is of Python $ours, and a package here is for /usr/bin/python3, which is $system: remove .venv and run make setup"

"$python" -m pip -qq --disable-pip-version-check install \
    --no-deps --require-hashes --requirement requirements-package.lock
rm -rf "$tree" dist
mkdir -p "$tree" dist

"$python" -m pip -qq --disable-pip-version-check wheel --no-deps --no-build-isolation \
    --wheel-dir dist .

"$python" .ci/package.py "$tree"
# Symbols of compiled modules are for debuggers, and half of their size.
find "$home" -name '*.so' -exec strip --strip-unneeded {} +
gzip -9 --no-name --recursive "$tree/usr/share/man"

next=$("$python" -c 'import sys; print("{}.{}".format(sys.version_info[0], sys.version_info[1] + 1))')
VERSION=$version PYTHON=$ours NEXT_PYTHON=$next ARCH=$(dpkg --print-architecture) \
    .venv/bin/nfpm package --config installer/debian/nfpm.yaml --packager deb --target dist/ >/dev/null

for file in dist/*; do
    printf 'package: %s, %s bytes\n' "$file" "$(stat --format %s "$file")"
done
