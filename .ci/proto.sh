#!/usr/bin/env bash
# Write the Python of each .proto below proxy/ anew, beside it; --check only compares.
#
# protoc is Debian's (3.21 on Debian 12 and 13 and on Ubuntu 24.04). Another version writes
# other bytes, so `make proto` refuses it instead of making a diff that nobody meant.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted="libprotoc 3.21"
protoc=${PROTOC:-protoc}
version=$("$protoc" --version 2>/dev/null || echo "no $protoc (Debian package protobuf-compiler)")
case $version in
"$wanted" | "$wanted".*) ;;
*)
    printf 'proto: found %s, expected %s; set PROTOC=<path> to use another one\n' \
        "$version" "$wanted" >&2
    exit 1
    ;;
esac

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

mapfile -t sources < <(find proxy -name '*.proto' | LC_ALL=C sort)
"$protoc" --proto_path=. --python_out="$out" --pyi_out="$out" "${sources[@]}"

changed=()
for source in "${sources[@]}"; do
    for file in "${source%.proto}_pb2.py" "${source%.proto}_pb2.pyi"; do
        # The generator's style is its own business.
        {
            printf '# ruff: noqa\n# fmt: off\n'
            [[ $file == *.py ]] || printf '# mypy: disable-error-code="type-arg"\n'
            cat "$out/$file"
        } >"$out/$file.done"
        cmp --silent "$out/$file.done" "$file" && continue
        changed+=("$file")
        [ "${1:-}" = --check ] || install -m 644 "$out/$file.done" "$file"
    done
done

if [ "${1:-}" = --check ] && [ ${#changed[@]} -gt 0 ]; then
    printf 'proto: not what protoc writes: %s; run make proto\n' "${changed[*]}" >&2
    exit 1
fi
