"""`moactl service list|show|register|deregister`."""

from __future__ import annotations

from typing import Any, NoReturn

import click

from installer.cli import registry_access
from installer.cli.failure import Failure, note
from installer.cli.output import Table, duration, emit
from installer.cli.session import Session, pass_session, shared_options
from installer.client import AgentNotRunning
from proxy.core.model import ANY_GROUP, DEFAULT_WEIGHT, Address, Instance, ServiceKey
from proxy.registry.keys import BadServiceName, check_name
from proxy.registry.member import BadMember, format_member, parse_address

_group_option = click.option(
    "--group", default=ANY_GROUP, metavar="GROUP", help="[default: *, the set of every group]"
)


@click.group()
@shared_options
def service() -> None:
    """Look at services and change them.

    NAME is a service's URI, as /service/demo. `list` and `show` ask the agent, which also knows
    each instance's health, and the registry itself when no agent runs.
    """


@service.command("list")
@shared_options
@pass_session
def list_services(session: Session) -> None:
    """List the services."""
    source, services = _services(session)
    rows = [(s["uri"], s["group"], len(s["instances"]), _usable(s)) for s in services]
    table = Table(("NAME", "GROUP", "INSTANCES", "USABLE"), rows, empty="no services")
    emit(session, "service.list/1", {"source": source, "services": services}, table)


@service.command()
@click.argument("name")
@shared_options
@pass_session
def show(session: Session, name: str) -> None:
    """Show the instances of NAME; NAME#GROUP shows one group.

    NOW is the weight at this moment, UNTIL how long HEALTH stays at most, LATENCY a moving
    average.
    """
    uri, _, group = name.partition("#")
    source, services = _services(session)
    found = [s for s in services if s["uri"] == uri and (not group or s["group"] == group)]
    if not found:
        text = f"service {name}: the {source} knows none of that name"
        raise Failure(text, "moactl service list")
    rows = [(s["group"], *_instance_row(i)) for s in found for i in s["instances"]]
    headings = (
        "GROUP", "ADDRESS", "WEIGHT", "NOW", "ZONE", "PRE", "MARKS", "PROTOCOLS", "CODEC",
        "HEALTH", "UNTIL", "WHY", "LATENCY", "IN FLIGHT",
    )  # fmt: skip
    table = Table(headings, rows, title=uri, empty="no instances")
    emit(session, "service.show/1", {"source": source, "services": found}, table)


@service.command()
@click.argument("name")
@click.argument("hostport", metavar="HOST:PORT")
@click.option("--weight", type=int, default=DEFAULT_WEIGHT, show_default=True)
@click.option("--zone", default="", help="Preferred by callers of this zone.")
@click.option("--proto", multiple=True, default=("resp",), help="May repeat. [default: resp]")
@click.option(
    "--codec",
    type=click.Choice(["json", "hessian2"]),
    default="json",
    show_default=True,
    help="Of the bodies in binary packets.",
)
@click.option("--pre", is_flag=True, help="Only for pre-release callers.")
@_group_option
@shared_options
@pass_session
def register(
    session: Session, name: str, hostport: str, weight: int, zone: str, proto: tuple[str, ...],
    codec: str, pre: bool, group: str,
) -> None:  # fmt: skip
    """Enter an instance of NAME.

    It takes the place of any other with the address HOST:PORT. Whoever registers a service by
    hand also keeps it alive: the registry's alive check may take it out.
    """
    key, address = key_of(name, group), address_of(hostport)
    instance = Instance(address, protocols=proto, codec=codec, weight=weight, zone=zone, pre=pre)
    try:
        member = format_member(instance)
    except BadMember as error:
        _usage(error)
    config = session.config()
    registry_access.register(config, key, instance)
    data = {
        "uri": key.uri, "group": key.group, "address": str(address), "member": member,
        "registry": registry_access.source_of(config),
    }  # fmt: skip
    emit(session, "service.register/1", data, f"registered {member} for {key}")


