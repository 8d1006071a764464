"""What is slow on files, as a program of its own: `child.py` runs it (docs/adr/0008).

    file_worker.py write PATH    replace PATH by standard input, as a whole and on the disk
    file_worker.py toml PATH     the TOML file PATH as JSON on standard output

Exit status 1 and the reason on standard output where it failed. Imports nothing of ours and
is started without `site`: it begins in about 10 ms.
"""

import json
import os
import sys
import tempfile
import tomllib
from glob import escape
from pathlib import Path
from typing import NoReturn

MAX_TOML_BYTES = 16 * 1024 * 1024

_TEMPORARY = ".new"


def replace(path: Path, data: bytes) -> None:
    """Replace a file, readable by its owner only; a crash leaves the old one or the new one.

    Blocks on the disk. Raises OSError, and then the old one is still there.
    """
    prefix = f".{path.name}."
    # One agent writes here: what an earlier write left, it left because it was killed.
    for leftover in path.parent.glob(f"{escape(prefix)}*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    # mkstemp makes the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=_TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_toml(path: Path) -> bytes:
    """The JSON text of a TOML file; raises OSError, and ValueError for what is neither."""
    with path.open("rb") as file:
        raw = file.read(MAX_TOML_BYTES + 1)
    if len(raw) > MAX_TOML_BYTES:
        raise ValueError(f"more than {MAX_TOML_BYTES} bytes")
    return json.dumps(tomllib.loads(raw.decode()), default=_no_json).encode()


def _no_json(value: object) -> NoReturn:
    raise ValueError(f"a {type(value).__name__} ({value}) is not expected here")


def main() -> int:
    verb, path = sys.argv[1], Path(sys.argv[2])
    try:
        if verb == "write":
            replace(path, sys.stdin.buffer.read())
        else:
            sys.stdout.buffer.write(read_toml(path))
    except OSError as error:
        sys.stdout.write(error.strerror or str(error))
        return 1
    except ValueError as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
