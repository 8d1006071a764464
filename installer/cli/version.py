"""`moactl version`."""

from __future__ import annotations

import platform
from importlib.metadata import version as distribution_version
from importlib.util import find_spec

import click

from installer.cli.output import Facts, emit
from installer.cli.session import Session, pass_session, shared_options
from interceptor import libbpf
from interceptor.abi import ABI_VERSION
from interceptor.errors import InterceptorError


@click.command()
@shared_options
@pass_session
def version(session: Session) -> None:
    """Show versions."""
    data = {
        "version": distribution_version("moa-interceptor"),
        "abi": ABI_VERSION,
        "python": platform.python_version(),
        "compiled": _is_compiled(),
        "libbpf": _libbpf_version(),
        "kernel": platform.release(),
    }
    emit(session, "version/1", data, Facts(list(data.items())))


def _is_compiled() -> bool:
    """Whether the request path runs as machine code (docs/adr/0019); else as the sources."""
    found = find_spec("proxy.net.session")
    return found is not None and str(found.origin).endswith(".so")


def _libbpf_version() -> str | None:
    try:
        return libbpf.version()
    except InterceptorError:
        return None
