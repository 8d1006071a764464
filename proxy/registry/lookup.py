"""The words of the lookup service: what a call asks for, and which hosts answer it.

`/service/lookup` and `/service/moa-admin` (docs/PROTOCOL.md, "Lookup service"). No I/O: who
serves the calls brings the table and makes the changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, urlencode

from proxy.core.model import ANY_GROUP, DRAIN, MAINT, Address, Instance, ServiceKey, ServiceTable
from proxy.core.routing import candidates
from proxy.registry.keys import BadServiceName, check_name
from proxy.registry.member import BadMember, parse_member
from proxy.wire.moa import BadRequest, Ec, Route

LOOKUP = "/service/lookup"
ADMIN = "/service/moa-admin"

PROTOCOLS = {"redis": "resp", "v1": "turbo"}
"""The public names of protocols; the registry's own are understood, too."""

_OWN_PROTOCOLS = frozenset({"resp", "turbo", "turbo9", "mesh"})


@dataclass(frozen=True, slots=True)
class GetService:
    """Who serves `uri` to the caller of `route` in `protocol`: the registry's name, "" is any."""

    uri: str
    protocol: str
    route: Route


@dataclass(frozen=True, slots=True)
class RegisterService:
    key: ServiceKey
    instance: Instance


@dataclass(frozen=True, slots=True)
class UnregisterService:
    key: ServiceKey
    address: Address


LookupCall = GetService | RegisterService | UnregisterService


def read_call(route: Route, args: object) -> LookupCall:
    """What a request asks for; methods are matched without case, as old servers do.

    Raises BadRequest: 502 for an unknown method, 302 for arguments that cannot be used.
    """
    read = _METHODS.get((route.uri, route.method.lower()))
    if read is None:
        known = ", ".join(name for uri, name in _NAMES if uri == route.uri)
        raise BadRequest(
            Ec.METHOD_NOT_FOUND, f"Method not found: {route.uri} has {known}, not {route.method!r}"
        )
    if not isinstance(args, list):
        raise BadRequest(Ec.SERIALIZATION, f"{route.method}: expected args to be a list")
    try:
        return read(args, route)
    except (BadMember, BadServiceName) as error:
        raise BadRequest(Ec.SERIALIZATION, f"{route.method}: {error}") from None


def hosts(table: ServiceTable, asked: GetService) -> list[str] | None:
    """`host:port?timeout=…&version=…` of each instance; None when the service is unknown.

    Who is in maintenance is left out, who is drained only while there is another, and pre=1 is
    for callers that ask for it (§6). An instance whose member names neither timeout nor version
    is `host:port` alone.
    """
    keys = (ServiceKey(asked.uri, asked.route.group or ANY_GROUP), ServiceKey(asked.uri))
    if not any(key in table.instances_by_key for key in keys):
        return None
    found = candidates(table, asked.route)
    for part in (*found.preferred, found.instances):
        if usable := [i for i in part if _fits(i, asked.protocol)]:
            ready = [i for i in usable if DRAIN not in i.marks]
            return [_host(instance) for instance in ready or usable]
    return []


def _fits(instance: Instance, protocol: str) -> bool:
    return MAINT not in instance.marks and (not protocol or protocol in instance.protocols)


def _host(instance: Instance) -> str:
    params = []
    if instance.timeout_ms is not None:
        params.append(("timeout", str(instance.timeout_ms)))
    if instance.version:
        params.append(("version", instance.version))
    return f"{instance.address}?{urlencode(params)}" if params else str(instance.address)


def _get(args: Sequence[object], route: Route) -> GetService:
    key = _key(args, 0, 2)
    group = "" if key.group == ANY_GROUP else key.group
    return GetService(key.uri, _protocol(args, 1), replace(route, uri=key.uri, group=group))


def _register(args: Sequence[object], _route: Route) -> RegisterService:
    """[serviceUri, hostport, proto, groupId, {}]; the last are more parameters of the member."""
    hostport = _text(args, 1, "hostport")
    more = args[4] if len(args) > 4 and args[4] is not None else {}
    if not isinstance(more, Mapping):
        raise BadMember(f"argument 5: expected a map of parameters, seen {more!r:.40}")
    said = {pair.partition("=")[0] for pair in hostport.partition("?")[2].split("&")}
    pairs = [
        f"{quote(str(name))}={quote(_plain(name, value))}"
        for name, value in more.items()
        if name not in said
    ]
    text = "?".join(filter(None, (hostport.partition("?")[0], hostport.partition("?")[2])))
    if pairs:
        text += ("&" if "?" in text else "?") + "&".join(pairs)
    instance = parse_member(text)
    protocol = _protocol(args, 2)
    if protocol and "proto" not in said and "proto" not in more:
        instance = replace(instance, protocols=(protocol,))
    return RegisterService(_key(args, 0, 3), instance)


def _unregister(args: Sequence[object], _route: Route) -> UnregisterService:
    address = parse_member(_text(args, 1, "hostport").partition("?")[0]).address
    _protocol(args, 2)
    return UnregisterService(_key(args, 0, 3), address)


def _key(args: Sequence[object], uri_at: int, group_at: int) -> ServiceKey:
    uri, group = _text(args, uri_at, "serviceUri"), _text(args, group_at, "groupId", "")
    parsed = ServiceKey.parse(uri)
    key = parsed if not group or group == ANY_GROUP else ServiceKey(parsed.uri, group)
    check_name(key)
    return key


def _protocol(args: Sequence[object], at: int) -> str:
    name = _text(args, at, "proto", "")
    protocol = PROTOCOLS.get(name.lower(), name.lower())
    if protocol and protocol not in _OWN_PROTOCOLS:
        expected = ", ".join((*PROTOCOLS, *sorted(_OWN_PROTOCOLS)))
        raise BadMember(f"proto: expected one of {expected}, seen {name[:40]!r}")
    return protocol


def _text(args: Sequence[object], at: int, name: str, default: str | None = None) -> str:
    value = args[at] if at < len(args) else None
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (default is None and not value):
        raise BadMember(f"argument {at + 1}, {name}: expected text, seen {value!r:.40}")
    return value


def _plain(name: object, value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(name, str) or not isinstance(value, str | int | float):
        raise BadMember(f"argument 5, {name!r:.40}: expected text or a number")
    return str(value)


_NAMES: Mapping[tuple[str, str], Callable[[Sequence[object], Route], LookupCall]] = {
    (LOOKUP, "getService"): _get,
    (ADMIN, "registerService"): _register,
    (ADMIN, "unregisterService"): _unregister,
}
_METHODS = {(uri, name.lower()): read for (uri, name), read in _NAMES.items()}
