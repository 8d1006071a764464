"""All checks, in the order in which they are run and shown."""

from __future__ import annotations

from installer.doctor import checks_hooks, checks_machine, checks_node
from installer.doctor.check import Check

ALL_CHECKS: tuple[Check, ...] = (
    *checks_machine.CHECKS,
    *checks_hooks.CHECKS,
    *checks_node.CHECKS,
)
