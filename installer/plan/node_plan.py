"""Which steps make a node of ours: environment, configuration, units, agent, switch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from installer import agent_lock
from installer.client import AgentClient, AgentError
from installer.config import DEFAULT_PATH, Config
from installer.plan import environment, processes, switch_step, units
from installer.plan.environment import CURRENT, VERSIONS, Source
from installer.plan.manifest import Places
from installer.plan.site import Site
from installer.plan.steps import Step, Verdict, directory, link, owned, text_file

CONFIG = str(DEFAULT_PATH)
SERVICES = "/etc/moa/services.toml"
COMMAND = "/usr/local/bin/moactl"

SERVICES_TEXT = """\
# Who offers what on this network; the agent follows its changes.
#
# [[service]]
# uri = "/service/demo"
# instances = ["10.0.0.2:5000", "10.0.0.3:5000"]
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operator asked for; `config` is `config_text` as it was read and checked."""

    source: Source
    config_text: bytes
    config: Config
    systemd: bool
    """Whether systemd runs the system, or will run the image."""
    start: bool
    """Whether to start the agent, and to switch the mesh on when it is the first time."""

    @property
    def commands(self) -> tuple[str, ...]:
        """What the environment has."""
        return tuple(name for name, _, _ in self.source.commands)


def config_text(registry: str | None, cgroups: tuple[str, ...], agent_cgroup: str = "") -> str:
    """A configuration that says only what was asked for."""
    lines = ["# MOA Interceptor. Every key, with its meaning and default: moactl config example"]
    if agent_cgroup:
        lines += ["", "[agent]", f"cgroup = {json.dumps(agent_cgroup)}"]
    if cgroups:
        lines += ["", "[scope]", f"cgroups = {json.dumps(list(cgroups))}"]
    if registry is not None:
        kind, key = ("redis", "url") if urlsplit(registry).scheme else ("static", "file")
        lines += ["", "[registry]", f'kind = "{kind}"', f"{key} = {json.dumps(registry)}"]
    return "\n".join(lines) + "\n"


def registry_of(config: Config) -> str | None:
    """What `config_text` was given for this configuration's registry."""
    if config.registry.url is not None:
        return config.registry.url.get_secret_value()
    return None if str(config.registry.file) == SERVICES else str(config.registry.file)


def places(config: Config) -> Places:
    """What an uninstall will have to know of the configuration."""
    agent = config.agent
    return Places(str(config.bpf.root), str(agent.runtime_dir), str(agent.state_dir), agent.cgroup)


def steps(wanted: Wanted, site: Site) -> tuple[Step, ...]:
    """All steps in their order; undone the other way round."""
    return (
        *_environment_steps(wanted, site),
        *_configuration_steps(wanted),
        *(_unit_steps(wanted) if wanted.systemd else ()),
        *(_process_steps(wanted) if wanted.start else ()),
    )


def _environment_steps(wanted: Wanted, site: Site) -> Iterator[Step]:
    version = wanted.source.version
    yield directory(str(Path(VERSIONS).parent))
    yield directory(VERSIONS)
    yield environment.step(wanted.source)
    below = Path(VERSIONS).name
    yield link("current version", CURRENT, f"{below}/{version}", moves_below=f"{below}/")
    if not site.at("/usr/bin/moactl").exists():  # a package's
        yield link("command", COMMAND, f"{CURRENT}/bin/moactl")


def _configuration_steps(wanted: Wanted) -> Iterator[Step]:
    yield directory(str(DEFAULT_PATH.parent))
    # Not for everyone: a registry's URL may hold a password.
    yield text_file("configuration", CONFIG, wanted.config_text, 0o640)
    registry = wanted.config.registry
    if registry.kind == "static" and str(registry.file) == SERVICES:
        yield text_file("services", SERVICES, SERVICES_TEXT.encode())


def _unit_steps(wanted: Wanted) -> Iterator[Step]:
    for name, text in units.texts(wanted.commands, CONFIG).items():
        yield text_file(f"unit {name}", f"{units.DIRECTORY}/{name}", text.encode())
    yield directory(units.WANTS)
    unit = units.node_unit(wanted.commands)
    yield link("start at boot", f"{units.WANTS}/{unit}", f"{units.DIRECTORY}/{unit}")


def _process_steps(wanted: Wanted) -> Iterator[Step]:
    if not wanted.systemd:
        yield owned("log directory", processes.LOG_DIRECTORY)
    yield Step(
        "agent",
        "start the agent, which puts its programs into the kernel",
        partial(_is_running, wanted),
        partial(_start, wanted),
        lambda site: None,
    )
    yield switch_step.step(wanted.config)


def _client(wanted: Wanted) -> AgentClient:
    return AgentClient.of(wanted.config.agent.runtime_dir)


def _is_running(wanted: Wanted, site: Site) -> Verdict:
    try:
        version = _client(wanted).status().get("version")
    except AgentError:
        return Verdict.TODO
    if version != wanted.source.version:
        site.notes.append(
            f"the agent that runs is of version {version}: moactl agent upgrade --to "
            f"{wanted.source.version}"
        )
    return Verdict.DONE


def _start(wanted: Wanted, site: Site) -> None:
    client = _client(wanted)
    command = units.node_command(wanted.commands)
    if wanted.systemd:
        unit = units.node_unit(wanted.commands)
        processes.systemctl("daemon-reload")
        processes.systemctl("start", units.SLICE, unit)
        processes.wait_for_agent(
            client, processes.unit_has_ended(unit), lambda: processes.unit_words(unit)
        )
        return
    if pid := agent_lock.holder(wanted.config.agent.runtime_dir):
        # Started by a run that was killed, and on its way.
        processes.wait_for_agent(client, lambda: not Path(f"/proc/{pid}").exists(), lambda: "")
        return
    processes.start_daemon(command, [CONFIG], client)
    site.notes.append("systemd does not run this system: nothing starts the agent at the next boot")
