"""What of a node's configuration its peers are made of, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from installer.config import Config


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """`redis_url` is the registry's, None when it is a file."""

    listen: tuple[str, ...]
    nodes: tuple[str, ...]
    application: str
    zone: str
    root: Path
    """Of the pins."""
    mark: int
    redis_url: str | None = field(repr=False)


def peer_settings(config: Config) -> PeerSettings:
    """Of a configuration."""
    url = config.registry.url if config.registry.kind == "redis" else None
    return PeerSettings(
        listen=config.peer.listen,
        nodes=config.peer.nodes,
        application=config.node.application,
        zone=config.node.zone,
        root=config.bpf.root,
        mark=config.bpf.mark,
        redis_url=url.get_secret_value() if url else None,
    )
