"""What a caller is told when the agent itself answers a routed request, and under which code."""

from __future__ import annotations

from proxy.core.message import Failure
from proxy.core.model import Address
from proxy.core.routing import Candidates
from proxy.wire.moa import Ec


def no_instance(uri: str, found: Candidates) -> Failure:
    """Nobody may serve it; the steps say what was looked for."""
    return Failure(Ec.SERVICE_NOT_FOUND, f"no instance of {uri}: {'; '.join(found.steps)}")


def unreachable(uri: str, why: str, *, is_overload: bool) -> Failure:
    """It was never sent: no connection could be had."""
    return Failure(Ec.THREAD_POOL_IS_FULL if is_overload else Ec.REMOTING, f"{uri}: {why}")


def capped(uri: str, what: str) -> Failure:
    """It was never sent: too much is under way, and nothing waits."""
    return Failure(Ec.THREAD_POOL_IS_FULL, f"{uri}: {what}; not sent")


def untranslatable(uri: str, why: str) -> Failure:
    """It was never sent: no instance of that codec can be asked this."""
    return Failure(Ec.SERIALIZATION, f"{uri}: {why}; the request was not sent")


def lost(uri: str, why: str) -> Failure:
    """It was sent, and its connection ended."""
    em = f"{uri}: {why} before it replied; the request may have been executed"
    return Failure(Ec.REMOTING, em)


def late(uri: str, address: Address, *, was_sent: bool) -> Failure:
    """Its deadline came first."""
    what = "no reply" if was_sent else "no connection"
    return Failure(Ec.TIMEOUT, f"{uri}: {what} from {address} before the deadline")
