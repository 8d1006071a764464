"""Everything that can go wrong around an agent: a clear word each, and traffic that goes on."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from interceptor import programs
from interceptor.cgroup import Cgroup
from interceptor.node import Node
from proxy.core.model import ServiceKey
from proxy.registry import keys
from tests.e2e.clients.raw import Connection, call, frame, request
from tests.e2e.conftest import Measured
from tests.support.agents import Agent, start_service, static_registry, write_config
from tests.support.lab import Lab, LabNode, Running, run, wait_until

pytestmark = pytest.mark.e2e

PORT, UNUSED_PORT = 5000, 5999
OUTBOUND_PORT = 15001
MIB = 1 << 20
CROWD = 10_000
REDIS = 'kind = "redis"\nurl = "redis://127.0.0.1:6379/0"'


@dataclass(slots=True)
class Mesh:
    """Callers on `a`, an instance on `b`; each test starts the agents that it needs."""

    a: LabNode
    b: LabNode
    registry: str
    started: list[Running] = field(default_factory=list)

    @property
    def outside(self) -> Cgroup:
        return Cgroup(f"/{self.a.lab.id}/outside")

    @property
    def kernel(self) -> Node:
        return Node(self.a.root)

    def run_agent(self, extra: str = "", *, code: str = "", registry: str = "") -> Agent:
        """Start an agent and wait for nothing; `code` runs before it, in its process."""
        config = write_config(self.a, registry or self.registry, extra)
        start = f"{code}\nfrom installer.agent import main\nmain()"
        process = self.a.python("moa-agent", "-I", "-c", start, str(config))
        self.started.append(process)
        return Agent(self.a, config, process)

    def start_agent(self, extra: str = "", *, code: str = "", registry: str = "") -> Agent:
        agent = self.run_agent(extra, code=code, registry=registry)
        agent.process.wait_line('"ready"')
        agent.mesh_on()
        return agent

    def start_redis(self, *members: str) -> None:
        """A registry on the agent's own node, with these members of the service."""
        server = self.a.start(
            "redis",
            *("redis-server", "--bind", "127.0.0.1", "--port", "6379", "--save", ""),
            cgroup=self.outside,
        )
        self.started.append(server)
        server.wait_line("Ready to accept connections")
        key = ServiceKey("/service/demo")
        for command in (
            ("SADD", keys.service_key(key), *members),
            ("SET", keys.version_key(key), "1"),
            ("SADD", keys.SERVICES, str(key)),
        ):
            done = self.a.call("redis-cli", *command, cgroup=self.outside)
            assert done.returncode == 0, done.stderr

    def fails(self, agent: Agent) -> str:
        """Wait until an agent gives up; what it said last."""
        wait_until(lambda: agent.process.popen.poll() is not None, 20, "the agent's end")
        assert agent.process.popen.returncode == 1, agent.process.output
        assert "Traceback" not in agent.process.output
        return agent.process.output.splitlines()[-1]

    def way(self, cgroup: Cgroup | None = None) -> str:
        """Who takes a new connection: `agent`, or `direct` to where nobody listens."""
        return str(self.a.do(lambda: way(self.b.ip4), cgroup=cgroup))

    def clean(self) -> None:
        for process in self.started:
            process.kill()
        self.started.clear()
        self.kernel.uninstall()


def way(host: str) -> str:
    try:
        reply = call(host, UNUSED_PORT, request("echo", "x"))
    except ConnectionRefusedError:
        return "direct"
    return "agent" if reply["result"] == "x" else str(reply)


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> Mesh:
    a, b = lab.add_node("a"), lab.add_node("b")
    start_service(b, PORT)
    services = lab.directory / "services.toml"
    return Mesh(a, b, static_registry(services, {"/service/demo": [f"{b.ip4}:{PORT}"]}))


@pytest.fixture
def mesh(nodes: Mesh) -> Iterator[Mesh]:
    yield nodes
    nodes.clean()


# Many clients


def raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def crowd(host: str, look: Callable[[str], None]) -> dict[str, Any]:
    """Ten thousand connections from one process; then one request on each."""
    raise_limit()
    start_s = time.monotonic()
    socks = [socket.create_connection((host, PORT), timeout=30) for _ in range(CROWD)]
    connected_s = time.monotonic() - start_s
    look("idle")
    start_s = time.monotonic()
    body = frame(request("echo", "hello"))
    for sock in socks:
        sock.sendall(body)
    good = sum(b'"result": "hello"' in sock.recv(1000) for sock in socks)
    answered_s = time.monotonic() - start_s
    look("answered")
    return {"connected_s": connected_s, "answered_s": answered_s, "good": good}


