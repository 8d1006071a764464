"""Keeps the kernel's map of peer agents: finds them, checks them, stamps them.

Runs in the supervisor, so that it goes on when the agent has died: that is what it is for. The
stamps run out `valid_s` after the last one, so that connections go direct when it dies, too.

A peer counts as alive from its first PONG until its connection ends, which a crash or a drain
of that agent tells at once, or until `fall` PINGs in a row found no answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from interceptor import abi, peers
from interceptor.errors import InterceptorError
from interceptor.maps import Maps
from interceptor.node import Node
from proxy.core.model import PeerAgent
from proxy.net.sockets import open_client
from proxy.registry.agents import AgentDirectory

_PING = b"*1\r\n$4\r\nPING\r\n"
_PONG = b"+PONG\r\n"

log = structlog.get_logger("peers")


@dataclass(frozen=True, slots=True)
class PeerTimes:
    """In seconds, but `fall`: how many PINGs in a row may stay without an answer, less one."""

    ping_interval_s: float = 2.0
    answer_s: float = 1.0
    fall: int = 2
    retry_s: float = 1.0
    stamp_s: float = 1.0
    valid_s: float = 3.0


@dataclass(slots=True)
class _Watched:
    task: asyncio.Task[None]
    is_alive: bool = False


@dataclass(slots=True)
class PeerKeeper:
    """`follow` keeps the directory up to date for as long as it is awaited."""

    node: Node
    directory: AgentDirectory
    follow: Callable[[], Coroutine[Any, Any, None]]
    zone: str = ""
    mark: int = 0
    """Of its own connections, which are never intercepted."""
    times: PeerTimes = field(default_factory=PeerTimes)
    rand: random.Random = field(default_factory=random.Random)
    _watched: dict[PeerAgent, _Watched] = field(default_factory=dict)
    _chosen: dict[int, list[PeerAgent]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _maps: Maps | None = None
    _installation: int = 0

    async def run(self) -> None:
        """Until cancelled; then connections go direct again at once.

        Returns where the kernel does not tell the number of a network namespace.
        """
        try:
            cookie = peers.netns_cookie()
        except OSError as error:
            log.error("no peers: SO_NETNS_COOKIE needs Linux 5.14", error=error.strerror)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.follow())
                while True:
                    self._watch(group)
                    self._stamp(cookie)
                    self._changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self.times.stamp_s):
                            await self._changed.wait()
        finally:
            self._withdraw()

    @property
    def alive(self) -> list[PeerAgent]:
        """The peers that answer."""
        return [agent for agent, watched in self._watched.items() if watched.is_alive]

    # The peers, each with a connection of its own

    def _watch(self, group: asyncio.TaskGroup) -> None:
        wanted = set(self.directory.peers)
        for agent in self._watched.keys() - wanted:
            self._watched.pop(agent).task.cancel()
        for agent in wanted - self._watched.keys():
            self._watched[agent] = _Watched(group.create_task(self._check_for_ever(agent)))

    async def _check_for_ever(self, agent: PeerAgent) -> None:
        while True:
            why = await self._check(agent)
            watched = self._watched.get(agent)
            if watched is not None and watched.is_alive:
                log.warning("peer lost", peer=str(agent.address), reason=why)
                watched.is_alive = False
                self._changed.set()
            await asyncio.sleep(self.times.retry_s * self.rand.uniform(0.5, 1.0))

    async def _check(self, agent: PeerAgent) -> str:
        """One connection's life; why it ended."""
        try:
            sock = open_client(agent.address, mark=self.mark)
            try:
                async with asyncio.timeout(self.times.answer_s):
                    target = (agent.address.host, agent.address.port)
                    await asyncio.get_running_loop().sock_connect(sock, target)
                reader, writer = await asyncio.open_connection(sock=sock)
            except BaseException:
                sock.close()
                raise
            try:
                return await self._ask_for_ever(agent, reader, writer)
            finally:
                writer.transport.abort()
        except TimeoutError:
            return "no connection in time"
        except OSError as error:
            return error.strerror or str(error)

    async def _ask_for_ever(
        self, agent: PeerAgent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        missed = 0
        while missed < self.times.fall:
            writer.write(_PING)
            answer = await _line(reader, self.times.answer_s)
            if answer is None:
                missed += 1
                continue
            if answer != _PONG:
                return f"answered {answer[:40]!r}" if answer else "it hung up"
            missed = 0
            self._set_alive(agent)
            # Nothing is to come: what comes is its end.
            early = await _line(reader, self.times.ping_interval_s)
            if early is not None and early != _PONG:
                return f"said {early[:40]!r}" if early else "it hung up"
        return f"{missed} PINGs without an answer"

    def _set_alive(self, agent: PeerAgent) -> None:
        watched = self._watched.get(agent)
        if watched is not None and not watched.is_alive:
            log.info("peer alive", peer=str(agent.address), zone=agent.zone)
            watched.is_alive = True
            self._changed.set()

    # The map

    def _stamp(self, cookie: int) -> None:
        try:
            maps = self._open()
            if maps is None:
                return
            until_ns = time.monotonic_ns() + int(self.times.valid_s * 1e9)
            for family in (4, 6):
                addresses = [(a.address.host, a.address.port) for a in self._choose(family)]
                peers.write(maps, family, addresses, valid_until_ns=until_ns, cookie=cookie)
        except (InterceptorError, OSError, KeyError) as error:
            log.warning("peers not written", error=str(error))
            self._close()

    def _choose(self, family: int) -> list[PeerAgent]:
        """Of those that live the ones of our zone, or else all; the same until that changes."""
        alive = [a for a in self.alive if (":" in a.address.host) == (family == 6)]
        near = [agent for agent in alive if agent.zone == self.zone] or alive
        chosen = [agent for agent in self._chosen.get(family, []) if agent in near]
        wanted = min(len(near), abi.PEER_SLOTS)
        if len(chosen) != wanted:
            rest = [agent for agent in near if agent not in chosen]
            chosen += self.rand.sample(rest, wanted - len(chosen))
        self._chosen[family] = chosen
        return chosen

    def _open(self) -> Maps | None:
        """The maps of what is installed now; None when nothing is."""
        try:
            installation = self.node.tree.current.stat().st_ino
        except FileNotFoundError:
            self._close()
            return None
        if self._maps is None or installation != self._installation:
            self._close()
            self._maps, self._installation = self.node.maps(), installation
        return self._maps

    def _withdraw(self) -> None:
        with suppress(InterceptorError, OSError, KeyError):
            if (maps := self._open()) is not None:
                peers.clear(maps)
        self._close()

    def _close(self) -> None:
        if self._maps is not None:
            self._maps.close()
            self._maps = None


async def _line(reader: asyncio.StreamReader, within_s: float) -> bytes | None:
    """The next line, b"" at the end, None when there is none in time."""
    try:
        async with asyncio.timeout(within_s):
            return await reader.readline()
    except TimeoutError:
        return None
    except ValueError:  # longer than any answer of ours
        return b"?"
