"""A Java service and a Java client of libhessian-java, unmodified, with an agent on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.clients.raw import Connection
from tests.support.agents import start_agent, start_service, static_registry
from tests.support.java_hessian import compile_java, java_command, missing
from tests.support.lab import Lab, LabNode, Running

pytestmark = pytest.mark.e2e

SOURCE = Path(__file__).parents[1] / "support/java/MoaPeer.java"
JAVA, PYTHON = ("/service/java", 5200), ("/service/python", 5201)
ARGUMENTS = ["中文 😀", 1, -(2**40), 2.5, True, None, {"größe": [1, 2]}]
ARGUMENTS_IN_JAVA = "[中文 😀, 1, -1099511627776, 2.5, true, null, {größe=[1, 2]}]"


class Peers:
    """Node A calls, node B serves in Java and, over RESP, in Python; both have an agent."""

    def __init__(self, a: LabNode, b: LabNode, classes: Path) -> None:
        self.a, self.b = a, b
        self.command = java_command(classes, "MoaPeer")
        services = {
            JAVA[0]: [f"{b.ip4}:{JAVA[1]}?proto=turbo&codec=hessian2"],
            PYTHON[0]: [f"{b.ip4}:{PYTHON[1]}?proto=resp"],
        }
        self.java = b.start("java", *self.command, "service", b.ip4, str(JAVA[1]))
        start_service(b, PYTHON[1], PYTHON[0])
        registry = static_registry(a.lab.directory / "services.toml", services)
        steered = f"[inbound]\nregistered = false\nports = [{JAVA[1]}, {PYTHON[1]}]\n"
        self.agents = (start_agent(a, registry), start_agent(b, registry, steered))
        for agent in self.agents:
            agent.mesh_on()
        self.java.wait_line("ready")

    def client(self, *calls: tuple[tuple[str, int], str]) -> list[dict[str, str]]:
        """Run the Java client; what it printed about each call."""
        argv = [
            text for (uri, port), method in calls for text in (self.b.ip4, str(port), uri, method)
        ]
        running: Running = self.a.start("client", *self.command, "client", *argv)
        assert running.popen.wait(30) == 0, running.output
        found: list[dict[str, str]] = []
        for line in running.output.splitlines():
            word, _, rest = line.partition(" ")
            if word == "sent":
                found.append({})
            found[-1][word] = rest
        return found


@pytest.fixture(scope="module")
def peers(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Peers:
    if reason := missing():
        pytest.skip(reason)
    classes = tmp_path_factory.mktemp("classes")
    compile_java(SOURCE, classes)
    return Peers(lab.add_node("a"), lab.add_node("b"), classes)


def test_java_calls(peers: Peers) -> None:
    """Java gets Java's bytes as they were sent, both ways; a RESP service gets a translation."""
    digest, to_java, to_python = peers.client((JAVA, "digest"), (JAVA, "echo"), (PYTHON, "echo"))
    assert digest["sent"] in digest["result"]
    assert f"replied {digest['received']}" in peers.java.output
    assert f"replied {to_java['received']}" in peers.java.output
    for seen in (to_java, to_python):
        assert seen["result"].startswith("77 {")
        assert "ec=200" in seen["result"]
        assert f"result={ARGUMENTS_IN_JAVA}" in seen["result"]
    assert peers.agents[0].status()["requests"]["ok"] == 3, "nothing went past the agent"


def test_a_resp_client_calls_java(peers: Peers) -> None:
    body = json.dumps({"action": JAVA[0], "params": {"m": "echo", "args": ARGUMENTS}})
    host = peers.b.ip4

    def ask() -> object:
        with Connection(host, JAVA[1]) as connection:
            return connection.call(body)

    assert peers.a.do(ask) == {"ec": 200, "em": "", "result": ARGUMENTS}
