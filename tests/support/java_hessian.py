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


def compile_java(source: Path, directory: Path) -> None:
    """Compile one program against the jar, into `directory`."""
    argv = ["javac", "-nowarn", "-cp", str(JAR), "-d", str(directory), str(source)]
    subprocess.run(argv, check=True)


def java_command(directory: Path, program: str) -> list[str]:
    """The command that runs a compiled program: a small machine that starts fast."""
    opened = ("java.lang", "java.math", "java.util")
    return [
        *("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"),
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in opened),
        *("-Dfile.encoding=UTF-8", "-cp", f"{JAR}:{directory}", program),
    ]


@contextmanager
def java_hessian(directory: Path) -> Iterator[JavaHessian]:
    """Compile HessianPeer.java into `directory` and run it until the block ends."""
    compile_java(SOURCE, directory)
    command = java_command(directory, "HessianPeer")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield JavaHessian(process.stdin, process.stdout)
            process.stdin.close()
            process.wait(timeout=30)
        finally:
            process.kill()
