"""What can go wrong between us and the kernel, split by what the operator can do about it."""

from __future__ import annotations

import errno
import os


class InterceptorError(Exception):
    """Something about interception failed; the text says on what, and what to do next."""


class KernelError(InterceptorError):
    """A system call or a libbpf call was refused.

    `errno` is the positive error number; the text carries libbpf's own log where there is one.
    """

    def __init__(self, what: str, number: int, *, log: str = "", hint: str = "") -> None:
        self.errno = number
        self.log = log
        text = f"{what}: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
        hint = hint or _HINTS.get(number, "")
        if hint:
            text += f"; {hint}"
        if log:
            text += f"\n{log.strip()}".replace("\n", "\n  ")
        super().__init__(text)


class NotInstalled(InterceptorError):
    """The node has no pins of ours."""


class Incomplete(InterceptorError):
    """What is pinned is half of an installation, or has another layout: it must be removed."""


class Busy(InterceptorError):
    """Another process holds the node's lock, or another agent serves."""


class Refused(InterceptorError):
    """We could, but would harm the node; the text says how to insist."""


_HINTS = {
    errno.EPERM: "needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (moactl doctor)",
    errno.EACCES: "the verifier refused the program, or the user may not (moactl doctor)",
    errno.ENOMEM: "raise RLIMIT_MEMLOCK; kernels before 5.11 charge maps to it (moactl doctor)",
}
