"""Every fault of design/failover.md, in every protocol, as its callers see it.

Callers on node A send two requests in turn: `whoami`, which the configuration calls idempotent,
and `echo`, which it does not. Two instances serve them, on B and C. A fault hits B, the
registry on R, or A's agent, while the load runs, and is mended again. What must hold in every
cell: a request that had not been sent or is idempotent does not fail; one that fails says that
it may have been executed, or when it was given up; and traffic returns to B by itself.

Agents run under a supervisor, as on every node of ours, which mends what hits its agent. Two
rows are without one: then connections that stood break, with what is on them, and all that can
be asked is that others go direct.

The table at the end of a run says of each cell: requests, those that failed by method, seconds
that a caller waits at most, from the fault to the first good reply and to the last failure, the
longest time in which nobody got one, and from the mending until B answers again.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.clients.raw import DEMO, names
from tests.e2e.conftest import Measured
from tests.samples.turbo_client import TurboClient
from tests.support.agents import MOACTL, Agent, start_agent, wait_for_instances, write_config
from tests.support.lab import Lab, LabNode, Running, wait_until
from tests.support.supervised import Supervised

pytestmark = pytest.mark.e2e

PORT, REDIS_PORT = 5000, 6379
CONNECTIONS, RATE = 6, 120
BEFORE, DURING = 60, 150
"""Requests before a fault, and while it lasts."""
HONEST = ("may have been executed", "before the deadline", "sick")
"""What a failed request says: it may have run, it was given up, or what the instance said."""
TIMEOUT_MS = 1500
PATIENT_S = 20.0
"""Longer than it takes to find out that an agent hangs (`ops.silent_s`, 5 s) and to start the
next one, on a machine that is busy with other tests."""
FAILOVER = f"""
[failover]
idempotent = ["whoami"]
hedge = true
retry_budget_percent = 100
slow_start_s = 0
backoff_ms = 300
backoff_max_ms = 600
ping_interval_ms = 300
ping_timeout_ms = 200
ping_fall = 2
ping_rise = 1
[routing]
timeout_ms = {TIMEOUT_MS}
"""
PROTOCOLS = {"resp": ["resp"], "turbo": ["turbo"], "mesh": ["resp", "mesh"]}


@dataclass(slots=True)
class World:
    """Callers on `a`, instances on `b` and `c`, Redis on `r`."""

    protocol: str
    a: LabNode
    b: LabNode
    c: LabNode
    r: LabNode
    agents: dict[str, Agent] = field(default_factory=dict)
    supervised: dict[str, Supervised] = field(default_factory=dict)
    """Those of them that have a supervisor, which is their process then."""
    instances: dict[str, Running] = field(default_factory=dict)
    redis: Running = field(init=False)
    hit: int = 0
    """Process id of the agent that was hit last."""

    @property
    def caller(self) -> str:
        return "turbo" if self.protocol == "turbo" else "resp"

    @property
    def sick(self) -> Path:
        """While it exists, B's instance answers 304."""
        return self.b.directory / "sick"

    def start_redis(self) -> None:
        data = self.r.directory / "redis"
        data.mkdir(exist_ok=True)
        self.redis = self.r.start(
            "redis", "redis-server", "--bind", self.r.ip4, "--port", str(REDIS_PORT),
            "--dir", str(data), "--appendonly", "yes", "--save", "", "--protected-mode", "no",
        )  # fmt: skip
        self.redis.wait_line("Ready to accept connections")

    def serve(self, node: LabNode) -> None:
        self.instances[node.name] = node.python(
            f"service-{node.name}", "-m", "tests.e2e.clients.sick_service",
            str(node.directory / "sick"), self.caller,
            "--host", node.ip4, "--port", str(PORT), "--name", node.name,
        )  # fmt: skip
        self.instances[node.name].wait_line("ready")

    def start_agent(self, node: LabNode) -> None:
        """Under a supervisor with the defaults, and wait until it serves."""
        config = write_config(node, self.registry, FAILOVER)
        made = self.supervised[node.name] = Supervised(node, config)
        self.agents[node.name] = Agent(node, config, made.start())
        made.wait_serving()

    def start_bare_agent(self) -> None:
        self.agents["a"] = start_agent(self.a, self.registry, FAILOVER)

    def use(self, *, supervisor: bool) -> None:
        """Have A's agent run like this; nobody is calling."""
        if supervisor == ("a" in self.supervised):
            return
        assert self.agents["a"].process.stop(20) == 0
        if supervisor:
            self.start_agent(self.a)
        else:
            del self.supervised["a"]
            self.start_bare_agent()
        wait_for_instances(self.agents["a"], 2)

    def signal_agent(self, number: signal.Signals, node: str = "a") -> None:
        """To a node's agent itself."""
        supervised = self.supervised.get(node)
        self.hit = supervised.wait_serving() if supervised else self.agents[node].process.pid
        os.kill(self.hit, number)

    def wait_successor(self, node: str = "a") -> None:
        """Until another agent than the one that was hit serves on the node."""
        self.supervised[node].wait_serving(other_than=self.hit)

    @property
    def registry(self) -> str:
        return f'kind = "redis"\nurl = "redis://{self.r.ip4}:{REDIS_PORT}/0"'

    def register(self) -> None:
        protos = [word for proto in PROTOCOLS[self.protocol] for word in ("--proto", proto)]
        for node in (self.b, self.c):
            argv = ("service", "register", DEMO, f"{node.ip4}:{PORT}", *protos)
            done = self.a.call(MOACTL, "-c", str(self.agents["a"].config), *argv)
            assert done.returncode == 0, done.stderr

    def answering(self) -> set[str]:
        """Who answers connections that are made now."""
        c = self.c.ip4
        if self.caller == "resp":
            return set(self.a.do(lambda: names(c, PORT)))

        def packets() -> list[str]:
            with TurboClient(c, PORT) as client:
                return [client.call(DEMO, "whoami")["result"]["name"] for _ in range(20)]

        return set(self.a.do(packets))

    def start(self) -> None:
        self.start_redis()
        for node in (self.b, self.c):
            self.serve(node)
        meshed = (self.a, self.b, self.c) if self.protocol == "mesh" else (self.a,)
        for node in meshed:
            self.start_agent(node)
        self.register()
        for agent in self.agents.values():
            wait_for_instances(agent, 2)
            agent.mesh_on()


