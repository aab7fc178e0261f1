"""
All gRPC connections of the gateway: the factory of them, and what they share.

Refuses those that have no room, drives their deadlines, drains and closes them. Its collaborators say what an envelope
is, run commands and open streams. Never reads a byte.
"""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger

from gatewayd.http.capacity import Capacity, peer_of
from gatewayd.push.api import Execute, Subscribe
from gatewayd.push.connections import Connections
from gatewayd.push.deadlines import SLOT_S, Wheel
from gatewayd.push.grpc import Connection
from gatewayd.push.grpc_calls import Call
from gatewayd.push.h2wire import frames_agree
from gatewayd.push.health import Health
from gatewayd.sessions.endings import Ending
from gatewayd.sessions.values import Envelope, Reply
from gatewayd.times import Monotonic

REPORT_S: Final = 60.0
"""One log line for each reason in so long, however many connections are closed for it."""

LOOK_S: Final = 0.02
"""How often it is looked whether every call has ended."""

_log: Final = Logger()


class GrpcServer(Factory):
    """
    The factory of connections.

    `read_envelope` reads a request's message, `write_reply` makes a reply's; `execute` and `subscribe` are push.api's.
    `clock` must be monotonic, `soon` calls a function after everything that is ready now has run. `max_receiving`
    bounds what all connections together keep of requests that are not whole, in bytes.

    `capacity` may be shared with other listeners. `closed_for` counts connections closed for what they did, by reason;
    `receiving` is what is kept now. `draining`: no call is taken any more.
    """

    noisy = False

    def __init__(
        self,
        *,
        read_envelope: Callable[[bytes], Envelope | Ending],
        write_reply: Callable[[Reply], bytes],
        execute: Execute,
        subscribe: Subscribe,
        health: Health,
        clock: IReactorTime,
        soon: Callable[[Callable[[], object]], None],
        capacity: Capacity | None = None,
        max_receiving: int = 67_108_864,
    ) -> None:
        self.read_envelope = read_envelope
        self.write_reply = write_reply
        self.execute = execute
        self.subscribe = subscribe
        self.health = health
        self.soon = soon
        self.max_receiving = max_receiving
        self.by_hand = frames_agree()
        self.draining = False
        self.receiving = 0
        self.closed_for: dict[str, int] = {}
        self._clock = clock
        self._connections = Connections(clock, soon)
        self._open: set[Connection] = set()
        self.capacity = capacity or Capacity()
        self._wheel: Wheel[Call] = Wheel()
        self._ticking = False
        self._reported_at: dict[str, float] = {}
        if not self.by_hand:
            _log.warn(
                "The installed h2 writes frames otherwise than expected: pushes cost more.", event="grpc.h2_differs"
            )

    @property
    def open(self) -> int:
        """Connections now."""
        return len(self._open)

    @property
    def calls(self) -> int:
        """Calls now."""
        return sum(connection.calls for connection in self._open)

    def now(self) -> Monotonic:
        """The monotonic clock."""
        return Monotonic(self._clock.seconds())

    def buildProtocol(self, addr: IAddress | None) -> Connection | None:  # type: ignore[override] # slotted, no Protocol
        """A new connection; None, which closes it at once, when there are too many."""
        peer = peer_of(addr)
        return Connection(self, peer) if self.capacity.admits(peer) else None

    def leave(self) -> None:
        """Take no further calls: every client is told so, and connections without calls are closed."""
        if not self.draining:
            self.draining = True
            self.health.set(False)
            for connection in tuple(self._open):
                connection.leave()

    async def stop(self, within_s: float) -> None:
        """
        Take no further calls, let those end that there are, for half of the time, end the others with the reason that
        the gateway is shutting down, and close every connection. To be called when nothing is accepted any more and
        the hub has closed its streams.
        """
        ends_at = self.now() + within_s
        self.leave()
        while self.calls and self.now() < ends_at - within_s / 2:
            await self._pause()
        await self._connections.stop(max(0.0, ends_at - self.now()))

    def _pause(self) -> "Deferred[Any]":
        return deferLater(self._clock, LOOK_S)

    # -- what connections call ---------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Count a connection."""
        self._open.add(connection)
        self._connections.add(connection)
        self.capacity.add(connection.peer)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._connections.discard(connection)
        self.capacity.discard(connection.peer)

    def unwritten(self, connection: Connection) -> None:
        """Have the connection flushed at the end of this turn."""
        self._connections.unwritten(connection)

    def note(self, reason: str, peer: str) -> None:
        """A connection is closed for what it did; `reason` is one of a fixed set of words."""
        count = self.closed_for[reason] = self.closed_for.get(reason, 0) + 1
        now = self._clock.seconds()
        if now - self._reported_at.get(reason, -REPORT_S) < REPORT_S:
            return
        self._reported_at[reason] = now
        _log.warn(
            "gRPC connections closed so far for {reason}: {count}, the last one of {peer}",
            event="grpc.connection_closed",
            reason=reason,
            count=count,
            peer=peer,
        )

    def wait(self, call: Call, seconds: float) -> int:
        """Have the call expire after so long; what unwait() takes."""
        if not self._ticking:
            self._ticking = True
            self._clock.callLater(SLOT_S, self._tick)
        return self._wheel.add(call, Monotonic(self._clock.seconds() + seconds))

    def unwait(self, call: Call, slot: int) -> None:
        """Forget that deadline."""
        self._wheel.remove(call, slot)

    def _tick(self) -> None:
        for call in self._wheel.due(self.now()):
            try:
                call.expire()
            except Exception:  # one call's fault must not end the deadlines of all others
                _log.failure("A call could not be ended at its deadline.", event="grpc.tick_failed")
        self._ticking = not self._wheel.empty
        if self._ticking:
            self._clock.callLater(SLOT_S, self._tick)
