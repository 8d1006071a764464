"""Real Redis set-ups for tests: two servers under three sentinels, and a cluster of three nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.support.redis import RedisServer, _free_port

WITHIN_S = 20.0
MASTER = "mymaster"
SLOTS = 16384
DOWN_AFTER_MS = 800
NODE_TIMEOUT_MS = 1500


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = WITHIN_S) -> Any:
    """Poll until the condition is true; an error of Redis counts as not yet."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            if value := condition():
                return value
        except redis.RedisError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"not within {timeout_s} s: {what}")


class _Group:
    """Servers that are ended together."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stack = ExitStack()
        self.servers: list[RedisServer] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def _start(self) -> None:
        raise NotImplementedError

    def ask(self, port: int, *words: str | int, password: str | None = None) -> Any:
        """One command to whatever listens on a loopback port."""
        client: Any = redis.Redis(port=port, socket_timeout=5, protocol=2, password=password)
        try:
            return client.execute_command(*words)
        finally:
            client.close()


class Sentinels(_Group):
    """A master and a replica under three sentinels, all with one password if any."""

    def __init__(self, directory: Path, password: str = "") -> None:
        super().__init__(directory)
        self.password = password
        self.ports: list[int] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """What an agent is configured with."""
        secret = f":{self.password}@" if self.password else ""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{secret}{hosts}/{MASTER}/0"

    @property
    def master(self) -> RedisServer:
        """The server that the sentinels name now."""
        address = self._ask_any("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(s for s in self.servers if s.port == int(address[1]))

    @property
    def replica(self) -> RedisServer:
        master = self.master
        return next(s for s in self.servers if s is not master)

    def fail_over(self) -> None:
        """Make the replica the master, as an operator does; returns when the sentinels say so."""
        before = self.master.port
        wait_for(lambda: self._ask_any("SENTINEL", "FAILOVER", MASTER), "a failover begins")
        wait_for(lambda: self.master.port != before, "another master")

    def wait_ready(self) -> None:
        """Wait until the replica follows and each sentinel knows of everything."""
        wait_for(self._is_ready, "sentinels that know master, replica and each other")

    def _is_ready(self) -> bool:
        for port in self.ports:
            seen = self._state(port)
            if seen["flags"] != "master" or seen["num-other-sentinels"] != "2":
                return False
            if seen["num-slaves"] != "1":
                return False
        with self.replica.client() as replica:
            return bool(replica.info("replication").get("master_link_status") == "up")

    def _state(self, port: int) -> dict[str, str]:
        flat = [word.decode() for word in self.ask(port, "SENTINEL", "MASTER", MASTER)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _ask_any(self, *words: str) -> Any:
        for process, port in zip(self.processes, self.ports, strict=True):
            if process.poll() is None:
                return self.ask(port, *words)
        raise RuntimeError("no sentinel runs")

    def _start(self) -> None:
        options: tuple[str, ...] = (
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        )
        if self.password:
            options += ("--masterauth", self.password)
        for number in range(2):
            more: tuple[str, ...] = options
            if number:
                more += ("--replicaof", "127.0.0.1", str(self.servers[0].port))
            server = RedisServer(
                self.directory / f"server{number}", password=self.password, options=more
            )
            self.servers.append(self.stack.enter_context(server))
        for number in range(3):
            self._start_sentinel(number)
        self.wait_ready()

    def _start_sentinel(self, number: int) -> None:
        port = _free_port()
        directory = self.directory / f"sentinel{number}"
        directory.mkdir(parents=True)
        lines = [
            f"port {port}", "bind 127.0.0.1", f"dir {directory}", f"logfile {directory}/log",
            f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER} 3000",
        ]  # fmt: skip
        if self.password:
            lines.append(f"sentinel auth-pass {MASTER} {self.password}")
        config = directory / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        process = subprocess.Popen(
            ["redis-server", str(config), "--sentinel"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.stack.callback(_end, process)
        self.processes.append(process)
        self.ports.append(port)
        wait_for(lambda: self.ask(port, "PING"), f"sentinel {number}")

    def freeze_sentinel(self, number: int) -> None:
        """SIGSTOP."""
        os.kill(self.processes[number].pid, signal.SIGSTOP)

    def thaw_sentinel(self, number: int) -> None:
        """SIGCONT."""
        os.kill(self.processes[number].pid, signal.SIGCONT)


class Cluster(_Group):
    """Three nodes without replicas, each with a third of the slots."""

    @property
    def url(self) -> str:
        """What an agent is configured with."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in self.servers)

    def owner(self, key: str) -> RedisServer:
        """The node that holds a key's slot."""
        slot = self.slot(key)
        for first, last, owner, *_ in self._slots(self.servers[0]):
            if first <= slot <= last:
                return next(s for s in self.servers if s.port == owner[1])
        raise RuntimeError(f"nobody holds slot {slot}")

    def slot(self, key: str) -> int:
        return int(self.ask(self.servers[0].port, "CLUSTER", "KEYSLOT", key))

    def _slots(self, server: RedisServer) -> list[Any]:
        client: Any = redis.Redis(port=server.port, socket_timeout=5, protocol=2)
        client.set_response_callback("CLUSTER", lambda answer, **_: answer)
        try:
            return list(client.execute_command("CLUSTER", "SLOTS"))
        finally:
            client.close()

    def open_slot(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Begin to move a slot: from here on, keys that are gone are asked for at the target."""
        source_id, target_id = self.id_of(source), self.id_of(target)
        self.ask(target.port, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        self.ask(source.port, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, each_s: float) -> int:
        """Move every key of an open slot, one by one and slowly; how many there were."""
        moved = 0
        while found := self.ask(source.port, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            time.sleep(each_s)
            self.ask(source.port, "MIGRATE", "127.0.0.1", target.port, found[0], 0, 5000)
            moved += 1
        return moved

    def close_slot(self, slot: int, target: RedisServer) -> None:
        """Say to all nodes that the target has the slot now, and that first to the target."""
        target_id = self.id_of(target)
        for server in (target, *(s for s in self.servers if s is not target)):
            self.ask(server.port, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def id_of(self, server: RedisServer) -> str:
        return str(self.ask(server.port, "CLUSTER", "MYID").decode())

    def wait_ok(self) -> None:
        """Wait until every node says that the cluster works."""

        def ok() -> bool:
            return all(
                b"cluster_state:ok" in self.ask(s.port, "CLUSTER", "INFO") for s in self.servers
            )

        wait_for(ok, "cluster_state:ok on every node")

    def _start(self) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
        for number in range(3):
            # The bus listens 10 000 above, which must be a port as well.
            port = next(p for p in iter(_free_port, None) if p < 50_000)
            server = RedisServer(self.directory / f"node{number}", port, options=options)
            self.servers.append(self.stack.enter_context(server))
        share = SLOTS // len(self.servers) + 1
        for number, server in enumerate(self.servers):
            first, last = number * share, min((number + 1) * share, SLOTS) - 1
            self.ask(server.port, "CLUSTER", "ADDSLOTSRANGE", first, last)
            self.ask(server.port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            self.ask(self.servers[0].port, "CLUSTER", "MEET", "127.0.0.1", server.port)
        self.wait_ok()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(timeout=10)
