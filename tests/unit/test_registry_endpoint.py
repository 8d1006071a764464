"""The URL of a registry: what is read, what is refused, and that no credentials show."""

from __future__ import annotations

import pytest

from proxy.registry.base import RegistryError
from proxy.registry.endpoint import Kind, RedisEndpoint


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "shown"),
    [
        ("redis://h", Kind.SERVER, [("h", 6379)], "redis://h:6379/0"),
        ("rediss://u:s3cret@h:1/2", Kind.SERVER, [("h", 1)], "rediss://h:1/2"),
        ("redis://:s3cret@[::1]:7/3", Kind.SERVER, [("::1", 7)], "redis://[::1]:7/3"),
        ("unix://:s3cret@/run/r.sock", Kind.SOCKET, [], "unix:///run/r.sock"),
        (
            "redis+sentinel://u:s3cret@a,b:5,[::1]:6/main/4",
            Kind.SENTINEL,
            [("a", 26379), ("b", 5), ("::1", 6)],
            "redis+sentinel://a:26379,b:5,[::1]:6/main/4",
        ),
        (
            "rediss-sentinel://a/main",
            Kind.SENTINEL,
            [("a", 26379)],
            "rediss+sentinel://a:26379/main/0",
        ),
        (
            "redis+cluster://u:s3cret@a:1,b:2,a:1/",
            Kind.CLUSTER,
            [("a", 1), ("b", 2)],
            "redis+cluster://a:1,b:2",
        ),
    ],
)
def test_every_kind_is_read_and_shown_without_credentials(
    url: str, kind: Kind, nodes: list[tuple[str, int]], shown: str
) -> None:
    endpoint = RedisEndpoint.parse(url)
    assert (endpoint.kind, list(endpoint.nodes), str(endpoint)) == (kind, nodes, shown)
    assert endpoint.password == ("s3cret" if "s3cret" in url else None)
    assert "s3cret" not in repr(endpoint) + repr(endpoint.access(1.0))


def test_a_password_may_hold_every_character_that_is_encoded() -> None:
    endpoint = RedisEndpoint.parse("redis+sentinel://u%3A:p%40%2F%23%3F%2C@h/m")
    assert (endpoint.username, endpoint.password) == ("u:", "p@/#?,")


@pytest.mark.parametrize(
    "url",
    [
        "", "redis", "http://h", "redis://", "redis://:0", "redis://h:x", "redis://h:70000",
        "redis://h/x", "redis://h?a=b", "redis://h#x", "redis://a,b", "unix://", "redis://h,",
        "redis+sentinel://h", "redis+sentinel://h/", "redis+sentinel:///m",
        "redis+sentinel://h/m/x", "redis+cluster://h/1", "redis+cluster://h1 ,h2",
        "redis+cluster://" + ",".join(f"h{n}" for n in range(65)), "redis://[::1", "redis://[]:1",
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(RegistryError, match="registry URL: ") as caught:
        RedisEndpoint.parse(url.replace("://", "://user:s3cret@", 1))
    assert "s3cret" not in str(caught.value)
