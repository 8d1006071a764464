"""What the harnesses share: instrumented imports, and the way into libFuzzer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

try:
    import atheris
except ImportError:  # without `make fuzz`: the corpora are replayed as plain tests
    atheris = None


def instrumented() -> contextlib.AbstractContextManager[object]:
    """Count branches in what is imported inside, when a fuzzer runs."""
    if atheris is None:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[object] = atheris.instrument_imports(
        include=["proxy.wire"]
    )
    return context


def fuzz(check: Callable[[bytes], None]) -> None:
    """Run `check` on inputs of libFuzzer, with its options in sys.argv; does not return."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


def cut(stream: bytes, size: int) -> list[bytes]:
    """The stream in chunks of `size` bytes."""
    return [stream[at : at + size] for at in range(0, len(stream), size)]
