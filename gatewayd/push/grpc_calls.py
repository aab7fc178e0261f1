"""
The calls of one gRPC connection: a command, a stream of events, two health checks.

Decides how the one message of a request is gathered, what is done with it, and how an answer that does not fit yet
waits. Never decides whether a command or a stream is allowed, nor what is on it: its collaborators say so.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.push.api import IOutlet, PushStream
from gatewayd.push.frames import Event
from gatewayd.push.grpc_messages import (
    BAD_FRAMING,
    EXPIRED,
    HEAD,
    OK,
    ONE_MESSAGE,
    PREFIX_BYTES,
    TOO_MUCH,
    TOO_SLOW,
    UNKNOWN_SERVICE,
    alone,
    framed,
    message_bytes,
    trailers,
)
from gatewayd.push.h2limits import Excess
from gatewayd.push.h2wire import Headers, Stream
from gatewayd.push.health import CHECK, SERVICE_UNKNOWN, WATCH, read_check
from gatewayd.sessions.endings import FAULT, SHUTTING_DOWN, Ending
from gatewayd.sessions.values import Envelope, Reply
from gatewayd.times import Monotonic

if TYPE_CHECKING:
    from gatewayd.push.grpc import Connection

MESSAGE_S: Final = 30.0
"""A request's message is there so long after its head."""

DELIVERY_S: Final = 60.0
"""An answer without a deadline is read so long after it is there."""

A = TypeVar("A")

_log: Final = Logger()


