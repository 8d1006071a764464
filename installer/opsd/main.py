"""The entry point of moa-opsd."""

from __future__ import annotations

import sys


def main() -> None:
    """`moa-opsd [CONFIG]`: what the unit file starts."""
    # structlog would draw tracebacks with rich, if it were there: 5 MB that nobody looks at.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    from installer.opsd.daemon import run

    run()
