"""The kernel's side of an upgrade: programs follow the agent, and no connect() passes it by."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from interceptor import libbpf
from interceptor.abi import ListenerSlot, Reason
from interceptor.node import Node as KernelNode
from proxy.wire.handover import FrameType
from proxy.wire.handover import handover_pb2 as pb
from tests.e2e.conftest import Measured
from tests.support import crowds
from tests.support.crowds import PORT, Crowd
from tests.support.handover_peer import HandoverPeer
from tests.support.lab import REPO, Lab, LabNode, Running
from tests.support.upgrades import Upgrades

pytestmark = pytest.mark.e2e

DIRECT = (
    Reason.CONNECT_HEARTBEAT_STALE,
    Reason.CONNECT_NO_LISTENER,
    Reason.CONNECT_FOREIGN_LISTENER,
    Reason.CONNECT_DISABLED,
)
STALE_S = 2.0
"""bpf.heartbeat_max_age_ms, at its default."""


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same programs compiled otherwise: other instructions, hence other tags."""
    if shutil.which("clang") is None:
        pytest.skip("needs clang: it compiles a variant of the object")
    made = tmp_path_factory.mktemp("object") / "variant.bpf.o"
    flags = re.search(r"^BPF_CFLAGS = (.*)$", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert flags is not None
    machine = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True)
    wanted = flags[1].replace("$(MULTIARCH)", machine.stdout.strip()).replace("-O2", "-O1")
    source = REPO / "bpf" / "moa.bpf.c"
    subprocess.run(["clang", *wanted.split(), "-c", str(source), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="module")
def upgrades(lab: Lab) -> Upgrades:
    return crowds.begin(lab)


@pytest.fixture(autouse=True)
def one_agent(upgrades: Upgrades) -> Iterator[None]:
    yield
    for generation in upgrades.generations:
        if generation is not upgrades.serving and generation.is_alive:
            generation.retire()


def tags(node: LabNode) -> dict[str, str]:
    """Of the programs that are attached now, by the path of the link."""
    found = {}
    tree = KernelNode(node.root).tree
    by_id = {}
    for pin in tree.programs.iterdir():
        fd = libbpf.open_pin(pin)
        info = libbpf.program_info(fd)
        by_id[info.id] = bytes(info.tag).hex()
        os.close(fd)
    for directory in (tree.agent_links, *tree.scope_directories()):
        for path in directory.iterdir():
            fd = libbpf.open_pin(path)
            found[path.name] = by_id[libbpf.link_info(fd).prog_id]
            os.close(fd)
    return found


@dataclass(slots=True)
class Seen:
    """What the maps said again and again; ages and gaps in seconds."""

    samples: int = 0
    without_listener: int = 0
    oldest_beat_s: float = 0.0
    counted: dict[Reason, int] = field(default_factory=dict)


@contextmanager
def watching(node: LabNode) -> Iterator[Seen]:
    seen, stop = Seen(), threading.Event()
    with KernelNode(node.root).maps() as maps:
        before = maps.counters()

        def watch() -> None:
            while not stop.wait(0.001):
                seen.samples += 1
                there = maps.listeners()
                seen.without_listener += not {ListenerSlot.OUT4, ListenerSlot.IN4} <= there.keys()
                age_s = (time.monotonic_ns() - maps.last_beat_ns()) / 1e9
                seen.oldest_beat_s = max(seen.oldest_beat_s, age_s)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()
            seen.counted = {r: n - before[r] for r, n in maps.counters().items()}


def short_callers(upgrades: Upgrades) -> Running:
    """Each of whose requests has a connection of its own."""
    host = upgrades.node.lab.nodes["b"].ip4
    callers = upgrades.node.python(
        "callers", "-m", "tests.e2e.clients.steady", host, str(PORT), "4", "short"
    )
    callers.wait_line("started")
    return callers


def test_every_connect_goes_to_an_agent(upgrades: Upgrades, measured: Measured) -> None:
    """While agents succeed each other and one comes back."""
    callers, crowd = short_callers(upgrades), Crowd.begin(upgrades, "resp=8@80")
    successor, first = upgrades.prepare(), upgrades.serving
    with watching(upgrades.node) as seen:
        for giver, taker in ((first, successor), (successor, first), (first, successor)):
            upgrades.wait_requests(30)
            giver.link.do("give")
            giver.link.wait("given")
            taker.link.wait("taken")
            upgrades.serving = taker
        upgrades.wait_requests(30)
    callers.popen.terminate()
    callers.popen.wait(20)
    crowd.end()
    report = callers.output.splitlines()[-1]
    assert '"failures": []' in report
    assert seen.samples > 100
    assert seen.without_listener == 0
    assert seen.oldest_beat_s < STALE_S
    assert {reason: seen.counted[reason] for reason in DIRECT} == dict.fromkeys(DIRECT, 0)
    assert seen.counted[Reason.CONNECT_REDIRECTED] > 30
    redirected = seen.counted[Reason.CONNECT_REDIRECTED]
    measured("connect() during three upgrades", redirected=redirected, direct=0,
             oldest_beat_s=seen.oldest_beat_s, samples=seen.samples)  # fmt: skip


def test_the_programs_are_those_of_who_serves(upgrades: Upgrades, variant: Path) -> None:
    own = tags(upgrades.node)
    callers = short_callers(upgrades)
    with watching(upgrades.node) as seen:
        first = upgrades.serving
        second = upgrades.start_other(variant)
        second.link.wait("ready")
        assert tags(upgrades.node) == own  # it only waits
        upgrades.give(second)
        new = tags(upgrades.node)
        assert new.keys() == own.keys()
        assert all(new[name] != own[name] for name in ("connect4", "connect6", "sk_lookup"))
        upgrades.wait_requests(30)
        second.link.do("give")
        second.link.wait("given")
        first.link.wait("taken")
        upgrades.serving = first
        assert tags(upgrades.node) == own
        upgrades.wait_requests(30)
    callers.popen.terminate()
    callers.popen.wait(20)
    assert '"failures": []' in callers.output.splitlines()[-1]
    assert {reason: seen.counted[reason] for reason in DIRECT} == dict.fromkeys(DIRECT, 0)


def test_a_successor_that_fails_leaves_its_programs_nowhere(
    upgrades: Upgrades, variant: Path
) -> None:
    own, first = tags(upgrades.node), upgrades.serving
    waiting = upgrades.start_other(variant)
    waiting.link.wait("ready")
    waiting.process.kill()
    upgrades.wait_free()
    assert tags(upgrades.node) == own
    # Another one put its programs there, was given all but the gate, and died.
    peer = HandoverPeer.dial_when_free(first.entrance)
    peer.hello()
    peer.send(pb.Ready(descriptors=100_000))
    first.link.do("give")
    peer.wait(FrameType.SHARED)
    argv = [sys.executable, "-c", _INSTALL, str(upgrades.config), str(variant)]
    done = upgrades.node.call(*argv, cgroup=upgrades.node.agent)
    assert done.returncode == 0, done.stderr
    assert tags(upgrades.node) != own
    peer.close()
    first.link.wait("refused")
    assert tags(upgrades.node) == own
    second = upgrades.start_other(variant)
    second.link.wait("ready")
    upgrades.give(second)
    assert tags(upgrades.node) != own
    second.process.kill()
    first.link.wait("refused")
    upgrades.serving = first
    assert tags(upgrades.node) == own


_INSTALL = """
import sys
from pathlib import Path
from installer.app_settings import kernel_settings
from installer.config import load
from interceptor.node import Node
config = load(Path(sys.argv[1]))
Node(config.bpf.root).install(kernel_settings(config), object_path=Path(sys.argv[2]))
"""
