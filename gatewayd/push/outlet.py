"""
What WebSocket and SSE streams have in common: a connection that has changed hands and carries events.

Decides that the events of one turn go out as one write, an only one at once, when the hub is told to wait, what a
client may leave unread, and how a connection ends: with a last word, then FIN, then, when that is not taken, a reset.
Never decides which bytes an event is or what a client may say.
"""

from abc import ABC, abstractmethod
from enum import IntEnum
from math import inf
from typing import Any, Final

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from gatewayd.http.narrow import narrow
from gatewayd.push.api import PushStream
from gatewayd.push.connections import Connections
from gatewayd.times import Monotonic

JOINED_BYTES: Final = 32768
"""What is put in one turn is written at once beyond this: a whole replay must not be copied before the first byte."""

UNREAD_BYTES: Final = 1 << 20
"""What may be put for a client that does not read, beside events: answers to what it goes on asking."""

CLOSE_S: Final = 2.0
"""What a client has for taking the last word and closing; the sweep notices up to a second later."""

DROPPED_BYTES: Final = 4 << 20
"""What a client may go on sending after it was told the end."""


class Phase(IntEnum):
    """Where a connection is."""

    OPENING = 0  # nothing was asked yet
    CHECKING = 1  # the envelope is being checked
    OPEN = 2  # a stream
    CLOSING = 3  # the close frame is on its way, the client's is awaited
    FINISHED = 4  # FIN is on its way; what comes is dropped
    GONE = 5


OPENING, CHECKING, OPEN, CLOSING, FINISHED, GONE = Phase


class Outlet(ABC):
    """
    One connection, as its transport (IProtocol, IPushProducer) and Connections see it. `deadline` is the monotonic
    second after which expire() is due.
    """

    __slots__ = (
        "_connection",
        "_connections",
        "_dropped",
        "_paused",
        "_phase",
        "_put_bytes",
        "_stream",
        "_unwritten",
        "deadline",
    )

    _connection: Any  # the transport, a word that an outlet has for another thing

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._phase = OPENING
        self._stream: PushStream | None = None
        self._unwritten: list[bytes] | None = None
        # Of what was put: not written yet; while the client does not read, all since then.
        self._put_bytes = 0
        self._dropped = 0
        self._paused = False
        self.deadline = inf

    # -- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """The connection is ours: put the head."""

    @abstractmethod
    def expire(self, now: Monotonic) -> None:
        """The deadline has passed."""

    @abstractmethod
    def retire(self) -> None:
        """The gateway stops."""

    # -- what the transport calls ------------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The connection was handed over."""
        self._connection = transport
        narrow(transport)
        self._connections.add(self)
        transport.registerProducer(self, True)
        self.begin()

    def connectionMade(self) -> None:  # noqa: B027 - Twisted calls it
        """Nothing beyond makeConnection."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone, or the client has sent its FIN, which is the same for a stream."""
        self._phase = GONE
        self._unwritten = None
        self._connections.discard(self)
        self._leave("client" if isinstance(reason.value, ConnectionDone) else "lost")

    def pauseProducing(self) -> None:
        """The client does not read: nothing more is taken of the hub."""
        self._paused = True
        self._put_bytes = 0

    def resumeProducing(self) -> None:
        """The client reads again."""
        self._paused = False
        self._put_bytes = 0
        if self._phase is OPEN and self._stream is not None:
            self._stream.writable()

    def stopProducing(self) -> None:  # noqa: B027 - Twisted calls it
        """The transport is closing; connectionLost says the rest."""

    # -- writing -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was put, in one piece."""
        unwritten, self._unwritten = self._unwritten, None
        if unwritten is not None:
            if not self._paused:
                self._put_bytes = 0
            self._connection.write(unwritten[0] if len(unwritten) == 1 else b"".join(unwritten))

    def _put(self, data: bytes) -> bool:
        """Have it written with all else of this turn; False when the client has not read what was written before."""
        unwritten = self._unwritten
        if unwritten is None:
            self._unwritten = [data]
            self._connections.unwritten(self)
        else:
            unwritten.append(data)
        self._put_bytes += len(data)
        if self._put_bytes > JOINED_BYTES and not self._paused:
            self.flush()
        return not self._paused

    def _write(self, data: bytes) -> bool:
        """As _put, of what is the last in this turn: 0.27 us in place of 0.45 beside the system call (measured)."""
        if self._unwritten is not None or self._paused:
            return self._put(data)
        self._connection.write(data)
        return not self._paused

    # -- the end -----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset the connection: the last word was not taken in time."""
        self._connection.abortConnection()

    def _leave(self, reason: str) -> None:
        """Tell the hub, if it does not know yet."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.gone(reason)

    def _finish(self) -> None:
        """
        Send what was put and FIN behind it; the client has CLOSE_S to close. A close with unread bytes would be a
        reset, which destroys the last word on its way: what still comes is dropped.
        """
        self._begin_end(FINISHED)
        connection: Any = self._connection
        connection.unregisterProducer()
        (getattr(connection, "loseWriteConnection", None) or connection.loseConnection)()

    def _begin_end(self, phase: Phase) -> None:
        self.flush()
        self._phase = phase
        self._stream = None
        self.deadline = self._connections.now() + CLOSE_S

    def _drop(self, data: bytes) -> None:
        """Take what comes when nobody wants it, up to a bound."""
        self._dropped += len(data)
        if self._dropped > DROPPED_BYTES:
            self.cut()
