"""What may be a secret never survives, whatever it is made of; addresses stay readable."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from installer.redaction import redacted

CORE = "PLANTED"
KEYS = (
    "password", "passwd", "pass", "PWD", "REDIS_PASS", "REDISCLI_AUTH", "auth", "passphrase",
    "pass_phrase", "secret", "client_secret", "token", "api_key", "private_key", "cookie",
    "Set-Cookie", "Authorization", "masterauth", "requirepass", "credentials", "passwords",
    "bearer",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('url = "redis://user:s3cret@10.0.0.1:6379/0"', 'url = "redis://***@10.0.0.1:6379/0"'),
        ("redis+sentinel://:s3cret@a:1,b:2/m", "redis+sentinel://***@a:1,b:2/m"),
        ("redis://10.0.0.1:6379/0 and redis://b/0", "redis://10.0.0.1:6379/0 and redis://b/0"),
        ("redis://u:p@[fd00::1]:6379/0, who a@b", "redis://***@[fd00::1]:6379/0, who a@b"),
        ("unix://u:p@/run/redis.sock", "unix://***@/run/redis.sock"),
        ("(redis://u:p@a:1) and redis://u:q@b:2.", "(redis://***@a:1) and redis://***@b:2."),
        ("redis://auth:6379/0 has pass", "redis://auth:6379/0 has pass"),
        ("redis://:PLANTED/x+y", "redis://***"),
        ("see https://example.org/a?b=c#d", "see https://example.org/a?b=c#d"),
        ("password_1 = s3cret, token_2: s3cret", "password_1 = ***"),
        ('{"password": "s3cret", "x": 1}', '{"password": ***'),
        ("token=s3cret next", "token=***"),
        ("Authorization: s3cret", "Authorization: ***"),
        ("tokens 5, bypass 3, passing: 2", "tokens 5, bypass 3, passing: 2"),
        ("pass = \n  PLANTED\nnext", "pass = \n***\nnext"),
        ("token: |\n  PLANTED\nnext", "token: ***\n***\nnext"),
        ("passwords = [\n'PLANTED]',\n'PLANTED',\n]\nx", "passwords = ***\n***\n***\n***\nx"),
        ('"secret": {\n "a": {\n "PLANTED"\n },\n "PLANTED"\n}', '"secret": ***' + "\n***" * 5),
        ("a\n-----BEGIN PRIVATE KEY-----\nPL\n-----END PRIVATE KEY-----\nb", "a\n***\nb"),
    ],
)  # fmt: skip
def test_secrets_are_starred(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('url = "redis://u:p@10.0.0.9:63/0"  # ours', 'url = "redis://***@10.0.0.9:63/0"  # ours'),
        ('registry = { url = "redis://h:1", kind = "redis" }',) * 2,
        ("url = 'redis+cluster://a:1,b:2'",) * 2,
        ('url = "redis://:PLANTED/x+y@10.0.0.9:6379/0"', "url = ***"),
        ('url = "redis://u:12" PLANTED@h"', "url = ***"),
        ('url = "PLANTED"', "url = ***"),
        ("# was: redis://:PLANTED/x+y, or redis://h:1", "# was: redis://*** or redis://h:1"),
        ("# was: redis://u:PL ANTED@10.0.0.9/0", "# was: redis://***@10.0.0.9/0"),
        ('url = """\nredis://PLANTED\n"""\nx = 1', "url = ***\n***\n***\nx = 1"),
    ],
)  # fmt: skip
def test_nothing_is_trusted_in_a_configuration(text: str, expected: str) -> None:
    assert redacted(text, configuration=True) == expected


_ANY = st.text(string.ascii_letters + string.digits + string.punctuation + " \t\r\x0b\x85 ü")
_NO_SPACE = st.text(string.ascii_letters + string.digits + string.punctuation + "ü")


def _planted(around: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(around, around).map(lambda pair: CORE.join(pair))


@given(password=_planted(_ANY), key=st.sampled_from(KEYS), configuration=st.booleans())
@example(password=f'a"{CORE}', key="password", configuration=False)
def test_nothing_survives_behind_a_key(password: str, key: str, configuration: bool) -> None:
    in_json = json.dumps({"a": 1, key: password, "b": 2})
    for text in (
        f"{key}={password}",
        f"# {key}: {password}",
        f"--{key}  {password}",
        f"{key}\t{password}",
        f'{key} "{password}"',
        f'{key} = """{password}"""',
        f"export {key}='{password}'; redis-cli",
        in_json,
        json.dumps(in_json),
        json.dumps({key: password}, indent=1),
        json.dumps({key: [password, password]}, indent=1),
        json.dumps({key: {"x": {"y": 1}, "z": password}}, indent=1),
    ):
        assert CORE not in redacted(f"before\n{text}\nafter", configuration=configuration), text


@given(password=_planted(_ANY))
@example(password=f"{CORE}/x+y")
@example(password=f"PL@{CORE}")
@example(password=f'12" {CORE}')
def test_no_password_survives_in_a_configuration(password: str) -> None:
    url = f"redis://u:{password}@10.0.0.9:6379/0"
    for text in (
        f'url = "{url}"',
        f"url = '{url}'",
        f"url = {json.dumps(url)}  # {url}",
        f'registry = {{ kind = "redis", url = "{url}" }}',
        f'url = """{url}"""',
        f'url = """\n{url}\n"""',
        f"# url = '{url}'",
        f"# was: {url}",
        f"# was: {json.dumps(url)}, and bob@example.org",
    ):
        assert CORE not in redacted(f"[registry]\n{text}\n", configuration=True), text


@given(spaced=_planted(_ANY), solid=_planted(_NO_SPACE), user=_NO_SPACE)
@example(spaced=f"x {CORE}", solid=f"12,{CORE}", user="u")
def test_no_password_survives_in_what_repeats_a_url(spaced: str, solid: str, user: str) -> None:
    quoted = f"redis://{user}:{spaced}@10.0.0.9:6379/0"
    word = f"redis://{user}:{solid}@10.0.0.9:6379/0"
    for text in (
        json.dumps({"registry": quoted, "who": "root@node"}),
        json.dumps({"registry": quoted}, separators=(",", ":")),
        json.dumps({"error": f"cannot reach {word} now"}, indent=1),
        f"cannot reach {word}: refused",
        f"({word})",
        f"{word}, {word}; {quoted!r}",
    ):
        assert CORE not in redacted(f"before\n{text}\nafter"), text