class Reply(NamedTuple):
    """A line of `clients/timeline.py`."""

    at_s: float
    method: str
    who: str
    failed: str


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one cell."""

    process: Running

    def replies(self) -> list[Reply]:
        """All so far; a line that is half written is for the next look."""
        lines = self.process.output.rpartition("\n")[0].splitlines()
        return [Reply(*json.loads(line)) for line in lines if line.startswith("[")]

    def wait(self, count: int, since_s: float = 0.0) -> None:
        """Until so many came after a moment, good or bad."""
        wait_until(
            lambda: sum(reply.at_s > since_s for reply in self.replies()) >= count,
            20,
            f"{count} replies; output: {self.process.output[-500:]}",
        )

    def wait_for(self, who: str, since_s: float) -> None:
        """Until an instance answers after a moment."""
        wait_until(
            lambda: any(r.who == who and r.at_s > since_s for r in self.replies()),
            20,
            f"an answer of {who}; output: {self.process.output[-500:]}",
        )

    def stop(self) -> None:
        self.process.signal(signal.SIGTERM)
        self.process.popen.wait(20)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done and undone; `at_most` bounds what fails."""

    name: str
    do: Callable[[World], None]
    undo: Callable[[World], None]
    at_most: int = CONNECTIONS
    """Requests that may fail: those that were under way, at most one a connection."""
    supervisor: bool = True
    """Without one, connections break with the agent, whatever is on them."""
    patience_s: float = 2.0
    """What a caller waits for a reply."""


