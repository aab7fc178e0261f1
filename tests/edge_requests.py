"""
A client's side of the edge: sessions with keys of their own, and signed envelopes in both encodings.

Decides nothing of what is accepted; every member can be made wrong.
"""

import base64
import hashlib
import json
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandRequest
from gatewayd.sessions.signing import request_input
from gatewayd.sessions.values import Envelope, Session

NOW_MS: Final = 1_700_000_000_000
SESSION: Final = "device-session-1"
USER: Final = "user-1"


def private_key(seed: int = 1) -> Ed25519PrivateKey:
    """One key for each seed."""
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def session(name: str = SESSION, *, user: str = USER, seed: int = 1, revoked: bool = False) -> Session:
    """A session whose client holds private_key(seed)."""
    public = private_key(seed).public_key().public_bytes_raw()
    return Session(name, user, public, NOW_MS if revoked else None, revoked)


def snapshot_fields(of: Session) -> dict[str, str]:
    """The fields of a session's entry in the session stream."""
    fields = {
        "device_session_id": of.device_session_id,
        "user_id": of.user_id,
        "client_public_key": base64.b64encode(of.client_public_key).decode(),
        "status": "revoked" if of.revoked else "active",
    }
    if of.revoked_at_ms is not None:
        fields["revoked_at_ms"] = str(of.revoked_at_ms)
    return fields


def signed(envelope: Envelope, seed: int = 1) -> Envelope:
    """The same envelope with the signature of private_key(seed)."""
    return replace(envelope, signature=private_key(seed).sign(request_input(envelope)))


def request(
    request_id: str = "request-1", *, payload: bytes = b"payload", seed: int = 1, at_ms: int = NOW_MS, **others: Any
) -> Envelope:
    """A signed request; `others` are members that are signed as they are given."""
    envelope = Envelope(
        "v1",
        SESSION,
        "user.command",
        at_ms,
        request_id,
        payload,
        hashlib.sha256(payload).digest(),
        bytes(64),
        "trace-1",
    )
    return signed(replace(envelope, **others), seed)


def as_protobuf(envelope: Envelope) -> bytes:
    """The message on the wire."""
    return ExecuteCommandRequest(
        protocol_version=envelope.protocol_version,
        device_session_id=envelope.device_session_id,
        message_type=envelope.message_type,
        timestamp_ms=envelope.timestamp_ms,
        request_id=envelope.request_id,
        payload_bytes=envelope.payload,
        payload_hash=envelope.payload_hash,
        signature=envelope.signature,
        trace_id=envelope.trace_id,
    ).SerializeToString()


def base64url(value: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def members(envelope: Envelope) -> dict[str, Any]:
    """The members of the JSON form."""
    return {
        "protocol_version": envelope.protocol_version,
        "device_session_id": envelope.device_session_id,
        "message_type": envelope.message_type,
        "timestamp_ms": envelope.timestamp_ms,
        "request_id": envelope.request_id,
        "payload_bytes": base64url(envelope.payload),
        "payload_hash": base64url(envelope.payload_hash),
        "signature": base64url(envelope.signature),
        "trace_id": envelope.trace_id,
    }


def as_json(envelope: Envelope) -> bytes:
    """The text on a WebSocket or in a body."""
    return json.dumps(members(envelope)).encode()
