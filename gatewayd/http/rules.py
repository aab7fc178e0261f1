"""
The rules that llhttp does not keep, even when it is strict, and the caps. Pure.

Decides which request lines, targets and hosts are refused although they parse, and what a connection may cost. Never
parses: framing does, and asks here.
"""

import re
from dataclasses import dataclass
from typing import Final

from gatewayd.errors import Refused
from gatewayd.http.message import Request

CHUNKED: Final = -1
"""`Framing.declared` of a body whose length is not told."""

OVERLONG: Final = 10**10
"""`Framing.declared` of a Content-Length with more than 10 digits: longer than any bound, never given to int()."""

METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})

# RFC 3986 host without percent signs and sub-delimiters, which no name has that anybody can look up.
HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*)([^?]*)(?:\?(.*))?", re.IGNORECASE)
CONTENT_LENGTH_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What one connection may cost. Sizes in bytes, times in seconds, all inclusive.

    `request_line` ... `headers` bound a head, `chunk_line` ... `overhead` what a chunked body has beside its data (a
    quarter of the data is allowed on top of `overhead`). `dropped` bounds a body that nobody wants. `held` is what is
    kept unparsed before reading is paused, `lingering` what is read and dropped after the last answer. `turn` is how
    many answers one connection gives before others have their turn. `bodies` bounds what all connections of a site
    together keep of bodies that are not complete: a body that comes in one read, as a webhook does, is none of them.
    """

    request_line: int = 8192
    header_line: int = 8192
    head: int = 16384
    headers: int = 100
    chunk_line: int = 1024
    trailers: int = 8192
    overhead: int = 8192
    dropped: int = 1_048_576
    bodies: int = 33_554_432
    held: int = 16384
    lingering: int = 4_194_304
    turn: int = 64
    head_s: float = 5.0
    body_s: float = 10.0
    idle_s: float = 75.0
    write_s: float = 10.0
    lingering_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Malformed:
    """
    The connection cannot be read on: `status` of the answer, and a stable word for why. 413: over the bound; 503: over
    what all connections may keep together, which is nobody's fault.
    """

    status: int
    reason: str

    def refused(self, bound: int) -> Refused:
        """The refusal that this becomes; `bound` is what a body may have had, in bytes."""
        if self.status == 413:
            return Refused("GW-008", {"max_size": bound})
        if self.status == 503:
            return Refused("GW-010", {"reason": self.reason})
        return Refused("GW-015", {"reason": self.reason}, status=self.status)


SYNTAX: Final = Malformed(400, "syntax")
REQUEST_LINE: Final = Malformed(400, "request_line")
METHOD: Final = Malformed(501, "method")
VERSION: Final = Malformed(505, "version")
TARGET: Final = Malformed(400, "target")
TARGET_TOO_LONG: Final = Malformed(414, "target_too_long")
HEAD_TOO_LARGE: Final = Malformed(431, "head_too_large")
HEADER_TOO_LARGE: Final = Malformed(431, "header_too_large")
TOO_MANY_HEADERS: Final = Malformed(431, "too_many_headers")
BAD_HOST: Final = Malformed(400, "host")
TRANSFER_ENCODING: Final = Malformed(400, "transfer_encoding")
UNKNOWN_CODING: Final = Malformed(501, "transfer_encoding")
EXPECTATION: Final = Malformed(417, "expectation")
CHUNK_LINE: Final = Malformed(400, "chunk_line_too_long")
OVERHEAD: Final = Malformed(400, "chunk_overhead")
TRAILERS: Final = Malformed(400, "trailers_too_large")
TOO_LARGE: Final = Malformed(413, "too_large")
BODIES: Final = Malformed(503, "buffer")


def judge_line(parts: list[bytes]) -> Malformed | None:
    """The request line, split at its spaces; llhttp tolerates two of them, and a version that is not there."""
    if len(parts) != 3:
        return REQUEST_LINE
    method, _, version = parts
    if method not in METHODS:
        # PRI is no method but the first word of the HTTP/2 preface (RFC 9113 3.4).
        return REQUEST_LINE if method == b"PRI" else METHOD
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return VERSION
    return None


def judge_target(request: Request, host: bytes | None) -> Malformed | None:
    """Targets that are not a plain path: `*`, and the absolute form, whose path is taken when it agrees with Host."""
    target = request.target
    if b"#" in target:
        return TARGET
    if target[0] != 47:
        if target == b"*":
            return None if request.method == b"OPTIONS" else TARGET
        found = _ABSOLUTE.fullmatch(target)
        if found is None or HOST.fullmatch(found[1]) is None:
            return TARGET
        if host is not None and host.lower() != found[1].lower():
            return BAD_HOST
        request.path = found[2] or b"/"
        request.query = found[3] or b""
    return TARGET if b"%00" in request.path else None
