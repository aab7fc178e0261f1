"""
Signals and refused bodies as messages for the stream. Pure.

Decides the bytes of both events, their headers, their message ids, the facts that let a stored message be judged
later, and what a dead letter looks like. Never decides whether anything is published.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from gatewayd.bus.publication import Message
from gatewayd.ingress.admission import BODY, Claim, Kind, digest, fingerprint
from gatewayd.ingress.normalise import Signal
from gatewayd.times import Wall, format_wall

FACTS_HEADER: Final = "Gw-Facts"
MSG_ID_HEADER: Final = "Nats-Msg-Id"
_FACTS: Final = re.compile(r"1 (key|body) ([0-9a-f]{32}) ([0-9a-f]{32}) ([a-z0-9-]{1,32}) (\d{13})", re.ASCII)
_NORMALISED_ID: Final = re.compile(r"gw:([0-9a-f]{32}):norm", re.ASCII)
_MAX_REASONS_BYTES: Final = 2048
OLD_SCHEMA: Final = "1.0.0"
ENVELOPE_BYTES: Final = 4096
"""What headers and envelope of one event take at the most beside the body."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What Gw-Facts says of an accepted event; digests of 16 bytes; `accepted_at` with milliseconds."""

    kind: Kind
    body: bytes
    nonce: bytes
    scheme: str
    accepted_at: Wall


def parse_facts(text: str | None) -> Facts | None:
    """The facts of a stored message; None for a foreign one (no such header, or one that is not ours)."""
    found = _FACTS.fullmatch(text or "")
    if found is None:
        return None
    return Facts(Kind(found[1]), bytes.fromhex(found[2]), bytes.fromhex(found[3]), found[4], Wall(int(found[5]) / 1000))


def parse_nonce(msg_id: str | None, facts_text: str | None) -> tuple[bytes, bytes, Facts] | None:
    """From a normalised event's headers: its nonce, the fingerprint of the request that used it, and its facts."""
    found = _NORMALISED_ID.fullmatch(msg_id or "")
    facts = parse_facts(facts_text)
    if found is None or facts is None:
        return None
    return facts.nonce, fingerprint(facts.kind, bytes.fromhex(found[1]), facts.body), facts


