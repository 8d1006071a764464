"""Writes a configuration's example file from its models, so that the two cannot drift apart."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_WIDTH = 92


def render_example(model: type[BaseModel], title: str) -> str:
    """Every section and key of `model` with its description, its bounds and its default.

    A key without a fixed default is commented out and shows its first example. A section that
    may repeat is commented out as a whole.
    """
    lines = [f"# {title}"]
    for section, field in model.model_fields.items():
        section_model = field.annotation
        if repeated := repeated_model(section_model):
            lines += ["", *_repeated(section, field.description or "", repeated)]
            continue
        if not (isinstance(section_model, type) and issubclass(section_model, BaseModel)):
            raise TypeError(f"{model.__name__}.{section}: expected a section, saw {section_model}")
        lines += ["", f"[{section}]"]
        for name, key in section_model.model_fields.items():
            lines += _key_lines(name, key)
    return "\n".join(lines) + "\n"


def repeated_model(annotation: Any) -> type[BaseModel] | None:
    """The model of a section that may repeat: `tuple[Model, ...]`; None for any other."""
    inner = next(iter(get_args(annotation)), None) if get_origin(annotation) is tuple else None
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _repeated(section: str, description: str, model: type[BaseModel]) -> Iterator[str]:
    """Only the keys of its own: the others are those of the section that it differs from."""
    yield f"# {description}"
    yield f"# [[{section}]]"
    shared = getattr(model.__base__, "model_fields", {})
    for name, key in model.model_fields.items():
        if name not in shared:
            for line in _key_lines(name, key):
                yield line if line.startswith("#") else f"# {line}"


def _key_lines(name: str, field: FieldInfo) -> Iterator[str]:
    text = " ".join(filter(None, (field.description, _bounds(field))))
    for line in textwrap.wrap(text, _WIDTH):
        yield f"# {line}"
    has_default = field.default is not None and field.default_factory is None
    if has_default and not field.is_required():
        yield f"{name} = {_toml(field.default)}"
    else:
        example = field.examples[0] if field.examples else ""
        yield f"# {name} = {_toml(example)}"


def _bounds(field: FieldInfo) -> str:
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    return "" if low is None or high is None else f"({low} to {high})"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    return "[" + ", ".join(_toml(item) for item in value) + "]"
