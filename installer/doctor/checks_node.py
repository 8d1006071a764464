"""Checks of this node's installation: configuration, registry, ports, agent, pins, scopes."""

from __future__ import annotations

from installer import agent_lock
from installer.client import AgentError
from installer.doctor.check import Check, Result, Severity, fail, ok, skip, warn
from installer.doctor.probes import REGISTRY_DEADLINE_S, Listener, Probes
from installer.mesh_word import Word, WordError, off_since
from installer.next_steps import TO_INSTALL
from installer.node_state import Installed
from installer.plan.manifest import ManifestError
from interceptor.errors import Incomplete, InterceptorError
from proxy.registry.base import RegistryError
from proxy.registry.clients import FAULTS
from proxy.registry.endpoint import RedisEndpoint

KEEPER = "moa-keeper"
"""What an agent's keeper is called (installer/keeper.py)."""

_REMOVE = "moactl uninstall, then moactl agent run"


def _config(probes: Probes) -> Result:
    if probes.config_problems:
        return fail("; ".join(probes.config_problems), "correct it; see moactl config example")
    if exposed := probes.exposed_password():
        return warn(exposed, f"chmod 600 {probes.config_file}")
    if probes.config_file is None:
        return ok("none: the built-in defaults count")
    return ok(f"{probes.config_file} is valid")


def _registry(probes: Probes) -> Result:
    config = probes.config.registry
    if config.kind == "static" and not config.file.exists():
        return warn(f"{config.file} does not exist: no services", "write it, or set registry.*")
    try:
        return ok(probes.registry())
    except TimeoutError:
        why = f"no answer within {REGISTRY_DEADLINE_S:g} s"
    except (RegistryError, *FAULTS) as error:
        why = str(error) or type(error).__name__
    if config.kind == "static" or config.url is None:
        return fail(why, "check registry.file")  # whose name is in every text
    endpoint = RedisEndpoint.parse(config.url.get_secret_value())
    return fail(f"{endpoint}: {why}", "check registry.url and the Redis")


def _ports(probes: Probes) -> Result:
    agent = probes.config.agent
    wanted = {agent.outbound_port: "agent.outbound_port", agent.inbound_port: "agent.inbound_port"}
    running = probes.agent_pid()
    strangers = [
        f"{listener.port} is taken by {listener.process or 'an unknown process'} "
        f"(process {listener.pid or 'not to be seen from here'})"
        for listener in probes.listeners()
        if listener.port in wanted and not _is_ours(listener, running)
    ]
    if strangers:
        todo = f"free it, or set {' or '.join(wanted.values())}"
        return fail("; ".join(sorted(set(strangers))), todo)
    taken = {listener.port for listener in probes.listeners()} & wanted.keys()
    return ok(f"{', '.join(map(str, wanted))}: {'the agent listens' if taken else 'free'}")


def _is_ours(listener: Listener, running: int | None) -> bool:
    if running is not None:
        return running in listener.pids or running == listener.pid
    return listener.process == KEEPER  # of a dead agent, until the next one has its sockets


def _agent(probes: Probes) -> Result:
    state = _installed(probes)
    if not isinstance(state, Installed):
        return state
    beat = state.heartbeat
    if not beat.fresh:
        seen = "no heartbeat" if beat.age_s is None else f"last heartbeat {beat.age_s:.1f} s ago"
        if running := probes.agent_pid():
            return fail(
                f"{seen}, though process {running} runs: it hangs, or is starting or stopping",
                "look at its log; restart it if this lasts. Connections go straight meanwhile",
            )
        return fail(f"{seen}, limit {beat.max_age_s:g} s", "moactl agent run, or start its unit")
    if not state.listeners:
        return fail("it lives, but no listener is published", "look at its log; restart it")
    try:
        pid = probes.agent_status()["pid"]
    except (AgentError, KeyError) as error:
        return warn(f"it serves, but its control socket does not: {error}", "look at its log")
    return ok(f"process {pid}, last heartbeat {beat.age_s:.1f} s ago, {', '.join(state.listeners)}")


def _stale_pins(probes: Probes) -> Result:
    root = probes.tree.root
    try:
        state = probes.installed()
    except Incomplete as error:
        return fail(str(error), _REMOVE)
    except InterceptorError as error:
        return skip(f"cannot be told: {error}")
    if state is None:
        if root.is_dir():
            return warn(f"{root} is there and empty", "moactl uninstall")
        return ok("none")
    if state.heartbeat.fresh or probes.agent_pid():
        return ok(f"{root} is in use")
    return warn(
        f"{root} is there and no agent is: connections go straight",
        "moactl agent run takes it over, moactl uninstall removes it",
    )


