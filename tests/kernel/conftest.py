"""Every test here runs against the real kernel, on nodes of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from interceptor.programs import OBJECT_PATH
from tests.kernel.mesh import Mesh
from tests.support.lab import Lab

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(autouse=True)
def _needs_a_kernel() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it loads and attaches eBPF programs")
    if not OBJECT_PATH.exists():
        pytest.skip(f"needs {OBJECT_PATH}: run `make build`")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def bare(lab: Lab) -> Mesh:
    """Two nodes on which nothing is installed."""
    return Mesh(lab)


@pytest.fixture
def mesh(lab: Lab) -> Mesh:
    """Two nodes; an agent serves the first, whose services' cgroup is in the mesh."""
    made = Mesh(lab)
    made.start_agent()
    made.kernel.add_scope(made.node.services)
    made.kernel.switch(on=True)
    return made
