"""
One gRPC connection: HTTP/2 over a transport, and the calls on it.

Decides what a connection must begin with, how much of what came is worked off in a turn, when a peer that does not
read or does not speak is given up, and how a connection ends. Never parses a frame (h2wire does), never knows what a
method does (grpc_calls does), makes no timer: one sweep a second looks at all deadlines.
"""

from collections import deque
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IPushProducer, ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.http.narrow import narrow
from gatewayd.push.grpc_calls import METHODS, Call
from gatewayd.push.grpc_messages import EXPIRED, UNKNOWN_METHOD, Opening, alone, read_head
from gatewayd.push.h2limits import (
    INADEQUATE_SECURITY,
    PREFACE,
    REFUSED_STREAM,
    Excess,
    Meter,
)
from gatewayd.push.h2wire import MAX_STREAMS, SLICE_BYTES, Headers, Stream, Wire
from gatewayd.sessions.endings import SHUTTING_DOWN
from gatewayd.times import Monotonic

if TYPE_CHECKING:
    from gatewayd.push.grpc_server import GrpcServer

SLICES_A_TURN: Final = 4
"""Of SLICE_BYTES each: what one connection has worked off before others have their turn."""

FLUSH_BYTES: Final = 32768
"""Written to the transport at once, so that it can say that it is full."""

UNSENT_BYTES: Final = 49152
"""
What the kernel and the transport each keep for a peer that does not read. With the 32 KiB of other push connections a
reply of 4 MiB takes 2.6 s over loopback, as the peer's acknowledgement of each half is delayed; with this 0.03 s.
"""

HELLO_S: Final = 5.0
"""From the connection to the peer's first SETTINGS, a TLS handshake included."""

IDLE_S: Final = 300.0
"""Without a call."""

SILENCE_S: Final = 20.0
"""With calls, and nothing heard: the peer is asked whether it is there."""

ANSWER_S: Final = 10.0
"""What it has to answer in."""

STALL_S: Final = 60.0
"""With calls or without, while it reads nothing of what was sent."""

LINGER_S: Final = 1.0
LINGER_BYTES: Final = 262_144
"""What is read and dropped behind the last GOAWAY, so that it is not lost by a reset."""

SETTLED_S: Final = 0.5
"""A call that has lived so long may be given up without being counted as a flood's."""

