"""
What the push bench's servers and its load agree on: who the streams are, how they are opened, how an event says when
it was published. Pure, but for chance in request ids.

One client key signs for every session. A mark stands in every event: its number and the moment of its publishing on the
machine's monotonic clock, which is one for all processes.
"""

import json
from hashlib import sha256
from secrets import token_hex
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandRequest
from gatewayd.sessions.encodings import write_base64url
from gatewayd.sessions.signing import request_input
from gatewayd.sessions.values import Envelope
from tests.websockets import text, upgrade

CLIENT_KEY: Final = Ed25519PrivateKey.from_private_bytes(sha256(b"every client of the bench").digest())
STREAMS_A_SESSION: Final = 10
SESSIONS_A_USER: Final = 25
STREAMS_A_USER: Final = STREAMS_A_SESSION * SESSIONS_A_USER
CALLS_A_CONNECTION: Final = 100

MARK: Final = b"evt:"
"""The colon is in no base64: a signature cannot look like a mark."""
MARK_CHARS: Final = 29
"""Behind MARK: 8 digits of its number, a hyphen, 20 of nanoseconds."""

EXECUTE: Final = b"/gatewayd.edge.v1.EdgeGateway/ExecuteCommand"
SUBSCRIBE: Final = b"/gatewayd.edge.v1.EdgeGateway/SubscribeEvents"
EVENTS_PATH: Final = "/edge/v1/events"

DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
"""HTTP/2's frames and flags: RFC 9113, 6."""


def session_of(stream: int, *, own: bool) -> str:
    """The session of a stream; `own`: none has another stream."""
    return f"own-{stream}" if own else f"shared-{stream // STREAMS_A_SESSION}"


def user_of(session: str) -> str:
    """The user of a session."""
    kind, _, number = session.partition("-")
    return f"{kind}-user-{int(number) // SESSIONS_A_USER}"


def mark_of(number: int, now_ns: int) -> bytes:
    """What stands in an event that is published now."""
    return b"%b%08d-%020d" % (MARK, number, now_ns)


def signed(session: str, message_type: str, now_ms: int, payload: bytes = b"") -> Envelope:
    """An envelope as a client sends it."""
    made = Envelope("v1", session, message_type, now_ms, token_hex(8), payload, sha256(payload).digest(), b"", "bench")
    return structs.replace(made, signature=CLIENT_KEY.sign(request_input(made)))


def as_json(envelope: Envelope) -> bytes:
    """Its JSON text."""
    members = structs.asdict(envelope)
    members["payload_bytes"] = members.pop("payload")
    return json.dumps(
        {name: write_base64url(one) if isinstance(one, bytes) else one for name, one in members.items()}
    ).encode()


def as_protobuf(envelope: Envelope) -> bytes:
    """Its message, which is the same for both methods, behind gRPC's five bytes."""
    members = structs.asdict(envelope)
    members["payload_bytes"] = members.pop("payload")
    message: bytes = ExecuteCommandRequest(**members).SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def opening(kind: str, envelope: Envelope) -> bytes:
    """What a client sends to have a stream, of gRPC the message alone; nchan's have no envelope."""
    if kind == "grpc":
        return as_protobuf(envelope)
    if kind == "websocket":
        return upgrade(EVENTS_PATH) + text(as_json(envelope))
    if kind == "nchan websocket":
        return upgrade("/subscribe", sec_websocket_protocol=None)
    if kind == "nchan sse":
        return b"GET /subscribe HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"
    body = as_json(envelope)
    head = f"POST {EVENTS_PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
    return b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def preface() -> bytes:
    """A client's first bytes: with windows that no run fills, so that none is ever enlarged."""
    most = (2**31 - 1).to_bytes(4, "big")
    opened = frame(SETTINGS, 0, 0, b"\0\4" + most) + frame(WINDOW_UPDATE, 0, 0, (2**31 - 65536).to_bytes(4, "big"))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + opened


def call(stream_id: int, path: bytes, message: bytes) -> bytes:
    """A whole gRPC call: its head (RFC 7541, literals without indexing, no Huffman code) and its one message."""
    fields = b"\x83\x86" + b"".join(
        name + bytes((len(value),)) + value
        for name, value in (
            (b"\x04", path),
            (b"\x01", b"a"),
            (b"\x0f\x10", b"application/grpc"),
            (b"\0\x02te", b"trailers"),
        )
    )
    return frame(HEADERS, END_HEADERS, stream_id, fields) + frame(DATA, END_STREAM, stream_id, message)
