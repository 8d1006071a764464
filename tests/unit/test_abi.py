"""bpf/abi.h against interceptor/abi.py: what two compilers say, and what Python says."""

from __future__ import annotations

import ctypes as c
import json
import re
import shutil
import subprocess
from enum import IntEnum, IntFlag
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interceptor import abi

HEADER = Path(__file__).parents[2] / "bpf" / "abi.h"

STRUCTS: dict[str, type[c.Structure]] = {
    "moa_cfg": abi.Cfg,
    "moa_dst": abi.Dst,
    "moa_tuple": abi.Tuple,
    "moa_peer": abi.Peer,
    "moa_event": abi.Event,
}
# Packed by hand; their layout is checked byte for byte below.
KEYS = {"moa_lpm4", "moa_lpm6"}
ENUMS: dict[str, tuple[str, type[IntEnum] | type[IntFlag]]] = {
    "moa_cfg_flag": ("MOA_CFG_", abi.CfgFlag),
    "moa_cgroup_flag": ("MOA_CGROUP_", abi.CgroupFlag),
    "moa_dst_flag": ("MOA_DST_", abi.DstFlag),
    "moa_listener": ("MOA_LISTENER_", abi.ListenerSlot),
    "moa_reason": ("MOA_R_", abi.Reason),
}


def _without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def structs_of_header() -> dict[str, list[str]]:
    """Struct to the names of its fields, in order."""
    text = _without_comments(HEADER.read_text())
    return {
        name: re.findall(r"(\w+)(?:\[\d+\])?;", body)
        for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL)
    }


def enums_of_header() -> dict[str, list[str]]:
    text = _without_comments(HEADER.read_text())
    return {
        name: re.findall(r"\b(MOA_\w+)", body)
        for name, body in re.findall(r"enum (\w+) \{(.*?)\};", text, re.DOTALL)
    }


@pytest.fixture(scope="module", params=["gcc", "clang"])
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, int]:
    """Sizes, offsets and values by the C expression that they are the value of."""
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    wanted = ["MOA_ABI_VERSION", "MOA_PEER_SLOTS"]
    for struct, fields in structs_of_header().items():
        wanted.append(f"sizeof(struct {struct})")
        wanted += [f"offsetof(struct {struct}, {field})" for field in fields]
        wanted += [f"sizeof(((struct {struct} *)0)->{field})" for field in fields]
    for names in enums_of_header().values():
        wanted += names
    lines = [f'  printf("%s\\"{text}\\": %ld", s, (long)({text})); s = ", ";' for text in wanted]
    source = (
        "#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{HEADER}"\n'
        'int main(void) { const char *s = "{";\n' + "\n".join(lines) + '\n  puts("}"); }\n'
    )
    program = tmp_path_factory.mktemp("abi") / "abi"
    command = [request.param, "-Wall", "-Werror", "-x", "c", "-", "-o", str(program)]
    subprocess.run(command, input=source, text=True, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    values: dict[str, int] = json.loads(done.stdout)
    return values


def test_every_struct_and_enum_of_the_header_is_compared() -> None:
    assert set(structs_of_header()) == set(STRUCTS) | KEYS
    assert set(enums_of_header()) == set(ENUMS)


@pytest.mark.parametrize("name", STRUCTS)
def test_struct(compiled: dict[str, int], name: str) -> None:
    mirror, fields = STRUCTS[name], structs_of_header()[name]
    assert [field[0] for field in mirror._fields_] == fields
    assert c.sizeof(mirror) == compiled[f"sizeof(struct {name})"]
    for field in fields:
        descriptor = getattr(mirror, field)
        assert descriptor.offset == compiled[f"offsetof(struct {name}, {field})"], field
        assert descriptor.size == compiled[f"sizeof(((struct {name} *)0)->{field})"], field


@pytest.mark.parametrize("name", ENUMS)
def test_enum(compiled: dict[str, int], name: str) -> None:
    prefix, mirror = ENUMS[name]
    in_header = {
        text.removeprefix(prefix): compiled[text]
        for text in enums_of_header()[name]
        if not text.endswith("_MAX")
    }
    assert in_header == {member.name: member.value for member in mirror}


def test_maximum_of_an_enum_is_the_number_of_its_members(compiled: dict[str, int]) -> None:
    assert compiled["MOA_R_MAX"] == len(abi.Reason)
    assert compiled["MOA_LISTENER_MAX"] == len(abi.ListenerSlot)


def test_version(compiled: dict[str, int]) -> None:
    assert compiled["MOA_ABI_VERSION"] == abi.ABI_VERSION


def test_slots_of_peers(compiled: dict[str, int]) -> None:
    assert compiled["MOA_PEER_SLOTS"] == abi.PEER_SLOTS


@pytest.mark.parametrize(
    ("struct", "network"), [("moa_lpm4", "10.1.0.0/16"), ("moa_lpm6", "fd77::/64")]
)
def test_key_of_a_destination(compiled: dict[str, int], struct: str, network: str) -> None:
    address = ip_network(network).network_address.packed
    key = abi.lpm_key(address, ip_network(network).prefixlen, 0x1234)
    assert len(key) == compiled[f"sizeof(struct {struct})"]

    def field(name: str) -> bytes:
        start = compiled[f"offsetof(struct {struct}, {name})"]
        return key[start : start + compiled[f"sizeof(((struct {struct} *)0)->{name})"]]

    assert int.from_bytes(field("prefixlen"), "little") == 32 + ip_network(network).prefixlen
    assert field("protocol") == b"\x06"
    assert field("reserved") == b"\0"
    assert field("port_be") == b"\x12\x34"
    assert field("addr_be") == address


@given(
    address=st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    bits=st.integers(0, 128),
    port=st.integers(0, 65535),
)
def test_key_of_a_destination_is_read_back(address: bytes, bits: int, port: int) -> None:
    assert abi.lpm_parse(abi.lpm_key(address, bits, port)) == (address, bits, port)


def test_address_text() -> None:
    assert abi.address_text(4, bytes([10, 77, 0, 1]) + bytes(12)) == "10.77.0.1"
    assert abi.address_text(6, bytes(15) + b"\1") == "::1"