def test_ten_thousand_connections_at_once(mesh: Mesh, measured: Measured) -> None:
    # The pool's queue and the caps are bounds that this test is not about.
    agent = mesh.start_agent(
        "[limits]\npool_queue = 20000\n[routing]\ntimeout_ms = 30000\n"
        "[failover]\nmax_in_flight = 20000\nmax_in_flight_instance = 20000"
    )
    process = psutil.Process(agent.process.pid)
    before = process.memory_info().rss
    # Two descriptors are kept for each connection; beyond, connections go direct.
    fit = min(CROWD, (process.rlimit(psutil.RLIMIT_NOFILE)[0] - 1024) // 2)

    def session() -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def look(phase: str) -> None:
            wait_until(lambda: process.num_fds() >= fit, 20, "the crowd accepted")
            seen[phase] = (process.memory_info().rss - before, process.num_fds())

        return crowd(mesh.b.ip4, look) | seen

    result = mesh.a.do(session, timeout_s=90)
    assert result["good"] == CROWD
    measured(
        f"{CROWD} connections",
        connect_s=result["connected_s"],
        answer_s=result["answered_s"],
        idle_mib=result["idle"][0] / MIB,
        idle_fds=result["idle"][1],
        answered_mib=result["answered"][0] / MIB,
        answered_fds=result["answered"][1],
    )
    assert result["answered"][1] < CROWD + 200
    assert result["answered"][0] < 200 * MIB
    wait_until(lambda: agent.status()["connections"]["outbound"] == 0, 30, "everybody gone")
    assert process.num_fds() < 200
    wait_until(lambda: mesh.way() == "agent", 10, "the agent found that it is no longer full")


def test_beyond_max_connections_new_ones_go_direct_and_come_back(mesh: Mesh) -> None:
    agent = mesh.start_agent(code=_limited(16))
    held, release = os.pipe(), os.pipe()

    def crowd_of_sixteen() -> list[str]:
        connections = [Connection(mesh.b.ip4, PORT) for _ in range(16)]
        answers = [c.call(request("echo", n))["result"] for n, c in enumerate(connections)]
        os.write(held[1], b"h")
        os.read(release[0], 1)
        answers += [c.call(request("echo", n))["result"] for n, c in enumerate(connections)]
        return [str(a) for a in answers]

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(mesh.a.do, crowd_of_sixteen)
        os.read(held[0], 1)
        wait_until(lambda: mesh.way() == "direct", 5, "new connections go direct")
        os.write(release[1], b"r")
        assert running.result() == [str(n) for n in range(16)] * 2
    wait_until(lambda: mesh.way() == "agent", 10, "new connections come back")
    assert '"full"' in agent.process.output
    assert '"no longer full"' in agent.process.output


def _limited(count: int) -> str:
    """The configuration's least is larger than what the test wants to open."""
    return (
        f"import installer.agent as agent\nagent._connections_that_fit = lambda wanted: {count}\n"
    )


def test_without_descriptors_new_connections_go_direct_until_there_are_some(mesh: Mesh) -> None:
    agent = mesh.start_agent()
    process = psutil.Process(agent.process.pid)
    _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    lowered, release = os.pipe(), os.pipe()
    full = os.pipe()

    def session() -> list[Any]:
        first = Connection(mesh.b.ip4, PORT)
        assert first.call(request("echo", "one"))["result"] == "one"
        os.read(lowered[0], 1)
        crowd = [socket.create_connection((mesh.b.ip4, PORT), timeout=10) for _ in range(20)]
        os.write(full[1], b"f")
        os.read(release[0], 1)
        # The established one is served, and nobody of the crowd has left.
        return [first.call(request("echo", "two"))["result"], len(crowd)]

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(mesh.a.do, session)
        wait_until(lambda: agent.status()["requests"]["ok"] == 1, 10, "the first request")
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 8, hard))
        os.write(lowered[1], b"l")
        ready = [full[0]]
        wait_until(lambda: running.done() or select.select(ready, [], [], 0)[0], 30, "the crowd")
        wait_until(lambda: '"full"' in agent.process.output, 10, "the agent full")
        wait_until(lambda: mesh.way() == "direct", 5, "new connections go direct")
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))
        wait_until(lambda: mesh.way() == "agent", 10, "new connections come back")
        os.write(release[1], b"r")
        assert running.result() == ["two", 20]


