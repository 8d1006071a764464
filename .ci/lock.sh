#!/usr/bin/env bash
# Write requirements.lock and requirements-dev.lock anew from pyproject.toml, and
# those that only `make bench`, `make fuzz` and `make package` install.
# Pins that still satisfy it are kept; `.ci/lock.sh --upgrade` moves them to the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Where packages come from is this machine's business: no address reaches the files.
options=(--quiet --generate-hashes --strip-extras --allow-unsafe
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options)
export CUSTOM_COMPILE_COMMAND=".ci/lock.sh"

.venv/bin/pip-compile "${options[@]}" "$@" --output-file requirements.lock pyproject.toml
.venv/bin/pip-compile "${options[@]}" "$@" --extra dev --constraint requirements.lock \
    --output-file requirements-dev.lock pyproject.toml
.venv/bin/pip-compile "${options[@]}" "$@" --output-file requirements-bench.lock requirements-bench.in
.venv/bin/pip-compile "${options[@]}" "$@" --output-file requirements-fuzz.lock requirements-fuzz.in
.venv/bin/pip-compile "${options[@]}" "$@" --constraint requirements.lock \
    --output-file requirements-package.lock requirements-package.in
