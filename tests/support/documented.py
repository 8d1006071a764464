"""The JSON examples of docs/CLI.md, and whether an output has their form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"

_FREE_MAPS = (".counters", ".config", ".props")
"""Objects whose keys are data; the example shows some of them."""


def sections() -> dict[str, str]:
    """Text of each command's section, by the command without `moactl`."""
    text = (DOCS / "CLI.md").read_text()
    parts = re.split(r"^### `moactl ([a-z ]+)`$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def example(command: str) -> Any:
    """The documented JSON of a command."""
    found = re.search(r"```json\n(.*?)```", sections()[command], flags=re.S)
    assert found, f"docs/CLI.md has no JSON for {command}"
    return json.loads(found[1])


def assert_as_documented(command: str, seen: dict[str, Any]) -> None:
    """Fail unless `seen` has exactly the keys of the example, all the way down."""
    _compare(example(command), seen, command)


def _compare(documented: Any, seen: Any, place: str) -> None:
    if documented is None or seen is None:
        return
    if isinstance(documented, dict):
        assert isinstance(seen, dict), f"{place}: expected an object, saw {seen!r}"
        if place.endswith(_FREE_MAPS):
            return
        assert set(documented) == set(seen), f"{place}: {set(documented) ^ set(seen)}"
        for key, value in documented.items():
            if key == "schema":
                assert seen[key] == value
            _compare(value, seen[key], f"{place}.{key}")
    elif isinstance(documented, list):
        assert isinstance(seen, list), f"{place}: expected a list, saw {seen!r}"
        for item in seen:
            if documented:
                _compare(documented[0], item, f"{place}[]")
    else:
        number = isinstance(documented, int | float) and not isinstance(documented, bool)
        kind = (int, float) if number else type(documented)
        assert isinstance(seen, kind), f"{place}: expected {kind}, saw {seen!r}"
