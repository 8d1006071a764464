"""The benchmark's own tools: they compile, measure, and count what goes wrong."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.measure import Latency, LoadShape
from tests.bench.report import Results, save, table
from tests.bench.tools import Times, Tools, build

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc)")

ANY_CPU = "-1"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return build(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def echo_port(tools: Tools) -> Iterator[str]:
    argv = (tools.echo, ANY_CPU, "127.0.0.1:0")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.kill()


def load(tools: Tools, port: str, connections: int, rate: int, body_bytes: int) -> Times:
    numbers = (connections, rate, 0.1, 0.4, body_bytes, ANY_CPU)
    argv = (tools.load, "127.0.0.1", port, "/service/x", *(str(number) for number in numbers))
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return Times.parse(done.stdout)


@pytest.mark.parametrize("body_bytes", [64, 1024, 16 * 1024])
def test_open_loop_sends_at_its_rate_and_every_request_is_answered(
    tools: Tools, echo_port: str, body_bytes: int
) -> None:
    times = load(tools, echo_port, 3, 500, body_bytes)
    assert times.count == 200
    assert times.errors == 0
    assert 0 < times.p50_us <= times.p90_us <= times.p99_us <= times.p999_us <= times.max_us


def test_closed_loop_sends_as_soon_as_it_has_its_reply(tools: Tools, echo_port: str) -> None:
    times = load(tools, echo_port, 8, 0, 1024)
    assert times.errors == 0
    assert times.count > 200


def test_waiting_for_a_busy_connection_is_part_of_the_latency(tools: Tools, echo_port: str) -> None:
    """A rate that one connection cannot carry: latencies grow with the queue."""
    times = load(tools, echo_port, 1, 100_000, 1024)
    assert times.queued > 0
    assert times.max_us > 50_000


def test_connect_is_timed(tools: Tools, echo_port: str) -> None:
    argv = (tools.connect, "127.0.0.1", echo_port, "50", "1000", ANY_CPU)
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    assert Times.parse(done.stdout).count == 50


def test_report_shows_what_a_path_adds_to_direct(tmp_path: Path) -> None:
    def times(p50_us: float) -> Times:
        return Times(10, p50_us, p50_us, p50_us, p50_us, p50_us, p50_us, 10.0)

    shape = LoadShape(1, 1000, 1024, 0.1, 1.0)
    results = Results(
        {"rounds": 2},
        latency=[
            Latency("direct", shape, (times(30), times(40))),
            Latency("agent", shape, (times(80), times(110))),
        ],
    )
    lines = table(results).splitlines()
    agent = next(line for line in lines if line.startswith("agent"))
    assert agent.split()[:4] == ["agent", "+60", "+60", "+50..+70"]
    assert '"format": 1' in save(results, tmp_path).read_text()