def raw_id(identity: bytes) -> bytes:
    """The message id of an event's raw message."""
    return b"gw:%b:raw" % identity.hex().encode("ascii")


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What a request adds to its event: texts already checked, None when it was not sent."""

    corr_id: str
    received_at: Wall
    scheme: str
    idempotency_key: str | None
    traceparent: bytes | None


class Events:
    """The messages of one deployment: its subjects and the schema version that it writes."""

    def __init__(self, raw_subject: str, normalised_subject: str, schema_version: str) -> None:
        self.schema_version = schema_version
        self._raw_subject = raw_subject.encode("ascii")
        self._normalised_subject = normalised_subject.encode("ascii")
        self._old = schema_version == OLD_SCHEMA
        self._tail = b"" if self._old else b',"schema_version":"%b"' % schema_version.encode("ascii")
        self._schema_header = b"Schema-Version: %b\r\n" % schema_version.encode("ascii")

    def pair(self, claim: Claim, signal: Signal, body: bytes, envelope: Envelope) -> tuple[Message, Message]:
        """The raw and the normalised event of an accepted request; the raw one holds the body byte for byte."""
        corr_id = envelope.corr_id.encode("ascii")
        source = claim.source.encode("ascii")
        received = format_wall(envelope.received_at).encode("ascii")
        identity = claim.identity.hex().encode("ascii")
        headers = b"".join(
            (
                b"Corr-ID: %b\r\nSource: %b\r\nInstrument: %b\r\n"
                % (corr_id, source, signal.instrument.encode("ascii")),
                self._schema_header,
                b"Idempotency-Key: %b\r\n" % envelope.idempotency_key.encode("ascii")
                if envelope.idempotency_key is not None
                else b"",
                b"traceparent: %b\r\n" % envelope.traceparent if envelope.traceparent is not None else b"",
                b"Gw-Facts: 1 %b %b %b %b %d\r\nNats-Msg-Id: gw:%b"
                % (
                    b"body" if claim.kind is BODY else b"key",
                    claim.body.hex().encode("ascii"),
                    claim.nonce.hex().encode("ascii"),
                    envelope.scheme.encode("ascii"),
                    envelope.received_at * 1000 + 0.5,
                    identity,
                ),
            )
        )
        raw = b'{"corr_id":"%b","source":"%b","received_at":"%b","payload":%b}' % (corr_id, source, received, body)
        normalised = self._normalised(signal, corr_id, source, received, envelope.idempotency_key)
        return (
            Message(self._raw_subject, headers + b":raw\r\n", raw),
            Message(self._normalised_subject, headers + b":norm\r\n", normalised),
        )

    def _normalised(self, signal: Signal, corr_id: bytes, source: bytes, received: bytes, key: str | None) -> bytes:
        known = b""
        if not self._old:
            if key is not None:
                known = b',"idempotency_key":%b' % msgspec.json.encode(key)
            if signal.strategy is not None:
                known += b',"strategy":%b' % msgspec.json.encode(signal.strategy)
        # The instrument's pattern leaves nothing in it that JSON would have to escape.
        return (
            b'{"corr_id":"%b","source":"%b","instrument":"%b","price":%b,"side":%b,"strength":%b,'
            b'"timestamp":"%b","normalized_at":"%b"%b%b}'
            % (
                corr_id,
                source,
                signal.instrument.encode("ascii"),
                signal.price,
                b"null" if signal.side is None else b'"%b"' % signal.side.encode("ascii"),
                signal.strength or b"null",
                format_wall(signal.time).encode("ascii"),
                received,
                known,
                self._tail,
            )
        )

    def rejected(self, letter: "DeadLetter", body: bytes) -> Message:
        """The raw event of an object that is no signal, marked as such, for manual review; it claims no key."""
        corr_id, source = letter.corr_id.encode("ascii"), letter.source.encode("ascii")
        received = format_wall(letter.received_at).encode("ascii")
        headers = b"Corr-ID: %b\r\nSource: %b\r\nRejected: %b\r\nNats-Msg-Id: gw:%b:%b:raw\r\n" % (
            corr_id,
            source,
            letter.code.encode("ascii"),
            letter.refused.hex().encode("ascii"),
            letter.code.encode("ascii"),
        )
        raw = b'{"corr_id":"%b","source":"%b","received_at":"%b","payload":%b}' % (corr_id, source, received, body)
        return Message(self._raw_subject, headers, raw)


def refused_digest(origin: str, body: bytes) -> bytes:
    """R: which refused body this is, for one source, or for one path when the source is not known."""
    return digest(origin.encode("utf-8"), body)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    An authenticated body that cannot become an event.

    `refused` is R; `parsed` says that the body is a JSON object, `position` is (line, column) where there is one;
    `reasons` are texts about the body that hold nothing of it but field names and short values. `key` is the
    Idempotency-Key that came with it, in visible ASCII; `key_is_identity` says that it was signed, so that it and not
    the body says which event this would have been.
    """

    refused: bytes
    code: str
    source: str
    received_at: Wall
    parsed: bool
    reasons: Sequence[str]
    position: tuple[int, int] | None = None
    key: str | None = None
    key_is_identity: bool = False

    @property
    def corr_id(self) -> str:
        """The corr_id of the refusal: the same for the same body from the same source."""
        return refused_corr_id(self.refused)

    def message(self, body: bytes) -> Message:
        """The dead letter itself: the received bytes, and headers that say why."""
        reasons = json.dumps(list(self.reasons), ensure_ascii=True, separators=(",", ":")).encode("ascii")
        if len(reasons) > _MAX_REASONS_BYTES:
            reasons = json.dumps([*self.reasons[:3], f"and {len(self.reasons) - 3} more"]).encode("ascii")
        headers = [
            b"Dlq-Code: %b\r\nDlq-Reasons: %b\r\n" % (self.code.encode("ascii"), reasons[:_MAX_REASONS_BYTES]),
            b"Dlq-Position: %d,%d\r\n" % self.position if self.position is not None else b"",
            b"Idempotency-Key: %b\r\n" % self.key.encode("ascii") if self.key is not None else b"",
            b"Dlq-Identity: key\r\n" if self.key is not None and self.key_is_identity else b"",
            b"Corr-ID: %b\r\nSource: %b\r\nReceived-At: %b\r\n"
            % (
                self.corr_id.encode("ascii"),
                self.source.encode("ascii"),
                format_wall(self.received_at).encode("ascii"),
            ),
            b"Nats-Msg-Id: gw:%b:%b:dlq\r\n" % (self.refused.hex().encode("ascii"), self.code.encode("ascii")),
        ]
        subject = b"dlq.signals.normalized" if self.parsed else b"dlq.signals.raw"
        return Message(subject, b"".join(headers), body)


def refused_corr_id(refused: bytes) -> str:
    """The corr_id of a refused body and of a conflict."""
    return f"req_{refused.hex()[:20]}"
