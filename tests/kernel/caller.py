"""A service that dials once, or without a pause, and prints what it was answered."""

from __future__ import annotations

import json
import sys

from tests.kernel.mesh import dial


def main() -> None:
    host, port, *more = sys.argv[1:]
    while True:
        print(json.dumps(dial(host, int(port))), flush=True)
        if not more:
            break


if __name__ == "__main__":
    main()
