"""What is switched off by name: a service, an application or a node.

A statement says `on` or `off`, when, who and why. What nothing is said of is on. A statement
that is no longer there was lost and not taken back, so it goes on to count: a registry that was
emptied switches nothing on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_STATEMENTS = 10_000


class What(StrEnum):
    """What a switch may name."""

    SERVICE = "service"
    """By its URI: every group."""
    APPLICATION = "application"
    """Every node whose `node.application` it is."""
    NODE = "node"


class BadStatement(ValueError):
    """A statement that cannot be read; the text says which."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is switched."""

    what: What
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `<what> <name>`; raises BadStatement."""
        what, _, name = text.partition(" ")
        if what not in set(What) or not name or name != "".join(name.split()):
            raise BadStatement(
                f"switch {text!r}: expected service, application or node, and a name"
            )
        return cls(What(what), name)


@dataclass(frozen=True, slots=True)
class Statement:
    """What was said of a target last; `at_ms` is unix milliseconds."""

    on: bool
    at_ms: int
    who: str
    why: str

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'} {self.at_ms} {self.who} {self.why}"

    @classmethod
    def parse(cls, text: str) -> Statement:
        """Read `<on|off> <unix ms> <who> <why>`; raises BadStatement."""
        word, at, who, why = [*text.split(" ", 3), "", "", ""][:4]
        if word not in ("on", "off") or not (at.isascii() and at.isdigit()):
            raise BadStatement(f"switch {text!r}: expected on or off, and a time in unix ms")
        return cls(word == "on", int(at), who, why)


Statements = Mapping[Target, Statement]


def parse_all(texts: Iterable[tuple[str, str]]) -> tuple[dict[Target, Statement], list[str]]:
    """Read pairs of a target and a statement; the list says what could not be read."""
    found: dict[Target, Statement] = {}
    broken: list[str] = []
    for key, value in texts:
        try:
            found[Target.parse(key)] = Statement.parse(value)
        except BadStatement as error:
            broken.append(str(error))
    return found, broken


def off_services(statements: Statements) -> frozenset[str]:
    """URIs of the services that are off."""
    return frozenset(
        target.name for target, said in statements.items()
        if target.what is What.SERVICE and not said.on
    )  # fmt: skip


def is_node_off(statements: Statements, node: str, application: str) -> bool:
    """Whether a node of this name and application intercepts nothing."""
    names = (Target(What.NODE, node), Target(What.APPLICATION, application))
    return any(target in statements and not statements[target].on for target in names)
