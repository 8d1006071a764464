"""`moa-agent` of a version whose object is another one: `other_programs.py OBJECT ARGUMENTS...`."""

from __future__ import annotations

import sys
from pathlib import Path

from installer import keeper

if __name__ == "__main__":
    other = Path(sys.argv.pop(1))
    if "--supervised" in sys.argv:
        keeper.start()
    from installer.agent import main
    from interceptor.node import Node

    defaults = Node.install.__kwdefaults__
    assert defaults is not None
    defaults["object_path"] = other
    main()
