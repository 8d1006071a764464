"""A service's long-lived connection: dials HOST PORT, says that it holds it, and waits."""

import socket
import sys

with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as held:
    held.settimeout(None)
    print("holds", flush=True)
    while held.recv(4096):
        pass
