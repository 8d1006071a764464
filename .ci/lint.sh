#!/usr/bin/env bash
# Every static check, each run even when one before it failed, so that one run tells all.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
shopt -s nullglob

failed=()

check() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    "$@" || failed+=("$name")
}

c_sources=(bpf/*.c bpf/*.h tests/bench/*.c tests/bench/*.h)
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)

check "ruff check" .venv/bin/ruff check --quiet .
check "ruff format" .venv/bin/ruff format --check --quiet .
check "mypy --strict" .venv/bin/mypy
check "generated code" .ci/proto.sh --check
check "import contracts" .venv/bin/lint-imports --no-logo
[ ${#c_sources[@]} -eq 0 ] ||
    check "clang-format" clang-format --dry-run --Werror "${c_sources[@]}"
[ ${#scripts[@]} -eq 0 ] || check "shellcheck" shellcheck "${scripts[@]}"

if [ ${#failed[@]} -gt 0 ]; then
    printf 'lint: failed: %s\n' "$(IFS=,; echo "${failed[*]}")" >&2
    exit 1
fi
echo "lint: all checks passed"
