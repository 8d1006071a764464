"""End to end: nodes of a lab, real agents on them, real services, and clients that know of none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from interceptor.programs import OBJECT_PATH
from tests.support.lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Shared by a module: what a test breaks, it mends before it ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces and loads eBPF programs")
    if not OBJECT_PATH.exists():
        pytest.skip(f"needs {OBJECT_PATH}: run `make build`")
    with Lab() as made:
        yield made
