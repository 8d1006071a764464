"""Hessian 2 values: byte-exact vectors in both directions, every form, every cut."""

from __future__ import annotations

import struct
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.hessian import (
    Date,
    EncodeError,
    HessianError,
    HessianList,
    HessianMap,
    HessianObject,
    Long,
    Value,
    decode,
    encode,
)
from tests.support.hessian_forms import write_in_any_form
from tests.support.hessian_outline import outline
from tests.support.hessian_values import RANDOMS, values

CAR = HessianObject("example.Car", ("color", "model"), ["red", "corvette"])

# The examples of the draft, in the form that it calls the shortest.
VECTORS: list[tuple[Value, bytes]] = [
    (None, b"N"),
    (True, b"T"),
    (False, b"F"),
    (0, b"\x90"),
    (-16, b"\x80"),
    (47, b"\xbf"),
    (48, b"\xc8\x30"),
    (-2048, b"\xc0\x00"),
    (-256, b"\xc7\x00"),
    (2047, b"\xcf\xff"),
    (2048, b"\xd4\x08\x00"),
    (-262144, b"\xd0\x00\x00"),
    (262143, b"\xd7\xff\xff"),
    (262144, b"I\x00\x04\x00\x00"),
    (-(2**31), b"I\x80\x00\x00\x00"),
    (2**31 - 1, b"I\x7f\xff\xff\xff"),
    (Long(0), b"\xe0"),
    (Long(-8), b"\xd8"),
    (Long(15), b"\xef"),
    (Long(-9), b"\xf7\xf7"),
    (Long(16), b"\xf8\x10"),
    (Long(-2048), b"\xf0\x00"),
    (Long(2047), b"\xff\xff"),
    (Long(2048), b"\x3c\x08\x00"),
    (Long(-262144), b"\x38\x00\x00"),
    (Long(262143), b"\x3f\xff\xff"),
    (Long(262144), b"\x59\x00\x04\x00\x00"),
    (Long(2**31), b"L\x00\x00\x00\x00\x80\x00\x00\x00"),
    (Long(-(2**63)), b"L\x80\x00\x00\x00\x00\x00\x00\x00"),
    (0.0, b"\x5b"),
    (1.0, b"\x5c"),
    (-128.0, b"\x5d\x80"),
    (127.0, b"\x5d\x7f"),
    (128.0, b"\x5e\x00\x80"),
    (-32768.0, b"\x5e\x80\x00"),
    (32767.0, b"\x5e\x7f\xff"),
    (32768.0, b"D\x40\xe0\x00\x00\x00\x00\x00\x00"),
    (-0.0, b"D\x80\x00\x00\x00\x00\x00\x00\x00"),
    (12.25, b"D\x40\x28\x80\x00\x00\x00\x00\x00"),
    (float("inf"), b"D\x7f\xf0\x00\x00\x00\x00\x00\x00"),
    (Date(894621091000), b"\x4a\x00\x00\x00\xd0\x4b\x92\x84\xb8"),
    (Date(894621060000), b"\x4b\x00\xe3\x83\x8f"),
    (Date(-60000), b"\x4b\xff\xff\xff\xff"),
    ("", b"\x00"),
    ("hello", b"\x05hello"),
    ("\u00c3", b"\x01\xc3\x83"),
    ("a" * 31, b"\x1f" + b"a" * 31),
    ("a" * 32, b"\x30\x20" + b"a" * 32),
    ("a" * 1023, b"\x33\xff" + b"a" * 1023),
    ("a" * 1024, b"S\x04\x00" + b"a" * 1024),
    ("a" * 32768, b"S\x80\x00" + b"a" * 32768),
    ("a" * 32769, b"R\x80\x00" + b"a" * 32768 + b"\x01a"),
    ("\U0001f600", b"\x02\xed\xa0\xbd\xed\xb8\x80"),
    ("\ud83d", b"\x01\xed\xa0\xbd"),
    ("\ude00\ud83d", b"\x02\xed\xb8\x80\xed\xa0\xbd"),
    ("\0", b"\x01\0"),
    (b"", b"\x20"),
    (b"\x01\x02\x03", b"\x23\x01\x02\x03"),
    (b"x" * 15, b"\x2f" + b"x" * 15),
    (b"x" * 16, b"\x34\x10" + b"x" * 16),
    (b"x" * 1023, b"\x37\xff" + b"x" * 1023),
    (b"x" * 1024, b"B\x04\x00" + b"x" * 1024),
    (b"x" * 32769, b"A\x80\x00" + b"x" * 32768 + b"\x21x"),
    (HessianList([]), b"\x78"),
    (HessianList([0, 1]), b"\x7a\x90\x91"),
    (HessianList([0] * 8), b"X\x98" + b"\x90" * 8),
    (HessianList([0, 1], "[int"), b"\x72\x04[int\x90\x91"),
    (HessianList([0] * 8, "[int"), b"V\x04[int\x98" + b"\x90" * 8),
    (HessianMap([]), b"HZ"),
    (HessianMap([(1, "fee"), (16, "fie")]), b"H\x91\x03fee\xa0\x03fieZ"),
    (HessianMap([("a", None)], "a.Car"), b"M\x05a.Car\x01aNZ"),
    (CAR, b"C\x0bexample.Car\x92\x05color\x05model\x60\x03red\x08corvette"),
    (HessianList([HessianList([], "t"), HessianMap([], "t")]), b"\x7a\x70\x01tM\x90Z"),
    (HessianList([CAR, CAR]), b"\x7a" + encode(CAR) + b"Q\x91"),
]


