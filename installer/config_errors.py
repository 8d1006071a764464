"""Says what is wrong with a configuration: one line per problem, each naming its key.

A line reads `file: key.path: expected …, saw …`. A value that may hold credentials is never
shown.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError

from installer.config_example import repeated_model

_SHOWN_CHARACTERS = 60


class ConfigError(Exception):
    """A configuration that cannot be used; `problems` has one line for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the value of one key; `saw` is None where there is none to show."""

    key: str
    expected: str
    saw: object = None

    def __str__(self) -> str:
        line = f"{self.key}: expected {self.expected}"
        return line if self.saw is None else f"{line}, saw {_shown(self.saw)}"


class ContradictionError(ValueError):
    """Values that are fine one by one and cannot stand together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def problem_lines(error: ValidationError, model: type[BaseModel], file: str) -> tuple[str, ...]:
    """Every problem that pydantic found in a `model` read from `file`, in its order."""
    return tuple(
        f"{file}: {line}"
        for details in error.errors(include_url=False)
        for line in _lines(details, model)
    )


def _lines(details: Any, model: type[BaseModel]) -> Iterable[str]:
    cause = details.get("ctx", {}).get("error")
    location: tuple[int | str, ...] = details["loc"]
    key = _key(location)
    if isinstance(cause, ContradictionError):
        return map(str, cause.problems)
    if details["type"] == "extra_forbidden":
        return (f"{key}: unknown key{_suggestion(location, model)}",)
    if cause is not None:
        expected = str(cause)
    elif details["type"] in ("model_type", "model_attributes_type"):
        expected = "a table"
    else:
        expected = details["msg"].removeprefix("Input should be ")
    return (str(Problem(key, expected, details["input"])),)


def _key(location: Iterable[int | str]) -> str:
    key = ""
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            key += f".{part}" if key else part
    return key


def _suggestion(location: Sequence[int | str], model: type[BaseModel]) -> str:
    known = model
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = known.model_fields[part].annotation
        inner = repeated_model(annotation) or annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        known = inner
    name = str(location[-1])
    names = list(known.model_fields)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; the nearest known key is {_key((*location[:-1], near[0]))}"
    section = _section_of(name, model)
    if section:
        return f"; {name} belongs to [{section}]"
    return f"; known here: {', '.join(names)}"


def _section_of(name: str, model: type[BaseModel]) -> str | None:
    for section, field in model.model_fields.items():
        candidates = (field.annotation, *get_args(field.annotation))
        for candidate in candidates:
            if (
                isinstance(candidate, type)
                and issubclass(candidate, BaseModel)
                and name in candidate.model_fields
            ):
                return section
    return None


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, SecretStr) or (isinstance(value, str) and "://" in value):
        return "a URL (not shown: it may hold a password)"
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = _SHOWN_CHARACTERS
    return shortener.repr(value)