def _switch(probes: Probes) -> Result:
    state = _installed(probes)
    if not isinstance(state, Installed):
        return state
    try:
        word = probes.word()
    except WordError as error:
        return warn(
            str(error), f"moactl mesh {'on' if state.enabled else 'on, or off,'} writes it anew"
        )
    if state.enabled:
        return _switched_on(state, word)
    if state.confirm_left_s is not None:
        return warn("off: it was not confirmed in time", "moactl mesh on")
    if word is None:
        return warn("off: connections go straight", "moactl mesh on")
    if word.is_on:
        return warn(f"off, although {word.who} switched it on", "moactl mesh on")
    todo = "nothing if that is still meant; moactl mesh on switches it on"
    return warn(f"{off_since(word)}: connections go straight", todo)


def _switched_on(state: Installed, word: Word | None) -> Result:
    seen = "in shadow: nothing is changed, only counted" if state.shadow else "on"
    if state.confirm_left_s is not None:
        left = f"{seen}, off again in {state.confirm_left_s:.0f} s unless confirmed"
        return warn(left, "moactl mesh confirm")
    if word is None or not word.is_on:
        again = "moactl mesh on --shadow" if state.shadow else "moactl mesh on"
        return warn(f"{seen}, but that is not kept: off after a boot", f"{again} keeps it")
    return ok(seen)


def _scopes(probes: Probes) -> Result:
    state = _installed(probes)
    if not isinstance(state, Installed):
        return state
    lost = [scope.cgroup for scope in state.scopes if scope.state == "lost"]
    missing = sorted(set(probes.config.scope.cgroups) - {scope.cgroup for scope in state.scopes})
    if lost:
        return warn(
            f"lost: {', '.join(lost)} (the cgroup was removed or made anew)",
            "a running agent attaches it again when it is back; for good: "
            f"moactl mesh off --cgroup {lost[0]}",
        )
    if taken_out := sorted(set(missing) & set(state.taken_out)):
        return warn(
            f"scope.cgroups names {', '.join(taken_out)}, taken out of the mesh by an operator",
            f"nothing if that is still meant; moactl mesh on --cgroup {taken_out[0]} puts it back",
        )
    if missing:
        return warn(
            f"scope.cgroups names {', '.join(missing)}, which is not in the mesh",
            f"moactl mesh on --cgroup {missing[0]}, or restart the agent",
        )
    if not state.scopes:
        return warn("no cgroup is in the mesh", "moactl mesh on --cgroup PATH")
    return ok(", ".join(scope.cgroup for scope in state.scopes))


def _peers(probes: Probes) -> Result:
    if not probes.config.peer.listen:
        return ok("none are configured")
    state = _installed(probes)
    if not isinstance(state, Installed):
        return state
    if not state.peers.kept:
        return warn("no supervisor keeps any", "start moa-opsd (python -m installer.opsd)")
    if not state.peers.fresh:
        return warn(
            "none lives, or the supervisor has died: without an agent, connections go straight",
            "look at the log of moa-opsd, and at the agents of the application's other nodes",
        )
    use = "in use, as no agent serves here" if state.peers.in_use else "in reserve"
    return ok(f"{', '.join(state.peers.fresh)}: {use}")


def _installation(probes: Probes) -> Result:
    try:
        found = probes.manifest()
    except (ManifestError, OSError) as error:
        return warn(str(error), "moactl install status")
    if found is None:
        return ok("none by moactl install")
    if not found.complete:
        return warn(
            f"version {found.version}: an install or uninstall was cut short",
            "moactl install finishes it, moactl uninstall undoes it",
        )
    return ok(f"version {found.version}, {len(found.entries)} paths (moactl install status)")


def _installed(probes: Probes) -> Installed | Result:
    try:
        state = probes.installed()
    except Incomplete as error:
        return fail(str(error), _REMOVE)
    except InterceptorError as error:
        return skip(f"cannot be told: {error}")
    if state is not None:
        return state
    # Of an agent with other pins the lock says nothing.
    if probes.tree.root == probes.config.bpf.root and (pid := probes.agent_pid()):
        what, todo = agent_lock.outlived_its_pins(pid)
        return fail(f"nothing is installed; {what}", todo)
    return fail("nothing is installed", TO_INSTALL)


CHECKS = (
    Check("config", "The configuration is valid", _config),
    Check("registry", "The registry can be read", _registry),
    Check("ports", "The agent's ports are free or its own", _ports),
    Check("agent", "The agent lives and serves", _agent, before_install=False),
    Check(
        "stale-pins", "No pins without an agent", _stale_pins, Severity.ADVISED,
        before_install=False,
    ),
    Check(
        "installation", "The installation is whole", _installation, Severity.ADVISED,
        before_install=False,
    ),
    Check("switch", "The mesh is switched on", _switch, Severity.ADVISED, before_install=False),
    Check("scopes", "Cgroups in the mesh are attached", _scopes, Severity.ADVISED,
          before_install=False),
    Check("peers", "Peer agents stand by", _peers, Severity.ADVISED, before_install=False),
)  # fmt: skip
