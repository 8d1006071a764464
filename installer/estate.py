"""Fetches what a dead agent has left from its keeper (`keeper.py`): board and descriptors."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from installer.keeper import BATCH
from installer.link import is_trusted
from proxy.net.sockets import peer_credentials

TIMEOUT_S = 5.0
_MOST_ANSWER = 64 * 1024


class EstateError(Exception):
    """The estate could not be had; the text says why. It is still the keeper's, if there is one."""


class Estate:
    """Descriptors of a dead agent, which are ours, too, until `close` or `done`.

    Whoever uses one takes it out. The keeper has them all until it hears `done`: until then
    everything can be had again.
    """

    def __init__(self, asker: socket.socket, board: int, names: Mapping[str, int]) -> None:
        self._asker = asker
        self._names = names
        self.board = board
        """The memory file that says what they are."""
        self.descriptors: dict[int, int] = {}
        """Ours by the numbers that they had."""

    def take(self, name: str) -> int | None:
        """The descriptor that had this name; the caller's from now on."""
        return self.descriptors.pop(self._names.get(name, -1), None)

    @property
    def names(self) -> list[str]:
        """What can be taken."""
        return [name for name, number in self._names.items() if number in self.descriptors]

    def done(self, timeout_s: float = TIMEOUT_S) -> None:
        """Tell the keeper that it can go, wait until it has, and close what nobody took.

        With a `timeout_s` of 0 nobody waits, and nothing blocks.
        """
        try:
            if not timeout_s:
                self._asker.send(_word("taken"))
                return
            keeper = int(_ask(self._asker, "taken")["keeper"])
            _wait_for_end(keeper, timeout_s)
        except (EstateError, OSError, KeyError, ValueError):
            pass  # It goes by itself before long.
        finally:
            self.close()

    def close(self) -> None:
        """Close what nobody took; the keeper offers its estate again."""
        self._asker.close()
        left, self.descriptors = list(self.descriptors.values()), {}
        for descriptor in (*left, self.board):
            with suppress(OSError):
                os.close(descriptor)
        self.board = -1


def fetch(path: Path, timeout_s: float = TIMEOUT_S) -> Estate | None:
    """The estate that the keeper at `path` has; None when there is no keeper.

    Blocks for up to `timeout_s` a step. Raises EstateError: its agent lives, we may not ask, or
    there is no room for so many descriptors.
    """
    asker = _connect(path, timeout_s)
    if asker is None:
        return None
    estate: Estate | None = None
    try:
        answer, descriptors = _ask_for(asker, "estate")
        names = {str(name): int(number) for name, number in answer.get("names", {}).items()}
        estate = Estate(asker, descriptors[0], names)
        while True:
            answer, descriptors = _ask_for(asker, "more")
            if answer["say"] == "all":
                return estate
            estate.descriptors.update(zip(answer["numbers"], descriptors, strict=True))
    except (OSError, KeyError, ValueError, EstateError) as error:
        if estate is not None:
            estate.close()
        asker.close()
        if isinstance(error, ConnectionError):
            return None
        raise EstateError(f"estate at {path}: {error}") from error


def release(path: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Let the keeper at `path` go with all that it holds, and wait until it has.

    No keeper is nothing to do. Raises EstateError when it does not go.
    """
    asker = _connect(path, timeout_s)
    if asker is None:
        return
    with asker:
        try:
            keeper = int(_ask(asker, "release")["keeper"])
            _wait_for_end(keeper, timeout_s)
        except ConnectionError:
            return
        except (OSError, KeyError, ValueError) as error:
            raise EstateError(f"keeper at {path}: {error}") from error


def _connect(path: Path, timeout_s: float) -> socket.socket | None:
    asker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asker.settimeout(timeout_s)
    try:
        asker.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        asker.close()
        return None
    except OSError as error:
        asker.close()
        raise EstateError(f"keeper at {path}: {error}") from error
    _pid, uid = peer_credentials(asker)
    if not is_trusted(uid):
        asker.close()
        raise EstateError(f"keeper at {path}: user {uid} is there, neither root nor ours")
    return asker


def _ask(asker: socket.socket, what: str) -> dict[str, Any]:
    answer, descriptors = _ask_for(asker, what)
    for descriptor in descriptors:
        os.close(descriptor)
    return answer


def _ask_for(asker: socket.socket, what: str) -> tuple[dict[str, Any], list[int]]:
    asker.send(_word(what))
    data, descriptors, flags, _ = socket.recv_fds(
        asker, _MOST_ANSWER, BATCH + 1, socket.MSG_CMSG_CLOEXEC
    )
    try:
        if flags & socket.MSG_CTRUNC:
            raise EstateError("not every descriptor fits: raise the limit of open files")
        if not data:
            raise ConnectionResetError("the keeper has gone")
        answer = json.loads(data)
        if answer.get("say") == "refused":
            raise EstateError(str(answer.get("why")))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return answer, list(descriptors)


def _word(what: str) -> bytes:
    return json.dumps({"do": what}).encode()


def _wait_for_end(process: int, timeout_s: float) -> None:
    """Until a process, and with it its table of descriptors, has gone."""
    try:
        pidfd = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        deadline_s = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise EstateError(f"process {process} does not end")
    finally:
        os.close(pidfd)
