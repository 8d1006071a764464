"""A text without its secrets: whatever may be one is starred, rather too much than too little.

Line by line: the user information of URLs up to the last `@` that may belong to it, and all that
follows a key that sounds like a secret, also on further lines when it goes on there. A URL that
is well formed keeps its host and port, without which nothing can be understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

STARS = "***"

_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+)(?::[0-9]{1,5})?"
_PLACE = rf"(?:{_HOST}(?:,{_HOST})*)?(?:/[A-Za-z0-9_.-]*)*"
"""What a URL has between its user information and its options."""

_URL = re.compile(r"([\"']?)([A-Za-z][A-Za-z0-9+.-]*)://")
_WELL_FORMED = re.compile(rf"{_PLACE}[\\\"',;.:)\]}}>]*")
_AFTER_QUOTE = re.compile(r"[\s,;:)\]}>\\\"']|$")

_URL_KEY = re.compile(r"(?<![A-Za-z])url[\"']?\s*=\s*", re.IGNORECASE)
_URL_VALUE = re.compile(
    rf"([\"'])[A-Za-z][A-Za-z0-9+-]*://(?:[^\s/@?#\"'\\]*@)?{_PLACE}\1(?=[\s,}}#]|$)(?!.*@)"
)

_KEY = (
    r"(?:pass[_-]?(?:word|phrase)s?|passwd|pwd|secrets?|token|credentials?|cookies?|bearer"
    r"|requirepass|masterauth|authorization|(?:api|private|access)[_-]?keys?"
    r"|(?<![/@])(?<!by)pass|(?<![/@])auth)"
)
_SECRET = re.compile(
    rf"{_KEY}(?:(?:s|[0-9]+|[_-]\w+)?(?P<assigned>\\*[\"']?\]?\s*[:=]+>?)|\\*[\"']?[,>\s]|\\[tnr])\s*",
    re.IGNORECASE,
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)", re.DOTALL)

_CLOSERS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True, slots=True)
class _Open:
    """A value that goes on: until the line with its end, or for one line when it has none."""

    end: str
    indent: int

    def ends_in(self, line: str) -> bool:
        words = line.strip()
        if not self.end:
            return bool(words) and not words.endswith("\\")
        if self.end in _CLOSERS.values():
            outer = words.startswith(self.end) and _indent(line) <= self.indent
            return outer or (self.end == "]" and words.rstrip(",;").endswith("]"))
        return self.end in words


def redacted(text: str, *, configuration: bool = False) -> str:
    """A text without what may be a secret. In a `configuration` nothing need be well formed:
    that it is not may be why it is sent."""
    # Not by splitlines(), for which a password may hold the end of a line.
    return "\n".join(_lines(_PEM.sub(STARS, text).split("\n"), configuration))


def _lines(lines: list[str], configuration: bool) -> Iterator[str]:
    goes_on: _Open | None = None
    for line in lines:
        if goes_on is None:
            shown, goes_on = _line(line, configuration)
            yield shown
        else:
            yield STARS if line.strip() else line
            goes_on = None if goes_on.ends_in(line) else goes_on


def _line(line: str, configuration: bool) -> tuple[str, _Open | None]:
    """What is left of a line, and whether the last value in it goes on after it."""
    goes_on = None
    if configuration:
        for key in _URL_KEY.finditer(line):
            if not _URL_VALUE.match(line, key.end()):
                goes_on = _opened(line, key.end())
                line = line[: key.end()] + STARS
                break
    line = _without_users(line, configuration)
    if found := _SECRET.search(line):
        if line[found.end() :] or found["assigned"]:
            goes_on = goes_on or _opened(line, found.end())
        if line[found.end() :]:
            line = line[: found.end()] + STARS
    return line, goes_on


def _opened(line: str, start: int) -> _Open | None:
    """Whether the value that begins there has its end on another line."""
    value, indent = line[start:].strip(), _indent(line)
    for quotes in ('"""', "'''"):
        if value.count(quotes) % 2:
            return _Open(quotes, indent)
    if value[:1] in _CLOSERS and _CLOSERS[value[0]] not in value:
        return _Open(_CLOSERS[value[0]], indent)
    if value in ("", "|", "|-", ">", ">-") or value.endswith("\\"):
        return _Open("", indent)
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_users(line: str, configuration: bool) -> str:
    """Without the user information of every URL in a line."""
    done = ""
    while found := _URL.search(line):
        done, rest = done + line[: found.end()], line[found.end() :]
        whole = configuration and "@" in rest
        span = rest if whole else _span(rest, found[1])
        user, at, place = span.rpartition("@")
        if whole or _WELL_FORMED.fullmatch(place):
            done, line = done + (f"{STARS}@" if at else ""), rest[len(user + at) :]
        elif "@" in rest:  # what looks like the end of the URL was a part of its password
            done, line = f"{done}{STARS}@", rest.rpartition("@")[2]
        elif "redis" in found[2].lower():
            done, line = done + STARS, rest[len(span) :]
        else:
            line = rest
    return done + line


def _span(rest: str, quote: str) -> str:
    """How far a URL may reach: to the quote that closes it, or else to the next space."""
    if not quote:
        return rest.split(maxsplit=1)[0] if rest[:1].strip() else ""
    found = re.match(rf"(?:\\.|[^\\{quote}])*", rest)
    end = found.end() if found else 0
    return rest[:end] if _AFTER_QUOTE.match(rest, end + 1) else rest
