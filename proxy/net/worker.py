"""A second process for long work on bodies, which lives while there is some.

Not a thread: the interpreter lock would hold the event loop up all the same, and an agent is
one thread (docs/adr/0008, docs/adr/0012). The worker has none of the agent's descriptors but
its own end of a socket pair, and ends when the agent's end is closed, however that came.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from proxy.core.heavy import Done, Job
from proxy.net.stream import Stream
from proxy.net.worker_main import JOB, RESULT

IDLE_S = 30.0
"""A worker that has nothing to do for so long is ended: it has 15 MB of its own."""
MOST_JOBS = 32
MOST_BYTES = 32 * 1024 * 1024
_MODULE = "proxy.net.worker_main"

DoneCallback = Callable[[Done], None]


class Worker:
    """Does jobs in their order, one at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_s: float = IDLE_S) -> None:
        self._loop = loop
        self._idle_s = idle_s
        self._waiting: deque[tuple[DoneCallback, int]] = deque()
        self._waiting_bytes = 0
        self._stream: Stream | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._received = bytearray()
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._process.pid if self._process is not None else None

    def ask(self, job: Job, on_done: DoneCallback) -> None:
        """Do a job; `on_done` is called exactly once, from the loop, also when that fails."""
        if self._waiting_bytes + len(job.body) > MOST_BYTES or len(self._waiting) >= MOST_JOBS:
            self._loop.call_soon(on_done, _failed("too many large bodies wait to be read"))
            return
        try:
            stream = self._stream or self._start()
        except OSError as error:
            why = f"no process for large bodies can be started: {error.strerror}"
            self._loop.call_soon(on_done, _failed(why))
            return
        self._stop_timer()
        self._waiting.append((on_done, len(job.body)))
        self._waiting_bytes += len(job.body)
        stream.write(JOB.pack(job.verb, job.max_body, len(job.body)))
        stream.write(job.body)

    def close(self) -> None:
        """End the process; who waits is told so."""
        if self._stream is not None:
            self._stream.abort()

    def _start(self) -> Stream:
        near, far = socket.socketpair()
        with far:
            try:
                # The parent stands still until the child's exec, half a millisecond.
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", _MODULE], stdin=far.fileno(), stdout=far.fileno()
                )
            except OSError:
                near.close()
                raise
        near.setblocking(False)
        self._received.clear()
        self._stream = stream = Stream(self._loop, near)
        stream.on_data = self._on_data
        stream.on_eof = stream.close
        stream.on_close = self._on_close
        stream.resume_reading()
        return stream

    def _on_data(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= RESULT.size:
            is_failure, size = RESULT.unpack_from(self._received)
            end = RESULT.size + size
            if len(self._received) < end:
                break
            result = bytes(memoryview(self._received)[RESULT.size : end])
            del self._received[:end]
            on_done, asked = self._waiting.popleft()
            self._waiting_bytes -= asked
            on_done(_failed(result.decode()) if is_failure else Done(result))
        if not self._waiting and self._idle_timer is None and self._stream is not None:
            self._idle_timer = self._loop.call_later(self._idle_s, self._stream.close)

    def _on_close(self, _error: OSError | None) -> None:
        """The worker has ended, or shall: by being idle, by an error of its own, or by a kill."""
        process, self._process, self._stream = self._process, None, None
        self._stop_timer()
        if process is not None:
            process.kill()
            # A killed process of ours is gone at once: it waits for no disk.
            process.wait()
        waiting = [on_done for on_done, _size in self._waiting]
        self._waiting.clear()
        self._waiting_bytes = 0
        for on_done in waiting:
            on_done(_failed("the process for large bodies has ended"))

    def _stop_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


def _failed(why: str) -> Done:
    return Done(b"", why)
