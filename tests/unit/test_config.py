"""A node's configuration: defaults, bounds, and errors that name file, key and value."""

from __future__ import annotations

import contextlib
import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from installer.config import MAX_FILE_BYTES, Config, ConfigError, default_toml, load
from installer.config_example import repeated_model
from installer.config_failover import policies_of
from installer.config_sections import Agent
from installer.destination import Destination
from proxy.core.policy import DEFAULT_POLICY

COMMENTED = ("name", "url", "last_known", "advertise")
"""Keys without a fixed default."""

NO_HOST = "expected redis://, rediss://, redis+sentinel://, redis+cluster:// or unix:// and a host"
_NOT_SHOWN = ", saw a URL (not shown: it may hold a password)"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def problems(path: Path, text: str) -> tuple[str, ...]:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    prefix = f"{path}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return tuple(problem.removeprefix(prefix) for problem in caught.value.problems)


def test_empty_file_gives_the_defaults(config_file: Path) -> None:
    config_file.write_text("")
    config = load(config_file)
    assert config == Config()
    assert (config.agent.outbound_port, config.agent.inbound_port) == (15001, 15006)
    assert config.bpf.mark == 0x4D4F41
    assert config.limits.max_request_bytes == 2 * 1024 * 1024
    assert config.last_known_path == Path("/var/lib/moa/registry.json")


def test_every_section_is_read(config_file: Path) -> None:
    config_file.write_text(
        """
        [node]
        name = "node-a"
        zone = "z1"
        [scope]
        cgroups = ["/moa-mesh.slice/"]
        include = ["10.0.0.0/8", "10.1.0.0/16:5000", "[fd00::/8]:6379"]
        exclude = ["10.9.9.9"]
        [inbound]
        ports = [5000, 5001]
        [registry]
        kind = "redis"
        url = "redis://:s3cret@127.0.0.1:6379/0"
        [agent]
        state_dir = "/srv/moa"
        """
    )
    config = load(config_file)
    assert config.node.name == "node-a"
    assert config.scope.cgroups == ("/moa-mesh.slice",)
    assert config.scope.include == (
        Destination(ip_network("10.0.0.0/8")),
        Destination(ip_network("10.1.0.0/16"), 5000),
        Destination(ip_network("fd00::/8"), 6379),
    )
    assert config.scope.exclude == (Destination(ip_network("10.9.9.9/32")),)
    assert config.inbound.ports == (5000, 5001)
    assert config.last_known_path == Path("/srv/moa/registry.json")
    assert config.registry.url is not None
    assert config.registry.url.get_secret_value() == "redis://:s3cret@127.0.0.1:6379/0"


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().agent.outbound_port = 1  # type: ignore[misc]


def test_example_loads_and_equals_the_defaults(config_file: Path) -> None:
    config_file.write_text(default_toml())
    assert load(config_file) == Config()


def test_example_names_every_key() -> None:
    example = default_toml()
    for key in COMMENTED:
        example = example.replace(f"\n# {key} =", f"\n{key} =")
    document = tomllib.loads(example)
    for section, field in Config.model_fields.items():
        model = field.annotation
        if repeated_model(model) is not None:
            assert f"\n# [[{section}]]\n# The service" in example
            continue
        assert model is not None
        assert set(document[section]) == set(model.model_fields)


def test_example_with_its_commented_keys_loads(config_file: Path) -> None:
    text = default_toml()
    for key in COMMENTED:
        text = text.replace(f"\n# {key} =", f"\n{key} =")
    config_file.write_text(text)
    assert load(config_file).node.name == "node-a"


def test_failover_is_of_every_service_but_for_those_that_differ(config_file: Path) -> None:
    config_file.write_text(
        """
        [failover]
        failures = 3
        idempotent = ["get*"]
        [[service]]
        uri = "/service/slow"
        timeout_ms = 20000
        hedge = true
        """
    )
    config = load(config_file)
    policies = policies_of(config.failover, config.service)
    slow, other = policies.of("/service/slow"), policies.of("/service/other")
    assert (slow.health.failures, other.health.failures) == (3, 3)
    assert (slow.timeout_ms, other.timeout_ms) == (20_000, None)
    assert (slow.hedge, other.hedge) == (True, False)
    assert slow.idempotent == other.idempotent == ("get*",)


