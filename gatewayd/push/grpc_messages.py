"""
gRPC over HTTP/2 as bytes and headers: what a call's head asks for, what its end says, how a message is framed. Pure.

Decides which heads are answered and how the others are refused (status, HTTP status), what a deadline means, and the
form of every response. Never decides what a method does.
"""

import re
from functools import lru_cache
from typing import Final

from msgspec import Struct

from gatewayd.push.h2limits import HEADER_LIST_BYTES
from gatewayd.push.h2wire import Headers
from gatewayd.sessions.endings import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNIMPLEMENTED,
    Ending,
)

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
PREFIX_BYTES: Final = 5
"""Before each message: one byte, 1 for compressed, and four of its length."""

NOT_FOUND: Final = 5

LONGEST_S: Final = 30 * 86_400.0
"""A deadline beyond this is none."""

_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE: Final = re.compile(rb"application/grpc(?:\+proto)?(?:;.*)?", re.IGNORECASE | re.DOTALL)
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}

_STATUS: Final = (b":status", b"200")
_TYPE: Final = (b"content-type", b"application/grpc")

HEAD: Final[Headers] = (_STATUS, _TYPE)
OK: Final[Headers] = ((b"grpc-status", b"0"),)


def _refused(status: int, message: str) -> Ending:
    """An ending of gRPC's own framing, which no other transport has."""
    return Ending("malformed" if status == INVALID_ARGUMENT else "grpc", status, 1008, message)


UNKNOWN_METHOD: Final = _refused(UNIMPLEMENTED, "unknown service or method")
COMPRESSED: Final = _refused(UNIMPLEMENTED, "compressed messages are not supported")
NO_TRAILERS: Final = _refused(INTERNAL, "te: trailers is missing")
BAD_TIMEOUT: Final = _refused(INVALID_ARGUMENT, "grpc-timeout is malformed")
BAD_METADATA: Final = _refused(INVALID_ARGUMENT, "binary metadata is not base64")
BAD_FRAMING: Final = _refused(INVALID_ARGUMENT, "the message is cut short or malformed")
ONE_MESSAGE: Final = _refused(INVALID_ARGUMENT, "one message is expected")
TOO_BIG: Final = _refused(RESOURCE_EXHAUSTED, f"the message is larger than {MAX_MESSAGE_BYTES} bytes")
TOO_MUCH: Final = _refused(RESOURCE_EXHAUSTED, "too much is being received")
TOO_LONG: Final = _refused(RESOURCE_EXHAUSTED, f"the metadata is larger than {HEADER_LIST_BYTES} bytes")
TOO_SLOW: Final = Ending("deadline", DEADLINE_EXCEEDED, 1008, "the request did not arrive in time")
EXPIRED: Final = Ending("deadline", DEADLINE_EXCEEDED, 1008, "deadline exceeded")
UNKNOWN_SERVICE: Final = _refused(NOT_FOUND, "unknown service")


class Opening(Struct, frozen=True):
    """What a call's head asks for; `timeout_s` None for no deadline."""

    path: bytes
    timeout_s: float | None


def read_head(headers: Headers) -> Opening | Headers:
    """
    The opening, or the response, a head alone, that refuses it: with a status, or, where it is not gRPC, with HTTP's.

    h2 has checked what HTTP/2 asks of a head: the pseudo-headers are there once, names are in lower case.
    """
    if sum(len(name) + len(value) + 32 for name, value in headers) > HEADER_LIST_BYTES:
        return alone(TOO_LONG)
    head = dict(headers)
    if head[b":method"] != b"POST":
        return ((b":status", b"405"), (b"allow", b"POST"))
    if _CONTENT_TYPE.fullmatch(head.get(b"content-type", b"")) is None:
        return ((b":status", b"415"),)
    if head.get(b"te") != b"trailers":
        return alone(NO_TRAILERS)
    for name, value in headers:
        if name.endswith(b"-bin") and not _is_base64(value):
            return alone(BAD_METADATA)
    timeout = head.get(b"grpc-timeout")
    if timeout is None:
        return Opening(head[b":path"], None)
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        return alone(BAD_TIMEOUT)
    timeout_s = int(found[1]) * _UNITS[found[2]]
    return Opening(head[b":path"], timeout_s if timeout_s <= LONGEST_S else None)


def _is_base64(value: bytes) -> bool:
    """One value, or several that were joined; padding may be left out."""
    return all(
        _BASE64.fullmatch(one) is not None and len(one.rstrip(b"=")) % 4 != 1
        for one in value.replace(b" ", b"").split(b",")
    )


def message_bytes(prefix: bytes | bytearray) -> int | Ending:
    """The length of the message behind a prefix of at least five bytes, or why it is refused."""
    if prefix[0]:
        return COMPRESSED if prefix[0] == 1 else BAD_FRAMING
    length = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
    return TOO_BIG if length > MAX_MESSAGE_BYTES else length


def framed(message: bytes) -> bytes:
    """A message behind its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@lru_cache(maxsize=256)
def trailers(ending: Ending) -> Headers:
    """What ends a response that has begun: status, message, when to come back (whole seconds, never 0, and in ms)."""
    fields = [(b"grpc-status", b"%d" % ending.grpc_status), (b"grpc-message", _percent_encoded(ending.message))]
    if ending.retry_after_ms is not None:
        fields += [
            (b"retry-after", b"%d" % max(1, -(-ending.retry_after_ms // 1000))),
            (b"retry-after-ms", b"%d" % ending.retry_after_ms),
        ]
    if ending is COMPRESSED:
        fields.append((b"grpc-accept-encoding", b"identity"))
    return tuple(fields)


def alone(ending: Ending) -> Headers:
    """A response that is only its end."""
    return (*HEAD, *trailers(ending))


def _percent_encoded(message: str) -> bytes:
    """UTF-8, with what is not printable ASCII, and the percent sign, as %XX."""
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in message.encode())
