"""Connections that last: `holder.py dial|listen HOST PORT` holds its end until it is stopped."""

import signal
import socket
import sys

role, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
if role == "listen":
    # The kernel completes handshakes by itself: nobody needs to accept.
    held = socket.create_server((host, port), family=family)
else:
    held = socket.create_connection((host, port), timeout=5)
with held:
    print("holds", flush=True)
    signal.pause()
