#!/usr/bin/env bash
# Show MOA Interceptor between the machines of `vagrant up`: routing, a unit that joins and
# leaves, failover, an agent's death, upgrade, uninstall, and uninstall after a killed install.
# Each step is checked; the first that fails ends it with 1.
#
# The last steps take MOA Interceptor off both nodes; `vagrant provision` puts it back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

nodes=(node-a node-b)
address_a=192.168.56.11 address_b=192.168.56.12
dead=192.168.56.99
calls=${MOA_DEMO_CALLS:-20}
within_s=${MOA_DEMO_WITHIN_S:-120}
step=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

on() {
    local machine=$1
    shift
    ssh -n -F "$work/ssh" "$machine" "$@" 2>>"$work/errors"
}

fail() {
    printf '%3d  FAILED  %s\n' "$step" "$*"
    tail -n 5 "$work/errors" 2>/dev/null
    exit 1
}

passed() {
    step=$((step + 1))
    printf '%3d  %-58s %s\n' "$step" "$1" "$2"
}

# Who answers `calls` calls from node-a to an address: names and how often, on one line.
answers() {
    on node-a sudo /vagrant/guest/caller.sh "$@" | counted
}

counted() {
    sort | uniq -c | awk '{ n = $1; $1 = ""; printf "%s%s x %s", (NR > 1 ? ", " : ""), substr($0, 2), n }'
}

# Try again until it succeeds: what the guests do takes its time, more so without KVM.
eventually() {
    local what=$1 deadline_s=$((SECONDS + within_s))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline_s ] || fail "$what: not within $within_s s"
        sleep 1
    done
}

serves() { on "$1" sudo moactl status -o json | grep -q '"serves": true'; }

