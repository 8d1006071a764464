"""A service that dials once and prints what it was answered."""

from __future__ import annotations

import json
import sys

from tests.kernel.mesh import dial

if __name__ == "__main__":
    print(json.dumps(dial(sys.argv[1], int(sys.argv[2]))), flush=True)
