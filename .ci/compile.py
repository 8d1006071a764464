"""Compile what every request runs through, with mypyc, into build/compiled (docs/adr/0019).

    compile.py           make build/compiled/proxy anew when the sources have changed
    compile.py --check   exit 1 when it is there and of other sources
    compile.py --drop    remove it when it is of other sources: nobody runs what is old

`build/compiled/proxy` is the whole package, the sources beside the compiled modules. An
environment that has the folder in its path runs them; the sources alone do the same, slower.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "compiled"
STAMP = OUT / ".sources"
LAYERS = ("wire", "core", "net")
"""What has to be fast. The order is that of imports."""
LEFT_OUT = (
    "wire/hessian/",  # subclasses of built-in types, which mypyc has not
    "wire/handover/",  # generated, and once an upgrade
    "net/handover/",
    "wire/value.py",  # a decorator, which is looked at when it runs
    "net/worker_main.py",  # a program, and only sources can be run as one
    "core/model.py",
    "net/sockets.py",  # what the supervisor needs: it is not to carry all of the rest
)


def main() -> None:
    is_old = OUT.exists() and not _is_current()
    if sys.argv[1:] == ["--check"]:
        if is_old:
            sys.exit(f"{OUT.relative_to(ROOT)} is of other sources: make compile, or make build")
    elif sys.argv[1:] == ["--drop"]:
        if is_old:
            shutil.rmtree(OUT)
    elif not _is_current():
        _compile()


def _is_current() -> bool:
    return STAMP.exists() and STAMP.read_text() == _hash()


def _hash() -> str:
    """Of all that goes into it."""
    found = hashlib.sha256(sys.version.encode())
    files = [*(ROOT / "proxy").rglob("*.py"), Path(__file__), ROOT / "requirements-dev.lock"]
    for path in sorted(files):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def _modules(layer: str) -> list[str]:
    found = []
    for path in sorted((ROOT / "proxy" / layer).rglob("*.py")):
        name = str(path.relative_to(ROOT / "proxy"))
        if not (name.startswith(LEFT_OUT) or name.endswith(("_pb2.py", "__init__.py"))):
            found.append(f"proxy/{name}")
    return found


def _compile() -> None:
    # Here, as --check is for environments that have no compiler's tools.
    from mypyc.build import mypycify
    from setuptools import setup  # type: ignore[import-untyped]

    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(ROOT / "proxy", OUT / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    groups: list[tuple[list[str], str | None]] = [
        (_modules("wire") + _modules("core"), "proxy.sansio"),
        (_modules("net"), "proxy.sockets"),
    ]
    extensions = mypycify(
        ["--config-file=pyproject.toml", *(path for paths, _ in groups for path in paths)],
        opt_level="2",
        debug_level="0",
        separate=groups,
        target_dir=str(ROOT / "build" / "mypyc"),
    )
    sys.argv = ["compile.py", "-q", "build_ext", "--parallel", "2",
                "--build-temp", "build/mypyc", "--build-lib", str(OUT)]  # fmt: skip
    setup(name="moa-interceptor-compiled", ext_modules=extensions, packages=[])
    STAMP.write_text(_hash())


if __name__ == "__main__":
    main()
