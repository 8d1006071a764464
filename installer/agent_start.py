"""`moa-agent` from its first line: the keeper is made before anything large is imported."""

from __future__ import annotations

import sys

from installer import keeper

SUPERVISED = "--supervised"
"""Given by a supervisor, who sees to it that somebody takes the estate of a dead agent."""


def main() -> None:
    """What the script `moa-agent` runs."""
    if SUPERVISED in sys.argv[1:]:
        try:
            keeper.start()
        except OSError as error:
            # It serves as well without; only a crash costs more.
            sys.stderr.write(f"moa-agent: no keeper: {error}\n")
    from installer.agent import main as run

    run()


if __name__ == "__main__":
    main()
