"""
Signed requests and answers as bytes: protobuf messages and JSON texts. Pure.

Decides the form and the bound of every member, and names the first one that breaks them; a member that is not known is
ignored, as protobuf does it. Never checks a hash, a signature or a time (sessions.verification does), and never shows
anything of what was sent.
"""

import re
from typing import Final

import msgspec
from google.protobuf.message import DecodeError

from gatewayd.ingress import strict
from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandRequest, ExecuteCommandResponse
from gatewayd.sessions.encodings import read_base64url, write_base64url
from gatewayd.sessions.endings import Ending, malformed
from gatewayd.sessions.signing import HASH_BYTES, SIGNATURE_BYTES
from gatewayd.sessions.values import Envelope, Reply

MAX_PAYLOAD_BYTES: Final = 4 * 1024 * 1024
MAX_ID_CHARACTERS: Final = 128
MAX_MESSAGE_TYPE_CHARACTERS: Final = 512
"""Longer than an id: a subscription's message type carries its filter."""

# Printable ASCII without blanks: UUIDs, ULIDs, base64, trace ids and dotted names fit; no such text breaks a log line,
# a header of HTTP or NATS or a key of Redis, and none looks like another one.
ID: Final = re.compile(rf"[!-~]{{1,{MAX_ID_CHARACTERS}}}")
_TRACE_ID: Final = re.compile(rf"[!-~]{{0,{MAX_ID_CHARACTERS}}}")
_MESSAGE_TYPE: Final = re.compile(rf"[!-~]{{1,{MAX_MESSAGE_TYPE_CHARACTERS}}}")
_LAST_MS: Final = 2**63 - 1
_WHOLE: Final = re.compile(rb"-?[0-9]{1,20}")  # int() would take thousands of digits

_TEXTS: Final = ("protocol_version", "device_session_id", "message_type", "request_id", "trace_id")
_BYTES: Final = ("payload_bytes", "payload_hash", "signature")

NOT_PROTOBUF: Final = malformed("envelope", "is not the protobuf message of this call")
NOT_JSON: Final = malformed("envelope", "is not one object in strict JSON")
TOO_LARGE: Final = malformed("payload_bytes", "has more than 4 MiB")


def read_protobuf(message: bytes) -> Envelope | Ending:
    """
    The envelope in an ExecuteCommandRequest or a SubscribeEventsRequest, which have the same members; else
    INVALID_ARGUMENT, naming the first member that is missing or malformed.
    """
    try:
        read = ExecuteCommandRequest.FromString(message)
    except DecodeError:
        return NOT_PROTOBUF
    return _checked(
        Envelope(
            read.protocol_version,
            read.device_session_id,
            read.message_type,
            read.timestamp_ms,
            read.request_id,
            read.payload_bytes,
            read.payload_hash,
            read.signature,
            read.trace_id,
        )
    )


def read_json(text: bytes | str) -> Envelope | Ending:
    """
    The envelope in a JSON object with the members of the protobuf message, bytes in base64url without padding and
    timestamp_ms as a number; else INVALID_ARGUMENT. A member that is null counts as left out.
    """
    members = strict.read(text.encode() if isinstance(text, str) else text)
    if not isinstance(members, dict):
        return NOT_JSON
    texts: dict[str, str] = {}
    for name in _TEXTS:
        text_of = members.get(name)
        if text_of is not None and not isinstance(text_of, str):
            return malformed(name)
        texts[name] = text_of or ""
    values: dict[str, bytes] = {}
    for name in _BYTES:
        encoded = members.get(name)
        value = read_base64url(encoded or "") if encoded is None or isinstance(encoded, str) else None
        if value is None:
            return malformed(name)
        values[name] = value
    at = members.get("timestamp_ms", b"0")
    if not isinstance(at, bytes) or _WHOLE.fullmatch(at) is None:
        return malformed("timestamp_ms")
    return _checked(
        Envelope(
            texts["protocol_version"],
            texts["device_session_id"],
            texts["message_type"],
            int(at),
            texts["request_id"],
            values["payload_bytes"],
            values["payload_hash"],
            values["signature"],
            texts["trace_id"],
        )
    )


def _checked(envelope: Envelope) -> Envelope | Ending:
    """The same envelope when every member has its form and bound; protobuf cannot tell a zero from an absent member."""
    if ID.fullmatch(envelope.protocol_version) is None:
        return malformed("protocol_version")
    if ID.fullmatch(envelope.device_session_id) is None:
        return malformed("device_session_id")
    if _MESSAGE_TYPE.fullmatch(envelope.message_type) is None:
        return malformed("message_type")
    if not 0 < envelope.timestamp_ms <= _LAST_MS:
        return malformed("timestamp_ms")
    if ID.fullmatch(envelope.request_id) is None:
        return malformed("request_id")
    if len(envelope.payload) > MAX_PAYLOAD_BYTES:
        return TOO_LARGE
    if len(envelope.payload_hash) != HASH_BYTES:
        return malformed("payload_hash")
    if len(envelope.signature) != SIGNATURE_BYTES:
        return malformed("signature")
    if _TRACE_ID.fullmatch(envelope.trace_id) is None:
        return malformed("trace_id")
    return envelope


def write_protobuf(reply: Reply) -> bytes:
    """The ExecuteCommandResponse."""
    return ExecuteCommandResponse(
        protocol_version=reply.protocol_version,
        request_id=reply.request_id,
        timestamp_ms=reply.timestamp_ms,
        result_code=reply.result_code,
        payload_bytes=reply.payload,
        payload_hash=reply.payload_hash,
        signature=reply.signature,
    ).SerializeToString()


def write_json(reply: Reply) -> bytes:
    """The same members as a JSON object, bytes in base64url without padding."""
    return msgspec.json.encode(
        {
            "protocol_version": reply.protocol_version,
            "request_id": reply.request_id,
            "timestamp_ms": reply.timestamp_ms,
            "result_code": reply.result_code,
            "payload_bytes": write_base64url(reply.payload),
            "payload_hash": write_base64url(reply.payload_hash),
            "signature": write_base64url(reply.signature),
        }
    )
