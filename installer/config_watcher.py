"""The configuration's section of `moa-watcher` (docs/WATCHER.md)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from installer.config_sections import Section


class Watcher(Section):
    interval_ms: int = Field(
        2000, ge=100, le=60_000, description="Every instance is pinged once in this time."
    )
    timeout_ms: int = Field(
        500, ge=10, le=30_000, description="A ping without an answer after this time has failed."
    )
    fall: int = Field(3, ge=1, le=100, description="Failed pings in a row: an instance is down.")
    rise: int = Field(2, ge=1, le=100, description="Answered pings in a row: it is up again.")
    lease_ms: int = Field(
        6000,
        ge=200,
        le=600_000,
        description="How long a watcher and its votes count after it was heard last; "
        "it acts on nothing before it has been here for so long.",
    )
    quorum: int = Field(
        0,
        ge=0,
        le=100,
        description="Votes needed at least; a majority of the live watchers always is.",
    )
    may_empty: Annotated[tuple[str, ...], Field(strict=False, max_length=4096)] = Field(
        (),
        description="Services whose last instance may be taken out, by uri or uri#group; "
        '"*" is all.',
    )
    forget_h: int = Field(
        24,
        ge=1,
        le=8760,
        description="An instance that was taken out so long ago is not looked after any more.",
    )
