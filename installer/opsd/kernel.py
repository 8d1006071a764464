"""The supervisor's word to the kernel: a dead agent's listeners are no more to be trusted.

Its keeper holds the listening sockets open, so the kernel would go on to send connections there
until the heartbeat is stale; nobody would accept them.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from interceptor.abi import ListenerSlot
from interceptor.errors import InterceptorError
from interceptor.node import Node

log = structlog.get_logger("opsd")


def withdraw_listeners(root: Path) -> None:
    """New connections go direct from now on, until an agent publishes its listeners again."""
    node = Node(root)
    if not node.is_installed():
        return
    try:
        with node.maps() as maps:
            for slot in ListenerSlot:
                maps.withdraw_listener(slot)
    except (InterceptorError, OSError, KeyError) as error:
        log.warning("listeners not withdrawn", root=str(root), error=str(error))
