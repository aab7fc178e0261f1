"""
What a WebSocket client sends: frames in, values out; and the control frames that answer it. Pure; the only module that
knows wsproto.

Decides what a frame is (wsproto does), how large a message may be, in how many fragments and how many frames a second
may come, and which close code each breach has. Never decides what is answered: the stream does.

wsproto's connection is made with the first byte of a message and dropped behind its last one, so that an idle client
costs nothing for it: 1.7 KB each, measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from msgspec import Struct
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from gatewayd.times import Monotonic

_MASK_BYTES: Final = 4
_EMPTY_PONG: Final = b"\x8a\x80"
"""FIN and pong; masked, without a payload. The mask follows."""


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What one client may send: bytes and fragments of a message, frames a second and at once."""

    message_bytes: int = 65536
    fragments: int = 64
    frames_per_s: float = 20.0
    burst: int = 100


class Text(Struct, frozen=True):
    """A whole text message, in UTF-8."""

    data: bytes


class Binary(Struct, frozen=True):
    """A whole binary message."""

    data: bytes


class Pinged(Struct, frozen=True):
    """A ping, to be answered with the same payload of up to 125 bytes."""

    payload: bytes


class Closed(Struct, frozen=True):
    """The client's close frame; `code` None when it has none."""

    code: int | None


class Broken(Struct, frozen=True):
    """The client broke a rule: close with this code and this fixed text. Nothing is read after it."""

    code: int
    reason: bytes


Received: TypeAlias = Text | Binary | Pinged | Closed | Broken

PROTOCOL_ERROR: Final = Broken(1002, b"protocol error")
INVALID_UTF8: Final = Broken(1007, b"text is not UTF-8")
TOO_MANY_FRAMES: Final = Broken(1008, b"too many frames")
TOO_BIG: Final = Broken(1009, b"message too big")


class Inbound:
    """The frames of one client. `limits` is shared by all."""

    __slots__ = ("_connection", "_consumed", "_fed", "_fragments", "_full_at", "_limits", "_message")

    def __init__(self, limits: FrameLimits) -> None:
        self._limits = limits
        self._connection: Connection | None = None
        self._message: bytearray | None = None
        self._fragments = 0
        # Bytes given to this wsproto connection, and those known to be read by it; -1 once that cannot be said.
        self._fed = self._consumed = 0
        # When the bucket of frames has filled up again.
        self._full_at = 0.0

    @property
    def at_rest(self) -> bool:
        """True between two messages, when nothing is kept."""
        return self._connection is None

    def read(self, data: bytes, now: Monotonic) -> Iterator[Received]:
        """What these bytes complete, in order. Must be iterated to its end, or never be called again."""
        if self._connection is None:
            if len(data) == len(_EMPTY_PONG) + _MASK_BYTES and data.startswith(_EMPTY_PONG):
                # The answer to our ping, which is all that most clients ever send: 2 us in place of 100.
                if not self._take(now):
                    yield TOO_MANY_FRAMES
                return
            self._connection = Connection(ConnectionType.SERVER)
            self._fed = self._consumed = 0
        self._fed += len(data)
        self._connection.receive_data(data)
        for event in self._connection.events():
            received = self._judge(event, now)
            if received is not None:
                yield received
                if isinstance(received, Broken):
                    return
        if self._fed == self._consumed:
            self._connection = None

    def _judge(self, event: Event, now: Monotonic) -> Received | None:
        if isinstance(event, TextMessage | BytesMessage):
            return self._judge_piece(event, now)
        if not self._take(now):
            return TOO_MANY_FRAMES
        if isinstance(event, CloseConnection):
            self._consumed = -1
            if self._connection is not None and self._connection.state is ConnectionState.OPEN:
                # wsproto says what it cannot read as a close that nobody has sent; its reasons quote the client.
                return INVALID_UTF8 if event.code == CloseReason.INVALID_FRAME_PAYLOAD_DATA else PROTOCOL_ERROR
            return Closed(None if event.code == CloseReason.NO_STATUS_RCVD else int(event.code))
        payload = bytes(event.payload)  # type: ignore[attr-defined] # a Ping or a Pong: there is nothing else
        self._count(len(payload))
        return Pinged(payload) if isinstance(event, Ping) else None

    def _judge_piece(self, event: TextMessage | BytesMessage, now: Monotonic) -> Received | None:
        """A piece of a message: a frame, or as much of it as has come."""
        message, data = self._message, event.data
        if message is None:
            message = self._message = bytearray()
        message += data.encode("utf-8") if isinstance(data, str) else data
        if len(message) > self._limits.message_bytes:
            return TOO_BIG
        if event.frame_finished:
            self._fragments += 1
            if self._fragments > self._limits.fragments:
                return TOO_BIG
            if not self._take(now):
                return TOO_MANY_FRAMES
        if not event.message_finished:
            if event.frame_finished:
                # Of a text that is cut within a character it cannot be told how long each frame was.
                self._consumed = -1
            return None
        self._message, self._fragments = None, 0
        self._count(len(message))
        whole = bytes(message)
        return Text(whole) if isinstance(event, TextMessage) else Binary(whole)

    def _count(self, payload_bytes: int) -> None:
        """A whole frame was read: its head has 6 bytes, and those of a longer length."""
        if self._consumed >= 0:
            longer = 0 if payload_bytes < 126 else 2 if payload_bytes < 65536 else 8
            self._consumed += 2 + _MASK_BYTES + longer + payload_bytes

    def _take(self, now: Monotonic) -> bool:
        """One frame of the bucket; False when it is empty."""
        per_frame_s = 1.0 / self._limits.frames_per_s
        full_at = max(self._full_at, now) + per_frame_s
        if full_at - now > self._limits.burst * per_frame_s:
            return False
        self._full_at = full_at
        return True


PING: Final = b"\x89\x00"


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping; its payload has at most 125 bytes."""
    return b"\x8a%c%b" % (len(payload), payload)


def close_frame(code: int | None, reason: bytes = b"") -> bytes:
    """A close frame; `reason` has at most 123 bytes of UTF-8. Without a code it is empty."""
    payload = b"" if code is None else code.to_bytes(2, "big") + reason
    return b"\x88%c%b" % (len(payload), payload)