class Call(ABC):
    """
    One call. `due` is when its deadline passes, None for none; `done` is True once nothing may be sent on it. `began`
    is when its head came.
    """

    __slots__ = ("_at", "_begun", "_body", "_rest", "_slot", "_whole", "began", "connection", "done", "due", "stream")

    def __init__(self, connection: "Connection", stream: Stream, timeout_s: float | None) -> None:
        self.connection = connection
        self.stream = stream
        self.began = connection.server.now()
        self.due = None if timeout_s is None else Monotonic(self.began + timeout_s)
        self.done = False
        self._whole = False
        self._begun = False
        self._body: bytearray | None = None
        self._rest: bytes | None = None
        self._at = 0
        self._slot: int | None = None
        self._wait(MESSAGE_S if timeout_s is None else min(MESSAGE_S, timeout_s))

    # -- what the connection calls -----------------------------------------------------------------------------------

    def receive(self, data: bytes, ended: bool) -> Excess | None:
        """A piece of the request."""
        if self._whole:
            return None
        server = self.connection.server
        body: bytes | bytearray = data
        if self._body is not None or not ended:
            if self._body is None:
                self._body = bytearray()
            self._body += data
            body = self._body
            server.receiving += len(data)
        size = message_bytes(body) if len(body) >= PREFIX_BYTES else 0
        if isinstance(size, Ending):
            return self._refuse(size)
        if len(body) > PREFIX_BYTES + size:
            return self._refuse(ONE_MESSAGE)
        if not ended:
            return self._refuse(TOO_MUCH) if server.receiving > server.max_receiving else None
        if len(body) != PREFIX_BYTES + size:
            return self._refuse(BAD_FRAMING if body else ONE_MESSAGE)
        self._whole = True
        message = bytes(body[PREFIX_BYTES:])
        self._forget_body()
        if self.due is None:
            self._wait(None)
        elif self.began + MESSAGE_S < self.due:
            self._wait(self.due - server.now())
        self.run(message)
        return None

    def expire(self) -> None:
        """The deadline has passed: that of the message, of the call, or of an answer that nobody reads."""
        self._slot = None
        if not self.done:
            self.fail(EXPIRED if self._whole or self.due is not None else TOO_SLOW)
            self.drop("deadline")

    def abandon(self, reason: str) -> None:
        """The client gave it up, or the connection is gone: nothing can be sent."""
        if not self.done:
            self._close()
            self.drop(reason)

    def room(self) -> None:
        """There may be room for what waits."""
        if self._rest is not None:
            self._at = self._write_rest(self._rest)
            if self._at < len(self._rest):
                return
            self._rest = None
        self.connection.waiting.pop(self.stream.stream_id, None)
        self.emptied()

    # -- what each method does ---------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, message: bytes) -> None:
        """The request's message is complete."""

    def drop(self, reason: str) -> None:  # noqa: B027 - most calls have nothing to do then
        """The call ends without its answer: stop what is being done for it."""

    def leave(self) -> None:  # noqa: B027 - most calls have nothing to do then
        """The gateway takes no further calls."""

    def emptied(self) -> None:
        """What waited has been written."""
        self._end(OK)

    # -- answering ---------------------------------------------------------------------------------------------------

    def fail(self, ending: Ending) -> None:
        """End it with a status."""
        if not self.done:
            self._end(ending)
            self.connection.unwritten()

    def put(self, body: bytes) -> bool:
        """Write a framed message; False when it waits, whole or in part. Nothing else may wait."""
        connection = self.connection
        if not connection.blocked and connection.wire.write(self.stream, body):
            connection.wrote(len(body))
            return True
        self._rest, self._at = body, 0
        if not connection.blocked:
            self._at = self._write_rest(body)
        if self._at < len(body):
            connection.waiting[self.stream.stream_id] = self
            return False
        self._rest = None
        return True

    def answer(self, message: bytes) -> None:
        """Answer with one framed message."""
        self.begin()
        if self.put(message):
            self._end(OK)
        elif self._slot is None:
            self._wait(DELIVERY_S)
        self.connection.unwritten()

    def begin(self) -> None:
        """Send the head of the response."""
        self._begun = True
        self.connection.wire.begin(self.stream, HEAD)
        self.connection.unwritten()

    # -- within ------------------------------------------------------------------------------------------------------

    def _write_rest(self, body: bytes) -> int:
        """
        Write what fits of a message that has waited, if it is larger than windows are; else all of it or nothing: an
        end may come before the rest, and half a message is an error of its own to some clients.
        """
        connection = self.connection
        if not self._at and len(body) <= connection.wire.piece_bytes:
            written = len(body) if connection.wire.write(self.stream, body) else 0
        else:
            written = connection.wire.write_some(self.stream, body, self._at)
        if written > self._at:
            connection.wrote(written - self._at)
        return written

    def _refuse(self, ending: Ending) -> Excess | None:
        self._end(ending)
        return self.connection.wire.refused()

    def _end(self, ending: Ending | Headers) -> None:
        if isinstance(ending, Ending):
            ending = trailers(ending) if self._begun else alone(ending)
        self._close()
        self.connection.wire.end(self.stream, ending)

    def _close(self) -> None:
        self.done = self._whole = True
        self._rest = None
        self._forget_body()
        self._wait(None)
        self.connection.forget(self)

    def _forget_body(self) -> None:
        if self._body is not None:
            self.connection.server.receiving -= len(self._body)
            self._body = None

    def _wait(self, seconds: float | None) -> None:
        """Have expire() called after so long; None: not at all."""
        server = self.connection.server
        if self._slot is not None:
            server.unwait(self, self._slot)
            self._slot = None
        if seconds is not None:
            self._slot = server.wait(self, seconds)


