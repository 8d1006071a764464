"""Caucho's Hessian for Java (Debian's libhessian-java) as the other side of a test."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

JAR = Path("/usr/share/java/hessian.jar")
SOURCE = Path(__file__).parent / "java" / "HessianPeer.java"


def missing() -> str | None:
    """What keeps the Java side from running here, or None."""
    if shutil.which("javac") is None:
        return "no javac (Debian: default-jdk-headless)"
    return None if JAR.exists() else f"no {JAR} (Debian: libhessian-java)"


class JavaHessian:
    """A running HessianPeer; answers are (the bytes Java wrote, the outline Java saw)."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._stdin = stdin
        self._stdout = stdout

    def read(self, body: bytes) -> tuple[bytes, str]:
        """Java reads `body`; an outline that begins with `!` is its refusal."""
        return self._ask(b"R", body)

    def random(self, seed: int) -> tuple[bytes, str]:
        """Java writes a random value."""
        return self._ask(b"W", struct.pack(">q", seed))

    def named(self, name: str) -> tuple[bytes, str]:
        """Java writes a vector of HessianPeer.java by its name."""
        return self._ask(b"N", name.encode())

    def _ask(self, command: bytes, frame: bytes) -> tuple[bytes, str]:
        self._stdin.write(command + struct.pack(">i", len(frame)) + frame)
        self._stdin.flush()
        return self._answer(), self._answer().decode("ascii")

    def _answer(self) -> bytes:
        (size,) = struct.unpack(">i", self._stdout.read(4))
        return self._stdout.read(size)


@contextmanager
def java_hessian(directory: Path) -> Iterator[JavaHessian]:
    """Compile HessianPeer.java into `directory` and run it until the block ends."""
    subprocess.run(
        ["javac", "-nowarn", "-cp", str(JAR), "-d", str(directory), str(SOURCE)], check=True
    )
    command = [
        "java",
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Xmx256m",
        "--add-opens=java.base/java.lang=ALL-UNNAMED",
        "--add-opens=java.base/java.math=ALL-UNNAMED",
        "--add-opens=java.base/java.util=ALL-UNNAMED",
        "-cp",
        f"{JAR}:{directory}",
        "HessianPeer",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield JavaHessian(process.stdin, process.stdout)
            process.stdin.close()
            process.wait(timeout=30)
        finally:
            process.kill()
