"""Work on bodies of many values, which would hold the event loop up, as jobs for another process.

A value costs about 2 us to translate and 0.15 us to pass over: a body of 2 MiB of small numbers
takes a second. Up to `MAX_VALUES` it is done at once; beyond, a job is made here, done by
`run` in the worker's process, and understood by `body_of` and `request_of`.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from proxy.core.message import Codec, MoaReply, MoaRequest, Speech
from proxy.core.translate import CannotTranslate, in_codec
from proxy.wire import hessian
from proxy.wire.moa import BadRequest, Ec, NotMoa, Route

MAX_VALUES = 4096
"""Translated at once, in about 10 ms; passed over at once are ten times as many."""
SCAN_STEPS = 10 * MAX_VALUES


class Job(NamedTuple):
    """`verb` is `h` (JSON to Hessian), `j` (Hessian to JSON) or `r` (the route of a Hessian)."""

    verb: bytes
    body: bytes
    max_body: int


class Done(NamedTuple):
    """The result of a job; `failure` says why there is none."""

    data: bytes
    failure: str = ""


def run(job: Job) -> Done:
    """Do a job, in a process where time does not matter."""
    try:
        if job.verb == b"h":
            return Done(in_codec(job.body, Codec.JSON, Codec.HESSIAN2, job.max_body))
        if job.verb == b"j":
            return Done(in_codec(job.body, Codec.HESSIAN2, Codec.JSON, job.max_body))
        return Done(_route(job))
    except CannotTranslate as error:
        return Done(b"", str(error))


def _route(job: Job) -> bytes:
    found: dict[str, object] = {}
    try:
        route = hessian.scan_route(job.body, hessian.Limits(max_bytes=job.max_body))
        found = {"route": [route.uri, route.group, route.method, dict(route.props)]}
    except BadRequest as error:
        found = {"ec": error.ec, "em": str(error)}
    except NotMoa:
        pass
    return json.dumps(found).encode()


def route_of(done: Done) -> Route | BadRequest | None:
    """What the job `r` found; None: no MOA request."""
    if done.failure:
        return BadRequest(Ec.SERIALIZATION, done.failure)
    found = json.loads(done.data)
    if "ec" in found:
        return BadRequest(Ec(found["ec"]), found["em"])
    return Route(*found["route"]) if found else None


def translation(message: MoaRequest | MoaReply, codec: Codec, max_body: int) -> Job | None:
    """The job that puts a body into another codec; None where it is done as well at once."""
    body, source = message.body, message.speech.codec
    if body is None or source is codec or len(body) <= MAX_VALUES:
        return None
    if source is Codec.JSON:
        # Each is a fast look for one byte; a text may hold some, and then a job is made for less.
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        return Job(b"h", body, max_body) if values > MAX_VALUES else None
    limits = hessian.Limits(max_bytes=max_body)
    return Job(b"j", body, max_body) if hessian.is_long(body, limits, MAX_VALUES) else None


def translated(message: MoaReply, codec: Codec, done: Done) -> MoaReply:
    """The reply with the body of a finished job; without one where it failed."""
    speech = Speech(message.speech.wire, codec)
    if done.failure:
        return MoaReply(None, speech, b"", done.failure)
    return MoaReply(done.data, speech, b"")