knows_all() {
    [ "$(on node-a sudo moactl service show /service/demo -o json | grep -o '"address": "' | wc -l)" = 4 ]
}

answers_with() { [[ $(answers "$2" "$calls" mesh) == *"$1"* ]]; }

all_answered() {
    [[ $2 != *failed* ]] || fail "$1: $2"
}

nodes_are_up() {
    local node
    for node in "${nodes[@]}"; do
        eventually "$node serves" serves "$node"
    done
    eventually "node-a knows all four instances" knows_all
    passed "two nodes, installed by moactl install" \
        "$(on node-a uname -r), $(on node-a moactl version | tr '\n' ' ' | tr -s ' ')"
}

routing() {
    local direct seen
    direct=$(answers "$dead" 1)
    [[ $direct == failed* ]] || fail "outside the mesh $dead answers: $direct"
    passed "outside the mesh: redis-cli dials $dead" "nobody there"
    seen=$(answers "$dead" "$calls" mesh)
    all_answered "in the mesh $dead" "$seen"
    passed "in the mesh: the same redis-cli dials $dead" "$seen"
    seen=$(answers "$address_b" "$calls" mesh)
    all_answered "in the mesh $address_b" "$seen"
    [[ $seen == *node-a:* && $seen == *node-b:* ]] ||
        fail "expected instances of both nodes, saw: $seen"
    passed "in the mesh: it dials one instance, several answer" "$seen"
}

# A unit that runs, and goes on to run.
joins_and_leaves() {
    local pid seen
    pid=$(on node-a systemctl show --property MainPID caller)
    seen=$(asked)
    [[ $seen == failed* ]] || fail "the unit is not in the mesh, yet $dead answers: $seen"
    on node-a sudo moactl mesh join caller >/dev/null || fail "moactl mesh join caller"
    seen=$(asked)
    all_answered "after moactl mesh join" "$seen"
    passed "moactl mesh join caller: its next calls to $dead" "$seen"
    on node-a sudo moactl mesh leave caller >/dev/null || fail "moactl mesh leave caller"
    [[ $(asked) == failed* ]] || fail "the unit has left the mesh, yet $dead answers"
    [ "$pid" = "$(on node-a systemctl show --property MainPID caller)" ] ||
        fail "the unit was restarted"
    passed "moactl mesh leave caller: they go straight again" "$pid all the time"
}

asked() { on node-a sudo /vagrant/guest/ask.sh "$dead" 3 | counted; }

failover() {
    local seen
    on node-a sudo /vagrant/guest/caller.sh "$address_b" "$((2 * calls))" mesh >"$work/calls" &
    on node-b sudo systemctl kill --signal KILL demo@5000
    wait $! || fail "the caller ended: $(counted <"$work/calls")"
    seen=$(counted <"$work/calls")
    # The request that was under way when the instance died may have been executed.
    [ "$(grep -c failed "$work/calls")" -le 1 ] || fail "at most one call may fail: $seen"
    passed "calls go on while node-b:5000 is killed -9" "$seen"
    seen=$(answers "$address_b" "$calls" mesh)
    all_answered "after the kill" "$seen"
    [[ $seen != *node-b:5000* ]] || fail "a dead instance answered: $seen"
    passed "callers still dial the dead instance's address" "$seen"
    on node-b sudo systemctl start demo@5000
    eventually "node-b:5000 answers again" answers_with node-b:5000 "$address_a"
    passed "node-b:5000 is started again" "it answers again"
}

agent_pid() {
    on node-a sudo moactl status -o json | sed -n '/"agent"/,$ s/.*"pid": \([0-9]*\).*/\1/p' | head -n 1
}

other_agent() {
    local pid
    pid=$(agent_pid)
    [ -n "$pid" ] && [ "$pid" != "$1" ] && serves node-a
}

agent_dies() {
    local pid seen
    pid=$(agent_pid)
    on node-a sudo kill -KILL "$pid" || fail "no agent to be killed: $pid"
    seen=$(answers "$address_b" 3 mesh)
    all_answered "after the agent's death" "$seen"
    passed "the agent is killed -9: calls go on" "$seen"
    eventually "another agent serves" other_agent "$pid"
    eventually "calls are routed" answers_with node-a: "$address_b"
    passed "another is started: calls are routed" "$(answers "$dead" 4 mesh)"
}

# What a boot takes away: all that is in the kernel, cgroups too, and /run.
boots() {
    on node-a "sudo systemctl stop moa-opsd && sudo rm -rf /sys/fs/bpf/moa /run/moa &&
        sudo rmdir /sys/fs/cgroup/moa-agent" || fail "stop"
    on node-a sudo systemctl start moa-opsd || fail "start"
    eventually "node-a serves after a boot" serves node-a
    eventually "calls are routed" answers_with node-a: "$address_b"
    passed "the kernel forgets all, as by a boot: the mesh is on" "$(answers "$dead" 4 mesh)"
}

upgrade() {
    local next seen
    if ! on node-a moactl agent upgrade --help >/dev/null; then
        passed "moactl agent upgrade" "this version has none"
        return
    fi
    next=$(on node-a sudo /vagrant/guest/next-version.sh) || fail "no other version: $next"
    on node-a sudo /vagrant/guest/caller.sh "$dead" "$((2 * calls))" mesh >"$work/calls" &
    on node-a sudo moactl agent upgrade --to "$next" >/dev/null || fail "moactl agent upgrade"
    wait $! || fail "the caller ended: $(counted <"$work/calls")"
    seen=$(counted <"$work/calls")
    all_answered "during the upgrade" "$seen"
    eventually "the agent is of version $next" runs "$next"
    passed "moactl agent upgrade --to $next, under calls" "$seen"
}

runs() { on node-a sudo moactl status -o json | grep -q "\"version\": \"$1\""; }

# What this node is now, and what it was before the package came.
compared() {
    on "$1" "sudo /vagrant/guest/picture.sh >/tmp/after; diff /moa/before /tmp/after" \
        >"$work/diff-$1" || fail "$1 is not as it was before:
$(head -n 40 "$work/diff-$1")"
}

purged() {
    on "$1" sudo apt-get -qq purge --yes moa-interceptor >/dev/null || fail "apt-get purge on $1"
    compared "$1"
}

uninstall() {
    local node seen pids=()
    for node in "${nodes[@]}"; do
        purged "$node" &
        pids+=($!)
    done
    for node in "${nodes[@]}"; do
        wait "${pids[0]}" || exit 1
        pids=("${pids[@]:1}")
        passed "apt purge on $node: before and after, compared" "no difference"
    done
    seen=$(answers "$address_b" 3)
    [ "$seen" = "node-b:5000 x 3" ] || fail "expected node-b:5000, saw: $seen"
    passed "calls go on, straight" "$seen"
    seen=$(on node-b sudo /vagrant/guest/killed-install.sh) || fail "killed-install.sh: $seen"
    purged node-b
    passed "node-b: $seen, then apt purge" "no difference"
}

vagrant ssh-config >"$work/ssh"
nodes_are_up
routing
joins_and_leaves
failover
agent_dies
boots
upgrade
[ -n "${MOA_DEMO_KEEP:-}" ] || uninstall
printf 'done in %s s\n' "$SECONDS"
