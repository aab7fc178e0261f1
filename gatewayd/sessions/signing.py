"""
What is signed, and whether a signature is good: the three signing inputs and Ed25519. Pure.

Decides the exact bytes under each signature and which public keys are fit to verify with. Never serialises a message,
never reads a key from a file (sessions.keys does).
"""

from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gatewayd.sessions.values import Envelope

HASH_BYTES: Final = 32
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


def _lp(text: bytes) -> bytes:
    """The text behind its length as an unsigned varint."""
    size = len(text)
    if size < 0x80:
        return bytes((size,)) + text
    prefix = bytearray()
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + text


_REQUEST: Final = _lp(b"gatewayd-request-v1")
_RESPONSE: Final = _lp(b"gatewayd-response-v1")
_EVENT: Final = _lp(b"gatewayd-event-v1")


def _be64(number: int) -> bytes:
    return number.to_bytes(8, "big", signed=True)


def request_input(envelope: Envelope) -> bytes:
    """What the client signs of a request: every member but the payload (its hash stands for it) and trace_id."""
    return b"".join(
        (
            _REQUEST,
            _lp(envelope.protocol_version.encode()),
            _lp(envelope.device_session_id.encode()),
            _lp(envelope.message_type.encode()),
            _be64(envelope.timestamp_ms),
            _lp(envelope.request_id.encode()),
            _lp(envelope.payload_hash),
        )
    )


def response_input(
    protocol_version: str, request_id: str, timestamp_ms: int, result_code: str, payload_hash: bytes
) -> bytes:
    """What the gateway signs of the answer to a command."""
    return b"".join(
        (
            _RESPONSE,
            _lp(protocol_version.encode()),
            _lp(request_id.encode()),
            _be64(timestamp_ms),
            _lp(result_code.encode()),
            _lp(payload_hash),
        )
    )


def event_input(  # noqa: PLR0917 - the members in the order in which they are signed
    event_type: str,
    event_id: str,
    timestamp_ms: int,
    request_id: str,
    trace_id: str,
    payload_hash: bytes,
    position: str,
) -> bytes:
    """What the gateway signs of a pushed event."""
    return b"".join(
        (
            _EVENT,
            _lp(event_type.encode()),
            _lp(event_id.encode()),
            _be64(timestamp_ms),
            _lp(request_id.encode()),
            _lp(trace_id.encode()),
            _lp(payload_hash),
            _lp(position.encode()),
        )
    )


# Points of small order: under each of them one signature is good for many messages (tried: 6 to 64 of 64 messages), so
# that a session with such a key would be anybody's. They are told by y, whatever the sign of x.
_P: Final = 2**255 - 19
_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER: Final = frozenset({0, 1, _P - 1, _ORDER_8, _P - _ORDER_8})


def fit_key(raw: bytes) -> bool:
    """
    True when `raw` may be a client's public key: 32 bytes, y below the field's prime (RFC 8032, 5.1.3), no point of
    small order. Bytes that are no point of the curve pass: no signature is good under them (tried).
    """
    if len(raw) != KEY_BYTES:
        return False
    y = int.from_bytes(raw, "little") & (1 << 255) - 1
    return y < _P and y not in _SMALL_ORDER


def key_id(public_key: bytes) -> str:
    """What a raw public key is called: the first 16 hex digits of its SHA-256."""
    return sha256(public_key).hexdigest()[:16]


def verify(public_key: bytes, signature: bytes, signed: bytes) -> bool:
    """
    True when `signature` (64 bytes) was made over `signed` with the private half of `public_key` (raw, 32 bytes).

    160 us for a wrong one as for a right one (measured); one of another length, or whose S is not below the group's
    order, costs 4: nothing of that depends on the key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True
