"""
Requests and responses, and the bytes of a response. Pure; the only writer of responses.

Decides how an answer looks on the wire: status line, common headers, error bodies in plain JSON or as
application/problem+json (RFC 9457). Never decides which answer is given, never reads a clock.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from gatewayd.errors import RETRYABLE, Refused
from gatewayd.times import Monotonic, Wall, format_wall

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"
TEXT: Final = b"text/plain; charset=utf-8"

# Statuses that http.HTTPStatus words differently from RFC 9110.
_REASONS: Final = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}
_STATUS_LINES: Final[Mapping[int, bytes]] = {
    status.value: f"HTTP/1.1 {status.value} {_REASONS.get(status.value, status.phrase)}\r\n".encode("ascii")
    for status in HTTPStatus
}
_REPLAYED: Final = ((b"Idempotent-Replayed", b"true"),)
_COMMON: Final = b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
_CACHED: Final = b"Cache-Control: public, max-age=%d\r\nX-Content-Type-Options: nosniff\r\n"


class Request:
    """
    One request, complete with its body once a leaf is asked to answer it.

    `method`, `target`, `path` and `query` are the bytes of the request line (path without "?" and query without
    it; never decoded). `headers` maps lower-case names to the first value, stripped of blanks; `repeated` holds, for
    names that came more than once, every value in order, else it is None. Names with an underscore never appear.
    `body` is b"" until the request is complete. `peer` is the address of the connection ("" for a UNIX socket);
    `secure` says that it came by TLS. `received_at` and `received_wall` are the times of both clocks at which the
    request was complete (its head, while only the head is there). `corr_id` and `client_ip` are filled in by
    whoever answers.
    """

    __slots__ = (
        "body",
        "client_corr_id",
        "client_ip",
        "headers",
        "method",
        "path",
        "peer",
        "query",
        "received_at",
        "received_wall",
        "repeated",
        "secure",
        "target",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: dict[bytes, bytes],
        *,
        repeated: dict[bytes, list[bytes]] | None = None,
        peer: str = "",
        secure: bool = False,
        received_at: Monotonic = Monotonic(0.0),
        received_wall: Wall = Wall(0.0),
        body: bytes = b"",
    ) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.repeated = repeated
        self.peer = peer
        self.secure = secure
        self.received_at = received_at
        self.received_wall = received_wall
        self.body = body
        self.client_corr_id = ""
        self.client_ip = peer

    def values(self, name: bytes) -> list[bytes]:
        """Every value of the header `name` (lower case), in the order received; empty when it is absent."""
        value = self.headers.get(name)
        if value is None:
            return []
        return [value] if self.repeated is None else self.repeated.get(name, [value])


class Response:
    """
    One answer, before it is bytes.

    `headers` are further header lines beside the common ones (Content-Type, Content-Length, Cache-Control,
    X-Content-Type-Options, X-Correlation-ID, and Retry-After where it belongs). `close` asks for the connection to be
    closed after it, `rest` for it not to be read for a second. `max_age_s`: so long anybody may keep it; 0: nobody may.
    The others are for the log and the metrics and never reach the wire: `code` (GW-..., "" for a success), `source` (""
    when unknown), `instrument`, `validation_status`, `logged` (further members).
    """

    __slots__ = (
        "body",
        "close",
        "code",
        "content_type",
        "corr_id",
        "headers",
        "instrument",
        "logged",
        "max_age_s",
        "rest",
        "source",
        "status",
        "validation_status",
    )

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        *,
        corr_id: str = "",
        close: bool = False,
        code: str = "",
        source: str = "",
        instrument: str = "",
        validation_status: str = "",
        logged: Mapping[str, object] | None = None,
        rest: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.corr_id = corr_id
        self.close = close
        self.code = code
        self.source = source
        self.instrument = instrument
        self.validation_status = validation_status
        self.logged = logged
        self.rest = rest
        self.max_age_s = 0


def render(response: Response, *, keep_alive: bool, head_only: bool = False, http_1_0: bool = False) -> bytes:
    """
    The bytes of one answer, in one piece.

    `keep_alive` false adds `Connection: close`; an HTTP/1.0 client that asked for it gets `Connection: keep-alive`.
    `head_only` (for HEAD) leaves the body out and keeps its length.
    """
    body = response.body
    parts = [
        _STATUS_LINES[response.status],
        b"Content-Type: %b\r\nContent-Length: %d\r\n" % (response.content_type, len(body)),
        _COMMON if not response.max_age_s else _CACHED % response.max_age_s,
    ]
    if response.status == 204:  # which has no content, and no length either (RFC 9110, 8.6)
        parts[1] = b""
    if response.corr_id:
        parts.append(b"X-Correlation-ID: %b\r\n" % response.corr_id.encode("ascii"))
    for name, value in response.headers:
        parts.append(b"%b: %b\r\n" % (name, value))
    if not keep_alive:
        parts.append(b"Connection: close\r\n\r\n")
    elif http_1_0:
        parts.append(b"Connection: keep-alive\r\n\r\n")
    else:
        parts.append(b"\r\n")
    if not head_only:
        parts.append(body)
    return b"".join(parts)


def refusal(refused: Refused, corr_id: str, now: Wall, *, source: str = "", problem: bool = False) -> Response:
    """
    The answer that a refusal becomes. `problem` asks for application/problem+json with the same members.

    429 and 503 always carry Retry-After in whole seconds, rounded up, at least 1.
    """
    code, status, headers, details = refused.code, refused.http_status, refused.headers, refused.details
    slug, opening = _opening(code, status, problem)
    if status in RETRYABLE:
        wait = max(1, math.ceil(refused.retry_after or 1.0))
        headers = (*headers, (b"Retry-After", b"%d" % wait))
        if code in ("GW-004", "GW-011"):
            details = {**details, "retry_after_seconds": wait}
    body = b'%b,"corr_id":"%b","timestamp":"%b","details":%b}' % (
        opening,
        corr_id.encode("ascii"),
        format_wall(now).encode("ascii"),
        msgspec.json.encode(details),
    )
    return Response(
        status,
        body,
        PROBLEM if problem else JSON,
        headers,
        corr_id=corr_id,
        code=code,
        source=source,
        validation_status=slug,
        logged=refused.logged or None,
        rest=refused.rest,
    )


@lru_cache(maxsize=128)
def _opening(code: str, status: int, problem: bool) -> tuple[str, bytes]:
    """The slug, and the members of a refusal's body that every refusal of this code and status has: its beginning."""
    refused = Refused(code, status=status)
    row, slug = refused.row, refused.slug
    members: dict[str, object] = {"error": slug, "code": code, "message": row.message}
    if problem:
        about = {"type": f"urn:gatewayd:{code}", "title": row.message, "status": status, "detail": row.cause}
        members = {**about, **members}
    return slug, msgspec.json.encode(members)[:-1]


def accepted(corr_id: str, key: str, now: Wall, *, duplicate: bool, source: str, instrument: str) -> Response:
    """The 202: `key` is the explicit idempotency key, or the identity in hex."""
    body = b'{"status":"accepted","corr_id":"%b","idempotency_key":%b,"timestamp":"%b","duplicate":%b}' % (
        corr_id.encode("ascii"),
        msgspec.json.encode(key),
        format_wall(now).encode("ascii"),
        b"true" if duplicate else b"false",
    )
    return Response(
        202,
        body,
        headers=_REPLAYED if duplicate else (),
        corr_id=corr_id,
        source=source,
        instrument=instrument,
        validation_status="duplicate" if duplicate else "accepted",
    )


def wants_problem(request: Request) -> bool:
    """True when the client names application/problem+json in Accept."""
    accept = request.headers.get(b"accept")
    return accept is not None and PROBLEM in accept.lower()
