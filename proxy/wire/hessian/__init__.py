"""Hessian 2.0 serialization: bodies of the in-house Java services (docs/PROTOCOL.md §2).

Outside this package nobody knows Hessian: a body goes in as bytes and a Route, a code, or the
same value in JSON comes out.
"""

from proxy.wire.hessian.conversion import Untranslatable
from proxy.wire.hessian.errors import (
    DEFAULT_LIMITS,
    EncodeError,
    HessianError,
    LimitError,
    Limits,
    LongScan,
)
from proxy.wire.hessian.reader import decode
from proxy.wire.hessian.reply import error_body, is_unsent, scan_ec
from proxy.wire.hessian.route import scan_route
from proxy.wire.hessian.skipper import is_long
from proxy.wire.hessian.translate import from_json, hessian_to_json, json_to_hessian, to_json
from proxy.wire.hessian.values import (
    Container,
    Date,
    HessianList,
    HessianMap,
    HessianObject,
    Long,
    Scalar,
    Value,
)
from proxy.wire.hessian.writer import encode

__all__ = [
    "DEFAULT_LIMITS",
    "Container",
    "Date",
    "EncodeError",
    "HessianError",
    "HessianList",
    "HessianMap",
    "HessianObject",
    "LimitError",
    "Limits",
    "Long",
    "LongScan",
    "Scalar",
    "Untranslatable",
    "Value",
    "decode",
    "encode",
    "error_body",
    "from_json",
    "hessian_to_json",
    "is_long",
    "is_unsent",
    "json_to_hessian",
    "scan_ec",
    "scan_route",
    "to_json",
]
