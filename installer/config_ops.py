"""The configuration's section of `moa-opsd`, the supervisor (docs/UPGRADE.md)."""

from __future__ import annotations

from pydantic import Field

from installer.config_sections import Section


class Ops(Section):
    restart_ms: int = Field(
        100,
        ge=1,
        le=60_000,
        description="How long a crashed agent is out at first, less up to a half by chance; "
        "doubles with each crash in a row. Short: its connections wait.",
    )
    restart_max_ms: int = Field(10_000, ge=1, le=600_000, description="The longest of these waits.")
    crashes: int = Field(
        5,
        ge=1,
        le=100,
        description="So many crashes within crash_window_s open the circuit: no agent, its "
        "connections are closed, traffic goes direct. One more than a bad minute explains.",
    )
    crash_window_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="An agent that served for so long is well again: its waits start anew.",
    )
    open_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="An open circuit tries one agent after so long; doubles while that fails, "
        "up to ten times as much.",
    )
    start_s: int = Field(
        30,
        ge=1,
        le=3600,
        description="An agent that neither serves nor is ready to after so long is ended; the "
        "next one has twice as long. A large registry that is far away takes seconds.",
    )
    silent_s: int = Field(
        5,
        ge=3,
        le=3600,
        description="An agent that says nothing for so long, which is a beat a second, is killed "
        "and its connections are adopted; they wait until then. New ones the kernel sends past it "
        "after bpf.heartbeat_max_age_ms. Time in which the supervisor did not run does not count. "
        "Longer while you have a debugger at it.",
    )
    check_s: int = Field(
        30, ge=1, le=600, description="For the check of a new version, before anything is started."
    )
    move_s: int = Field(
        120,
        ge=1,
        le=3600,
        description="From the first connection handed over to the last; an upgrade that takes "
        "longer is taken back. More than the agents themselves wait for a request.",
    )
    adopt_s: int = Field(
        30, ge=1, le=600, description="For the adoption of a dead agent's connections."
    )
    bake_s: int = Field(
        30,
        ge=0,
        le=86_400,
        description="How long the old agent stays able to take everything back after an upgrade; "
        "a multiple of what an instance takes to be ejected and tried again.",
    )
    gate_min_requests: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="With fewer requests, before or after, errors and latency are not judged.",
    )
    gate_error_percent: int = Field(
        2,
        ge=0,
        le=100,
        description="The new agent fails when its share of failed requests is larger than the "
        "old one's by more than so many percent of all.",
    )
    gate_latency_factor: int = Field(
        3,
        ge=1,
        le=1000,
        description="It fails when requests take so many times as long as before, and",
    )
    gate_latency_ms: int = Field(
        20, ge=0, le=600_000, description="so much longer: less is the noise of a new process."
    )
    gate_lag_ms: int = Field(
        250,
        ge=1,
        le=60_000,
        description="It fails when its loop is late by so much more than the old one's, as a "
        "mean of five seconds; half of agent.heartbeat_ms is felt by every request.",
    )
    gate_silent_s: int = Field(
        5, ge=2, le=600, description="It fails when it says nothing for so long."
    )
