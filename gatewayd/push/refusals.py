"""
What the edge's HTTP paths say when they refuse: one table of statuses, one shape of a body. Pure.

Decides the HTTP status of every ending, what a refused request is told, and the close reason of a WebSocket. Never
decides that anything is refused.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct

from gatewayd.errors import RETRYABLE
from gatewayd.http.message import Response
from gatewayd.sessions.endings import (
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Ending,
)

CLOSE_REASON_BYTES: Final = 123
"""RFC 6455 5.5: a control frame has 125 bytes, two of which are the close code."""

_BY_GRPC_STATUS: Final[Mapping[int, int]] = {
    INVALID_ARGUMENT: 400,
    DEADLINE_EXCEEDED: 504,
    RESOURCE_EXHAUSTED: 429,
    FAILED_PRECONDITION: 400,
    UNIMPLEMENTED: 501,
    INTERNAL: 500,
    UNAVAILABLE: 503,
    UNAUTHENTICATED: 401,
}
_BY_REASON: Final[Mapping[str, int]] = {"revoked": 403, "replay": 409}
"""Failed preconditions for which HTTP has a word of its own. A stale time is 400: not the keys are wrong, the clock."""


class Problem(Struct, frozen=True):
    """A refusal: `code` is a stable word, `message` a fixed text, `headers` further header lines."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    retry_after_ms: int | None = None


def problem_of(ending: Ending) -> Problem:
    """What a request that ends so is answered over HTTP; `code` is the ending's reason."""
    status = _BY_REASON.get(ending.reason) or _BY_GRPC_STATUS[ending.grpc_status]
    return Problem(status, ending.reason, ending.message, retry_after_ms=ending.retry_after_ms)


def answer(problem: Problem, corr_id: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """
    `{"error":{"code":…,"message":…}}`, with `retry_after_ms` where it is known.

    429 and 503 always carry Retry-After in whole seconds, rounded up, at least 1.
    """
    wait_ms = problem.retry_after_ms
    lines = (*problem.headers, *headers)
    if problem.status in RETRYABLE:
        lines = (*lines, (b"Retry-After", b"%d" % max(1, math.ceil((wait_ms or 0) / 1000))))
    body = msgspec.json.encode({"error": error_members(problem.code, problem.message, wait_ms)})
    return Response(problem.status, body, headers=lines, corr_id=corr_id, validation_status=problem.code)


def error_members(code: str, message: str, retry_after_ms: int | None) -> dict[str, object]:
    """The members of an `error`, the same over HTTP, in a WebSocket frame and in the last event of an SSE stream."""
    members: dict[str, object] = {"code": code, "message": message}
    if retry_after_ms is not None:
        members["retry_after_ms"] = retry_after_ms
    return members


def close_reason(ending: Ending) -> bytes:
    """The text of a WebSocket close frame: the message, then when to come back where that is known; ASCII."""
    text = ending.message
    if ending.retry_after_ms is not None:
        text = f"{text}; retry_after_ms={ending.retry_after_ms}"
    return text.encode("ascii", "replace")[:CLOSE_REASON_BYTES]
