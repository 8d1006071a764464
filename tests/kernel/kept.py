"""An agent as far as its keeper can tell: a board, a listener, connections; SIGTERM is peace."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from installer import keeper

keeper.start()

from proxy.net.board import Board  # noqa: E402
from proxy.net.moved import Kind  # noqa: E402
from proxy.net.notes import Notes  # noqa: E402
from proxy.net.stream import Stream  # noqa: E402


def main(directory: str, connections: int) -> None:
    kept = keeper.mine()
    assert kept is not None
    board = Board.create(kept.board, 4096)
    loop = asyncio.new_event_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        board.name("out4", listener.fileno())
        kept.listen(f"{directory}/keeper-{os.getpid()}.sock")
        print("port", listener.getsockname()[1], "keeper", kept.pid, flush=True)
        streams = []
        for _ in range(connections):
            accepted, _ = listener.accept()
            accepted.setblocking(False)
            stream = Stream(loop, accepted)
            Notes(board, accepted.fileno()).start(Kind.RESP, b"", stream)
            streams.append(stream)
        print("serving", flush=True)
        signal.sigwait({signal.SIGTERM})
        board.end()
        os._exit(0)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(sys.argv[1], int(sys.argv[2]))
