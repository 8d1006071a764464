"""The systemd units, as text."""

from __future__ import annotations

from installer.plan.environment import CURRENT

DIRECTORY = "/etc/systemd/system"
WANTS = f"{DIRECTORY}/multi-user.target.wants"
SLICE = "moa-mesh.slice"
SLICE_CGROUP = "/moa.slice/moa-mesh.slice"
"""systemd puts a slice with a dash in its name below the slice of the first part."""

AGENT = "moa-agent.service"

_SLICE = """\
[Unit]
Description=Units whose connections go through MOA Interceptor
Documentation=man:moactl(1)
"""

_AGENT = """\
[Unit]
Description=MOA Interceptor agent
Documentation=man:moactl(1)
Wants={slice}
After={slice} network-online.target
Wants=network-online.target

[Service]
ExecStart={current}/bin/moa-agent {config}
Restart=on-failure
RestartSec=1

[Install]
WantedBy=multi-user.target
"""


def texts(config: str) -> dict[str, str]:
    """Each unit's text by its name; `config` is the configuration that the agent reads."""
    return {
        SLICE: _SLICE,
        AGENT: _AGENT.format(slice=SLICE, current=CURRENT, config=config),
    }