@pytest.mark.parametrize(("value", "body"), VECTORS, ids=lambda item: repr(item)[:30])
def test_vector_in_both_directions(value: Value, body: bytes) -> None:
    assert encode(value) == body
    read = decode(body)
    assert type(read) is type(value)
    assert outline(read) == outline(value)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"\x5f\x00\x00\x2f\xda", 12.25),
        (b"\x5f\x80\x00\x00\x00", -2147483.648),
        (b"R\x00\x07hello, \x05world", "hello, world"),
        (b"R\x00\x00R\x00\x00\x00", ""),
        (b"R\x00\x01\xed\xa0\xbd\x01\xed\xb8\x80", "\U0001f600"),
        (b"\x02\xf0\x9f\x98\x80", "\U0001f600"),
        (b"\x03\xf0\x9f\x98\x80x", "\U0001f600x"),
        (b"S\x00\x03abc", "abc"),
        (b"A\x00\x01aA\x00\x00\x21b", b"ab"),
        (b"I\x00\x00\x00\x01", 1),
        (b"L\x00\x00\x00\x00\x00\x00\x00\x01", Long(1)),
    ],
)
def test_forms_that_are_read_and_not_written(body: bytes, value: Value) -> None:
    assert outline(decode(body)) == outline(value)


def test_open_list_has_the_items_of_a_fixed_one() -> None:
    assert outline(decode(b"W\x90\x91Z")) == outline(HessianList([0, 1]))
    assert outline(decode(b"U\x04[int\x90\x91Z")) == outline(HessianList([0, 1], "[int"))


def test_seventeenth_class_has_the_long_form() -> None:
    objects: list[Value] = [HessianObject(f"C{n}", (), []) for n in range(18)]
    body = encode(HessianList(objects))
    assert body.endswith(b"C\x03C15\x90\x6fC\x03C16\x90O\xa0C\x03C17\x90O\xa1")
    assert outline(decode(body)) == outline(HessianList(objects))


def test_reference_is_the_very_container() -> None:
    read = decode(b"\x7b\x79\x91Q\x91Q\x90")
    assert isinstance(read, HessianList)
    assert read.items[0] is read.items[1]
    assert read.items[2] is read


def test_objects_of_one_class_share_their_names() -> None:
    read = decode(b"\x7aC\x01A\x91\x01x\x60\x90\x60\x91")
    assert isinstance(read, HessianList)
    first, second = read.items
    assert isinstance(first, HessianObject)
    assert isinstance(second, HessianObject)
    assert first.names is second.names
    assert dict(second.fields()) == {"x": 1}


