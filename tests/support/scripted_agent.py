"""An agent that does what a script says: real processes and sockets for tests of the supervisor.

An environment is a directory with `bin/moa-agent` and `script.json`:

* `version`, `handover`, `abi`: what it says of itself; `check`: why its check fails.
* `at`: what happens at a point of its life: `{"give": "die"}`. Points: `start`, `ready`,
  `serve`, `give`, `given`, `take`, `taken`, `adopt`, `leave`; things: `die`, `hang`, `refuse`,
  `stop` (SIGSTOP). A value `["die", 2]` counts only for the first two processes.
* `beat`: keys of its beats, and `requests`, `failed` and `transport_errors` by each beat.
* `left`: connections that stay behind when it gives.

The keeper is a child that answers on `keeper-<pid>.sock`, as the real one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

from installer.link import AgentLink

CONNECTIONS = 7
BEAT_S = 0.05


def make_environment(path: Path, **script: Any) -> Path:
    """An environment whose agent follows this script."""
    (path / "bin").mkdir(parents=True)
    command = path / "bin" / "moa-agent"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -I "{__file__}" "{path}" "$@"\n')
    command.chmod(0o755)
    facts = {"version": path.name, "handover": [1, 1], "abi": 2}
    (path / "script.json").write_text(json.dumps({**facts, **script}))
    return path


class Scripted:
    def __init__(self, home: Path, runtime_dir: Path) -> None:
        self.home, self.runtime_dir = home, runtime_dir
        self.script: dict[str, Any] = json.loads((home / "script.json").read_text())
        self.counts = {"requests": 0, "failed": 0, "transport_errors": 0}
        self.connections = CONNECTIONS
        self.serves = False
        self.peer: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        facts = {name: self.script[name] for name in ("version", "handover", "abi")}
        facts["environment"] = str(home)
        self.link = AgentLink(runtime_dir, facts, self._told)
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, take_over: str | None, adopt: str | None) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave)
        self.link.listen()
        await self.point("start")
        server = await asyncio.start_unix_server(
            self._succeeded, self.runtime_dir / f"handover-{os.getpid()}.sock"
        )
        if take_over:
            self.peer = await asyncio.open_unix_connection(take_over)
            await self.point("ready")
            self.link.say({"say": "ready"})
            self._spawn(self._listen_to_peer())
        else:
            if adopt:
                await self._adopt(adopt)
            else:
                await self._serve()
        async with server:
            while True:
                await asyncio.sleep(BEAT_S)
                self._beat()

    async def _serve(self) -> None:
        await self.point("serve")
        self.serves = True
        self.link.say(
            {
                "say": "serving", "pid": os.getpid(), "version": self.script["version"],
                "generation": 1, "connections": self.connections,
            }
        )  # fmt: skip

    def _beat(self) -> None:
        if not self.serves:
            return
        beat = {
            "latency_ms": 1.0,
            "loop_lag_ms": 0.1,
            "requests": 10,
            **self.script.get("beat", {}),
        }
        for name in self.counts:
            self.counts[name] += beat.pop(name, 0)
        self.link.say(
            {"say": "beat", "connections": self.connections, "in_flight": 0, "ok": 0, **beat}
            | self.counts
        )

    # The hand-over: one JSON object a line

    async def _succeeded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = (reader, writer)
        await self._listen_to_peer()

    async def _listen_to_peer(self) -> None:
        assert self.peer is not None
        reader, writer = self.peer
        while line := await reader.readline():
            word = json.loads(line)
            if "take" in word:
                await self.point("take")
                self.counts, self.connections = word["take"], word["connections"]
                writer.write(b'{"took": 1}\n')
                await self._serve()
                await self.point("taken")
                self.link.say({"say": "taken", "moved": self.connections})
            else:
                await self._given()
        if self.link.state == "giving":
            self.serves = True
            self.link.say({"say": "refused", "why": "the successor hung up"})

    async def _give(self) -> None:
        await self.point("give")
        if self.peer is None:
            self.link.say({"say": "refused", "why": "nobody to give to"})
            return
        total = self.connections
        self.link.say({"say": "progress", "moved": 1, "total": total, "in_flight": 2})
        take = {"take": self.counts, "connections": total}
        try:
            self.peer[1].write(json.dumps(take).encode() + b"\n")
            await self.peer[1].drain()
        except OSError:
            self.link.say({"say": "refused", "why": "the successor hung up"})

    async def _given(self) -> None:
        self.serves = False
        await self.point("given")
        left = self.script.get("left", 0)
        self.link.say({"say": "given", "moved": self.connections - left, "left": left})

    async def _adopt(self, path: str) -> None:
        await self.point("adopt")
        moved = fetch(path)
        if not self.serves:
            await self._serve()
        self.link.say({"say": "taken", "moved": moved})

    def _told(self, word: dict[str, Any]) -> None:
        do = word["do"]
        if do == "give":
            self._spawn(self._give())
        elif do == "adopt":
            self._spawn(self._adopt(word["path"]))
        else:
            self._leave()

    def _leave(self) -> None:
        self._spawn(self._left())

    async def _left(self) -> None:
        await self.point("leave")
        self.link.close()
        os.write(PEACE, b"p")
        os._exit(0)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            os._exit(70)

    async def point(self, name: str) -> None:
        """Do what the script says of this point."""
        what = self.script.get("at", {}).get(name)
        if isinstance(what, list):
            what = what[0] if self._is_among_first(name, what[1]) else None
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "exit":
            os._exit(3)
        elif what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "hang":
            await asyncio.Event().wait()
        elif what == "refuse":
            self.link.say({"say": "refused", "why": f"the script says so at {name}"})
            await asyncio.Event().wait()

    def _is_among_first(self, point: str, number: int) -> bool:
        with (self.home / f"{point}.count").open("a+") as file:
            file.seek(0)
            seen = len(file.read())
            file.write("x")
        return seen < number


# The keeper

PEACE = -1


def start_keeper(runtime_dir: Path) -> None:
    """A child that answers for us when we are dead, for ten seconds."""
    global PEACE
    reader, PEACE = os.pipe()
    agent, path = os.getpid(), runtime_dir / f"keeper-{os.getpid()}.sock"
    ready, told = os.pipe()
    if os.fork() != 0:
        os.read(ready, 1)
        return
    os.setsid()
    os.close(PEACE)
    pidfd = os.pidfd_open(agent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(path))
        sock.listen()
        os.write(told, b"r")
        _keep(sock, reader, pidfd)
    os.unlink(path)
    os._exit(0)


def _keep(sock: socket.socket, reader: int, pidfd: int) -> None:
    waits: list[Any] = [sock, pidfd]
    timeout_s = None
    while True:
        ready = select.select(waits, [], [], timeout_s)[0]
        if not ready:
            return
        if pidfd in ready and sock not in ready:
            if os.read(reader, 1):
                return  # it ended in peace
            waits, timeout_s = [sock], 10.0
            continue
        caller, _ = sock.accept()
        with caller, contextlib.suppress(OSError):
            word = json.loads(caller.recv(4096))
            if word["do"] == "release":
                caller.send(json.dumps({"say": "released", "keeper": os.getpid()}).encode())
            else:
                caller.send(json.dumps({"moved": CONNECTIONS}).encode())
        return


def fetch(path: str) -> int:
    """Connections of a dead agent; 0 when its keeper has gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(path)
            sock.send(b'{"do": "fetch"}')
            return int(json.loads(sock.recv(4096))["moved"])
        except OSError:
            return 0


def main() -> None:
    home, arguments = Path(sys.argv[1]), sys.argv[2:]
    script = json.loads((home / "script.json").read_text())
    if arguments[0] == "--check":
        if "check" in script:
            sys.exit(str(script["check"]))
        print(json.dumps({name: script[name] for name in ("version", "handover", "abi")}))
        return
    options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    assert arguments[1] == "--supervised", arguments
    # Read as it is: the models of the configuration take a second.
    runtime_dir = Path(tomllib.loads(Path(arguments[0]).read_text())["agent"]["runtime_dir"])
    start_keeper(runtime_dir)
    scripted = Scripted(home, runtime_dir)
    asyncio.run(scripted.run(options.get("--take-over"), options.get("--adopt")))


if __name__ == "__main__":
    main()
