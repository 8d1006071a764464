"""What mypyc compiles keeps to what mypyc can do right (docs/adr/0019)."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = runpy.run_path(str(ROOT / ".ci" / "compile.py"))
MODULES = [name for layer in COMPILE["LAYERS"] for name in COMPILE["_modules"](layer)]
HARMLESS = {"len", "max", "min", "head_size"}
"""What may be called twice."""


def test_the_request_path_is_among_it() -> None:
    assert {"proxy/net/session.py", "proxy/core/dispatch.py", "proxy/wire/resp.py"} <= {*MODULES}
    assert len(MODULES) > 80


@pytest.mark.parametrize("module", MODULES)
def test_nothing_with_an_effect_in_the_bounds_of_a_slice(module: str) -> None:
    """mypyc may evaluate them twice."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            for part in ast.walk(node.slice):
                assert not isinstance(part, ast.NamedExpr | ast.Await), ast.unparse(node)
                if isinstance(part, ast.Call):
                    assert ast.unparse(part.func) in HARMLESS, ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_is_run_as_a_program(module: str) -> None:
    assert '__name__ == "__main__"' not in (ROOT / module).read_text()


def test_what_was_compiled_is_what_agents_run() -> None:
    moactl = Path(sys.executable).with_name("moactl")
    done = subprocess.run(
        [moactl, "version", "-o", "json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["compiled"] is (ROOT / "build" / "compiled").exists()
