"""The text of one member of a service's set: `host:port?proto=resp&weight=100` and back.

Rules (docs/PROTOCOL.md, "Registry on Redis"):
- host is a numeric IPv4 address, or IPv6 in brackets; a name is refused, because resolving it
  would put DNS between the registry and every connection.
- parameters are `name=value` joined by `&`, percent-encoded UTF-8; `+` is a plus.
- a known parameter that cannot be read makes the whole member broken, because to route on half
  of what was meant is worse than to leave one instance out; an unknown one is kept as it is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

from proxy.core.model import DEFAULT_WEIGHT, Address, Instance

MAX_MEMBER_BYTES = 1024
MAX_WEIGHT = 65535
MAX_TIMEOUT_MS = 3_600_000

_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DIGITS = re.compile(r"[0-9]{1,9}")
_PROTOCOL = re.compile(r"[a-z][a-z0-9_.-]{0,31}")


class BadMember(ValueError):
    """A member that cannot be used: which, what was seen and what was expected."""


def parse_member(text: str) -> Instance:
    """Read one member; raises BadMember."""
    if len(text.encode(errors="replace")) > MAX_MEMBER_BYTES:
        raise BadMember(f"member {text[:40]!r}...: longer than {MAX_MEMBER_BYTES} bytes")
    if _UNSAFE.search(text):
        raise BadMember(f"member {text!r}: contains white space or control characters")
    hostport, _, query = text.partition("?")
    try:
        return _with_params(parse_address(hostport), query)
    except BadMember as error:
        raise BadMember(f"member {text!r}: {error}") from None


def format_member(instance: Instance) -> str:
    """Write one member; what was read by `parse_member` comes back equal. Marks are left out.

    Raises BadMember when the text would be read as something else, so that a value which
    cannot be carried never reaches the registry.
    """
    params = [("proto", name) for name in instance.protocols if instance.protocols != ("resp",)]
    if instance.codec != "json":
        params.append(("codec", instance.codec))
    if instance.weight != DEFAULT_WEIGHT:
        params.append(("weight", str(instance.weight)))
    if instance.zone:
        params.append(("zone", instance.zone))
    if instance.pre:
        params.append(("pre", "1"))
    if instance.timeout_ms is not None:
        params.append(("timeout", str(instance.timeout_ms)))
    if instance.app:
        params.append(("app", instance.app))
    if instance.version:
        params.append(("version", instance.version))
    params.extend(instance.extra)
    try:
        query = "&".join(f"{_quote(name)}={_quote(value)}" for name, value in params)
    except UnicodeEncodeError as error:
        raise BadMember(f"{instance.address}: a parameter is not valid text: {error}") from None
    text = f"{instance.address}?{query}" if query else str(instance.address)
    if (seen := parse_member(text)) != replace(instance, marks=frozenset()):
        raise BadMember(f"{instance} cannot be written as a member: {text!r} is read as {seen}")
    return text


def parse_address(text: str) -> Address:
    """Read `1.2.3.4:5000` or `[::1]:5000`; IPv4-mapped IPv6 becomes IPv4. Raises BadMember."""
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise BadMember(f"expected host:port, seen {text!r}")
    port = int(port_text) if _DIGITS.fullmatch(port_text) else 0
    if not 1 <= port <= 65535:
        raise BadMember(f"expected a port of 1..65535, seen {port_text!r}")
    return Address(_numeric_host(host), port)


def _numeric_host(host: str) -> str:
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        raise BadMember(f"host {host!r} is a name, not a numeric address") from None
    if bracketed != (ip.version == 6) or "%" in bare:
        raise BadMember(f"host {host!r}: IPv6 goes in brackets and without a scope, IPv4 without")
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_unspecified or ip.is_multicast or str(ip) == "255.255.255.255":
        raise BadMember(f"host {host!r} cannot be connected to")
    return str(ip)


def _with_params(address: Address, query: str) -> Instance:
    known: dict[str, Any] = {}
    protocols: list[str] = []
    extra: list[tuple[str, str]] = []
    for pair in query.split("&") if query else []:
        name, value = (_unquote(part) for part in pair.partition("=")[::2])
        if name == "proto":
            protocols.append(_protocol(value))
        elif name in _FIELDS:
            field, read = _FIELDS[name]
            if field in known:
                raise BadMember(f"parameter {name!r} is given twice")
            known[field] = read(value)
        elif name:
            extra.append((name, value))
        elif value:
            raise BadMember(f"parameter without a name: {pair!r}")
    if protocols:
        known["protocols"] = tuple(dict.fromkeys(protocols))
    return Instance(address, extra=tuple(extra), **known)


def _protocol(value: str) -> str:
    if not _PROTOCOL.fullmatch(value):
        raise BadMember(f"proto: expected resp, turbo, turbo9 or mesh, seen {value!r}")
    return value


def _codec(value: str) -> str:
    if value not in ("json", "hessian2"):
        raise BadMember(f"codec: expected json or hessian2, seen {value!r}")
    return value


def _weight(value: str) -> int:
    return _integer("weight", value, MAX_WEIGHT)


def _timeout(value: str) -> int | None:
    return _integer("timeout", value, MAX_TIMEOUT_MS) or None


def _integer(name: str, value: str, largest: int) -> int:
    if not _DIGITS.fullmatch(value) or int(value) > largest:
        raise BadMember(f"{name}: expected 0..{largest}, seen {value!r}")
    return int(value)


def _flag(value: str) -> bool:
    if value not in ("0", "1", "true", "false"):
        raise BadMember(f"pre: expected 1 or 0, seen {value!r}")
    return value in ("1", "true")


_FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "codec": ("codec", _codec),
    "weight": ("weight", _weight),
    "zone": ("zone", str),
    "pre": ("pre", _flag),
    "timeout": ("timeout_ms", _timeout),
    "app": ("app", str),
    "version": ("version", str),
}


def _quote(text: str) -> str:
    return quote(text, safe="/:,@", errors="strict")


def _unquote(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadMember(f"{text!r} is not percent-encoded UTF-8") from None
    if _CONTROL.search(plain):
        raise BadMember(f"{text!r} contains control characters")
    return plain
