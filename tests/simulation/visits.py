"""
A client's HTTP connection to one process: bytes in, answers out, on virtual time.

Decides when bytes arrive and what of them is lost with the connection. The other end is the product's own channel.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.python.failure import Failure

from tests.simulation.process import Process

_ABORTED: Final = Failure(ConnectionAborted())  # type: ignore[no-untyped-call]
_DONE: Final = Failure(ConnectionDone())  # type: ignore[no-untyped-call]


class Peer:
    """Where a client is."""

    host = "192.0.2.1"


class Caller(Protocol):
    """Whoever made a request on a Visit."""

    def written(self) -> None:
        """The process has written the answer."""

    def told(self, status: int, head: bytes, body: bytes) -> None:
        """The answer is here."""

    def lost(self) -> None:
        """The connection is gone, and with it the answer."""


class Visit:
    """
    One connection; the transport of its channel. One request at a time: `idle` are the connections of the process that
    have none. `gone` also when the process takes no more connections.
    """

    def __init__(self, process: Process, way_s: Callable[[], float], idle: list["Visit"]) -> None:
        self.process = process
        self.gone = False
        self._idle = idle
        self._way_s = way_s
        self._caller: Caller | None = None
        self._closed = False  # by the process: nothing arrives there any more
        self._out_at = self._in_at = 0.0
        self._answer = b""
        self._channel: Any = process.core.site.buildProtocol(Peer())  # type: ignore[arg-type]
        if self._channel is None:
            self.gone = True
        else:
            process.loop.inside(self._channel.makeConnection, self)

    # what the client does

    def ask(self, data: bytes, caller: Caller, first: int, complete: Callable[[], object]) -> None:
        """Send a request, its first bytes ahead of the rest; `complete` is called when the process has all of it."""
        self._caller = caller
        self._answer = b""
        loop = self.process.loop
        self._out_at = max(self._out_at, loop.timeline.now + self._way_s())
        if first:
            loop.arrive(self._out_at, self._received, data[:first])
            self._out_at += self._way_s()
        loop.arrive(self._out_at, self._received_all, data[first:], complete)

    def reset(self) -> None:
        """Go away without a word."""
        self._forget()
        if not self.process.dead:
            self.process.loop.arrive(self.process.timeline.now + self._way_s(), self._is_lost, _ABORTED)

    def process_ended(self) -> None:
        """The process is dead: the client hears it after what was written before."""
        timeline = self.process.timeline
        timeline.at(max(self._in_at, timeline.now + self._way_s()), self._hear_end)

    def _forget(self) -> None:
        self.gone = True
        self._caller = None

    def _hear_end(self) -> None:
        if self.gone:
            return
        self.gone = True
        caller, self._caller = self._caller, None
        if caller is not None:
            caller.lost()

    def _arrived(self, data: bytes) -> None:
        if self.gone:
            return
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        length_at = head.find(b"Content-Length: ") + 16
        if not separator or len(body) < int(head[length_at : head.find(b"\r\n", length_at)]):
            return
        caller, self._caller = self._caller, None
        if b"\r\nConnection: close" in head:
            self.gone = True
            self.reset()
        else:
            self._idle.append(self)
        if caller is not None:
            caller.told(int(head[9:12]), head, body)

    # what arrives at the process

    def _received(self, data: bytes) -> None:
        if not self._closed:
            self._channel.dataReceived(data)

    def _received_all(self, data: bytes, complete: Callable[[], object]) -> None:
        if not self._closed:
            complete()
            self._channel.dataReceived(data)

    def _is_lost(self, reason: Failure) -> None:
        if not self._closed:
            self._closed = True
            self._channel.connectionLost(reason)

    # what the channel calls

    def write(self, data: bytes) -> None:
        """An answer, or a piece of one; of a dead process nobody hears."""
        if self._closed or self.process.dead:
            return
        timeline = self.process.timeline
        self.process.answered[data[9] - 48] += 1
        if self._caller is not None:
            self._caller.written()
        self._in_at = max(self._in_at, timeline.now + self._way_s())
        timeline.at(self._in_at, self._arrived, data)

    def loseConnection(self) -> None:
        """Close behind what was written."""
        if self._closed:
            return
        timeline = self.process.timeline
        timeline.at(max(self._in_at, timeline.now + self._way_s()), self._hear_end)
        self._is_lost(_DONE)

    loseWriteConnection = abortConnection = loseConnection

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """There is never too much."""

    def unregisterProducer(self) -> None:
        """As above."""

    def pauseProducing(self) -> None:
        """What comes meanwhile is handed on all the same; the channel holds it."""

    def resumeProducing(self) -> None:
        """As above."""
