#!/usr/bin/env bash
# Put another version beside the installed one, and print which: the package's environment
# under another number.
set -euo pipefail

copy=/moa/next
version=$(moactl version -o json | sed -n 's/.*"version": *"\([^"]*\)".*/\1/p')
next=$version.post1
rm -rf "$copy"
cp -a /usr/lib/moa-interceptor "$copy"
cd "$copy"/lib/python3*/site-packages
mv "moa_interceptor-$version.dist-info" "moa_interceptor-$next.dist-info"
sed -i "s/^Version: .*/Version: $next/" "moa_interceptor-$next.dist-info/METADATA"
sed -i "s/^moa_interceptor-$version\.dist-info/moa_interceptor-$next.dist-info/" \
    "moa_interceptor-$next.dist-info/RECORD"
"$copy/bin/moactl" install --yes >&2
printf '%s\n' "$next"