def test_failover_defaults_are_those_of_the_proxy() -> None:
    assert policies_of(Config().failover, ()).default == DEFAULT_POLICY


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[[service]]\nuri = "/s"\nfailurs = 3',
            "service[0].failurs: unknown key; the nearest known key is service[0].failures",
        ),
        ("[[service]]\nhedge = true", "service[0].uri: expected Field required, saw a table"),
        (
            '[[service]]\nuri = "/s"\n[[service]]\nuri = "/s"',
            "service[0].uri: expected each service once, saw '/s'",
        ),
        (
            "[failover]\nbackoff_ms = 2000\nbackoff_max_ms = 1000",
            "failover.backoff_ms: expected at most failover.backoff_max_ms (1000), saw 2000",
        ),
        (
            "[agent]\noutbound_prot = 1",
            "agent.outbound_prot: unknown key; the nearest known key is agent.outbound_port",
        ),
        ("[agnet]\n", "agnet: unknown key; the nearest known key is agent"),
        ("[agent]\npool_size = 3", "agent.pool_size: unknown key; pool_size belongs to [limits]"),
        ("mark = 3", "mark: unknown key; mark belongs to [bpf]"),
        (
            "[inbound]\nxyz = 1",
            "inbound.xyz: unknown key; known here: ports, registered",
        ),
        (
            "[agent]\noutbound_port = 70000",
            "agent.outbound_port: expected less than or equal to 65535, saw 70000",
        ),
        (
            '[agent]\noutbound_port = "15001"',
            "agent.outbound_port: expected a valid integer, saw '15001'",
        ),
        (
            "[agent]\noutbound_port = true",
            "agent.outbound_port: expected a valid integer, saw true",
        ),
        (
            "[routing]\npre = 1",
            "routing.pre: expected a valid boolean, saw 1",
        ),
        ("agent = 5", "agent: expected a table, saw 5"),
        (
            '[agent]\nlog_level = "loud"',
            "agent.log_level: expected 'debug', 'info', 'warning' or 'error', saw 'loud'",
        ),
        (
            '[agent]\nruntime_dir = "run/moa"',
            "agent.runtime_dir: expected an absolute path without \"..\", saw 'run/moa'",
        ),
        (
            '[agent]\ncgroup = "moa"',
            'agent.cgroup: expected a path below the cgroup2 mount, as "/moa-mesh.slice", '
            "saw 'moa'",
        ),
        (
            '[agent]\ncgroup = "/"',
            "agent.cgroup: expected a cgroup of the agent's own, not the root, saw '/'",
        ),
        (
            '[scope]\ncgroups = ["/a", "/moa-agent/x"]',
            "scope.cgroups[1]: expected nothing of agent.cgroup, saw '/moa-agent/x'",
        ),
        (
            '[scope]\ninclude = ["10.0.0.0/8", "10.0.0.1/8"]',
            "scope.include[1]: expected no bits set after the prefix: 10.0.0.0/8, saw '10.0.0.1/8'",
        ),
        (
            "[scope]\nexclude = [7]",
            "scope.exclude[0]: expected a network with an optional port, as "
            '"10.0.0.0/8", "10.1.0.0/16:5000" or "[fd00::/8]:6379", saw 7',
        ),
        ("[inbound]\nports = [0]", "inbound.ports[0]: expected greater than or equal to 1, saw 0"),
        ("[inbound]\nports = [5000, 5000]", "inbound.ports: expected each port once, saw 5000"),
        (
            "[inbound]\nports = [15001]",
            "inbound.ports: expected no port of the agent's own, saw 15001",
        ),
        (
            "[agent]\ninbound_port = 15001",
            "agent.inbound_port: expected another port than agent.outbound_port, saw 15001",
        ),
        (
            "[agent]\nheartbeat_ms = 1500",
            "bpf.heartbeat_max_age_ms: expected at least twice agent.heartbeat_ms (1500), saw 2000",
        ),
        (
            "[ops]\nsilent_s = 3\n[bpf]\nheartbeat_max_age_ms = 3000",
            "ops.silent_s: expected more than bpf.heartbeat_max_age_ms (3000), saw 3",
        ),
        (
            "[routing]\ntimeout_ms = 100",
            "routing.connect_timeout_ms: expected at most routing.timeout_ms (100), saw 500",
        ),
        (
            "[limits]\nidle_ping_s = 60",
            "limits.idle_ping_s: expected less than limits.idle_close_s (60), saw 60",
        ),
        (
            '[registry]\nkind = "redis"',
            'registry.url: expected a value, as registry.kind is "redis"',
        ),
        *(
            (
                f'[registry]\nurl = "{url}"',
                f"registry.url: expected a registry URL: {why}{_NOT_SHOWN}",
            )
            for url, why in (
                ("redis://h/abc", "expected a database number after the host"),
                ("redis://h/0?ssl_cert_reqs=none", "options after ? or # are not supported"),
                ("redis://h#x", "options after ? or # are not supported"),
                ("redis:///0", NO_HOST),
                ("redis+sentinel://h", "expected the master's name after the sentinels"),
                ("redis+cluster://h,k/1", "a cluster has database 0 only"),
                ("redis://h,k/0", "several hosts need redis+sentinel or redis+cluster"),
            )
        ),
        (
            '[lookup]\nlisten = "localhost:1"',
            "lookup.listen: expected a numeric address and a port, as 0.0.0.0:15010, "
            "saw 'localhost:1'",
        ),
        (
            '[lookup]\nadvertise = "0.0.0.0:1"',
            'lookup.advertise: expected an address and a port, as "10.0.0.5:15008": '
            "host '0.0.0.0' cannot be connected to, saw '0.0.0.0:1'",
        ),
        (
            '[registry]\nkind = "etcd"',
            "registry.kind: expected 'static' or 'redis', saw 'etcd'",
        ),
    ],
)
def test_problem_names_key_expected_and_seen(config_file: Path, text: str, problem: str) -> None:
    assert problems(config_file, text) == (problem,)