@service.command()
@click.argument("name")
@click.argument("hostport", metavar="HOST:PORT")
@_group_option
@shared_options
@pass_session
def deregister(session: Session, name: str, hostport: str, group: str) -> None:
    """Take an instance of NAME out.

    It is no error when the instance is not there.
    """
    key, address = key_of(name, group), address_of(hostport)
    config = session.config()
    registry_access.deregister(config, key, address)
    data = {
        "uri": key.uri, "group": key.group, "address": str(address),
        "registry": registry_access.source_of(config),
    }  # fmt: skip
    emit(session, "service.deregister/1", data, f"{address} is not registered for {key} any more")


def key_of(name: str, group: str = ANY_GROUP) -> ServiceKey:
    """The service of NAME or NAME#GROUP; raises click's usage error."""
    parsed = ServiceKey.parse(name)
    if "#" in name and group != ANY_GROUP:
        raise click.UsageError("say the group once: NAME#GROUP or --group")
    key = parsed if "#" in name else ServiceKey(name, group or ANY_GROUP)
    try:
        check_name(key)
    except BadServiceName as error:
        _usage(error)
    return key


def address_of(hostport: str) -> Address:
    """The address of HOST:PORT; raises click's usage error."""
    try:
        return parse_address(hostport)
    except BadMember as error:
        _usage(error)


def _usage(error: ValueError) -> NoReturn:
    raise click.UsageError(str(error)) from error


def _services(session: Session) -> tuple[str, list[dict[str, Any]]]:
    """Where from, and the services as in the agent's `/v1/services`, in the order of names."""
    try:
        source, services = "agent", session.client().services().get("services", [])
        if not services and not session.as_json:
            _say_why_none(session.client().registry())
    except AgentNotRunning as error:
        if not session.as_json:
            note(f"{error}; this is from the registry itself, without health")
        source, services = "registry", _from_registry(session)
    return source, sorted(services, key=lambda s: (s["uri"], s["group"]))


def _say_why_none(registry: dict[str, Any]) -> None:
    """No services may also mean that nobody could read them."""
    if registry.get("state") != "SYNCED":
        note(
            f"the agent could not read its registry: {registry.get('state')}, "
            f"{registry.get('detail')} (moactl doctor registry)"
        )


def _from_registry(session: Session) -> list[dict[str, Any]]:
    snapshot = registry_access.read(session.config())
    return [
        {
            "uri": key.uri,
            "group": key.group,
            "counts": None,
            "instances": [_instance(i) for i in instances],
        }
        for key, instances in snapshot.instances_by_key.items()
    ]


def _instance(instance: Instance) -> dict[str, Any]:
    return {
        "address": str(instance.address),
        "weight": instance.weight,
        "weight_now": None,
        "zone": instance.zone,
        "pre": instance.pre,
        "marks": sorted(instance.marks),
        "protocols": list(instance.protocols),
        "codec": instance.codec,
        "timeout_ms": instance.timeout_ms,
        "app": instance.app,
        "health": None,
        "in_flight": None,
        "latency_ms": None,
        "slowness": None,
        "load_hint": None,
    }


def _instance_row(instance: dict[str, Any]) -> tuple[object, ...]:
    names = ("address", "weight", "weight_now", "zone", "pre", "marks", "protocols", "codec")
    values = [instance.get(name) for name in names]
    health = instance.get("health") or {}
    until_s, latency_ms = health.get("until_s"), instance.get("latency_ms")
    return (
        *values,
        _health(instance),
        duration(until_s),
        health.get("why"),
        None if latency_ms is None else f"{latency_ms:.1f} ms",
        instance.get("in_flight"),
    )


def _health(instance: dict[str, Any]) -> str | None:
    return (instance.get("health") or {}).get("state")


def _usable(entry: dict[str, Any]) -> object:
    states = [_health(instance) for instance in entry["instances"]]
    if None in states:
        return None
    return sum(not str(state).startswith("ejected") for state in states)
