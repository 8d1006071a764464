"""What a bug report needs of this node, as files without secrets.

Starred: user information of URLs, and whatever follows a key that sounds like a secret. Left out:
the environment of every process. Addresses and names of services stay: without them nothing can
be understood.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from installer import node_state
from installer.client import AgentClient, AgentError
from installer.config import Config
from installer.doctor import check as doctor_check
from installer.doctor.checks import ALL_CHECKS
from installer.doctor.probes import Probes
from installer.plan import manifest, processes, units
from installer.redaction import redacted
from interceptor.errors import InterceptorError
from interceptor.node import Node

MAX_FILE_BYTES = 1 << 20
"""Of each file its end: the latest is what matters."""

_COMMAND_S = 20.0
_JOURNAL_LINES = "2000"
_KERNEL = (
    "/proc/version", "/etc/os-release", "/proc/mounts", "/proc/self/cgroup",
    "/proc/sys/kernel/unprivileged_bpf_disabled", "/sys/kernel/security/lsm", "/proc/meminfo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """One file of a report."""

    name: str
    content: bytes


def pages(config: Config, config_file: Path | None, root: Path, probes: Probes) -> list[Page]:
    """Everything there is; what cannot be had is a page that says why."""
    made = [
        _page("doctor.json", lambda: _doctor(probes)),
        _page("node.json", lambda: _node(root)),
        *_agent_pages(config),
        *(_page(f"kernel{path.replace('/', '-')}.txt", _reader(path)) for path in _KERNEL),
        *_file_pages(config_file),
        *_command_pages(),
    ]
    return sorted(made, key=lambda page: page.name)


def write(path: Path, found: list[Page]) -> None:
    """Pack the pages, a list of them first; the file is for its owner alone. Raises OSError, and
    leaves no half of a file."""
    listing = "".join(f"{len(page.content):>9}  {page.name}\n" for page in found)
    name = path.name.removesuffix(".tar.gz")
    path.touch(mode=0o600, exist_ok=False)
    try:
        with tarfile.open(path, "w:gz") as archive:
            for page in (Page("CONTENTS", listing.encode()), *found):
                entry = tarfile.TarInfo(f"{name}/{page.name}")
                entry.size, entry.mtime, entry.mode = len(page.content), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(page.content))
    except BaseException:
        path.unlink()
        raise


def _page(name: str, make: Callable[[], str], *, configuration: bool = False) -> Page:
    try:
        text = make()
    except (OSError, InterceptorError, AgentError, subprocess.SubprocessError) as error:
        text = f"not to be had: {str(error) or type(error).__name__}\n"
    text = redacted(text, configuration=configuration)
    return Page(name, text.encode(errors="replace")[-MAX_FILE_BYTES:])


def _doctor(probes: Probes) -> str:
    findings = doctor_check.run(ALL_CHECKS, probes)
    return json.dumps([{"id": f.check.id, **asdict(f.result)} for f in findings], indent=1)


def _node(root: Path) -> str:
    state = node_state.read(Node(root))
    return json.dumps(asdict(state) if state else None, indent=1, default=str)


def _agent(client: AgentClient, name: str) -> str:
    return json.dumps(client.get(f"/v1/{name}"), indent=1)


def _agent_pages(config: Config) -> Iterator[Page]:
    client = AgentClient.of(config.agent.runtime_dir)
    for name in ("status", "conns", "services", "registry"):
        yield _page(f"agent-{name}.json", partial(_agent, client, name))


def _file_pages(config_file: Path | None) -> Iterator[Page]:
    paths = [manifest.PATH, *Path(processes.LOG_DIRECTORY).glob("*.log")]
    paths += sorted(Path(units.DIRECTORY).glob("moa-*"))
    paths += sorted(Path(units.DIRECTORY).glob("*.d/*moa*.conf"))
    if config_file is not None:
        paths.append(config_file)
    for path in paths:
        if path.is_file():
            name = f"file{str(path).replace('/', '-')}"
            yield _page(name, _reader(str(path)), configuration=path == config_file)


def _command_pages() -> Iterator[Page]:
    for name, argv in {
        "journal.txt": ["journalctl", "--unit=moa-*", "--no-pager", f"--lines={_JOURNAL_LINES}"],
        "units.txt": ["systemctl", "--no-pager", "status", "moa-*"],
        "bpf-cgroups.txt": ["bpftool", "cgroup", "tree"],
        "sockets.txt": ["ss", "-Htlnp"],
    }.items():
        yield _page(name, partial(_output, argv))


def _output(argv: list[str]) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=_COMMAND_S, check=False, errors="replace"
    )
    return done.stdout + done.stderr


def _reader(path: str) -> Callable[[], str]:
    def read() -> str:
        with open(path, "rb") as file:
            with suppress(OSError):
                file.seek(-MAX_FILE_BYTES, 2)
                file.readline()  # half a line may be a secret without its key
            return file.read(MAX_FILE_BYTES).decode(errors="replace")

    return read
