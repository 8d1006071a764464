"""Splits an inline command into arguments exactly as redis-server's sdssplitargs does."""

from __future__ import annotations

import re

_BLANK = b" \t\n\r\v\f"
_WORD_END = b" \t\n\r"
"""Fewer than the blanks between words: redis-server keeps VT and FF inside a word."""

_PLAIN = re.compile(rb"[^ \t\n\r\"']+")
_DOUBLE = re.compile(rb'"((?:[^"\\]|\\.)*)"(?=[ \t\n\r\v\f]|\Z)', re.DOTALL)
_SINGLE = re.compile(rb"'((?:[^'\\]|\\'|\\(?!'))*)'(?=[ \t\n\r\v\f]|\Z)", re.DOTALL)
_UNUSUAL = re.compile(rb"[\"'\v\f]")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split_inline(line: bytes) -> tuple[bytes, ...] | None:
    """The arguments of a line without its end; None when a quote is not closed.

    A NUL ends the line, a closing quote must be followed by a space, `"` knows the escapes
    `\\xHH \\n \\r \\t \\b \\a`, and `'` knows only `\\'` (redis 7.0 sds.c).
    """
    line = line.split(b"\0", 1)[0]
    if not _UNUSUAL.search(line):
        return tuple(line.split())
    args: list[bytes] = []
    at = 0
    while True:
        while at < len(line) and line[at] in _BLANK:
            at += 1
        if at >= len(line):
            return tuple(args)
        word = _read_word(line, at)
        if word is None:
            return None
        arg, at = word
        args.append(arg)


def _read_word(line: bytes, at: int) -> tuple[bytes, int] | None:
    """One word, which may be plain text with a quoted end, as in `a"b c"`."""
    word = b""
    while at < len(line) and line[at] not in _WORD_END:
        if plain := _PLAIN.match(line, at):
            word += plain.group()
            at = plain.end()
        elif quoted := _DOUBLE.match(line, at):
            return word + _ESCAPE.sub(_unescape, quoted.group(1)), quoted.end()
        elif quoted := _SINGLE.match(line, at):
            return word + quoted.group(1).replace(b"\\'", b"'"), quoted.end()
        else:
            return None
    return word, at


def _unescape(match: re.Match[bytes]) -> bytes:
    code, char = match.groups()
    return bytes((int(code, 16),)) if code else _NAMED.get(char, char)
