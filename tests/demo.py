"""`make demo`: the main job, step by step, between three nodes made of network namespaces.

    node A: callers and the agent        10.77.0.1
    node B: an instance of /service/demo 10.77.0.2:5000
    node C: another one                  10.77.0.3:5000

Nothing but this machine's own namespaces is touched, and nothing stays behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from interceptor.cgroup import Cgroup
from tests.support.agents import (
    MOACTL,
    Agent,
    restart_agent,
    start_agent,
    start_service,
    static_registry,
    wait_for_instances,
)
from tests.support.lab import Lab, LabError, LabNode, Running, wait_until
from tests.support.traces import assert_same, look

SERVICE = "/service/demo"
PORT = 5000
DEAD = "10.77.0.99"
CALLS = 10
WHOAMI = json.dumps({"action": SERVICE, "params": {"m": "whoami", "args": []}})
REDIS_PY = textwrap.dedent(
    """
    import redis, sys
    host, port, request, calls = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    for _ in range(calls):
        client = redis.Redis(host=host, port=port, socket_timeout=5)
        print(client.get(request).decode())
        client.close()
    """
)


class DemoFailed(Exception):
    """A step did not show what it should; the text says what was seen."""


@dataclass(slots=True)
class Demo:
    """The nodes and the processes of one run."""

    lab: Lab
    registry: str
    a: LabNode = field(init=False)
    b: LabNode = field(init=False)
    c: LabNode = field(init=False)
    step: int = 0
    services: dict[str, Running] = field(default_factory=dict)
    agent: Agent | None = None

    def __post_init__(self) -> None:
        self.a, self.b, self.c = (self.lab.add_node(name) for name in "abc")

    def show(self, what: str, act: Callable[[], str]) -> None:
        """One step, one line."""
        self.step += 1
        try:
            seen = act()
        except (DemoFailed, LabError, AssertionError) as e:
            print(f"{self.step:3d}  FAILED  {what}\n{e}", flush=True)
            raise SystemExit(1) from None
        print(f"{self.step:3d}  {what:<62} {seen}", flush=True)

    # How callers call: unmodified clients that dial one address

    def redis_cli(self, host: str) -> str:
        """Who answers redis-cli, or its error."""
        done = self.a.call("redis-cli", "-h", host, "-p", str(PORT), "GET", WHOAMI)
        return _who(done.stdout) or (done.stderr or done.stdout).strip()

    def redis_py(self, host: str, calls: int = 1) -> Counter[str]:
        """How often who answers redis-py."""
        arguments = (host, str(PORT), WHOAMI, str(calls))
        done = self.a.call(sys.executable, "-c", REDIS_PY, *arguments)
        if done.returncode != 0:
            return Counter({done.stderr.strip().splitlines()[-1]: 1})
        return Counter(_who(line) or line for line in done.stdout.splitlines())

    def moactl(self, *argv: str) -> str:
        assert self.agent is not None
        done = self.a.call(
            MOACTL, "-c", str(self.agent.config), *argv, cgroup=Cgroup("/"), timeout_s=20
        )
        if done.returncode != 0:
            raise DemoFailed(f"moactl {' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def serve(self, node: LabNode) -> None:
        self.services[node.name] = start_service(node, PORT, SERVICE, name=node.name.upper())


def _who(line: str) -> str:
    try:
        reply = json.loads(line)
        return str(reply["result"]["name"] if reply["ec"] == 200 else f"ec {reply['ec']}")
    except (ValueError, KeyError, TypeError):
        return ""


def expect(seen: str, *wanted: str) -> str:
    """`seen` when it is one of `wanted`; else the step has failed."""
    if seen not in wanted:
        raise DemoFailed(f"     expected {' or '.join(wanted)}, saw: {seen}")
    return seen


def _answered(counts: Counter[str]) -> str:
    return ", ".join(f"{who} x {count}" for who, count in sorted(counts.items()))


# The steps


def without_us(demo: Demo) -> str:
    demo.serve(demo.b)
    demo.serve(demo.c)
    live = expect(demo.redis_cli(demo.b.ip4), "B")
    dead = demo.redis_cli(DEAD)
    if "Could not connect" not in dead:
        raise DemoFailed(f"     expected a refused connection, saw: {dead}")
    return f"B's address: {live}; {DEAD}: cannot connect"


def install(demo: Demo) -> str:
    addresses = [f"{node.ip4}:{PORT}" for node in (demo.b, demo.c)]
    if demo.registry == "redis":
        server = demo.b.start(
            "redis",
            "redis-server",
            "--bind",
            demo.b.ip4,
            "--port",
            "6379",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--dir",
            str(demo.b.directory),
        )
        server.wait_line("Ready to accept connections")
        registry = f'kind = "redis"\nurl = "redis://{demo.b.ip4}:6379/0"'
    else:
        registry = static_registry(demo.lab.directory / "services.toml", {SERVICE: addresses})
    demo.agent = start_agent(demo.a, registry)
    if demo.registry == "redis":
        for address in addresses:
            demo.moactl("service", "register", SERVICE, address)
    wait_for_instances(demo.agent, 2)
    demo.moactl("mesh", "on", "--cgroup", demo.a.services.name)
    return f"mesh on for cgroup {demo.a.services.name}, registry {demo.registry}"


def routed_redis_cli(demo: Demo) -> str:
    counts = Counter(demo.redis_cli(demo.b.ip4) for _ in range(CALLS))
    if set(counts) - {"B", "C"} or not counts["C"]:
        raise DemoFailed(f"     expected B and C, saw: {_answered(counts)}")
    return _answered(counts)


def routed_redis_py(demo: Demo) -> str:
    counts = demo.redis_py(DEAD, CALLS)
    if set(counts) - {"B", "C"}:
        raise DemoFailed(f"     expected B and C, saw: {_answered(counts)}")
    return _answered(counts)


def instance_dies(demo: Demo) -> str:
    demo.services["b"].kill()
    first = expect(demo.redis_cli(demo.b.ip4), "C")
    rest = demo.redis_py(demo.b.ip4, CALLS)
    if set(rest) != {"C"}:
        raise DemoFailed(f"     expected C only, saw: {_answered(rest)}")
    return f"next call: {first}; then {_answered(rest)}"


def instance_returns(demo: Demo) -> str:
    demo.serve(demo.b)
    wait_until(lambda: demo.redis_cli(demo.c.ip4) == "B", 20, "B answers again")
    return "B answers again"


def agent_dies(demo: Demo) -> str:
    assert demo.agent is not None
    demo.agent.process.kill()
    live = {expect(demo.redis_cli(demo.b.ip4), "B") for _ in range(3)}
    dead = demo.redis_cli(DEAD)
    if "Could not connect" not in dead:
        raise DemoFailed(f"     expected a refused connection, saw: {dead}")
    return f"B's address: {live.pop()} x 3, straight; {DEAD}: as without us"


def agent_returns(demo: Demo) -> str:
    assert demo.agent is not None
    demo.agent = restart_agent(demo.agent)
    wait_for_instances(demo.agent, 2)
    return f"{DEAD}: {expect(demo.redis_cli(DEAD), 'B', 'C')}"


def switch_off(demo: Demo) -> str:
    demo.moactl("mesh", "off")
    counts = Counter(demo.redis_cli(demo.b.ip4) for _ in range(CALLS))
    if set(counts) != {"B"}:
        raise DemoFailed(f"     expected B only, saw: {_answered(counts)}")
    return f"B's address: {_answered(counts)}, straight"


def switch_on(demo: Demo) -> str:
    demo.moactl("mesh", "on")
    return routed_redis_cli(demo)


def account(demo: Demo) -> str:
    status = json.loads(demo.moactl("status", "-o", "json"))
    requests = status["agent"]["requests"]
    return (
        f"{requests['total']} requests, {requests['ok']} answered, {requests['failed']} failed, "
        f"{requests['retried']} retried"
    )


def uninstall(demo: Demo) -> str:
    assert demo.agent is not None
    demo.agent.process.stop()
    demo.moactl("uninstall", "--yes")
    return f"B's address: {expect(demo.redis_cli(demo.b.ip4), 'B')}, straight"


STEPS: tuple[tuple[str, Callable[[Demo], str]], ...] = (
    ("without us: redis-cli on A dials B, and a dead address", without_us),
    ("agent started on A; services neither restarted nor told", install),
    (f"redis-cli dials B's address {CALLS} times: both instances answer", routed_redis_cli),
    (f"redis-py dials the dead {DEAD}: a healthy one answers", routed_redis_py),
    ("B is killed -9; callers still dial B's address", instance_dies),
    ("B is started again", instance_returns),
    ("the agent is killed -9: calls go on, straight", agent_dies),
    ("the agent is started again: calls are routed again", agent_returns),
    ("moactl mesh off", switch_off),
    ("moactl mesh on", switch_on),
    ("moactl status: what the second agent carried", account),
    ("moactl uninstall: calls go on, straight", uninstall),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", choices=("static", "redis"), default="static")
    options = parser.parse_args()
    print("MOA Interceptor, between three nodes made of network namespaces on this machine.")
    print("A has the callers and the agent, B and C serve /service/demo. No client is told of it.")
    started_s = time.monotonic()
    with Lab() as lab:
        demo = Demo(lab, options.registry)
        before = look(lab)
        for what, act in STEPS:
            demo.show(what, lambda act=act: act(demo))  # type: ignore[misc]

        def nothing_left() -> str:
            assert_same(lab, before)
            return "bpffs, cgroup hooks, programs, maps, links: as before"

        demo.show("the node before and after, compared", nothing_left)
    print(f"done in {time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()
