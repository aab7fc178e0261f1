"""An event and its forms."""

import json
from base64 import b64decode, urlsafe_b64decode
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from gatewayd.push.frames import Event, EventSigner
from gatewayd.schemas.edge_v1_pb2 import GatewayEvent
from gatewayd.sessions.signing import event_input, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


class Counting:
    """A key that counts how often it signs."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, signed: bytes) -> bytes:
        self.count += 1
        return KEY.sign(signed)


def event(payload: bytes = b"payload", sign: Counting | None = None, **members: str) -> Event:
    members = {
        "event_type": "trade.filled",
        "event_id": "ev-1",
        "request_id": "request-parity",
        "trace_id": "trace-1",
        "position": "1700000000000-0",
        **members,
    }
    signer = EventSigner(sign or KEY.sign, event_input)
    return Event(signer, timestamp_ms=1_700_000_000_000, payload=payload, **members)


def decoded(text: str) -> bytes:
    assert "=" not in text
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class FormsTest(SynchronousTestCase):
    """Every form is the same event."""

    def test_known_signature(self) -> None:
        """The published event has the published signature."""
        known = json.loads((Path(__file__).parents[2] / "vectors" / "edge_signatures.json").read_text())["event"]
        self.assertEqual(event(**known["members"]).signature, b64decode(known["signature"]))

    @given(st.binary(max_size=300), TEXT, TEXT, TEXT, TEXT)
    def test_protobuf(self, payload: bytes, event_type: str, event_id: str, request_id: str, trace_id: str) -> None:
        """The bytes are those of the official encoder, whatever the members hold; gRPC's prefix says their length."""
        made = event(payload, event_type=event_type, event_id=event_id, request_id=request_id, trace_id=trace_id)
        official = GatewayEvent(
            event_type=event_type,
            event_id=event_id,
            timestamp_ms=1_700_000_000_000,
            payload_bytes=payload,
            payload_hash=sha256(payload).digest(),
            signature=made.signature,
            request_id=request_id,
            trace_id=trace_id,
            position="1700000000000-0",
        ).SerializeToString(deterministic=True)
        self.assertEqual(made.message, official)
        self.assertEqual(made.grpc_message, b"\0" + len(official).to_bytes(4, "big") + official)

    @given(st.binary(max_size=70_000), TEXT)
    def test_json_frames(self, payload: bytes, event_type: str) -> None:
        """The WebSocket message and the SSE data are the same JSON, and no payload or text can end either early."""
        made = event(payload, event_type=event_type)
        client = Connection(ConnectionType.CLIENT)
        client.receive_data(made.websocket_frame)
        parts = list(client.events())
        self.assertTrue(all(isinstance(part, TextMessage) for part in parts))
        text = "".join(part.data for part in parts if isinstance(part, TextMessage))
        position, data, *rest = made.sse_frame.split(b"\n")
        self.assertEqual((position, rest), (b"id: 1700000000000-0", [b"", b""]))
        self.assertEqual(data, b"data: " + text.encode())
        self.assertNotIn(b"\r", made.sse_frame)
        members = json.loads(text)
        self.assertEqual(decoded(members["payload_bytes"]), payload)
        self.assertEqual(decoded(members["payload_hash"]), sha256(payload).digest())
        self.assertEqual(decoded(members["signature"]), made.signature)
        self.assertEqual((members["event_type"], members["timestamp_ms"]), (event_type, 1_700_000_000_000))

    def test_frame_lengths(self) -> None:
        """Each form of a WebSocket length is right at its ends."""
        for size in (0, 1, 60_000, 80_000):
            frame = event(bytes(size)).websocket_frame
            client = Connection(ConnectionType.CLIENT)
            client.receive_data(frame)
            self.assertTrue(list(client.events())[-1].message_finished)

    def test_made_once(self) -> None:
        """However many forms and streams, an event is signed once, and not before the first of them."""
        sign = Counting()
        made = event(sign=sign)
        self.assertEqual(sign.count, 0)
        for _ in range(3):
            frames = (made.websocket_frame, made.sse_frame, made.grpc_message)
        self.assertIs(made.websocket_frame, frames[0])
        self.assertEqual(sign.count, 1)

    def test_moved(self) -> None:
        """At another position it is signed for that position, and nothing else of it changes."""
        moved = event().moved("1700000000001-0")
        signed = event_input(
            moved.event_type,
            moved.event_id,
            moved.timestamp_ms,
            moved.request_id,
            moved.trace_id,
            moved.payload_hash,
            "1700000000001-0",
        )
        self.assertTrue(verify(PUBLIC, moved.signature, signed))
        self.assertNotEqual(moved.signature, event().signature)
        self.assertEqual(json.loads(moved.json)["payload_bytes"], json.loads(event().json)["payload_bytes"])
