"""A destination as the configuration names it: a network, and one port or every port."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

EVERY_PORT = 0

_EXPECTED = (
    'a network with an optional port, as "10.0.0.0/8", "10.1.0.0/16:5000" or "[fd00::/8]:6379"'
)


@dataclass(frozen=True, slots=True)
class Destination:
    """A network and a TCP port in host order; port `EVERY_PORT` (0) stands for all of them."""

    network: IPv4Network | IPv6Network
    port: int = EVERY_PORT

    def __str__(self) -> str:
        if self.port == EVERY_PORT:
            return str(self.network)
        host = f"[{self.network}]" if self.network.version == 6 else str(self.network)
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: object) -> Destination:
        """Read `network`, `v4-network:port` or `[v6-network]:port`; an address is a network of one.

        Raises ValueError, whose text says what was expected.
        """
        if isinstance(text, cls):
            return text
        if not isinstance(text, str):
            raise ValueError(_EXPECTED)
        network_text, port_text = _split_port(text)
        return cls(_parse_network(network_text), _parse_port(port_text))


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        network, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in network or (rest and not rest.startswith(":")):
            raise ValueError(_EXPECTED)
        return network, rest[1:] if rest else None
    if text.count(":") == 1:
        network, _, port = text.partition(":")
        return network, port
    return text, None


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(_EXPECTED) from None
    if network.version == 6 and network.network_address.ipv4_mapped is not None:
        # The kernel side looks v4-mapped addresses up as IPv4.
        raise ValueError("an IPv4 network in IPv4 notation, not as ::ffff:a.b.c.d")
    address_text = text.partition("/")[0]
    if ip_network(address_text).network_address != network.network_address:
        raise ValueError(f"no bits set after the prefix: {network}")
    return network


def _parse_port(text: str | None) -> int:
    if text is None:
        return EVERY_PORT
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError("a port from 1 to 65535 after the network")
    return int(text)