@given(values())
def test_value_survives_a_round_trip(value: Value) -> None:
    assert outline(decode(encode(value))) == outline(value)


@given(values(), RANDOMS)
def test_any_form_of_a_value_reads_as_the_value(value: Value, random: Random) -> None:
    assert outline(decode(write_in_any_form(value, random))) == outline(value)


@given(values(), RANDOMS)
def test_writing_again_gives_the_shortest_form(value: Value, random: Random) -> None:
    assert encode(decode(write_in_any_form(value, random))) == encode(value)


@given(values(max_containers=6), RANDOMS)
@settings(max_examples=60)
def test_body_cut_at_every_byte_is_an_error(value: Value, random: Random) -> None:
    body = write_in_any_form(value, random)
    for end in range(len(body)):
        with pytest.raises(HessianError):
            decode(body[:end])


@given(st.binary(max_size=80))
def test_any_bytes_have_a_clear_answer(body: bytes) -> None:
    with suppress(HessianError):
        decode(body)


@given(values(max_containers=6), st.data())
def test_damaged_body_has_a_clear_answer(value: Value, data: st.DataObject) -> None:
    body = bytearray(encode(value))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    with suppress(HessianError):
        read = decode(bytes(body))
        assert outline(decode(encode(read))) == outline(read)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body of 0 bytes ends within the value at 0"),
        (b"\x90\x90", "expected the end at 1, got 1 bytes"),
        (b"@", "tag 0x40 at 0 begins no value"),
        (b"E", "tag 0x45 at 0 begins no value"),
        (b"Z", "end marker at 0"),
        (b"X\x92\x90Z", "end marker at 3"),
        (b"H\x90Z", "map ends at 2 behind a key without a value"),
        (b"W\x90C\x01A\x90Z", "class definition before 6 is followed by no value"),
        (b"Q\x90", "reference at 0 to value 0, of which 0 were seen"),
        (b"\x79Q\x8f", "a reference's number at 2 is -1"),
        (b"\x60", "object at 0 of class 0, of which 0 were defined"),
        (b"\x71\x90N", "type 0 at 1, of which 0 were named"),
        (b"M\xe0Z", "expected a string at 1, got tag 0xe0"),
        (b"X\xe0", "expected a list's length at 1, got tag 0xe0, which is no int"),
        (b"XI\x7f\xff\xff\xffN", "a list's length at 1 is 2147483647, and 1 bytes are left"),
        (b"X\x8f", "a list's length at 1 is -1"),
        (b"C\x01A\xbf\x01x", "a number of fields at 3 is 47, and 2 bytes are left"),
        (b"R\x00\x01aN", "expected a string at 4, got tag 0x4e"),
        (b"A\x00\x01aN", "expected binary data at 4, got tag 0x4e"),
        (b"\x01\xff", "string at 0 is not UTF-8"),
        (b"\x01\xc0\x80", "string at 0 is not UTF-8"),
        (b"\x01\xf0\x9f\x98\x80", "ends within a character of 4 bytes"),
        (b"\x04" + b"\x80" * 40, "is not UTF-8"),
    ],
)
def test_error_says_what_and_where(body: bytes, words: str) -> None:
    with pytest.raises(HessianError) as caught:
        decode(body)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2**31, "make it a Long"),
        (Long(2**63), "Long of 64 bits"),
        (Date(2**63), "64 bits of milliseconds"),
        ([1], "list is no Hessian value: [1]"),
        ((1,), "tuple is no Hessian value"),
        (HessianObject("A", ("x",), []), "object of 'A' has 0 values for 1 fields"),
    ],
)
def test_what_is_no_value_is_not_written(value: object, words: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_every_tag_has_one_meaning() -> None:
    begins_nothing = set()
    for tag in range(256):
        try:
            decode(bytes((tag,)) + b"\0" * 12)
        except HessianError as error:
            if "begins no value" in str(error):
                begins_nothing.add(tag)
    assert begins_nothing == set(b"@EGP")


@given(st.floats())
def test_double_keeps_its_bits(value: float) -> None:
    read = decode(encode(value))
    assert isinstance(read, float)
    assert struct.pack(">d", read) == struct.pack(">d", value)
