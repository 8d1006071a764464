"""The worker's program: `python -m proxy.net.worker_main`, jobs on standard input, one by one.

Frames, big-endian. A job: verb (1 byte), `max_body` u32, size u32, the body. Its result: 1 where
it failed else 0 (1 byte), size u32, the data or the reason. Ends when standard input does.
"""

from __future__ import annotations

import struct
import sys
from contextlib import suppress
from typing import BinaryIO

from proxy.core.heavy import Job, run

JOB = struct.Struct(">cII")
RESULT = struct.Struct(">?I")


def serve(jobs: BinaryIO, results: BinaryIO) -> None:
    """Do every job that comes; returns when no more will."""
    while len(head := jobs.read(JOB.size)) == JOB.size:
        verb, max_body, size = JOB.unpack(head)
        body = jobs.read(size)
        if len(body) < size:
            return
        done = run(Job(verb, body, max_body))
        data = done.failure.encode(errors="replace") if done.failure else done.data
        results.write(RESULT.pack(bool(done.failure), len(data)) + data)
        results.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
