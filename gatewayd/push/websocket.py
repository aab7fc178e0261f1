"""
One WebSocket: the envelope that opens its stream, the stream's events, and commands beside them.

Decides what each message of a client is taken for, which answers it gets, when a silent client is gone, and with which
code a connection closes. Never checks an envelope, never runs a command, never parses a frame: its collaborators do.

Three kinds of messages go out, all JSON objects: events, which have `event_type`; replies to commands, which have
`result_code`; refusals of commands, which have `error` and, where the command could be read, its `request_id`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.push.api import Execute, IOutlet, PushStream, Subscribe
from gatewayd.push.connections import Connections
from gatewayd.push.frames import Event, text_frame
from gatewayd.push.inbound import (
    PING,
    Binary,
    Broken,
    Closed,
    FrameLimits,
    Inbound,
    Pinged,
    Received,
    Text,
    close_frame,
    pong_frame,
)
from gatewayd.push.outlet import CHECKING, CLOSING, FINISHED, OPEN, OPENING, UNREAD_BYTES, Outlet
from gatewayd.push.refusals import close_reason, error_members
from gatewayd.sessions.endings import FAULT, LIMITED, OVERFLOWED, SHUTTING_DOWN, Ending
from gatewayd.sessions.values import Envelope, Reply
from gatewayd.times import Monotonic

FIRST_MESSAGE_S: Final = 5.0
PING_S: Final = 20.0
PONG_S: Final = 10.0
COMMANDS: Final = 8
"""Commands of one client that may be under way; further ones are refused."""

_NO_ENVELOPE: Final = close_frame(1008, b"no envelope came in time")
_NOT_TEXT: Final = Broken(1003, b"only text is taken")

_log: Final = Logger()


@dataclass(frozen=True, slots=True)
class Services:
    """Who does what a client asks for; the same for every connection."""

    subscribe: Subscribe
    execute: Execute
    read_envelope: Callable[[bytes], Envelope | Ending]
    """A JSON text's envelope."""
    write_reply: Callable[[Reply], bytes]
    """The JSON text of a reply."""
    limits: FrameLimits = field(default_factory=FrameLimits)


