"""Key names, the script that uses them, and where credentials must not show."""

from __future__ import annotations

import pytest

from proxy.core.model import ServiceKey
from proxy.registry import keys, scripts
from proxy.registry.base import RegistryError
from proxy.registry.endpoint import RedisEndpoint
from tests.samples import demo_service

DEMO = ServiceKey("/service/demo")


def test_names_of_the_keys() -> None:
    assert keys.script_keys(DEMO) == (
        "moa:service:{/service/demo}",
        "moa:version:{/service/demo}",
        "moa:heartbeat:{/service/demo}",
        "moa:marks:{/service/demo}",
        "moa:offline:{/service/demo}",
    )
    assert keys.service_key(ServiceKey("/service/demo", "g")) == "moa:service:{/service/demo#g}"


def test_names_come_back() -> None:
    for key in (DEMO, ServiceKey("/service/demo", "g")):
        assert keys.parse_name(str(key).encode()) == key


@pytest.mark.parametrize(
    "name",
    [b"", b"#g", b"/a#*", b"/a#", b"/a b", b"/a}", b"{/a", b"/a\n", b"/a#g#h", b"\xff", b"x" * 600],
)
def test_bad_names_are_refused(name: bytes) -> None:
    with pytest.raises(keys.BadServiceName):
        keys.parse_name(name)


def test_a_change_names_service_and_version() -> None:
    assert keys.parse_change(b"/a#g 7-1") == (ServiceKey("/a", "g"), "7-1")
    for message in (b"", b"/a", b"\xff 1", b" 1"):
        with pytest.raises(keys.BadServiceName):
            keys.parse_change(message)


def test_the_script_publishes_where_we_listen() -> None:
    assert f"'PUBLISH', '{keys.CHANGED}'" in scripts.CHANGE


def test_the_sample_registers_by_the_same_script() -> None:
    assert demo_service.CHANGE == scripts.CHANGE


def test_an_endpoint_hides_its_credentials() -> None:
    endpoint = RedisEndpoint.parse("redis://user:s3cr%40t@redis.example:7000/3")
    assert (endpoint.username, endpoint.password, endpoint.db) == ("user", "s3cr@t", 3)
    for text in (str(endpoint), repr(endpoint)):
        assert "s3cr" not in text
        assert "user" not in text
        assert "redis.example" in text


def test_kinds_of_endpoint() -> None:
    assert str(RedisEndpoint.parse("rediss://[::1]")) == "rediss://[::1]:6379/0"
    assert str(RedisEndpoint.parse("unix:///run/redis.sock")) == "unix:///run/redis.sock"


@pytest.mark.parametrize(
    "url",
    [
        "", "http://:s3cret@h", "redis://", "redis://:s3cret@h/x", "redis://:s3cret#x@h:1",
        "redis://:s3cret@h?socket_timeout=0", "redis://:s3cret@h:99999", "redis://:a:s3cret@[h",
        "redis://h:s3cret",
    ],
)  # fmt: skip
def test_bad_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(RegistryError) as caught:
        RedisEndpoint.parse(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
