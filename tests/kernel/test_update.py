"""Other programs behind the same links, while connections flow."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from interceptor import libbpf
from tests.kernel.mesh import PORT, Answer, Mesh, answered_by_agent, read_line
from tests.support.lab import REPO, Running, wait_until
from tests.support.traces import open_descriptors

ROUNDS = 10


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same programs compiled otherwise: other instructions, hence other tags."""
    if shutil.which("clang") is None:
        pytest.skip("needs clang: it compiles a variant of the object")
    made = tmp_path_factory.mktemp("object") / "variant.bpf.o"
    makefile = (REPO / "Makefile").read_text()
    flags = re.search(r"^BPF_CFLAGS = (.*)$", makefile, re.MULTILINE)
    assert flags is not None
    machine = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True)
    wanted = flags[1].replace("$(MULTIARCH)", machine.stdout.strip()).replace("-O2", "-O1")
    source = REPO / "bpf" / "moa.bpf.c"
    subprocess.run(["clang", *wanted.split(), "-c", str(source), "-o", str(made)], check=True)
    return made


def start_callers(mesh: Mesh) -> Running:
    return mesh.node.python("callers", "-m", "tests.kernel.caller", "10.77.0.2", str(PORT), "loop")


def test_no_connect_misses_the_agent_during_updates(mesh: Mesh, variant: Path) -> None:
    mesh.include_all()
    mesh.serve_far()
    callers = start_callers(mesh)
    callers.wait_line("original")
    changed: set[str] = set()
    for _ in range(ROUNDS):
        for settled in (
            mesh.kernel.install(mesh.settings(), object_path=variant),
            mesh.kernel.install(mesh.settings()),
        ):
            assert not settled.fresh
            assert settled.changed_programs
            changed.update(settled.changed_programs)
        seen = callers.output.count("\n")
        wait_until(lambda n=seen: callers.output.count("\n") > n, 5, "callers go on")  # type: ignore[misc]
    callers.stop()
    answers = callers.output.splitlines()
    assert {"moa_connect4", "moa_connect6", "moa_sk_lookup"} <= changed
    assert len(answers) > ROUNDS
    assert [line for line in answers if '"10.77.0.2:5000"' not in line] == []


def test_open_connection_survives_an_update(mesh: Mesh, variant: Path) -> None:
    mesh.include_all()

    def action() -> Answer:
        import socket

        with socket.create_connection(("10.77.0.2", PORT), timeout=5) as sock:
            first = read_line(sock)
            mesh.kernel.install(mesh.settings(netns=own), object_path=variant)
            sock.sendall(b"more")
            return first | {"getpeername": list(sock.getpeername())}

    own = Path("/proc/self/ns/net")
    answer = mesh.node.do(action)
    answered_by_agent(answer, "10.77.0.2:5000")
    assert answer["getpeername"] == ["10.77.0.2", PORT]


def test_switches_and_destinations_survive_an_update(mesh: Mesh, variant: Path) -> None:
    mesh.include("10.77.0.2/32")
    mesh.kernel.install(mesh.settings(), object_path=variant)
    with mesh.kernel.maps() as maps:
        assert {str(d) for d in maps.destinations("include")} == {"10.77.0.2/32:*"}
    assert mesh.who("10.77.0.2") == "OUT4"
    assert [scope.state for scope in mesh.kernel.scopes()] == ["attached"]


def test_update_keeps_the_links_and_their_ids(mesh: Mesh, variant: Path) -> None:
    def ids() -> dict[str, int]:
        found = {}
        for path in (mesh.kernel.tree.current / "links").rglob("*"):
            if path.is_file():
                fd = libbpf.open_pin(path)
                with open(fd, "rb"):
                    found[str(path)] = libbpf.link_info(fd).id
        return found

    before = ids()
    assert len(before) == 8
    mesh.kernel.install(mesh.settings(), object_path=variant)
    assert ids() == before


def test_same_object_again_changes_nothing(mesh: Mesh) -> None:
    settled = mesh.kernel.install(mesh.settings())
    assert (settled.fresh, settled.changed_programs, settled.missing_hooks) == (False, (), ())


def test_no_descriptor_is_left_open(mesh: Mesh, variant: Path) -> None:
    mesh.kernel.install(mesh.settings())
    before = open_descriptors()
    for _ in range(3):
        mesh.kernel.install(mesh.settings(), object_path=variant)
        mesh.kernel.install(mesh.settings())
        mesh.kernel.scopes()
        mesh.kernel.reconcile()
        mesh.kernel.switch(on=True)
    assert open_descriptors() == before