@implementer(IProtocol, IPushProducer, IOutlet)
class WebSocketStream(Outlet):
    """`head` is the answer to the handshake."""

    __slots__ = ("_attempt", "_commands", "_head", "_inbound", "_pinged", "_services")

    transport = "websocket"

    def __init__(self, connections: Connections, services: Services, head: bytes) -> None:
        super().__init__(connections)
        self._services = services
        self._head = head
        self._inbound: Inbound | None = None
        self._attempt: Deferred[PushStream | Ending] | None = None
        self._commands = 0
        self._pinged = False

    # -- Outlet and IOutlet ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See Outlet."""
        head, self._head = self._head, b""
        self._put(head)
        self.deadline = self._connections.now() + FIRST_MESSAGE_S

    def send(self, event: Event, *, last: bool = False) -> bool:
        """See IOutlet."""
        return (self._write if last else self._put)(event.websocket_frame)

    def close(self, ending: Ending) -> None:
        """See IOutlet. The client answers with its own close frame, or has none of it for long."""
        if self._phase >= CLOSING:
            return
        self._put(close_frame(ending.close_code, close_reason(ending)))
        self._begin_end(CLOSING)

    def expire(self, now: Monotonic) -> None:
        """See Outlet."""
        if self._phase is CLOSING and not self._paused:
            self._finish()  # the close frame was taken, and not answered
        elif self._phase >= CLOSING:
            self.cut()
        elif self._phase is OPENING:
            self._fail(_NO_ENVELOPE, "deadline")
        elif self._pinged:
            self._leave("idle")
            self.cut()
        else:
            self._pinged = True
            self.deadline = now + PONG_S
            self._answer(PING)

    def retire(self) -> None:
        """See Outlet: an open stream is the hub's."""
        if self._phase < OPEN:
            self.close(SHUTTING_DOWN)
            self._give_up()

    def connectionLost(self, reason: Failure) -> None:
        """See Outlet."""
        super().connectionLost(reason)
        self._inbound = None
        self._give_up()

    # -- what the client sends ---------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes of frames; anything shows that the client is there."""
        if self._phase >= FINISHED:
            self._drop(data)
            return
        now = self._connections.now()
        if CHECKING <= self._phase <= OPEN:
            self._pinged = False
            self.deadline = now + PING_S
        if self._inbound is None:
            self._inbound = Inbound(self._services.limits)
        for received in self._inbound.read(data, now):
            self._take(received)
            if self._phase >= FINISHED:
                return

    def _take(self, received: Received) -> None:
        if isinstance(received, Broken):
            self._fail(close_frame(received.code, received.reason), "protocol")
        elif isinstance(received, Closed):
            self._closed(received)
        elif self._phase is CLOSING:
            return  # the end was said; only the client's own is awaited
        elif isinstance(received, Pinged):
            self._answer(pong_frame(received.payload))
        elif isinstance(received, Binary):
            self._fail(close_frame(_NOT_TEXT.code, _NOT_TEXT.reason), "protocol")
        elif self._phase is OPENING:
            self._open(received)
        else:
            self._command(received)

    def _closed(self, received: Closed) -> None:
        """The client's close frame: the answer to ours, or the first, which is answered with the same code."""
        if self._phase < CLOSING:
            self._put(close_frame(received.code))
            self._leave("client")
            self._give_up()
        self._finish()

    def _open(self, text: Text) -> None:
        """The first message: check it, and open the stream."""
        envelope = self._services.read_envelope(text.data)
        if isinstance(envelope, Ending):
            self.close(envelope)
            return
        self._phase = CHECKING
        self.deadline = self._connections.now() + PING_S
        self._attempt = attempt = self._services.subscribe(envelope, self)
        attempt.addCallbacks(self._opened, self._not_opened)

    def _opened(self, opened: "PushStream | Ending") -> None:
        given_up, self._attempt = self._attempt is None, None
        if isinstance(opened, Ending):
            self.close(opened)
        elif given_up:
            opened.gone("client")
        else:
            self._phase = OPEN
            self._stream = opened
            if not self._paused:
                opened.writable()

    def _not_opened(self, failure: Failure) -> None:
        if self._attempt is None:  # cancelled here
            return
        self._attempt = None
        _log.failure("A stream could not be opened.", failure, event="push_open_failed")
        self.close(FAULT)

    def _give_up(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()

    # -- commands ----------------------------------------------------------------------------------------------------

    def _command(self, text: Text) -> None:
        """
        Any further message. A command that was taken is carried out also when the client goes away: whether it had an
        effect must not depend on how long the client stayed.
        """
        envelope = self._services.read_envelope(text.data)
        if isinstance(envelope, Ending):
            self._refuse(envelope, None)
        elif self._commands >= COMMANDS:
            self._refuse(LIMITED, envelope.request_id)
        else:
            self._commands += 1
            executing = self._services.execute(envelope, None)
            executing.addErrback(_fault).addCallback(self._replied, envelope.request_id)

    def _replied(self, reply: Reply | Ending, request_id: str) -> None:
        self._commands -= 1
        if isinstance(reply, Ending):
            self._refuse(reply, request_id)
        else:
            self._answer(text_frame(self._services.write_reply(reply)))

    def _refuse(self, ending: Ending, request_id: str | None) -> None:
        members: dict[str, object] = {} if request_id is None else {"request_id": request_id}
        members["error"] = error_members(ending.reason, ending.message, ending.retry_after_ms)
        self._answer(text_frame(msgspec.json.encode(members)))

    def _answer(self, frame: bytes) -> None:
        """Put what is no event. A client that goes on asking and reads nothing ends as one that reads too slowly."""
        if self._phase >= CLOSING:
            return
        if not self._put(frame) and self._put_bytes > UNREAD_BYTES:
            self._leave("overflow")
            self.close(OVERFLOWED)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _fail(self, frame: bytes, reason: str) -> None:
        """End the connection at once, behind this close frame (RFC 6455 7.1.7)."""
        if self._phase < CLOSING:
            self._put(frame)
            self._leave(reason)
            self._give_up()
        self._finish()


def _fault(failure: Failure) -> Ending:
    _log.failure("A command failed.", failure, event="command_failed")
    return FAULT