def test_every_problem_has_its_own_line(config_file: Path) -> None:
    found = problems(config_file, "[agent]\noutbound_port = 0\nx = 1\n[limits]\npool_size = 0\n")
    assert len(found) == 3
    assert found[0].startswith("agent.outbound_port: ")
    assert found[1].startswith("agent.x: unknown key")
    assert found[2].startswith("limits.pool_size: ")


@pytest.mark.parametrize(
    "text",
    [
        '[registry]\nkind = "redis"\nurl = "http://user:s3cret@h"',
        '[registry]\nkind = "redis"\nurl = "redis://user:s3cret@h:port"',
        '[registry]\nurl = "redis://:s3cret@"',
        'registry = "redis://user:s3cret@h"',
        '[registry]\nfile = "redis://user:s3cret@h"',
        '[registry]\nurll = "redis://user:s3cret@h"',
    ],
)
def test_password_is_in_no_error(config_file: Path, text: str) -> None:
    config_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config_file)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_password_is_in_no_representation(config_file: Path) -> None:
    config_file.write_text('[registry]\nkind = "redis"\nurl = "redis://u:s3cret@h"\n')
    config = load(config_file)
    assert isinstance(config.registry.url, SecretStr)
    assert "s3cret" not in f"{config!r} {config} {config.model_dump_json()}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[agent\n", "not TOML: "),
        (b"a = 1\na = 2\n", "not TOML: "),
        (b"x = \xff\n", "expected UTF-8, saw another byte at 4"),
        (b"x = " + b"9" * 5000, "not TOML: "),
        (b"x = " + b"[" * 100_000, "not "),
        (b"#" * (MAX_FILE_BYTES + 1), f"expected at most {MAX_FILE_BYTES} bytes, saw more"),
    ],
    ids=["syntax", "duplicate-key", "not-utf8", "huge-number", "deep", "too-large"],
)
def test_unusable_file_is_one_problem(config_file: Path, content: bytes, expected: str) -> None:
    config_file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(config_file)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{config_file}: {expected}")


def test_missing_file_is_one_problem(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load(config_file)


def test_directory_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_every_number_is_bounded_on_both_sides() -> None:
    for section, field in Config.model_fields.items():
        model = field.annotation
        if repeated_model(model) is not None:
            continue
        assert model is not None
        for name, key in model.model_fields.items():
            if key.annotation is int:
                bounds = {a for m in key.metadata for a in ("ge", "le") if hasattr(m, a)}
                assert bounds == {"ge", "le"}, f"{section}.{name}"


def test_defaults_of_a_section_are_inside_their_bounds() -> None:
    assert Agent().heartbeat_ms * 2 <= Config().bpf.heartbeat_max_age_ms


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.0.0/16:5000", "10.1.0.0/16:5000"),
        ("10.1.2.3:80", "10.1.2.3/32:80"),
        ("fd00::/8", "fd00::/8"),
        ("[fd00::/8]", "fd00::/8"),
        ("[fd00::1]:6379", "[fd00::1/128]:6379"),
        ("0.0.0.0/0:5000", "0.0.0.0/0:5000"),
    ],
)
def test_destination_forms(text: str, canonical: str) -> None:
    assert str(Destination.parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "10.0.0.0/33",
        "10.0.0.0/8:",
        "10.0.0.0/8:0",
        "10.0.0.0/8:65536",
        "10.0.0.0/8:+5",
        "10.0.0.0/8:٥",
        "[10.0.0.0/8]:5",
        "[fd00::/8",
        "[fd00::/8]5",
        "fd00::1/8",
        "fe80::1%eth0/64",
        "::ffff:10.0.0.1",
        "10.0.0.0/255.0.0.255",
    ],
)
def test_bad_destination_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"network|port|prefix"):
        Destination.parse(text)


@given(
    st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None),
    st.integers(0, 128),
    st.integers(0, 65535),
)
def test_destination_round_trips(address: object, prefix: int, port: int) -> None:
    text = str(address)
    width = min(prefix, 128 if ":" in text else 32)
    network = ip_network(f"{text}/{width}", strict=False)
    if network.version == 6 and network.network_address.ipv4_mapped is not None:
        return
    destination = Destination(network, port)
    assert Destination.parse(str(destination)) == destination


@given(st.text(max_size=40))
def test_any_text_is_a_destination_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert Destination.parse(str(Destination.parse(text))) == Destination.parse(text)