# What is there before an agent starts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[agent\n", "not TOML"),
        ("[agent]\nno_such_key = 1\n", "no_such_key"),
        ("[agent]\noutbound_port = 70000\n", "70000"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_an_unusable_configuration_is_told_and_attaches_nothing(
    mesh: Mesh, content: str | None, said: str
) -> None:
    path = mesh.a.directory / "broken.toml"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    done = mesh.a.call(sys.executable, "-I", "-m", "installer.agent", str(path))
    assert done.returncode == 1
    assert said in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert not mesh.kernel.is_installed()


def test_a_registry_that_cannot_be_read_leaves_traffic_to_the_dialled_address(mesh: Mesh) -> None:
    missing = mesh.a.directory / "none.toml"
    agent = mesh.start_agent(registry=f'kind = "static"\nfile = "{missing}"')
    assert agent.status()["registry"]["state"] == "DEGRADED"
    assert str(missing) in agent.status()["registry"]["detail"]
    host = mesh.b.ip4
    reply = mesh.a.do(lambda: call(host, PORT, request("echo", "passed on")))
    assert reply["result"] == "passed on"


def test_broken_members_are_reported_and_the_others_routed(mesh: Mesh) -> None:
    mesh.start_redis(f"{mesh.b.ip4}:{PORT}", "name:80", "10.0.0.1:0", "x")
    agent = mesh.start_agent(registry=REDIS)
    assert mesh.way() == "agent"
    registry = agent.status()["registry"]
    assert registry["broken_members"] == 3
    assert registry["instances"] == 1
    assert any("name:80" in text for text in registry["broken"])


def test_a_port_that_is_taken_is_told_and_traffic_goes_direct(mesh: Mesh) -> None:
    holder = mesh.a.python(
        "holder",
        "-c",
        "import socket, signal\n"
        f"s = socket.create_server(('127.0.0.1', {OUTBOUND_PORT}))\n"
        "print('ready', flush=True)\nsignal.pause()",
        cgroup=mesh.outside,
    )
    mesh.started.append(holder)
    holder.wait_line("ready")
    said = mesh.fails(mesh.run_agent())
    assert f"listen on 127.0.0.1:{OUTBOUND_PORT}: Address already in use" in said
    Node(mesh.a.root).add_scope(mesh.a.services)
    Node(mesh.a.root).switch(on=True)
    assert mesh.way() == "direct"
    holder.kill()
    mesh.start_agent()
    assert mesh.way() == "agent"


def test_a_second_agent_refuses_and_names_the_first(mesh: Mesh) -> None:
    first = mesh.start_agent()
    said = mesh.fails(mesh.run_agent())
    assert f"an agent runs already (process {first.process.pid})" in said
    assert mesh.way() == "agent"
    assert first.status()["pid"] == first.process.pid


def test_two_agents_started_at_once_are_one(mesh: Mesh) -> None:
    both = [mesh.run_agent(), mesh.run_agent()]
    wait_until(
        lambda: sum(agent.process.popen.poll() is not None for agent in both) == 1, 20, "one left"
    )
    loser = next(agent for agent in both if agent.process.popen.poll() is not None)
    winner = next(agent for agent in both if agent is not loser)
    winner.process.wait_line('"ready"')
    assert "an agent runs already" in mesh.fails(loser)
    winner.mesh_on()
    assert mesh.way() == "agent"


@pytest.mark.parametrize("missing", ["maps/cfg", "progs/moa_connect4"])
def test_an_install_that_broke_off_in_the_middle_is_told_or_mended(
    mesh: Mesh, missing: str
) -> None:
    agent = mesh.start_agent()
    agent.process.kill()
    (mesh.kernel.tree.current / missing).unlink()
    again = mesh.run_agent()
    if missing.startswith("maps"):
        said = mesh.fails(again)
        assert "incomplete" in said
        assert "moactl uninstall" in said
        mesh.kernel.uninstall()
        again = mesh.run_agent()
    again.process.wait_line('"ready"')
    again.mesh_on()
    assert mesh.way() == "agent"


def test_what_an_unfinished_install_staged_is_swept_away(mesh: Mesh) -> None:
    agent = mesh.start_agent()
    agent.process.kill()
    staged = mesh.kernel.tree.root / "new-4711"
    staged.mkdir()
    (staged / "maps").mkdir()
    mesh.start_agent()
    assert not staged.exists()
    assert mesh.way() == "agent"


# A kernel that cannot do everything


def _without(hook: str) -> str:
    """The probe finds that this hook does not work."""
    return (
        "import dataclasses, interceptor.node as node, interceptor.probe as probe\n"
        "found = probe.probe_hooks\n"
        "def probe_hooks():\n"
        "    hooks = tuple(\n"
        f"        dataclasses.replace(s, works=False, detail='simulated') if s.name == {hook!r}\n"
        "        else s for s in found().hooks)\n"
        "    return probe.Features(hooks)\n"
        "for module in (node, probe):\n"
        "    module.probe_hooks = probe_hooks\n"
        "import sys\n"
        "for module in list(sys.modules.values()):\n"
        "    if getattr(module, 'probe_hooks', None) is found:\n"
        "        module.probe_hooks = probe_hooks\n"
    )


@pytest.mark.parametrize("hook", ["sk_lookup", "getpeername4", "connect6"])
def test_without_an_optional_hook_callers_are_served(mesh: Mesh, hook: str) -> None:
    agent = mesh.start_agent(code=_without(hook))
    installed = json.loads(agent.process.wait_line('"installed"'))
    assert installed["missing_hooks"] == [hook]
    assert mesh.way() == "agent"


@pytest.mark.parametrize("hook", ["connect4", "sock_ops", "getsockopt"])
def test_without_a_hook_that_it_needs_an_agent_says_so_and_leaves_traffic_alone(
    mesh: Mesh, hook: str
) -> None:
    said = mesh.fails(mesh.run_agent(code=_without(hook)))
    assert "this kernel does not support it: simulated" in said
    assert "moactl doctor" in said
    assert not mesh.kernel.is_installed()
    assert mesh.way() == "direct"


def test_without_the_object_an_agent_says_what_is_missing(mesh: Mesh) -> None:
    code = (
        "import interceptor.node, interceptor.programs as p, pathlib\n"
        "node = interceptor.node.Node\n"
        "install = node.install\n"
        "node.install = lambda self, settings: "
        "install(self, settings, object_path=pathlib.Path('/nonexistent/moa.bpf.o'))\n"
    )
    assert programs.OBJECT_PATH.exists()
    said = mesh.run_agent(code=code)
    wait_until(lambda: said.process.popen.poll() is not None, 20, "the agent's end")
    assert "/nonexistent/moa.bpf.o" in said.process.output
    assert "Traceback" not in said.process.output
    assert mesh.way() == "direct"


# What happens to an agent that runs


def test_a_scope_that_vanishes_and_comes_back_is_attached_again(
    mesh: Mesh, measured: Measured
) -> None:
    agent = mesh.start_agent()
    unit = Cgroup(f"/{mesh.a.lab.id}/unit")
    unit.create()
    mesh.kernel.add_scope(unit)
    assert mesh.way(unit) == "agent"
    wait_until(unit.remove, 10, "the cgroup removed")
    wait_until(lambda: _state(agent, unit) == "lost", 10, "its scope lost")
    assert mesh.way() == "agent"
    unit.create()
    start_s = time.monotonic()
    wait_until(lambda: _state(agent, unit) == "attached", 10, "its scope attached again")
    measured("a cgroup made anew is attached", seconds=time.monotonic() - start_s)
    assert mesh.way(unit) == "agent"
    assert agent.process.popen.poll() is None


def _state(agent: Agent, cgroup: Cgroup) -> str:
    return next(s.state for s in Node(agent.node.root).scopes() if s.cgroup == cgroup.name)


def test_a_scope_that_comes_and_goes_all_the_time_does_not_end_the_agent(mesh: Mesh) -> None:
    unit = Cgroup(f"/{mesh.a.lab.id}/restless")
    agent = mesh.start_agent(
        code="import installer.agent\ninstaller.agent.RECONCILE_S = 0.005\n",
    )
    unit.create()
    mesh.kernel.add_scope(unit)
    for _ in range(300):
        unit.remove()
        unit.create()
    assert agent.process.popen.poll() is None
    wait_until(lambda: _state(agent, unit) == "attached", 10, "attached in the end")
    assert mesh.way(unit) == "agent"
    assert "Traceback" not in agent.process.output


def test_a_full_disk_does_not_stop_an_agent(mesh: Mesh) -> None:
    state = mesh.a.directory / "state"
    state.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", str(state))
    try:
        with (state / "filler").open("wb", buffering=0) as filler:
            filler.write(b"x" * 4096)
        mesh.start_redis(f"{mesh.b.ip4}:{PORT}")
        agent = mesh.start_agent(registry=REDIS)
        wait_until(lambda: "No space left" in agent.process.output, 10, "the warning")
        assert mesh.way() == "agent"
        assert agent.status()["registry"]["state"] == "SYNCED"
        assert not (state / "registry.json").exists()
        agent.process.stop()
    finally:
        run("umount", str(state))


def test_an_event_loop_that_hangs_lets_traffic_pass_and_takes_it_back(mesh: Mesh) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGUSR2, lambda *_: time.sleep(4))\n"
    agent = mesh.start_agent("", code=code, registry=mesh.registry)
    assert mesh.way() == "agent"
    agent.process.signal(signal.SIGUSR2)
    start_s = time.monotonic()
    wait_until(lambda: _direct_in_time(mesh), 6, "direct while the loop hangs")
    assert time.monotonic() - start_s < 4
    wait_until(lambda: mesh.way() == "agent", 15, "back at the agent")


def _direct_in_time(mesh: Mesh) -> bool:
    """A connection that reached the hanging agent is answered late, and is not asked again."""
    host = mesh.b.ip4

    def attempt() -> bool:
        sock = socket.socket()
        sock.settimeout(0.2)
        try:
            sock.connect((host, UNUSED_PORT))
        except ConnectionRefusedError:
            return True
        finally:
            sock.close()
        return False

    return bool(mesh.a.do(attempt))
