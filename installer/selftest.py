"""A synthetic service on this very node: is it intercepted, and is it left alone when it must be?

Everything is its own: pins, cgroups, ports of loopback, and an agent of a few lines. A real
agent that runs here is neither used nor disturbed, and nothing is left: processes end with the
run that started them, and what else a killed run leaves is cleared by the next one.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from interceptor.abi import ListenerSlot
from interceptor.cgroup import Cgroup, mount_point
from interceptor.errors import InterceptorError
from interceptor.maps import Destination
from interceptor.node import AgentSettings, Node
from proxy.net.sockets import original_destination

_HOST = "127.0.0.1"
_NAME = "moa-selftest-"
_PINS = Path("/sys/fs/bpf")
_WAIT_S = 5.0
_BEAT_S = 0.05
_PR_SET_PDEATHSIG = 1
_MAX_AGE_S = 1.0
"""Of the heartbeat; a busy node must not look like one whose agent hangs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that was tried; `seen` is what was there."""

    id: str
    title: str
    passed: bool
    seen: str


@dataclass(slots=True)
class _Stage:
    """What is set up for one run."""

    node: Node
    top: Cgroup
    service: socket.socket
    outbound_port: int
    inbound_port: int
    children: list[int] = field(default_factory=list)

    @property
    def caller(self) -> Cgroup:
        return Cgroup(f"{self.top.name}/caller")

    @property
    def agent(self) -> Cgroup:
        return Cgroup(f"{self.top.name}/agent")

    @property
    def address(self) -> str:
        host, port = self.service.getsockname()
        return f"{host}:{port}"


def run() -> Iterator[Outcome]:
    """Try one thing after the other; raises InterceptorError where it cannot even begin."""
    _clear_leftovers()
    with ExitStack() as stack:
        stage = _stage(stack)
        stack.callback(_clear, stage)
        agent = _set_up(stage)
        service, address = "the service", stage.address
        yield _dialled(stage, "off", "switched off: left alone", service)
        stage.node.switch(on=True, shadow=True)
        yield _dialled(stage, "shadow", "in shadow: left alone", service)
        stage.node.switch(on=True)
        intercepted = f"the agent, for {address}"
        yield _dialled(
            stage, "redirect", "turned to the agent, which learns what was dialled", intercepted
        )
        yield _dialled(stage, "own", "the agent's own: left alone", service, stage.agent)
        with stage.node.maps() as maps:
            maps.set_destinations("exclude", [Destination.of(_HOST, _port(stage.service))])
            yield _dialled(stage, "excluded", "an excluded destination: left alone", service)
            maps.set_destinations("exclude", [])
        os.kill(agent, signal.SIGSTOP)
        time.sleep(1.5 * _MAX_AGE_S)
        yield _dialled(stage, "hung", "the agent hangs: left alone", service)
        os.kill(agent, signal.SIGCONT)
        yield _recovered(stage, intercepted)
        os.kill(agent, signal.SIGKILL)
        os.waitpid(agent, 0)
        stage.children.remove(agent)
        yield _dialled(stage, "killed", "the agent was killed: left alone", service)
        left = stage.node.uninstall().left
        gone = not left and not stage.node.tree.root.exists()
        yield Outcome(
            "removal", "nothing is left in the kernel", gone, "; ".join(left) or "nothing"
        )
        yield _dialled(stage, "removed", "and the service is reached as ever", service)


def _stage(stack: ExitStack) -> _Stage:
    name = f"{_NAME}{os.getpid()}"
    service = stack.enter_context(socket.create_server((_HOST, 0)))
    # Taken for a moment only, so that they are free ones.
    with socket.create_server((_HOST, 0)) as one, socket.create_server((_HOST, 0)) as two:
        ports = _port(one), _port(two)
    return _Stage(Node(_PINS / name), Cgroup(f"/{name}"), service, *ports)


def _port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def _set_up(stage: _Stage) -> int:
    """Service, programs and agent; the agent's process id."""
    stage.caller.create()
    stage.agent.create()
    _spawn(stage, stage.top, lambda: _serve(stage.service, lambda _: "the service"))
    settings = AgentSettings(
        cgroup=stage.agent,
        outbound_port=stage.outbound_port,
        inbound_port=stage.inbound_port,
        mark=0,
        heartbeat_max_age_ns=int(_MAX_AGE_S * 1e9),
    )
    stage.node.install(settings)
    with stage.node.maps() as maps:
        maps.set_destinations("include", [Destination.of(_HOST, _port(stage.service))])
    stage.node.add_scope(stage.caller)
    agent = _spawn(stage, stage.agent, lambda: _be_agent(stage))
    deadline_s = time.monotonic() + _WAIT_S
    with stage.node.maps() as maps:
        while not maps.listeners():
            if time.monotonic() > deadline_s:
                raise InterceptorError(
                    f"self-test: its agent (process {agent}) published no listener within "
                    f"{_WAIT_S:g} s; moactl doctor"
                )
            time.sleep(0.01)
    return agent


