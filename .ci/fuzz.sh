#!/usr/bin/env bash
# Fuzz each decoder for FUZZ_SECONDS (60): every tests/fuzz/fuzz_<name>.py, or those named in
# FUZZ_ONLY. Starts from tests/fuzz/corpus/<name>/ and leaves it as it is: what is found goes to
# build/fuzz/corpus/<name>/, an input that breaks something to build/fuzz/findings/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${FUZZ_SECONDS:-60}
packages=build/fuzz/packages
findings=build/fuzz/findings

# 100 MB that nothing else needs: installed here, on demand, and not into .venv.
install_atheris() {
    local stamp
    stamp=$packages/.ready-$(sha256sum requirements-fuzz.lock | cut -c -16)
    [ ! -e "$stamp" ] || return 0
    echo "fuzz: installing requirements-fuzz.lock into $packages"
    rm -rf "$packages"
    .venv/bin/python -m pip -qq --disable-pip-version-check install \
        --no-deps --require-hashes --requirement requirements-fuzz.lock --target "$packages"
    touch "$stamp"
}

names() {
    local file
    if [ -n "${FUZZ_ONLY:-}" ]; then
        tr ' ' '\n' <<<"$FUZZ_ONLY"
        return
    fi
    for file in tests/fuzz/fuzz_*.py; do
        basename "$file" .py | sed 's/^fuzz_//'
    done
}

# Prints "<name>: <executions> executions, <new> new inputs" or where the finding lies.
fuzz() {
    local name=$1 log=build/fuzz/$1.log new=build/fuzz/corpus/$1 seeds=tests/fuzz/corpus/$1
    mkdir -p "$new" "$findings"
    [ -d "$seeds" ] || { echo "$name: no seeds in $seeds" >&2; return 1; }
    if PYTHONPATH=.:$packages nice .venv/bin/python -m "tests.fuzz.fuzz_$name" "$new" "$seeds" \
        -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$findings/$name-" >"$log" 2>&1; then
        printf '%s: %s executions, %s new inputs, no findings\n' "$name" \
            "$(awk '/number_of_executed_units/ { print $2 }' "$log")" \
            "$(awk '/new_units_added/ { print $2 }' "$log")"
    else
        grep -aE 'Error|Test unit written|==[0-9]+==' "$log" | tail -n 5 >&2
        echo "$name: failed; see $log and $findings/$name-*" >&2
        return 1
    fi
}

install_atheris
failed=()
for name in $(names); do
    fuzz "$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "fuzz: failed: ${failed[*]}" >&2
    exit 1
fi
echo "fuzz: ${seconds} s each, no findings"
