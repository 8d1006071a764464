"""The benchmark's own C programs: built where they are needed, run, and their words read."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


class BenchError(Exception):
    """The benchmark could not run."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of the built programs; each source begins with its usage."""

    load: str
    echo: str
    connect: str


@dataclass(frozen=True, slots=True)
class Times:
    """What `load` and `connect` print: microseconds, and for `load` what went wrong."""

    count: int
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    per_s: float = 0.0
    queued: int = 0
    errors: int = 0

    @classmethod
    def parse(cls, output: str) -> Times:
        """Read the JSON; raises BenchError with the output when it is none."""
        try:
            found: dict[str, Any] = json.loads(output)
        except ValueError:
            raise BenchError(f"expected JSON of a benchmark tool, got {output[:300]!r}") from None
        errors = found.pop("errors", {})
        return cls(**found, errors=sum(errors.values()))


def build(directory: Path) -> Tools:
    """Compile the three programs into `directory`; raises BenchError with the compiler's words."""

    def compiled(name: str) -> str:
        program = directory / name
        argv = ["cc", *_FLAGS, "-o", str(program), str(SOURCES / f"{name}.c")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return str(program)

    return Tools(compiled("load"), compiled("echo"), compiled("connect"))
