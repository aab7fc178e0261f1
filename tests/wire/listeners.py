"""A Site on real sockets for the wire tests, and blocking clients of it that run in threads."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from gatewayd.errors import Refused
from gatewayd.http.addresses import Address, Kind
from gatewayd.http.capacity import Capacity
from gatewayd.http.endpoint import listen
from gatewayd.http.message import Request, Response, refusal
from gatewayd.http.rules import Limits
from gatewayd.http.site import Site
from gatewayd.times import Wall
from tests.buses import reactor_loop
from tests.fakes.connection import WALL, Leaf

T = TypeVar("T")
LOOPBACK = Address(Kind.TCP, "127.0.0.1")
CLIENT_TIMEOUT_S = 10.0


class Served:
    """A Site that listens; what it was told is in the lists."""

    def __init__(self, leaves: dict[bytes, Any], limits: Limits, capacity: Capacity | None = None) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.loop: Any = None
        self.leaves = leaves
        self.failures: list[Failure] = []
        self.finished: list[tuple[Request | None, Response, bool]] = []
        self.port: Any = None
        self.site = Site(
            route=leaves.get,
            refuse=lambda request, refused: refusal(refused, "req_refused", WALL),
            failed=self._failed,
            finished=self._finished,
            clock=self.reactor,
            wall=lambda: Wall(time.time()),
            limits=limits,
            capacity=capacity,
        )

    def _failed(self, request: Request | None, failure: Failure) -> Response:
        self.failures.append(failure)
        return refusal(Refused("GW-016"), "req_failed", WALL)

    def _finished(self, request: Request | None, response: Response, *, written: bool) -> None:
        self.finished.append((request, response, written))

    def run(self, client: Callable[[socket], T]) -> "Deferred[T]":
        """Have a client talk in a thread, on a new connection that is closed when it returns."""
        return deferToThread(self._run, client)

    def _run(self, client: Callable[[socket], T]) -> T:
        with socket(AF_INET, SOCK_STREAM) as connection:
            connection.settimeout(CLIENT_TIMEOUT_S)
            connection.connect(("127.0.0.1", self.port.getHost().port))
            return client(connection)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition, at most five seconds."""
        for _ in range(500):
            if condition():
                return
            await self.pause(0.01)
        raise AssertionError("the condition did not come true")

    def pause(self, seconds: float) -> "Deferred[None]":
        """Let the reactor run."""
        return deferLater(self.reactor, seconds, lambda: None)


def default_leaves() -> dict[bytes, Any]:
    """A probe and a webhook, as a gateway has them."""
    return {
        b"/healthz": Leaf(lambda request: Response(200, b'{"ok":true}'), methods=(b"GET", b"HEAD"), bound=0),
        b"/webhook/tradingview": Leaf(),
    }


@asynccontextmanager
async def serving(
    leaves: dict[bytes, Any] | None = None,
    *,
    limits: Limits | None = None,
    address: Address = LOOPBACK,
    tls: Any = None,
    around: Any = None,
    on_loop: bool = False,
    capacity: Capacity | None = None,
) -> AsyncIterator[Served]:
    """
    A listening Site; at the end everything is closed, and nothing may be left. `around`: what stands first at a
    connection, see listen(). `on_loop`: see tcp_serving.
    """
    served = Served(default_leaves() if leaves is None else leaves, limits or Limits(), capacity)
    if on_loop:
        served.loop = reactor_loop()
    first = around or (lambda factory: factory)
    served.port = listen(served.reactor, address, served.site, tls, served.loop, around=first)
    try:
        yield served
    finally:
        await maybeDeferred(served.port.stopListening)
        await served.site.close()
    assert (served.site.open, served.site.in_flight) == (0, 0)


def read_to_end(connection: socket) -> bytes:
    """Everything until the server's FIN."""
    received = []
    while piece := connection.recv(65536):
        received.append(piece)
    return b"".join(received)


def read_until(connection: socket, end: bytes) -> bytes:
    """Everything until `end` has come."""
    received = b""
    while end not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received
