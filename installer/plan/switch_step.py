"""The step that switches the mesh on: the first time, and after that as the operator said."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from installer import mesh_word, node_state
from installer.config import Config
from installer.mesh_word import Switch, Word, WordError
from installer.node_state import Installed
from installer.plan.site import Site
from installer.plan.steps import Step, Verdict
from interceptor.errors import InterceptorError
from interceptor.node import Node

_TO_SWITCH = "moactl mesh on switches it on"


def step(config: Config) -> Step:
    """Needs the pins, and with them an agent that was started."""
    return Step(
        "switch",
        "switch the mesh on",
        lambda site: _look(config, site)[0],
        partial(_apply, config),
        lambda site: None,
    )


def _look(config: Config, site: Site) -> tuple[Verdict, str]:
    """What the kernel and the operator's word make of it; for a `keep` also why it is kept."""
    try:
        word = mesh_word.load(mesh_word.path_of(config))
        state = node_state.read(Node(config.bpf.root))
    except WordError as error:
        return (
            Verdict.KEEP,
            f"the mesh is left as it is: {error}; moactl mesh on|off writes it anew",
        )
    except (InterceptorError, OSError):
        return Verdict.TODO, ""  # in a preview of what cannot be looked at
    enabled = state is not None and state.enabled
    if word is None:
        if site.manifest.switched_on and state is not None and not enabled:
            return Verdict.KEEP, f"the mesh is off, and nobody knows why: {_TO_SWITCH}"
        return Verdict.TODO, ""
    if word.is_on:
        return (Verdict.DONE if enabled else Verdict.TODO), ""
    if enabled and not word.confirmed:
        return Verdict.KEEP, "the mesh is on, and waits to be confirmed: moactl mesh confirm"
    return Verdict.KEEP, f"the mesh is {mesh_word.off_since(word)}: {_TO_SWITCH}"


def _apply(config: Config, site: Site) -> None:
    with mesh_word.locked(mesh_word.path_of(config)):
        _switch_on(config, site)


def _switch_on(config: Config, site: Site) -> None:
    verdict, why = _look(config, site)
    if verdict is Verdict.KEEP:
        site.notes.append(why)
        return
    node = Node(config.bpf.root)
    state = node_state.read(node)
    path = mesh_word.path_of(config)
    word = mesh_word.load(path) or _first_word(node, config, state, path)
    if state is None or not state.enabled:
        node.switch(on=True, shadow=word.switch is Switch.SHADOW)
    site.manifest.switched_on = True
    site.manifest.save(site.manifest_path)


def _first_word(node: Node, config: Config, state: Installed | None, path: Path) -> Word:
    """On the disk before the kernel obeys: killed in between, the next run goes on."""
    otherwise = mesh_word.of_kernel(node, state, config.scope.cgroups) if state else Word()
    with mesh_word.changing(path, otherwise) as word:
        if not word.is_on:
            word.say(Switch.ON)
    return word