def _spawn(stage: _Stage, cgroup: Cgroup, action: Callable[[], object]) -> int:
    pid = _fork(cgroup, action)
    stage.children.append(pid)
    return pid


def _fork(cgroup: Cgroup, action: Callable[[], object]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _in_child(parent, cgroup, action)
    return pid


def _in_child(parent: int, cgroup: Cgroup, action: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        # Whoever started us was killed: so are we, even while we are stopped.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(code)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        cgroup.add(os.getpid())
        action()
        code = 0
    finally:
        os._exit(code)


def _be_agent(stage: _Stage) -> None:
    """Listen, beat, and say to each caller what it dialled."""
    with socket.create_server((_HOST, stage.outbound_port)) as listener, stage.node.maps() as maps:
        maps.beat()
        maps.publish_listener(ListenerSlot.OUT4, listener, 1)
        _serve(
            listener,
            lambda sock: f"the agent, for {original_destination(sock)}",
            every_beat=maps.beat,
        )


def _serve(
    listener: socket.socket,
    answer: Callable[[socket.socket], str],
    every_beat: Callable[[], object] = lambda: None,
) -> None:
    while True:
        every_beat()
        if select.select([listener], [], [], _BEAT_S)[0]:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(answer(sock).encode())


def _recovered(stage: _Stage, wanted: str) -> Outcome:
    """The agent runs again: its next beat counts."""
    deadline_s = time.monotonic() + _WAIT_S
    while True:
        outcome = _dialled(stage, "recovered", "the agent turns again: turned to it", wanted)
        if outcome.passed or time.monotonic() > deadline_s:
            return outcome
        time.sleep(_BEAT_S)


def _dialled(
    stage: _Stage, identity: str, title: str, wanted: str, cgroup: Cgroup | None = None
) -> Outcome:
    """Who answers a caller that dials the service, and whether it sees the address it dialled."""
    seen = _dial(stage, cgroup or stage.caller)
    return Outcome(identity, title, seen == f"{wanted}; peer {stage.address}", seen)


def _dial(stage: _Stage, cgroup: Cgroup) -> str:
    reader, writer = os.pipe()
    pid = _fork(cgroup, lambda: os.write(writer, _ask(stage).encode()))
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return text or "no answer"


def _ask(stage: _Stage) -> str:
    try:
        with socket.create_connection(stage.service.getsockname(), _WAIT_S) as sock:
            host, port = sock.getpeername()
            chunks = iter(lambda: sock.recv(4096), b"")
            return f"{b''.join(chunks).decode()}; peer {host}:{port}"
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def _clear(stage: _Stage) -> None:
    for pid in stage.children:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    _remove(stage.node, stage.top)


def _remove(node: Node, top: Cgroup) -> None:
    with suppress(InterceptorError):
        node.uninstall()
    for cgroup in (Cgroup(f"{top.name}/caller"), Cgroup(f"{top.name}/agent"), top):
        deadline_s = time.monotonic() + _WAIT_S
        # A cgroup is busy for a moment after its last process has ended.
        while cgroup.exists() and not cgroup.remove() and time.monotonic() < deadline_s:
            time.sleep(0.01)


def _clear_leftovers() -> None:
    """Of runs that were killed, whatever is left, and whatever state it is in."""
    names = {p.name for top in (_PINS, mount_point()) if top.is_dir() for p in top.iterdir()}
    for name in names:
        found = re.fullmatch(rf"{_NAME}([0-9]+)", name)
        if found and not Path(f"/proc/{found[1]}").exists():
            top = Cgroup(f"/{name}")
            for pid in filter(None, top.processes()):  # 0 is one that we cannot see
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _remove(Node(_PINS / name), top)
