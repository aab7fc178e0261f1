"""
A client of the edge gateway: what it signs, what it is sent, and whether the gateway signed that.

Decides which envelope is sent, which signature is good and which position is behind which. Never opens a connection,
and never shows a private key.
"""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from google.protobuf.message import DecodeError

from gatewayd.cli.console import Code, Failed, plain
from gatewayd.push.position import Position, parse_position
from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandRequest, ExecuteCommandResponse, GatewayEvent
from gatewayd.sessions.encodings import read_base64url, write_base64url
from gatewayd.sessions.endings import Ending
from gatewayd.sessions.envelope import read_protobuf
from gatewayd.sessions.signing import KEY_BYTES, event_input, key_id, request_input, response_input, verify
from gatewayd.sessions.values import Envelope, Reply

VERSION: Final = "v1"
OWN: Final = "gateway."
"""What the types of the gateway's own events begin with."""


class Ended(Exception):
    """
    The gateway refused a request or ended a stream, and said why. `final`: trying again does not help. `wait_s`: when
    to come back, where it said so.
    """

    def __init__(self, text: str, *, final: bool, wait_s: float | None = None) -> None:
        super().__init__(text)
        self.final = final
        self.wait_s = wait_s


def untrusted(what: str) -> Failed:
    """The end of a command that was sent something the gateway did not sign."""
    return Failed(Code.NOT_IN_ORDER, f"not trusted: {what}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A session and its private key."""

    device_session_id: str
    key: Ed25519PrivateKey = field(repr=False)

    def sign(self, message_type: str, payload: bytes, *, at_ms: int, request_id: str, trace_id: str) -> Envelope:
        """A signed request; Failed when a member has a form that the gateway would refuse."""
        names = (VERSION, self.device_session_id, message_type, at_ms, request_id)
        digest = sha256(payload).digest()
        unsigned = Envelope(*names, payload, digest, b"", trace_id)
        envelope = Envelope(*names, payload, digest, self.key.sign(request_input(unsigned)), trace_id)
        judged = read_protobuf(as_protobuf(envelope))
        if isinstance(judged, Ending):
            raise Failed(Code.WRONG, f"the gateway would refuse this: {judged.message}")
        return envelope


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in a PEM file; Failed names the file and never quotes it."""
    try:
        key = load_pem_private_key(_content(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Failed(Code.WRONG, f"{path}: no unencrypted Ed25519 private key in PKCS#8 PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Failed(Code.WRONG, f"{path}: a key of another kind than Ed25519")
    return key


def read_public_key(path: Path) -> bytes:
    """The raw public key of a PEM file that holds either half."""
    pem = _content(path)
    if b"-----BEGIN PUBLIC KEY-----" not in pem:
        return read_private_key(path).public_key().public_bytes_raw()
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise Failed(Code.WRONG, f"{path}: no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Failed(Code.WRONG, f"{path}: a key of another kind than Ed25519")
    return key.public_bytes_raw()


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(65536)
    except OSError as error:
        raise Failed(Code.WRONG, f"{path} cannot be read: {error.strerror}") from None


@dataclass(frozen=True, slots=True)
class Received:
    """One event as it came; nothing is checked yet."""

    event_type: str
    event_id: str
    timestamp_ms: int
    payload: bytes
    payload_hash: bytes
    signature: bytes
    request_id: str
    trace_id: str
    position: str

    @property
    def own(self) -> bool:
        """True for an event of the gateway itself."""
        return self.event_type.startswith(OWN)

    @property
    def signed(self) -> bytes:
        """What the gateway signed."""
        return event_input(
            self.event_type,
            self.event_id,
            self.timestamp_ms,
            self.request_id,
            self.trace_id,
            self.payload_hash,
            self.position,
        )


class Channel(Protocol):
    """One way to the gateway."""

    def subscribe(self, envelope: Envelope) -> Iterator[Received]:
        """
        Open a stream and read it for ever: Ended when the gateway says why it ends, Failed (UNREACHABLE) when it does
        not.
        """


def as_protobuf(envelope: Envelope) -> bytes:
    """The message of either call: both have the same members."""
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


def as_members(envelope: Envelope) -> dict[str, Any]:
    """The JSON form's members."""
    return {
        "protocol_version": envelope.protocol_version,
        "device_session_id": envelope.device_session_id,
        "message_type": envelope.message_type,
        "timestamp_ms": envelope.timestamp_ms,
        "request_id": envelope.request_id,
        "payload_bytes": write_base64url(envelope.payload),
        "payload_hash": write_base64url(envelope.payload_hash),
        "signature": write_base64url(envelope.signature),
        "trace_id": envelope.trace_id,
    }


def read_event(message: bytes) -> Received:
    """The event in a GatewayEvent; Failed for other bytes."""
    try:
        read = GatewayEvent.FromString(message)
    except DecodeError:
        raise untrusted("what came is no event") from None
    return Received(
        read.event_type,
        read.event_id,
        read.timestamp_ms,
        read.payload_bytes,
        read.payload_hash,
        read.signature,
        read.request_id,
        read.trace_id,
        read.position,
    )


def read_event_members(members: Mapping[str, Any]) -> Received:
    """The event in its JSON form; Failed when it is none."""
    texts = {name: members.get(name) for name in ("event_type", "event_id", "request_id", "trace_id", "position")}
    values = (members.get(name) for name in ("payload_bytes", "payload_hash", "signature"))
    payload, digest, signature = (read_base64url(text) if isinstance(text, str) else None for text in values)
    at_ms = members.get("timestamp_ms")
    if payload is None or digest is None or signature is None or None in texts.values() or not isinstance(at_ms, int):
        raise untrusted("what came is no event")
    plain_texts = {name: str(text) for name, text in texts.items()}
    return Received(timestamp_ms=at_ms, payload=payload, payload_hash=digest, signature=signature, **plain_texts)


def read_reply(message: bytes) -> Reply:
    """The reply in an ExecuteCommandResponse; Failed for other bytes."""
    try:
        read = ExecuteCommandResponse.FromString(message)
    except DecodeError:
        raise untrusted("what came is no reply") from None
    return Reply(
        read.protocol_version,
        read.request_id,
        read.timestamp_ms,
        read.result_code,
        read.payload_bytes,
        read.payload_hash,
        read.signature,
    )


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """One key of /.well-known/gatewayd/keys."""

    kid: str
    status: str
    raw: bytes


def read_keys(members: Mapping[str, Any]) -> tuple[PublishedKey, ...]:
    """
    The Ed25519 keys of a JWK set; Failed when it is none, or says of a key what is not so. A kid must be what the key
    is called: people compare it.
    """
    found = []
    listed = members.get("keys")
    for one in listed if isinstance(listed, list) else ():
        if not isinstance(one, dict) or (one.get("kty"), one.get("crv")) != ("OKP", "Ed25519"):
            continue
        raw = read_base64url(str(one.get("x", "")))
        if raw is None or len(raw) != KEY_BYTES or one.get("kid") != key_id(raw):
            raise Failed(Code.NOT_IN_ORDER, f"the published key {plain(one.get('kid'), 40)} is not what it says")
        found.append(PublishedKey(key_id(raw), plain(one.get("status", ""), 40), raw))
    if not found:
        raise Failed(Code.NOT_IN_ORDER, "no Ed25519 key is published")
    return tuple(found)


class Trust:
    """The gateway's public keys: `ask` gets them, again when a signature is good under none that is known."""

    def __init__(self, ask: Callable[[], Sequence[PublishedKey]]) -> None:
        self._ask = ask
        self._keys: Sequence[PublishedKey] = ()

    def check_event(self, event: Received) -> str:
        """The id of the key that signed it; Failed for anything that the gateway did not sign."""
        return self._check("an event", event.payload, event.payload_hash, event.signature, event.signed)

    def check_reply(self, reply: Reply, request_id: str) -> str:
        """The same of the reply to a request."""
        if reply.request_id != request_id:
            raise untrusted("the reply is not to this request")
        signed = response_input(
            reply.protocol_version, reply.request_id, reply.timestamp_ms, reply.result_code, reply.payload_hash
        )
        return self._check("the reply", reply.payload, reply.payload_hash, reply.signature, signed)

    def _check(self, what: str, payload: bytes, digest: bytes, signature: bytes, signed: bytes) -> str:
        if sha256(payload).digest() != digest:
            raise untrusted(f"the payload of {what} is not the one that was signed")
        found = self._signer(signature, signed)
        if found is None:
            self._keys = self._ask()  # the gateway may have a new one
            found = self._signer(signature, signed)
        if found is None:
            raise untrusted(f"the signature of {what} is of none of the gateway's keys")
        return found

    def _signer(self, signature: bytes, signed: bytes) -> str | None:
        return next((key.kid for key in self._keys if verify(key.raw, signature, signed)), None)


def is_behind(position: str, last: str) -> bool:
    """True when what is at `position` has come before `last`: each of its marks is at or below the same of `last`."""
    asked, known = parse_position(position.encode()), parse_position(last.encode())
    if asked is None or known is None:
        return False
    return all(
        mark is None or (other is not None and mark.epoch == other.epoch and mark.at <= other.at)
        for mark, other in zip(asked.marks, known.marks, strict=True)
    )


def check_position(text: str) -> str:
    """The position as it was given; Failed when it is none."""
    if text and not isinstance(parse_position(text.encode()), Position):
        raise Failed(Code.WRONG, "this is no position; events have it as `position`")
    return text


def shown_payload(payload: bytes) -> dict[str, str]:
    """The payload as a member of a JSON object: `payload` when it is text, else `payload_base64`."""
    try:
        return {"payload": payload.decode("utf-8")}
    except UnicodeDecodeError:
        return {"payload_base64": b64encode(payload).decode("ascii")}
