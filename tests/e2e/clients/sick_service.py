"""The sample services, answering every request with `ec` 304 for as long as a file exists.

sick_service.py FILE resp|turbo OPTIONS...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.samples import demo_service, turbo_service
from tests.samples.demo_service import DemoService


def main() -> None:
    sick, protocol = Path(sys.argv.pop(1)), sys.argv.pop(1)
    answer = DemoService._call

    async def call(self: DemoService, body: bytes) -> tuple[int, str, Any]:
        return (304, "sick", None) if sick.exists() else await answer(self, body)

    DemoService._call = call  # type: ignore[method-assign]
    (demo_service if protocol == "resp" else turbo_service).main()


if __name__ == "__main__":
    main()
