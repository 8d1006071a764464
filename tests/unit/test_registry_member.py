"""Members of a service's set: what is read, what is refused, and that nothing is lost."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.model import Address, Instance
from proxy.registry.member import BadMember, format_member, parse_member

KNOWN = {"proto", "weight", "zone", "pre", "timeout", "app", "version", "codec"}

texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x7f"), max_size=12
)
hosts = st.one_of(
    st.ip_addresses(v=4).filter(
        lambda ip: not (ip.is_unspecified or ip.is_multicast or int(ip) == 0xFFFFFFFF)
    ),
    st.ip_addresses(v=6).filter(
        lambda ip: (
            not (
                ip.is_unspecified
                or ip.is_multicast
                or (isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped)
            )
        )
    ),
).map(str)
instances = st.builds(
    Instance,
    address=st.builds(Address, hosts, st.integers(1, 65535)),
    protocols=st.lists(
        st.sampled_from(["resp", "turbo", "mesh", "v9"]), min_size=1, unique=True
    ).map(tuple),
    weight=st.integers(0, 65535),
    zone=texts,
    pre=st.booleans(),
    timeout_ms=st.none() | st.integers(1, 3_600_000),
    app=texts,
    version=texts,
    extra=st.lists(
        st.tuples(texts.filter(lambda name: name not in {*KNOWN, ""}), texts), max_size=3
    ).map(tuple),
)


@given(instances)
def test_every_instance_comes_back_equal(instance: Instance) -> None:
    assert parse_member(format_member(instance)) == instance


@given(instances, st.frozensets(st.sampled_from(["mesh", "drain", "x"])))
def test_marks_are_no_part_of_the_member(instance: Instance, marks: frozenset[str]) -> None:
    assert format_member(replace(instance, marks=marks)) == format_member(instance)


@given(instances)
def test_writing_what_was_read_is_stable(instance: Instance) -> None:
    text = format_member(instance)
    assert format_member(parse_member(text)) == text


@given(st.text(max_size=60) | st.from_regex(r"\A1\.2\.3\.4:80\?.{0,30}\Z"))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        instance = parse_member(text)
    except BadMember:
        return
    assert parse_member(format_member(instance)) == instance


def test_all_parameters() -> None:
    text = (
        "10.0.0.1:5000?timeout=1000&proto=mesh&proto=resp&weight=7&zone=bj-1&pre=1"
        "&app=im&version=2&x=%26y&flag="
    )
    assert parse_member(text) == Instance(
        Address("10.0.0.1", 5000),
        protocols=("mesh", "resp"),
        weight=7,
        zone="bj-1",
        pre=True,
        timeout_ms=1000,
        app="im",
        version="2",
        extra=(("x", "&y"), ("flag", "")),
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[2001:DB8:0::1]:80", Address("2001:db8::1", 80)),
        ("[::ffff:10.0.0.1]:80", Address("10.0.0.1", 80)),
        ("10.0.0.1:80?", Address("10.0.0.1", 80)),
        ("10.0.0.1:80?timeout=0", Address("10.0.0.1", 80)),
    ],
)
def test_addresses_become_canonical(text: str, address: Address) -> None:
    assert parse_member(text) == Instance(address)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected host:port"),
        ("10.0.0.1", "expected host:port"),
        ("10.0.0.1:", "port of 1..65535"),
        ("10.0.0.1:0", "port of 1..65535"),
        ("10.0.0.1:65536", "port of 1..65535"),
        ("10.0.0.1:+80", "port of 1..65535"),
        ("10.0.0.1:８０", "port of 1..65535"),
        ("db.example:80", "is a name"),
        ("localhost:80", "is a name"),
        ("10.0.0.01:80", "is a name"),
        (":80", "is a name"),
        ("::1:80", "goes in brackets"),
        ("[10.0.0.1]:80", "goes in brackets"),
        ("[fe80::1%eth0]:80", "without a scope"),
        ("0.0.0.0:80", "cannot be connected to"),
        ("[::]:80", "cannot be connected to"),
        ("224.0.0.1:80", "cannot be connected to"),
        ("10.0.0.1:80 ", "white space"),
        ("10.0.0.1:80?zone=a b", "white space"),
        ("10.0.0.1:80?zone=%00", "control characters"),
        ("10.0.0.1:80?zone=%ff", "percent-encoded UTF-8"),
        ("10.0.0.1:80?weight=-1", "weight: expected 0..65535"),
        ("10.0.0.1:80?weight=1e3", "weight: expected 0..65535"),
        ("10.0.0.1:80?weight=1&weight=2", "given twice"),
        ("10.0.0.1:80?pre=yes", "pre: expected 1 or 0"),
        ("10.0.0.1:80?proto=", "proto: expected"),
        ("10.0.0.1:80?=1", "without a name"),
        ("10.0.0.1:80?x=" + "y" * 1024, "longer than 1024 bytes"),
    ],
)
def test_broken_members_say_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(BadMember) as caught:
        parse_member(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "instance",
    [
        Instance(Address("db.example", 80)),
        Instance(Address("::0001", 80)),
        Instance(Address("10.0.0.1", 0)),
        Instance(Address("10.0.0.1", 80), weight=-1),
        Instance(Address("10.0.0.1", 80), protocols=()),
        Instance(Address("10.0.0.1", 80), zone="a\nb"),
        Instance(Address("10.0.0.1", 80), zone="\ud800"),
        Instance(Address("10.0.0.1", 80), extra=(("weight", "5"),)),
    ],
)
def test_what_cannot_be_carried_is_not_written(instance: Instance) -> None:
    with pytest.raises(BadMember):
        format_member(instance)
