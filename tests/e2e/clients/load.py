"""The sample load client, and the time at which it began: `load.py` with its options.

`started_s` is on the machine's monotonic clock, so that a test can say how long after its
deed the last error came.
"""

from __future__ import annotations

import asyncio
import json
import time

from tests.samples.load_client import parse_arguments, run_load


def main() -> None:
    load, _ = parse_arguments()
    started_s = time.monotonic()
    print("started", flush=True)
    report = asyncio.run(run_load(load))
    print(json.dumps(report.as_dict() | {"started_s": started_s}), flush=True)


if __name__ == "__main__":
    main()
