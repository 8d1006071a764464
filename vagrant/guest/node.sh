#!/usr/bin/env bash
# Make this guest a node: two services, and MOA Interceptor beside them from its package.
#
# usage: node.sh NAME ADDRESS REGISTRY
#
# The services neither know of the mesh nor are started again for it. A picture of the node
# is taken before the package comes, for the comparison after it is gone.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source /vagrant/guest/common.sh

name=$1 address=$2 registry=$3
ports=(5000 5001)

wait_for_registry() {
    timeout 600 bash -c "until (: </dev/tcp/$registry/6379) 2>/dev/null; do sleep 1; done" || {
        echo "node: no registry at $registry:6379" >&2
        exit 1
    }
}

# As units outside of the mesh; whoever calls them goes through the mesh or not.
start_services() {
    local port
    cat >/etc/systemd/system/demo@.service <<UNIT
[Unit]
Description=/service/demo on port %i

[Service]
ExecStart=/usr/bin/python3 /moa/samples/demo_service.py --name $name:%i --host $address --port %i --register redis://$registry:6379/0
Restart=no

[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    for port in "${ports[@]}"; do
        systemctl enable --quiet --now "demo@$port"
    done
}

# A caller that is a unit of its own, for `moactl mesh join`.
start_caller() {
    [ -p /moa/ask ] || mkfifo /moa/ask
    cat >/etc/systemd/system/caller.service <<'UNIT'
[Unit]
Description=Calls /service/demo when it is asked to

[Service]
ExecStart=/vagrant/guest/calling.sh

[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    systemctl enable --quiet --now caller
}

# Everything in the private network is a destination to intercept, also an address that is
# nobody's: a caller may have an old one in its configuration.
write_configuration() {
    cat >/moa/agent.toml <<TOML
[node]
name = "$name"
[scope]
cgroups = ["/moa.slice/moa-mesh.slice"]
include = ["${address%.*}.0/24:5000"]
[registry]
kind = "redis"
url = "redis://$registry:6379/0"
TOML
}

install_moa() {
    apt-get -qq install --yes --no-install-recommends /moa/dist/moa-interceptor_*.deb
    # An emulated machine may take longer to start an agent than the installer waits for it;
    # what it began the next run ends.
    moactl -c /moa/agent.toml install --yes || moactl -c /moa/agent.toml install --yes
}

name_this "$name"
need_packages libbpf1 python3 redis-tools
wait_for_registry
start_services
start_caller
write_configuration
[ -e /usr/bin/moactl ] || /vagrant/guest/picture.sh >/moa/before
install_moa
