"""What can go wrong with Hessian, by who is to blame, and the bounds set to a peer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one body; the default size is the public limit of a packet's body.

    A decoded body takes up to 40 times its size in memory: one byte can be an empty list.
    `max_definitions` bounds the class definitions, and apart from them the type names.
    """

    max_bytes: int = 2 * 1024 * 1024
    max_depth: int = 512
    max_references: int = 256 * 1024
    max_definitions: int = 4096


DEFAULT_LIMITS = Limits()


class HessianError(Exception):
    """A peer's bytes are not Hessian 2; the text names the offset of the offending byte."""


class LimitError(HessianError):
    """A peer's bytes pass one of the limits."""


class LongScan(Exception):
    """A body has more values than were to be passed over at once; nobody is to blame."""


class EncodeError(Exception):
    """A value that we were to write cannot be written: our fault, not a peer's."""
