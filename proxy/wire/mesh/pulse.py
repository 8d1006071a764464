"""Whether the peer lives: its HELLO in time, and a PING when it was quiet for long."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.wire.mesh.errors import PeerError, Reason
from proxy.wire.mesh.settings import Settings


@dataclass(frozen=True, slots=True)
class PulseState:
    """`ping_sent_s` is None while no PING is unanswered; seconds on the monotonic clock."""

    started_s: float
    heard_s: float
    last_ping: int
    ping_sent_s: float | None


class Pulse:
    """The timers of one connection; time is an argument."""

    __slots__ = ("_greeted", "_heard_s", "_last_ping", "_ping_sent_s", "_settings", "_started_s")

    def __init__(self, settings: Settings, now_s: float) -> None:
        self._settings = settings
        self._started_s = now_s
        self._heard_s = now_s
        self._greeted = False
        self._last_ping = 0
        self._ping_sent_s: float | None = None

    @property
    def next_s(self) -> float:
        """When `due` has something to say, if nothing is heard before."""
        if not self._greeted:
            return self._started_s + self._settings.hello_timeout_s
        if self._ping_sent_s is not None:
            return self._ping_sent_s + self._settings.ping_timeout_s
        return self._heard_s + self._settings.ping_interval_s

    def greeted(self) -> None:
        """The peer's HELLO came."""
        self._greeted = True

    def heard(self, now_s: float) -> None:
        """Something came from the peer."""
        self._heard_s = now_s

    def ping(self, now_s: float) -> int | None:
        """The id of a PING to send now; None while one is unanswered."""
        if self._ping_sent_s is not None or not self._greeted:
            return None
        self._last_ping += 1
        self._ping_sent_s = now_s
        return self._last_ping

    def pong(self, ping_id: int, now_s: float) -> float | None:
        """Seconds that the answer took; None when it answers no open PING."""
        if self._ping_sent_s is None or ping_id != self._last_ping:
            return None
        rtt_s = max(0.0, now_s - self._ping_sent_s)
        self._ping_sent_s = None
        return rtt_s

    def due(self, now_s: float) -> int | None:
        """The id of a PING to send now, if any. Raises PeerError when the peer is silent.

        What was heard since the PING shows life as well as the PONG, which may wait behind it.
        """
        if now_s < self.next_s:
            return None
        if not self._greeted:
            raise PeerError(Reason.TIMEOUT, f"no HELLO within {self._settings.hello_timeout_s:g} s")
        if self._ping_sent_s is None:
            return self.ping(now_s)
        if self._heard_s <= self._ping_sent_s:
            raise PeerError(
                Reason.TIMEOUT, f"no answer to PING within {self._settings.ping_timeout_s:g} s"
            )
        self._ping_sent_s = None
        return None

    def export(self) -> PulseState:
        """For `restore`."""
        return PulseState(self._started_s, self._heard_s, self._last_ping, self._ping_sent_s)

    def restore(self, state: PulseState, greeted: bool) -> None:
        """Go on where another one stood."""
        self._started_s, self._heard_s = state.started_s, state.heard_s
        self._last_ping, self._ping_sent_s = state.last_ping, state.ping_sent_s
        self._greeted = greeted
