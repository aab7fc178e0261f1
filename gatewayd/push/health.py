"""
grpc.health.v1: what a health check is asked and answered. Pure.

Decides which services there are and the bytes of the two answers; the messages have one field each, so that no schema
is needed. Never decides that the gateway is well: who knows calls set().
"""

from collections.abc import Callable
from typing import Final

from gatewayd.push.grpc_messages import framed

SERVICES: Final = frozenset({"", "gatewayd.edge.v1.EdgeGateway"})
"""The empty name is the server itself."""

CHECK: Final = b"/grpc.health.v1.Health/Check"
WATCH: Final = b"/grpc.health.v1.Health/Watch"

SERVING: Final = framed(b"\x08\x01")
NOT_SERVING: Final = framed(b"\x08\x02")
SERVICE_UNKNOWN: Final = framed(b"\x08\x03")
"""HealthCheckResponse{status}: field 1, a varint."""

_MAX_NAME_BYTES: Final = 127


def read_check(message: bytes) -> str | None:
    """The service that a HealthCheckRequest names (field 1, a string); None when it is no such message."""
    if not message:
        return ""
    # A name of up to 127 bytes has a length of one byte; there is none of ours that is longer.
    if len(message) < 2 or message[0] != 0x0A or message[1] != len(message) - 2 or message[1] > _MAX_NAME_BYTES:
        return None
    try:
        return message[2:].decode()
    except UnicodeDecodeError:
        return None


class Health:
    """Whether calls are served, and who wants to know when that changes. There are at most as many as calls."""

    def __init__(self) -> None:
        self._serving = False
        self._watchers: set[Callable[[], None]] = set()

    @property
    def serving(self) -> bool:
        """True while calls are served."""
        return self._serving

    def set(self, serving: bool) -> None:
        """Say it, and tell the watchers when it is new."""
        if serving != self._serving:
            self._serving = serving
            for watcher in tuple(self._watchers):
                watcher()

    def answer(self, service: str) -> bytes:
        """The framed answer for a service."""
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        return SERVING if self._serving else NOT_SERVING

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` at each change."""
        self._watchers.add(watcher)

    def forget(self, watcher: Callable[[], None]) -> None:
        """Call it no more."""
        self._watchers.discard(watcher)
