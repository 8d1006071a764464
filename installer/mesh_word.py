"""The operator's last word on the mesh, `<state_dir>/mesh.json`: what is switched in the kernel
is gone with the next boot, and is brought back from here.

Written by moactl after each change of the kernel, read by the agent that installs anew. Only
what an operator said: cgroups that a configuration names are the configuration's.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from installer import kept_file
from installer.config import Config
from installer.node_state import Installed
from interceptor.bpffs import flock_before
from interceptor.cgroup import Cgroup
from interceptor.errors import InterceptorError
from interceptor.node import LOCK_TIMEOUT_S, Node

NAME = "mesh.json"
BROKEN = "mesh.json.broken"
NAMES = (NAME, "mesh.new", BROKEN)
FORMAT = 1

log = structlog.get_logger("mesh")


class WordError(Exception):
    """The file cannot be read; the text says which and why."""


class Switch(StrEnum):
    """How the node shall be."""

    ON = "on"
    SHADOW = "shadow"
    OFF = "off"


@dataclass(slots=True)
class Added:
    """A cgroup that an operator took into the mesh; `forced` although it holds sshd or init."""

    shadow: bool = False
    forced: bool = False


@dataclass(slots=True)
class Word:
    """All that was said; `at_unix_s` and `who` are of the switch."""

    switch: Switch = Switch.OFF
    confirmed: bool = True
    """False while the switch waits for `moactl mesh confirm`: after a boot that is off."""
    at_unix_s: float = 0.0
    who: str = ""
    added: dict[str, Added] = field(default_factory=dict)
    taken_out: list[str] = field(default_factory=list)

    @property
    def is_on(self) -> bool:
        """Whether the mesh is to be on, or in shadow, after a boot."""
        return self.switch is not Switch.OFF and self.confirmed

    def say(self, switch: Switch, *, confirmed: bool = True) -> None:
        """Of the switch, now, by whoever runs this."""
        self.switch, self.confirmed = switch, confirmed
        self.at_unix_s = time.time()
        self.who = f"{_user()}@{socket.gethostname()}"

    def add(self, cgroup: str, *, shadow: bool = False, forced: bool = False) -> None:
        """It is in the mesh, whatever a configuration says."""
        self.added[cgroup] = Added(shadow, forced)
        self.taken_out = [name for name in self.taken_out if name != cgroup]

    def take_out(self, cgroup: str) -> None:
        """It is out, whatever a configuration says."""
        self.forget(cgroup)
        self.taken_out = sorted({*self.taken_out, cgroup})

    def forget(self, cgroup: str) -> None:
        """Nothing was said of it."""
        self.added.pop(cgroup, None)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())


def path_of(config: Config) -> Path:
    return config.agent.state_dir / NAME


def load(path: Path) -> Word | None:
    """None when nothing was ever said; raises WordError."""
    try:
        return _parsed(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WordError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WordError(f"{path}: is damaged: {type(error).__name__}: {error}") from None


def _parsed(document: dict[str, Any]) -> Word:
    if document["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}, saw {document['format']}")
    return Word(
        Switch(document["switch"]),
        document["confirmed"] is True,
        float(document["at_unix_s"]),
        str(document["who"]),
        {str(name): Added(**said) for name, said in document["added"].items()},
        [str(name) for name in document["taken_out"]],
    )


def save(path: Path, word: Word) -> None:
    """Replace the file; raises OSError."""
    kept_file.replace_json(path, {"format": FORMAT, **asdict(word)})


def of_kernel(node: Node, state: Installed, configured: tuple[str, ...]) -> Word:
    """The word that a node's pins show, when nobody has kept it."""
    word = Word(_switch_of(state), confirmed=state.confirm_left_s is None)
    not_said = {*configured, *node.passing()}
    for scope in state.scopes:
        if scope.cgroup not in not_said or scope.shadow:
            word.added[scope.cgroup] = Added(scope.shadow)
    word.taken_out = list(state.taken_out)
    return word


def _switch_of(state: Installed) -> Switch:
    if not state.enabled:
        return Switch.OFF
    return Switch.SHADOW if state.shadow else Switch.ON


def off_since(word: Word) -> str:
    """Why the mesh is off, in words, for a word that says so."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(word.at_unix_s))
    if not word.confirmed:
        return f"off, as nobody confirmed what {word.who} switched on at {since}"
    return f"off since {since}, by {word.who}" if word.who else "off"


@contextmanager
def changing(
    path: Path, otherwise: Word, tell: Callable[[str], None] = lambda text: None
) -> Iterator[Word]:
    """Change the word and save it at the end; the caller holds the lock. What `otherwise` says
    is the beginning where there is none, or one that is damaged, which is told and kept beside
    it. Raises OSError.
    """
    try:
        word = load(path)
    except WordError as error:
        word = None
        tell(f"{error}; kept as {path.with_name(BROKEN)}, and written anew from the kernel")
        with suppress(FileNotFoundError):
            os.rename(path, path.with_name(BROKEN))
    word = word or otherwise
    yield word
    save(path, word)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the one who changes the kernel and the word: neither another command nor an agent that
    brings back an older word comes in between. Where no lock can be had within LOCK_TIMEOUT_S
    it goes without: `moactl mesh off` must, whoever hangs."""
    fd = -1
    with suppress(OSError):
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        flock_before(fd, time.monotonic() + LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        if fd >= 0:
            os.close(fd)


# After a boot


def bring_back(node: Node, path: Path) -> None:
    """Give the kernel what was said, once for each installation of the pins; whoever holds the
    agent's lock does it, before anything is turned to it.

    Without a word, or with one that is damaged, the mesh stays off.
    """
    with locked(path):
        if node.was_told():
            return
        try:
            word = load(path)
        except WordError as error:
            hint = "moactl mesh on switches it on, and keeps that"
            log.error("mesh stays off: what was said last is lost", error=str(error), hint=hint)
            word = None
        if word is not None:
            _apply(node, word)
        node.note_told()


def _apply(node: Node, word: Word) -> None:
    for name in word.taken_out:
        node.remove_scope(Cgroup(name), configured=True)
    for name, said in word.added.items():
        _add(node, Cgroup(name), said)
    if word.is_on:  # last: what it is on for is there
        node.switch(on=True, shadow=word.switch is Switch.SHADOW)
    log.info(
        "brought back",
        switch=word.switch.value if word.is_on else Switch.OFF.value,
        confirmed=word.confirmed,
        who=word.who,
        added=list(word.added),
        taken_out=word.taken_out,
    )


def _add(node: Node, cgroup: Cgroup, said: Added) -> None:
    try:
        if cgroup.exists():
            node.add_scope(cgroup, shadow=said.shadow, force=said.forced)
        else:
            node.await_scope(cgroup, shadow=said.shadow)
    except (InterceptorError, OSError) as error:
        log.error("cgroup not brought back", cgroup=cgroup.name, error=str(error))
