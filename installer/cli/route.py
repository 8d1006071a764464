"""`moactl route explain`."""

from __future__ import annotations

import click

from installer.cli.output import Facts, Table, emit
from installer.cli.session import Session, pass_session, shared_options


@click.group()
@shared_options
def route() -> None:
    """Look at how requests are routed."""


@route.command()
@click.option("--service", "name", required=True, metavar="NAME", help="As /service/demo.")
@click.option("--method", default="", help="Tells whether it may be sent twice.")
@click.option("--group", default="", help="The group that the request names.")
@click.option(
    "--prop", "props", multiple=True, metavar="K=V", help="A property of the request; may repeat."
)
@shared_options
@pass_session
def explain(session: Session, name: str, method: str, group: str, props: tuple[str, ...]) -> None:
    """Say which instances a request would go to, and why, step by step.

    Asks the running agent; no request is sent.
    """
    for prop in props:
        if not prop.partition("=")[1]:
            raise click.UsageError(f"--prop {prop}: expected NAME=VALUE")
    uri, _, named = name.partition("#")
    if named and group:
        raise click.UsageError("say the group once: NAME#GROUP or --group")
    found = session.client().explain(uri, group or named, method, props)
    steps = Table(
        ("STEP", "WHAT"), list(enumerate(found["steps"], start=1)), title=name, empty="no steps"
    )
    rows = [(i["address"], i["zone"], f"{i['share']:.1%}") for i in found["instances"]]
    target = Table(("ADDRESS", "ZONE", "SHARE"), rows, empty="it would go nowhere: ec 501")
    if not found["is_known"]:
        target = Table((), (), empty="not in the registry: it goes to the address that was dialled")
    facts = Facts(
        [
            ("timeout", f"{found['timeout_ms']} ms"),
            ("idempotent", found["idempotent"]),
            ("hedged", found["hedged"]),
            ("in flight", f"{found['in_flight']} of {found['max_in_flight']}"),
        ]
    )
    emit(session, "route.explain/1", found, steps, target, facts)
