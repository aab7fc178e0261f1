"""
Calls of the JetStream API: one request, one answer, its error told apart. Pure.

Decides what an answer means. Never connects and never waits by itself: whoever makes requests is handed in, the
daemon's bus or a tool's connection.
"""

import json
from collections.abc import Awaitable, Mapping
from typing import Any, Final, Protocol

from gatewayd.bus.publication import Cause, Unpublished

TIMEOUT_S: Final = 2.0


class Api(Protocol):
    """The connection, as calls of the JetStream API need it."""

    def request(self, subject: str, payload: bytes, timeout_s: float) -> Awaitable[bytes | Unpublished]:
        """One answer to one request."""


async def api(bus: Api, subject: str, members: Mapping[str, Any]) -> dict[str, Any] | Unpublished:
    """One call of the JetStream API; its error is an Unpublished with the server's text and number."""
    answer = await bus.request(subject, json.dumps(members).encode() if members else b"", TIMEOUT_S)
    return answer if isinstance(answer, Unpublished) else read_api(answer)


def read_api(answer: bytes) -> dict[str, Any] | Unpublished:
    """The members of an answer of the JetStream API, or its error."""
    try:
        read = json.loads(answer)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        return Unpublished(Cause.REJECTED, "the answer is no JSON object")
    error = read.get("error")
    if isinstance(error, dict):
        return Unpublished(Cause.REJECTED, f"{error.get('description', '')} ({error.get('err_code', 0)})")
    return read