_HTTP1: Final = b"this address speaks gRPC: HTTP/2 from its first byte on\n"
_HTTP1_ANSWER: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(_HTTP1), _HTTP1)
)
_HTTP1_METHODS: Final = (b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PATC")


class _State(Enum):
    HELLO = "hello"  # the preface has not come whole
    OPEN = "open"
    CLOSING = "closing"  # the last of ours is written; what comes is dropped
    GONE = "gone"


_HELLO, _OPEN, _CLOSING, _GONE = _State


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class Connection:
    """
    One connection of a GrpcServer. `blocked` is True while the transport holds more than it likes; `waiting` has the
    calls whose messages wait for room, by stream, the longest first. `deadline`: when expire() is due.
    """

    __slots__ = (
        "_blocked_at",
        "_calls",
        "_dirty",
        "_dropped",
        "_heard_at",
        "_idle_at",
        "_load",
        "_paused",
        "_pinged_at",
        "_pumping",
        "_state",
        "_unread",
        "blocked",
        "deadline",
        "peer",
        "server",
        "transport",
        "waiting",
        "wire",
    )

    transport: Any
    wire: Wire

    def __init__(self, server: "GrpcServer", peer: str) -> None:
        self.server = server
        self.peer = peer
        self.blocked = False
        self.deadline = inf
        self.waiting: dict[int, Call] = {}
        self._calls: dict[int, Call] = {}
        self._state = _HELLO
        self._unread: deque[bytes] = deque()
        self._paused = False
        self._pumping = False
        self._dirty = False
        self._load = 0
        self._dropped = 0
        self._heard_at = self._idle_at = self._blocked_at = Monotonic(0.0)
        self._pinged_at: Monotonic | None = None

    @property
    def calls(self) -> int:
        """How many calls there are."""
        return len(self._calls)

    # -- what the transport calls ------------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The connection is there."""
        self.transport = transport
        narrow(transport, UNSENT_BYTES)
        transport.registerProducer(self, True)
        self._heard_at = self._idle_at = self.server.now()
        self.deadline = self._heard_at + HELLO_S
        self.server.opened(self)

    def connectionMade(self) -> None:
        """Nothing beyond makeConnection."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes came in."""
        if self._state is _CLOSING:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self.transport.abortConnection()
            return
        if self._state is _GONE:
            return
        self._heard_at = self.server.now()
        self._keep(data)
        if self._state is not _HELLO or self._begin():
            self._pump()

    def readConnectionLost(self) -> None:
        """The client sends no more, and so wants no more: a call is over when its client's side of HTTP/2 is."""
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """What was written is sent, and FIN with it; readConnectionLost or the deadline is next."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone, and every call with it."""
        self._state = _GONE
        self._unread.clear()
        self._abandon("lost")
        self.server.closed(self)

    def pauseProducing(self) -> None:
        """The transport holds more than it likes: send and read nothing until the client has read."""
        self.blocked = True
        self._blocked_at = self.server.now()
        self._look_at(self._blocked_at + STALL_S)
        self._balance()

    def resumeProducing(self) -> None:
        """The client has read."""
        self.blocked = False
        if self._state is _OPEN:
            self.room(0)
            self._pump()

    def stopProducing(self) -> None:
        """The transport is closing; connectionLost says the rest."""

    # -- what the server calls ---------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what is to be written."""
        self._dirty = False
        self._load = 0
        if self._state is not _HELLO and self.wire.out:
            self.transport.write(self.wire.take())

    def expire(self, now: Monotonic) -> None:
        """A deadline may have passed; the next one is set."""
        if self._state is not _OPEN:
            # A client that never reads must not keep what was written.
            self.transport.abortConnection()
        elif not self.wire.greeted:
            self._give_up("silent")
        elif self.blocked:
            self._look_at(self._blocked_at + STALL_S)
            if self.deadline <= now:
                self._give_up("stalled")
        elif not self._calls:
            self.deadline = max(self._idle_at, self._heard_at) + IDLE_S
            if self.deadline <= now:
                self.retire()
        elif self._pinged_at is not None and self._heard_at < self._pinged_at:
            self._give_up("silent")
        else:
            self._pinged_at = None
            self.deadline = self._heard_at + SILENCE_S
            if self.deadline <= now:
                self._pinged_at = now
                self.deadline = now + ANSWER_S
                self.wire.ping()
                self.flush()

    def leave(self) -> None:
        """Take no further calls, and close when there is none."""
        if self._state is _OPEN:
            self.wire.farewell()
            for call in tuple(self._calls.values()):
                call.leave()
            self.flush()
            self._close_if_done()
        elif self._state is _HELLO:
            self.transport.loseConnection()

    def retire(self) -> None:
        """End what there is and close."""
        if self._state is _OPEN:
            for call in tuple(self._calls.values()):
                call.fail(SHUTTING_DOWN)
                call.drop("lost")
            if not self.server.draining:
                self.wire.farewell()
            self._close()
        elif self._state is _HELLO:
            self.transport.loseConnection()

    def cut(self) -> None:
        """The time for a clean end is over."""
        self.transport.abortConnection()

    # -- what the wire calls -----------------------------------------------------------------------------------------

    def begin(self, stream: Stream, headers: Headers, ended: bool) -> Excess | None:
        """A call's head."""
        wire = self.wire
        if len(self._calls) >= MAX_STREAMS:
            return wire.reset(stream, REFUSED_STREAM)
        opening = read_head(headers)
        if self.server.draining:
            refusal = alone(SHUTTING_DOWN)
        elif not isinstance(opening, Opening):
            refusal = opening
        elif opening.timeout_s == 0:
            refusal = alone(EXPIRED)
        elif (method := METHODS.get(opening.path)) is None:
            refusal = alone(UNKNOWN_METHOD)
        else:
            if not self._calls:
                self.deadline = min(self.deadline, self._heard_at + SILENCE_S)
            call = self._calls[stream.stream_id] = method(self, stream, opening.timeout_s)
            return call.receive(b"", True) if ended else None
        wire.end(stream, refusal)
        return wire.refused()

    def receive(self, stream_id: int, data: bytes, ended: bool) -> Excess | None:
        """A piece of a call's message."""
        call = self._calls.get(stream_id)
        return None if call is None else call.receive(data, ended)

    def cancelled(self, stream_id: int, by_peer: bool) -> None:
        """A stream was reset."""
        call = self._calls.get(stream_id)
        if call is not None:
            if by_peer and self._heard_at - call.began >= SETTLED_S:
                self.wire.forgive_reset()
            call.abandon("client" if by_peer else "protocol")

    def room(self, stream_id: int) -> None:
        """More may be sent."""
        if stream_id:
            call = self.waiting.get(stream_id)
            if call is not None and not self.blocked:
                call.room()
            return
        for call in tuple(self.waiting.values()):
            if self.blocked or self.wire.full:
                return
            if not call.done:
                call.room()

    # -- what calls call ---------------------------------------------------------------------------------------------

    def wrote(self, size_bytes: int) -> None:
        """So much of a message was put on the wire: it goes out with what else is put there in this turn."""
        self._load += size_bytes
        if self._load > FLUSH_BYTES:
            self.flush()
        elif not self._dirty:
            self._dirty = True
            self.server.unwritten(self)

    def unwritten(self) -> None:
        """Something is on the wire that is to go out in this turn."""
        self.wrote(0)

    def forget(self, call: Call) -> None:
        """A call has ended."""
        stream_id = call.stream.stream_id
        self._calls.pop(stream_id, None)
        self.waiting.pop(stream_id, None)
        if not self._calls:
            self._idle_at = self.server.now()
            if self.server.draining or self.wire.leaving:
                # Its trailers are not on the wire yet.
                self.server.soon(self._close_if_done)

    # -- within ------------------------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """True once the preface is there, and the connection is HTTP/2."""
        first = b"".join(self._unread)
        self._unread.clear()
        if not PREFACE.startswith(first[: len(PREFACE)]):
            self._turn_away(first)
            return False
        self._keep(first)
        if len(first) < len(PREFACE):
            return False
        server = self.server
        self._state = _OPEN
        self.wire = Wire(self, Meter(self._heard_at), by_hand=server.by_hand)
        transport: Any = self.transport
        if ISSLTransport.providedBy(transport) and getattr(transport, "negotiatedProtocol", None) != b"h2":
            # RFC 9113, 3.2: HTTP/2 over TLS is agreed on by ALPN.
            self._end(Excess(INADEQUATE_SECURITY, "no_alpn"))
            return False
        if server.draining:
            self.leave()
        return True

    def _keep(self, data: bytes) -> None:
        if len(data) <= SLICE_BYTES:
            self._unread.append(data)
        else:
            self._unread += (data[at : at + SLICE_BYTES] for at in range(0, len(data), SLICE_BYTES))

    def _turn_away(self, first: bytes) -> None:
        """It is not HTTP/2."""
        http1 = first[:4] in _HTTP1_METHODS
        if http1:
            self.transport.write(_HTTP1_ANSWER)
        self.server.note("http1" if http1 else "no_http2", self.peer)
        self._shut()

    def _pump(self) -> None:
        """Work off what came, a few slices in a turn."""
        if self._pumping:
            return
        self._pumping = True
        try:
            turns = SLICES_A_TURN
            while self._unread and turns and self._state is _OPEN and not self.blocked:
                excess = self.wire.receive(self._unread.popleft(), self._heard_at)
                if excess is not None:
                    self._end(excess)
                turns -= 1
        finally:
            self._pumping = False
        if self._state is _OPEN:
            self.flush()
            if self.wire.leaving:
                self._close_if_done()
            if self._unread and not self.blocked:
                self.server.soon(self._pump)
        self._balance()

    def _balance(self) -> None:
        """Read while what was read is worked off, and the client reads."""
        pause = self._state is _OPEN and (self.blocked or bool(self._unread))
        if pause != self._paused:
            self._paused = pause
            (self.transport.pauseProducing if pause else self.transport.resumeProducing)()

    def _look_at(self, at: float) -> None:
        self.deadline = at if self._state is _OPEN else min(self.deadline, at)

    def _end(self, excess: Excess) -> None:
        """The connection is beyond use."""
        if not self.wire.ended:
            self.wire.farewell(excess.code, excess.reason)
        self.server.note(excess.reason, self.peer)
        self._abandon("protocol")
        self._close()

    def _give_up(self, reason: str) -> None:
        self.server.note(reason, self.peer)
        self.transport.abortConnection()

    def _abandon(self, reason: str) -> None:
        for call in tuple(self._calls.values()):
            call.abandon(reason)

    def _close_if_done(self) -> None:
        if not self._calls and self._state is _OPEN:
            self._close()

    def _close(self) -> None:
        """Write what is left, then FIN."""
        self.flush()
        self._shut()

    def _shut(self) -> None:
        self._state = _CLOSING
        self._unread.clear()
        self.deadline = self.server.now() + LINGER_S
        self.transport.loseWriteConnection()
        self._balance()
