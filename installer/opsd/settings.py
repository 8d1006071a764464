"""What the supervisor needs of the configuration, read and checked by a process that ends then.

The models of the configuration take 12 MB, for which a process that lives for months and reads
them once has no use.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from installer.peer_settings import PeerSettings, peer_settings

if TYPE_CHECKING:
    from installer.config import Config

READ_S = 30.0


class SettingsError(Exception):
    """The configuration is not valid, or could not be read; the text says why."""


@dataclass(frozen=True, slots=True)
class OpsSettings:
    """The section `[ops]`, key by key (installer/config_ops.py)."""

    restart_ms: int
    restart_max_ms: int
    crashes: int
    crash_window_s: int
    open_s: int
    start_s: int
    silent_s: int
    check_s: int
    move_s: int
    adopt_s: int
    bake_s: int
    gate_min_requests: int
    gate_error_percent: int
    gate_latency_factor: int
    gate_latency_ms: int
    gate_lag_ms: int
    gate_silent_s: int


@dataclass(frozen=True, slots=True)
class OpsdSettings:
    """`config_path` is what agents are told; None: the built-in defaults."""

    config_path: Path | None
    runtime_dir: Path
    state_dir: Path
    log_level: str
    drain_timeout_s: int
    bpf_root: Path
    ops: OpsSettings
    peer: PeerSettings

    @classmethod
    def of(cls, config: Config, path: Path | None) -> OpsdSettings:
        """Of a configuration that was read from `path`."""
        names = [field.name for field in fields(OpsSettings)]
        return cls(
            config_path=path,
            runtime_dir=config.agent.runtime_dir,
            state_dir=config.agent.state_dir,
            log_level=config.agent.log_level,
            drain_timeout_s=config.agent.drain_timeout_s,
            bpf_root=config.bpf.root,
            ops=OpsSettings(**{name: getattr(config.ops, name) for name in names}),
            peer=peer_settings(config),
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> OpsdSettings:
        """What `to_json` made."""
        path = document["config_path"]
        return cls(
            config_path=Path(path) if path else None,
            runtime_dir=Path(document["runtime_dir"]),
            state_dir=Path(document["state_dir"]),
            log_level=document["log_level"],
            drain_timeout_s=document["drain_timeout_s"],
            bpf_root=Path(document["bpf_root"]),
            ops=OpsSettings(**document["ops"]),
            peer=PeerSettings(
                **{
                    **document["peer"],
                    "listen": tuple(document["peer"]["listen"]),
                    "nodes": tuple(document["peer"]["nodes"]),
                    "root": Path(document["peer"]["root"]),
                }
            ),
        )

    def to_json(self) -> str:
        """One line; it may hold a password."""
        return json.dumps(asdict(self), default=str)


def read(path: Path | None) -> OpsdSettings:
    """Read and check the configuration, in another process; raises SettingsError."""
    argv = [sys.executable, "-I", "-m", __name__, *([str(path)] if path else [])]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=READ_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"the configuration was not read: {error}") from None
    if done.returncode != 0:
        raise SettingsError(done.stderr.strip() or f"{path}: exit {done.returncode}")
    return OpsdSettings.from_json(json.loads(done.stdout))


def main() -> None:
    """`python -m installer.opsd.settings [CONFIG]`: print the settings as JSON."""
    from installer.config import Config, ConfigError, load

    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        config = load(path) if path else Config()
    except ConfigError as error:
        sys.exit(str(error))
    sys.stdout.write(OpsdSettings.of(config, path).to_json())


if __name__ == "__main__":
    main()
