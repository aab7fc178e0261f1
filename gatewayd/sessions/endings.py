"""
Every way in which the edge refuses a request or ends a stream: one table. Pure.

Decides the words, the gRPC status and the WebSocket close code of each. Never writes them: the transports do.
"""

from typing import Final

from msgspec import Struct

INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16


class Ending(Struct, frozen=True):
    """
    Why something was refused or has ended. `reason` is the bounded label of metrics; `message` a fixed text, never of
    anything a client sent but a member's name; `retry_after_ms`: when to come back, where that is known.
    """

    reason: str
    grpc_status: int
    close_code: int
    """WebSocket's."""
    message: str
    retry_after_ms: int | None = None


UNSUPPORTED_VERSION: Final = Ending("version", FAILED_PRECONDITION, 1008, "unsupported protocol version")
AUTHENTICATION_FAILED: Final = Ending("authentication", UNAUTHENTICATED, 4001, "authentication failed")
REVOKED: Final = Ending("revoked", FAILED_PRECONDITION, 4003, "device session is revoked")
NOT_FRESH: Final = Ending("stale", FAILED_PRECONDITION, 1008, "request timestamp is outside the freshness window")
REPLAYED: Final = Ending("replay", FAILED_PRECONDITION, 1008, "request replay detected")
LIMITED: Final = Ending("limit", RESOURCE_EXHAUSTED, 1008, "authenticated request rate limit exceeded")
NO_ROUTE: Final = Ending("no_route", UNIMPLEMENTED, 1008, "no route for this message type")
UNAVAILABLE_NOW: Final = Ending("unavailable", UNAVAILABLE, 1013, "the gateway cannot check sessions now")
SESSION_MALFORMED: Final = Ending("session_malformed", UNAVAILABLE, 1013, "the gateway cannot read this session")
UPSTREAM_FAILED: Final = Ending("upstream", UNAVAILABLE, 1013, "the command's service is unavailable")
UPSTREAM_TIMED_OUT: Final = Ending("deadline", DEADLINE_EXCEEDED, 1013, "the command's service did not answer in time")
OVERFLOWED: Final = Ending("overflow", RESOURCE_EXHAUSTED, 4008, "push stream overflowed")
SHUTTING_DOWN: Final = Ending("shutdown", UNAVAILABLE, 1012, "gateway is shutting down")
FAULT: Final = Ending("internal", INTERNAL, 1011, "internal error")


def malformed(member: str, what: str = "is missing or malformed") -> Ending:
    """INVALID_ARGUMENT; `member` is one of the envelope's names, or "envelope"."""
    return Ending("malformed", INVALID_ARGUMENT, 1008, f"{member} {what}")
