"""Runs `file_worker.py`, so that neither the disk nor a large file holds the event loop up.

A child and no thread: of an agent that is killed, the last thread to go closes the listener,
and with more than one thread that takes milliseconds in which connections are lost
(docs/adr/0008). What is given and what comes back lies in memory files, so no pipe fills.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_PROGRAM = Path(__file__).with_name("file_worker.py")
_LAST_WAIT_S = 1.0
"""Who is cancelled waits so long for a write under way, and then ends the child."""


class ChildError(Exception):
    """The child failed; the text is its reason."""


def memory_file() -> BinaryIO:
    """A file in memory, to be filled and given to `run`."""
    return os.fdopen(os.memfd_create("moa", os.MFD_CLOEXEC), "w+b")


async def run(verb: str, path: Path, given: BinaryIO | None = None) -> bytes:
    """What the child writes to standard output; `given` is its standard input, from the start.

    Raises ChildError, also where no process can be started.
    """
    with memory_file() as answer:
        if given is not None:
            given.flush()
            given.seek(0)
        try:
            # The parent stands still until the child's exec, half a millisecond.
            child = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-I", "-S", str(_PROGRAM), verb, str(path)],
                stdin=given or subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise ChildError(f"cannot start {sys.executable}: {error.strerror}") from error
        try:
            await _ended(child)
        finally:
            _reap(child)
        answer.seek(0)
        output = answer.read()
    if child.returncode != 0:
        why = output.decode(errors="replace").strip()
        raise ChildError(why or f"{_PROGRAM.name} ended with {child.returncode}")
    return output


async def _ended(child: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(child.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _reap(child: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):
        child.wait(_LAST_WAIT_S)
        return
    child.kill()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_LAST_WAIT_S)