class EnvelopeCall(Call, Generic[A]):
    """A call whose request is an envelope: `_ask` has something made of it, `_take` takes that."""

    __slots__ = ("_pending",)

    def __init__(self, connection: "Connection", stream: Stream, timeout_s: float | None) -> None:
        super().__init__(connection, stream, timeout_s)
        self._pending: Deferred[A | Ending] | None = None

    @abstractmethod
    def _ask(self, envelope: Envelope) -> Deferred[A | Ending]:
        """What the envelope asks for."""

    @abstractmethod
    def _take(self, made: A) -> None:
        """It is there; the call may be over."""

    def run(self, message: bytes) -> None:
        """Read the envelope, and do what it asks for."""
        envelope = self.connection.server.read_envelope(message)
        if isinstance(envelope, Ending):
            self.fail(envelope)
            return
        self._pending = self._ask(envelope)
        self._pending.addCallbacks(self._made, self._broke)

    def drop(self, reason: str) -> None:
        """Nobody waits for it any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()

    def _made(self, made: A | Ending) -> None:
        self._pending = None
        if isinstance(made, Ending):
            self.fail(made)
        else:
            self._take(made)

    def _broke(self, failure: Failure) -> None:
        """A bug, unless the call is over and gave it up."""
        self._pending = None
        if self.done and isinstance(failure.value, CancelledError):
            return
        _log.failure("A call failed.", failure, event="grpc.call_failed")
        self.fail(FAULT)


class ExecuteCall(EnvelopeCall[Reply]):
    """ExecuteCommand."""

    __slots__ = ()

    def _ask(self, envelope: Envelope) -> Deferred[Reply | Ending]:
        server = self.connection.server
        return server.execute(envelope, None if self.due is None else max(0.0, self.due - server.now()))

    def _take(self, made: Reply) -> None:
        if not self.done:
            self.answer(framed(self.connection.server.write_reply(made)))


@implementer(IOutlet)
class SubscribeCall(EnvelopeCall[PushStream]):
    """SubscribeEvents: a stream of the hub's."""

    __slots__ = ("_push",)

    transport = "grpc"

    def __init__(self, connection: "Connection", stream: Stream, timeout_s: float | None) -> None:
        super().__init__(connection, stream, timeout_s)
        self._push: PushStream | None = None

    def drop(self, reason: str) -> None:
        """The client is gone, or its deadline has passed."""
        push, self._push = self._push, None
        super().drop(reason)
        if push is not None:
            push.gone(reason)

    def emptied(self) -> None:
        """There is room for the next event."""
        if self._push is not None:
            self._push.writable()

    def send(self, event: Event, *, last: bool = False) -> bool:
        """Write the event; False when it waits."""
        return self.done or self.put(event.grpc_message)

    def close(self, ending: Ending) -> None:
        """End the stream: trailers are no part of what windows bound, so that they go before what waits."""
        self._push = None
        self.fail(ending)

    def _ask(self, envelope: Envelope) -> Deferred[PushStream | Ending]:
        return self.connection.server.subscribe(envelope, self)

    def _take(self, made: PushStream) -> None:
        if self.done:
            made.gone("client")
        else:
            self._push = made
            self.begin()
            made.writable()


class CheckCall(Call):
    """grpc.health.v1 Check."""

    __slots__ = ()

    def run(self, message: bytes) -> None:
        """Answer at once."""
        service = read_check(message)
        if service is None:
            self.fail(BAD_FRAMING)
            return
        answer = self.connection.server.health.answer(service)
        if answer == SERVICE_UNKNOWN:
            self.fail(UNKNOWN_SERVICE)
        else:
            self.answer(answer)


class WatchCall(Call):
    """grpc.health.v1 Watch: the state now, and whenever it has changed."""

    __slots__ = ("_said", "_service")

    def __init__(self, connection: "Connection", stream: Stream, timeout_s: float | None) -> None:
        super().__init__(connection, stream, timeout_s)
        self._said = b""
        self._service = ""

    def run(self, message: bytes) -> None:
        """Say the state, and go on watching."""
        service = read_check(message)
        if service is None:
            self.fail(BAD_FRAMING)
            return
        self._service = service
        self.begin()
        self.emptied()
        self.connection.server.health.watch(self.emptied)

    def drop(self, reason: str) -> None:
        """Nobody watches any more."""
        self.connection.server.health.forget(self.emptied)

    def leave(self) -> None:
        """Nobody else ends it."""
        self.fail(SHUTTING_DOWN)
        self.drop("lost")

    def emptied(self) -> None:
        """Say the state unless it was said, or what was said last still waits."""
        answer = self.connection.server.health.answer(self._service)
        if answer != self._said and self._rest is None:
            self._said = answer
            self.put(answer)
            self.connection.unwritten()


METHODS: Final[dict[bytes, type[Call]]] = {
    b"/gatewayd.edge.v1.EdgeGateway/ExecuteCommand": ExecuteCall,
    b"/gatewayd.edge.v1.EdgeGateway/SubscribeEvents": SubscribeCall,
    CHECK: CheckCall,
    WATCH: WatchCall,
}
