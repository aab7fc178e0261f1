"""
What the session side says of a device: the fields of a stream entry, or the JSON under a session's key. Pure.

Decides which snapshots are well-formed, and says of the others in one fixed word why not. Never decides what follows
from one.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from gatewayd.ingress import strict
from gatewayd.sessions.encodings import read_base64, write_base64
from gatewayd.sessions.envelope import ID
from gatewayd.sessions.signing import fit_key
from gatewayd.sessions.values import Session

REASONS: Final = ("fields", "json", "device_session_id", "user_id", "client_public_key", "status", "another_session")
"""Why a snapshot is malformed: the word is the member, or what it stands in; the label of metrics."""

ACTIVE: Final = "active"
REVOKED: Final = "revoked"
_MAX_KEY_BYTES: Final = 4096
_DIGITS: Final = 15

Reason: TypeAlias = str


def read_entry(fields: Sequence[bytes]) -> Session | Reason:
    """
    The snapshot in an entry's flat list of names and values; else one of REASONS.

    A name that stands twice is malformed ("fields"); names that are not known are ignored, so that a newer writer's
    revocations are still understood. Of a revoked session only device_session_id and status are needed: nothing may
    keep a revocation from its work. `revoked_at_ms` is never a reason: without a usable one it is None.
    """
    members: dict[str, str] = {}
    if len(fields) % 2:
        return "fields"
    try:
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            members[name.decode()] = value.decode()
    except (UnicodeDecodeError, AttributeError):  # a value that is no byte string: no server sends that
        return "fields"
    if len(members) * 2 != len(fields):
        return "fields"
    return _read(members)


def read_key(value: bytes, device_session_id: str) -> Session | Reason:
    """
    The snapshot under a session's key, as strict JSON of at most 4 KiB; else one of REASONS. One of another session
    than the key's is "another_session".
    """
    members = strict.read(value) if len(value) <= _MAX_KEY_BYTES else None
    if not isinstance(members, dict):
        return "json"
    texts = {name: member for name, member in members.items() if isinstance(member, str)}
    if isinstance(at := members.get("revoked_at_ms"), bytes):  # a number
        texts["revoked_at_ms"] = at.decode()
    session = _read(texts)
    if isinstance(session, Session) and session.device_session_id != device_session_id:
        return "another_session"
    return session


def _read(members: Mapping[str, str]) -> Session | Reason:
    device_session_id = members.get("device_session_id", "")
    if ID.fullmatch(device_session_id) is None:
        return "device_session_id"
    status = members.get("status")
    revoked = status == REVOKED
    if not revoked and status != ACTIVE:
        return "status"
    user_id = members.get("user_id", "")
    if ID.fullmatch(user_id) is None:
        if not revoked:
            return "user_id"
        user_id = ""
    key = read_base64(members.get("client_public_key", ""))
    if key is None or not fit_key(key):
        if not revoked:
            return "client_public_key"
        key = b""
    at = members.get("revoked_at_ms", "")
    known = revoked and at.isascii() and at.isdigit() and len(at) <= _DIGITS
    return Session(device_session_id, user_id, key, int(at) if known else None, revoked)


def write_key(session: Session) -> bytes:
    """The JSON that stands under the session's key."""
    members: dict[str, str | int] = {
        "device_session_id": session.device_session_id,
        "user_id": session.user_id,
        "client_public_key": write_base64(session.client_public_key),
        "status": REVOKED if session.revoked else ACTIVE,
    }
    if session.revoked_at_ms is not None:
        members["revoked_at_ms"] = session.revoked_at_ms
    return msgspec.json.encode(members)
