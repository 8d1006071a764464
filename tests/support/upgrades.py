"""Agents of one node that succeed each other, as a supervisor sees them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from installer.client import AgentClient, own_socket_name
from tests.support.agents import Agent, write_config
from tests.support.handover_peer import HandoverPeer
from tests.support.lab import REPO, LabNode, Running, wait_until
from tests.support.link_client import LinkClient

OTHER_PROGRAMS = REPO / "tests/e2e/clients/other_programs.py"


@dataclass(slots=True)
class Generation:
    """One agent's process and the link to it."""

    node: LabNode
    process: Running
    link: LinkClient

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def client(self) -> AgentClient:
        """Asks this very agent, whether it serves or not."""
        return AgentClient(self.node.directory / "run" / own_socket_name(self.pid))

    @property
    def entrance(self) -> Path:
        """Where its successor comes in."""
        return self.node.directory / "run" / f"handover-{self.pid}.sock"

    @property
    def is_alive(self) -> bool:
        return self.process.popen.poll() is None

    def descriptors(self) -> list[str]:
        """What each of its open descriptors is."""
        found, directory = [], Path(f"/proc/{self.pid}/fd")
        for entry in directory.iterdir():
            try:
                found.append(os.readlink(entry))
            except FileNotFoundError:
                continue
        return sorted(found)

    def sockets(self) -> int:
        """How many sockets it has."""
        return sum(name.startswith("socket:") for name in self.descriptors())

    def pss_kib(self) -> int:
        """Its memory, with its share of what it shares."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))

    def conns(self) -> list[dict[str, Any]]:
        conns: list[dict[str, Any]] = self.client.conns()["conns"]
        return conns

    def retire(self) -> None:
        """Tell a retired one to go, and see that it ends well."""
        self.link.do("leave")
        assert self.process.popen.wait(10) == 0, self.process.output


@dataclass(slots=True)
class Upgrades:
    """The agents of a node; `serving` is the one that serves."""

    node: LabNode
    config: Path
    serving: Generation
    own_sockets: int
    """Of an agent that has no clients yet and is connected with no other agent."""
    generations: list[Generation] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        node: LabNode,
        registry: str,
        extra: str = "",
        identity: str = "",
        timeout_s: int = 60,
    ) -> Upgrades:
        """Start the first one; `timeout_s` is for the connections of an upgrade."""
        config = write_config(node, registry, extra, identity)
        text = config.read_text().replace("[agent]", f"[agent]\nhandover_timeout_s = {timeout_s}")
        config.write_text(text)
        first = start_generation(node, config)
        first.process.wait_line('"ready"')
        return cls(node, config, first, first.sockets(), [first])

    @property
    def agent(self) -> Agent:
        """The one that serves."""
        return Agent(self.node, self.config, self.serving.process)

    def wait_requests(self, count: int) -> None:
        """Until so many more have been served."""

        def total() -> int:
            return int(self.agent.status()["requests"]["total"])

        wanted = total() + count
        wait_until(lambda: total() >= wanted, 20, f"{count} requests more")

    def prepare(self, config: Path | None = None, prefix: Sequence[str] = ()) -> Generation:
        """Start a successor; returns when it says that it could take over."""
        successor = self.start_successor(config, prefix)
        successor.link.wait("ready")
        return successor

    def start_successor(self, config: Path | None = None, prefix: Sequence[str] = ()) -> Generation:
        path = ("--take-over", str(self.serving.entrance))
        successor = start_generation(self.node, config or self.config, path, prefix)
        self.generations.append(successor)
        return successor

    def refused(self) -> str:
        """Start a successor that is turned away; its last words. It may have ended before
        anybody could connect to its link."""
        process = _start(self.node, self.config, ("--take-over", str(self.serving.entrance)))
        assert process.popen.wait(20) == 1
        return process.output.splitlines()[-1]

    def start_other(self, programs: Path) -> Generation:
        """A successor of a version with these programs."""
        argv = [str(OTHER_PROGRAMS), str(programs), str(self.config), "--supervised"]
        path = ("--take-over", str(self.serving.entrance))
        process = self.node.start("other-agent", sys.executable, *argv, *path)
        link = LinkClient(self.node.directory / "run", process.pid)
        successor = Generation(self.node, process, link)
        self.generations.append(successor)
        return successor

    def wait_free(self) -> None:
        """Until the one that serves has noticed that a successor has gone."""
        HandoverPeer.dial_when_free(self.serving.entrance).close()

    def give(self, successor: Generation) -> Generation:
        """Let the one that serves give everything to `successor`; returns the retired one."""
        before = self.serving
        before.link.do("give")
        before.link.wait("given")
        successor.link.wait("taken")
        self.serving = successor
        return before

    def upgrade(self) -> Generation:
        """One upgrade from beginning to end; returns the retired one."""
        return self.give(self.prepare())


def start_generation(
    node: LabNode, config: Path, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Generation:
    process = _start(node, config, options, prefix)
    try:
        link = LinkClient(node.directory / "run", process.pid)
    except Exception as error:
        raise AssertionError(f"{error}\n{process.output}") from error
    return Generation(node, process, link)


def _start(
    node: LabNode, config: Path, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Running:
    argv = [*prefix, sys.executable, "-I", "-m", "installer.agent_start", str(config)]
    return node.start("moa-agent", *argv, "--supervised", *options)


def wait_no_leak(generation: Generation, own: int) -> None:
    """Until an agent has its own sockets, one for each client and each upstream, and no other."""

    def surplus() -> int:
        upstreams = int(generation.client.status()["connections"]["upstream"])
        upstreams += sum(int(p["connections"]) for p in generation.client.conns()["peers"])
        return generation.sockets() - own - len(generation.conns()) - upstreams

    wait_until(lambda: surplus() == 0, 10, f"no leak: {surplus()} of {generation.descriptors()}")
