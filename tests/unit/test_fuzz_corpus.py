"""The inputs of the fuzzers, replayed without a fuzzer: what was once found stays found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

CORPUS: Final = Path(__file__).parent.parent / "fuzz" / "corpus"
HARNESSES = ("resp", "turbo", "json_scan", "detect", "hessian", "mesh", "mesh_state", "handover")


@pytest.mark.parametrize("name", HARNESSES)
def test_harness_accepts_its_corpus(name: str) -> None:
    check: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.fuzz_{name}").check
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        try:
            check(path.read_bytes())
        except AssertionError as error:
            pytest.fail(f"{path.relative_to(CORPUS)}: {error}")
