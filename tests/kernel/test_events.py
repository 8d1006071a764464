"""The ring buffer of decisions: who dialled what, and where it was sent."""

from __future__ import annotations

import select
import threading
import time

import pytest

from interceptor.abi import CfgFlag, Reason
from interceptor.bpffs import locked
from interceptor.events import Decision, EventStream
from tests.kernel.mesh import Mesh
from tests.support.lab import wait_until


@pytest.mark.parametrize(
    ("host", "before", "after"),
    [
        ("10.77.0.2", "10.77.0.2:5000", "127.64."),
        ("fd77::2", "[fd77::2]:5000", "[::1]:15001"),
        ("::ffff:10.77.0.2", "10.77.0.2:5000", "127.64."),
    ],
)
def test_decision_shows_both_sides_of_the_translation(
    mesh: Mesh, host: str, before: str, after: str
) -> None:
    mesh.include_all()
    seen: list[Decision] = []
    with mesh.kernel.maps() as maps, EventStream(maps, seen.append) as stream:
        answer = mesh.dial(host)
        assert select.select([stream], [], [], 5)[0], "the stream is readable"
        assert stream.consume() == 1
        last_beat_ns = maps.last_beat_ns()
    (decision,) = seen
    assert decision.reason is Reason.CONNECT_REDIRECTED
    assert decision.before == before
    assert decision.after.startswith(after)
    assert decision.after.strip("[]").startswith(answer["local"][0])
    assert decision.cgroup_id == mesh.node.services.id
    assert decision.comm.startswith(("pytest", "python"))
    assert abs(decision.at_ns - last_beat_ns) < 5 * 10**9


def test_connection_left_alone_shows_why(mesh: Mesh) -> None:
    mesh.include_all()
    mesh.serve_far()
    mesh.kernel.switch(on=True, shadow=True)
    seen: list[Decision] = []
    with mesh.kernel.maps() as maps, EventStream(maps, seen.append) as stream:
        assert mesh.who("10.77.0.2") == "DIRECT"
        mesh.agent.kill()
        assert mesh.who("10.77.0.2") == "DIRECT"
        stream.consume()
    assert [d.reason for d in seen] == [Reason.CONNECT_SHADOW, Reason.CONNECT_NO_LISTENER]
    assert {d.before for d in seen} == {"10.77.0.2:5000"}


def test_nothing_is_written_while_nobody_reads(mesh: Mesh) -> None:
    mesh.include_all()
    seen: list[Decision] = []
    mesh.dial("10.77.0.2")
    with mesh.kernel.maps() as maps, EventStream(maps, seen.append) as stream:
        assert stream.consume() == 0
    mesh.dial("10.77.0.2")
    with mesh.kernel.maps() as maps, EventStream(maps, seen.append) as stream:
        assert stream.consume() == 0
    assert seen == []


def test_destination_outside_the_mesh_is_no_event(mesh: Mesh) -> None:
    mesh.serve_far()
    with mesh.kernel.maps() as maps, EventStream(maps, lambda decision: None) as stream:
        assert mesh.who("10.77.0.2") == "DIRECT"
        assert stream.consume() == 0


def test_stream_leaves_the_other_switches_as_they_are(mesh: Mesh) -> None:
    with mesh.kernel.maps() as maps:
        before = maps.cfg.flags
        with EventStream(maps, lambda decision: None):
            assert maps.cfg.flags == before | CfgFlag.EVENTS
        assert maps.cfg.flags == before


def test_switch_waits_for_the_lock(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two who change the switches at once must not undo each other."""
    waiting = threading.Event()
    real = time.sleep

    def sleep(seconds: float) -> None:
        waiting.set()
        real(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    with mesh.kernel.maps() as maps:
        with locked(mesh.kernel.tree):
            off = threading.Thread(target=mesh.kernel.switch, kwargs={"on": False})
            off.start()
            assert waiting.wait(5)
            assert maps.cfg.flags & CfgFlag.ENABLED
        off.join()
        wait_until(lambda: not maps.cfg.flags & CfgFlag.ENABLED, 5, "switched off")
