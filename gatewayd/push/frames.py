"""
One event and its forms on the wire: protobuf, gRPC, JSON, a WebSocket frame, an SSE frame. Pure.

Decides the bytes of each form. Each is made when it is asked for first and kept: an event for everybody is signed and
encoded once, never per stream. Never decides who gets an event.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Final, Protocol

from msgspec import json

RETAINED_FORMS: Final = 5
"""How often an event's payload is kept at most: itself, as a gRPC message, as two frames in base64 (4/3 each)."""
_OBJECT_BYTES: Final = 1000
"""The event itself and the entry that holds it. Measured in all, with payloads of 0, 200 and 2,000 bytes and every form
made: 2.2, 3.1 and 10.0 KB an event; counted are 2.5, 3.5 and 12.5."""

_TEXT_FRAME: Final = 0x81  # FIN and the opcode of text (RFC 6455, 5.2)


class EventInput(Protocol):
    """What of an event is signed, as bytes."""

    def __call__(
        self,
        *,
        event_type: str,
        event_id: str,
        timestamp_ms: int,
        request_id: str,
        trace_id: str,
        payload_hash: bytes,
        position: str,
    ) -> bytes:
        """The signing input."""


class EventSigner:
    """Signs events: `sign` is Ed25519 by the gateway's key of this moment, `event_input` the bytes that it signs."""

    def __init__(self, sign: Callable[[bytes], bytes], event_input: EventInput) -> None:
        self._sign = sign
        self._input = event_input

    def signature(self, event: "Event") -> bytes:
        """64 bytes."""
        return self._sign(
            self._input(
                event_type=event.event_type,
                event_id=event.event_id,
                timestamp_ms=event.timestamp_ms,
                request_id=event.request_id,
                trace_id=event.trace_id,
                payload_hash=event.payload_hash,
                position=event.position,
            )
        )


class Event:
    """
    One GatewayEvent. Immutable for whoever holds it; the forms are views of it.

    Texts are valid Unicode of bounded length; `timestamp_ms` is not negative; `position` is push.position's text.
    `size` is about what one copy of it takes, in bytes, for the bounds of what waits.
    """

    __slots__ = (
        "_grpc_message",
        "_payload_hash",
        "_signature",
        "_signer",
        "_sse_frame",
        "_websocket_frame",
        "event_id",
        "event_type",
        "payload",
        "position",
        "request_id",
        "size",
        "timestamp_ms",
        "trace_id",
    )

    def __init__(
        self,
        signer: EventSigner,
        *,
        event_type: str,
        event_id: str,
        timestamp_ms: int,
        payload: bytes,
        position: str,
        request_id: str = "",
        trace_id: str = "",
    ) -> None:
        self.event_type = event_type
        self.event_id = event_id
        self.timestamp_ms = timestamp_ms
        self.payload = payload
        self.request_id = request_id
        self.trace_id = trace_id
        self.position = position
        self.size = len(payload) + len(event_type) + len(event_id) + len(request_id) + len(trace_id) + 256
        self._signer = signer
        self._payload_hash: bytes | None = None
        self._signature: bytes | None = None
        self._grpc_message: bytes | None = None
        self._websocket_frame: bytes | None = None
        self._sse_frame: bytes | None = None

    def moved(self, position: str) -> "Event":
        """The same event at another position, signed anew when it is sent."""
        other = Event(
            self._signer,
            event_type=self.event_type,
            event_id=self.event_id,
            timestamp_ms=self.timestamp_ms,
            payload=self.payload,
            position=position,
            request_id=self.request_id,
            trace_id=self.trace_id,
        )
        other._payload_hash = self._payload_hash
        return other

    @property
    def retained_bytes(self) -> int:
        """What it may take in memory with every form made."""
        return _OBJECT_BYTES + RETAINED_FORMS * self.size

    @property
    def payload_hash(self) -> bytes:
        """SHA-256 of the payload."""
        if self._payload_hash is None:
            self._payload_hash = sha256(self.payload).digest()
        return self._payload_hash

    @property
    def signature(self) -> bytes:
        """The gateway's, made at the first use: an event that nobody takes costs none (measured: 50 us)."""
        if self._signature is None:
            self._signature = self._signer.signature(self)
        return self._signature

    @property
    def message(self) -> bytes:
        """The protobuf message: fields in order, empty ones left out, as every proto3 encoder does."""
        return self.grpc_message[5:]

    @property
    def grpc_message(self) -> bytes:
        """The message behind its five bytes of gRPC: not compressed, and its length."""
        if self._grpc_message is None:
            message = b"".join(
                (
                    _field(1, self.event_type.encode()),
                    _field(2, self.event_id.encode()),
                    b"\x18" + _varint(self.timestamp_ms) if self.timestamp_ms else b"",
                    _field(4, self.payload),
                    _field(5, self.payload_hash),
                    _field(6, self.signature),
                    _field(7, self.request_id.encode()),
                    _field(8, self.trace_id.encode()),
                    _field(9, self.position.encode()),
                )
            )
            self._grpc_message = b"\0" + len(message).to_bytes(4, "big") + message
        return self._grpc_message

    @property
    def json(self) -> bytes:
        """An object with every member, bytes as base64url without padding; one line, whatever the members hold."""
        return json.encode(
            {
                "event_type": self.event_type,
                "event_id": self.event_id,
                "timestamp_ms": self.timestamp_ms,
                "payload_bytes": _base64url(self.payload),
                "payload_hash": _base64url(self.payload_hash),
                "signature": _base64url(self.signature),
                "request_id": self.request_id,
                "trace_id": self.trace_id,
                "position": self.position,
            }
        )

    @property
    def websocket_frame(self) -> bytes:
        """A whole text frame from the server: not masked, so the same for every receiver."""
        if self._websocket_frame is None:
            self._websocket_frame = text_frame(self.json)
        return self._websocket_frame

    @property
    def sse_frame(self) -> bytes:
        """One event of a text/event-stream: the position as its id, the JSON on one line."""
        if self._sse_frame is None:
            self._sse_frame = b"id: %b\ndata: %b\n\n" % (self.position.encode(), self.json)
        return self._sse_frame


def text_frame(text: bytes) -> bytes:
    """An unmasked WebSocket frame with a whole text message (RFC 6455, 5.2)."""
    size = len(text)
    if size < 126:
        return bytes((_TEXT_FRAME, size)) + text
    if size < 65_536:
        return bytes((_TEXT_FRAME, 126)) + size.to_bytes(2, "big") + text
    return bytes((_TEXT_FRAME, 127)) + size.to_bytes(8, "big") + text


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf; nothing when it is empty."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content if content else b""


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def _base64url(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode("ascii")
