#!/usr/bin/env bash
# Install the package and kill `moactl install` in its middle: when its programs are in the
# kernel, and the agent is not ready yet. Prints what it did.
set -euo pipefail

apt-get -qq install --yes --no-install-recommends /moa/dist/moa-interceptor_*.deb >/dev/null
moactl -c /moa/agent.toml install --yes >/dev/null 2>&1 &
until [ -e /sys/fs/bpf/moa ]; do
    kill -0 $! || {
        echo "the install ended before it was killed"
        exit 1
    }
    sleep 0.05
done
kill -KILL $!
wait $! 2>/dev/null || true
echo "an install is killed -9 half-way"