def _nft(node: LabNode, *rules: str) -> None:
    table = "\n".join(rules)
    done = node.call("nft", "-f", "-", input=table)
    assert done.returncode == 0, done.stderr


def _cut(world: World) -> None:
    _nft(
        world.b,
        "table inet fault {",
        "chain in { type filter hook input priority -300; drop; }",
        "chain out { type filter hook output priority -300; drop; }",
        "}",
    )


def _refuse(world: World) -> None:
    _nft(
        world.b,
        "table inet fault {",
        f"chain in {{ type filter hook input priority -300; "
        f"tcp dport {PORT} reject with tcp reset; }}",
        "}",
    )


def _allow(world: World) -> None:
    _nft(world.b, "delete table inet fault")


def _slow(node: LabNode, rate: str) -> None:
    """A line that passes so little. netem would be the tool, but not every kernel has it."""
    queue = ("tbf", "rate", rate, "burst", "1600", "latency", "300ms")
    _tc(node, "add", "dev", "eth0", "root", *queue)


def _fast(node: LabNode) -> None:
    _tc(node, "del", "dev", "eth0", "root")


def _tc(node: LabNode, *argv: str) -> None:
    done = node.call("tc", "qdisc", *argv)
    assert done.returncode == 0, done.stderr


def _kill(world: World) -> None:
    world.instances["b"].kill()


def _signal(number: signal.Signals) -> Callable[[World], None]:
    return lambda world: world.instances["b"].signal(number)


def _redis_killed(world: World) -> None:
    world.redis.kill()


def _redis_flushed(world: World) -> None:
    assert world.r.call("redis-cli", "-h", world.r.ip4, "FLUSHALL").stdout.strip() == "OK"


def _agent(number: signal.Signals, node: str = "a") -> Callable[[World], None]:
    return lambda world: world.signal_agent(number, node)


def _agent_killed_while_it_waits(world: World) -> None:
    """With a request of each caller at an instance that has not answered."""
    for instance in world.instances.values():
        instance.signal(signal.SIGSTOP)
    try:
        agent = world.agents["a"]
        wait_until(
            lambda: agent.status()["requests"]["in_flight"] == CONNECTIONS,
            TIMEOUT_MS / 1000,
            "all callers wait",
        )
        world.signal_agent(signal.SIGKILL)
    finally:
        for instance in world.instances.values():
            instance.signal(signal.SIGCONT)


def _agent_restarted(world: World) -> None:
    last = world.supervised["a"].moactl("restart", "--bake", "1")[-1]
    assert (last["outcome"], last["moved"]) == ("upgraded", CONNECTIONS), last


def _sicken(world: World) -> None:
    world.sick.touch()


def _heal(world: World) -> None:
    world.sick.unlink()


FAULTS = [
    Fault("instance killed -9", _kill, lambda w: w.serve(w.b)),
    Fault("instance frozen", _signal(signal.SIGSTOP), _signal(signal.SIGCONT), at_most=40),
    Fault(
        "instance on a slow line",
        lambda w: _slow(w.b, "100kbit"),
        lambda w: _fast(w.b),
        at_most=0,
    ),
    Fault("instance answers 304", _sicken, _heal, at_most=40),
    Fault("instance refuses", _refuse, _allow),
    Fault("network cut both ways", _cut, _allow, at_most=40),
    Fault("Redis killed", _redis_killed, World.start_redis, 0),
    Fault("Redis flushed", _redis_flushed, World.register, 0),
    Fault(
        "Redis on a slow line",
        lambda w: _slow(w.r, "8kbit"),
        lambda w: _fast(w.r),
        at_most=0,
    ),
    Fault(
        "agent killed -9",
        _agent(signal.SIGKILL),
        World.wait_successor,
        patience_s=PATIENT_S,
    ),
    Fault(
        "agent killed -9, all requests under way",
        _agent_killed_while_it_waits,
        World.wait_successor,
        patience_s=PATIENT_S,
    ),
    Fault(
        "agent frozen",
        _agent(signal.SIGSTOP),
        World.wait_successor,
        patience_s=PATIENT_S,
    ),
    Fault("moactl agent restart", _agent_restarted, lambda w: None, at_most=0),
    Fault(
        "agent killed -9, no supervisor",
        _agent(signal.SIGKILL),
        World.start_bare_agent,
        supervisor=False,
    ),
    Fault(
        "agent frozen, no supervisor",
        _agent(signal.SIGSTOP),
        _agent(signal.SIGCONT),
        at_most=3 * CONNECTIONS,
        supervisor=False,
    ),
]


