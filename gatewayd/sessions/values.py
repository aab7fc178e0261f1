"""
What the edge is spoken to and answers with, whatever carries it. Pure.

Decides the shapes only; sessions.envelope reads and writes their bytes, sessions.verification checks them.
"""

from msgspec import Struct


class Envelope(Struct, frozen=True):
    """A signed request as it arrived: every member there, nothing checked beyond its type and bounds."""

    protocol_version: str
    device_session_id: str
    message_type: str
    timestamp_ms: int
    request_id: str
    payload: bytes
    """The very bytes received: hashed, signed and verified as they are."""
    payload_hash: bytes
    signature: bytes
    trace_id: str


class Session(Struct, frozen=True):
    """One device's session, as the last snapshot says."""

    device_session_id: str
    user_id: str
    client_public_key: bytes
    """Raw Ed25519, 32 bytes."""
    revoked_at_ms: int | None = None
    revoked: bool = False


class Reply(Struct, frozen=True):
    """The signed answer to a command."""

    protocol_version: str
    request_id: str
    timestamp_ms: int
    result_code: str
    payload: bytes
    payload_hash: bytes
    signature: bytes


class Command(Struct, frozen=True):
    """What the service behind a route gets of a request that passed every check."""

    payload: bytes
    device_session_id: str
    user_id: str
    message_type: str
    request_id: str
    trace_id: str


class Answered(Struct, frozen=True):
    """
    What that service said. `result_code` is its own word ("ok" when all is well): 1 to 128 characters of printable
    ASCII without blanks; `payload` at most envelope.MAX_PAYLOAD_BYTES. Anything else is answered as UPSTREAM_FAILED.
    """

    result_code: str
    payload: bytes