FAULTS_OF_THE_INSTANCES_AGENT = [
    Fault(
        "instance's agent killed -9",
        _agent(signal.SIGKILL, "b"),
        lambda w: w.wait_successor("b"),
    ),
    Fault(
        "instance's agent frozen",
        _agent(signal.SIGSTOP, "b"),
        lambda w: w.wait_successor("b"),
        at_most=40,
    ),
]
"""B's own, on which its instance depends where agents speak the mesh protocol."""


@pytest.fixture(scope="module", params=list(PROTOCOLS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with Lab() as lab:
        a, b, c, r = (lab.add_node(name) for name in "abcr")
        made = World(request.param, a, b, c, r)
        made.start()
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(world: World, fault: Fault, measured: Measured) -> None:
    check(world, fault, measured)


@pytest.mark.parametrize("fault", FAULTS_OF_THE_INSTANCES_AGENT, ids=lambda fault: fault.name)
@pytest.mark.parametrize("world", ["mesh"], indirect=True)
def test_fault_of_the_instances_agent(world: World, fault: Fault, measured: Measured) -> None:
    check(world, fault, measured)


def check(world: World, fault: Fault, measured: Measured) -> None:
    """Run one cell under a load."""
    world.use(supervisor=fault.supervisor)
    load = Load(
        world.a.python(
            "timeline", "-m", "tests.e2e.clients.timeline",
            world.caller, f"{world.c.ip4}:{PORT}", str(RATE), str(CONNECTIONS),
            str(fault.patience_s),
        )
    )  # fmt: skip
    load.wait(BEFORE)
    load.wait_for("b", 0.0)
    if world.protocol == "mesh":
        agent = world.agents["a"]
        wait_until(lambda: agent.status()["mesh"]["calls"] > 0, 10, "the agents speak mesh")
    begun_s = time.monotonic()
    fault.do(world)
    try:
        load.wait(DURING, begun_s)
    finally:
        fault.undo(world)
    mended_s = time.monotonic()
    if fault.supervisor:
        load.wait_for("b", mended_s)
        load.stop()
        returned_s = min(r.at_s for r in load.replies() if r.who == "b" and r.at_s > mended_s)
    else:
        # Connections that went direct stay so; who connects now is served again.
        wait_until(lambda: "b" in world.answering(), 20, "the agent serves again")
        returned_s = time.monotonic()
        load.stop()
    good = [reply.at_s for reply in load.replies() if reply.at_s > begun_s and not reply.failed]
    failed = [reply for reply in load.replies() if reply.failed]
    by_method = Counter(reply.method for reply in failed)
    measured(
        f"{world.protocol:5} {fault.name}",
        requests=len(load.replies()),
        idempotent_failed=by_method["whoami"],
        other_failed=by_method["echo"],
        patience_s=fault.patience_s,
        first_good_s=good[0] - begun_s,
        longest_pause_s=max(after - before for before, after in pairwise([begun_s, *good])),
        last_failure_s=max((r.at_s - begun_s for r in failed), default=0.0),
        returned_s=returned_s - mended_s,
    )
    assert len(failed) <= fault.at_most, failed
    if fault.supervisor:
        assert not by_method["whoami"], failed
        for reply in failed:
            assert any(text in reply.failed for text in HONEST), reply
