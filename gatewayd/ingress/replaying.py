"""
Dead letters that are replayed: what each becomes, and what is left to do where somebody stopped half-way. Pure.

Decides whether a refused body is a signal under the rules in force now, under which ids its events go into the stream,
what the record of a replay says, and the next step from what the stream holds. Never reads the stream and never
publishes: whoever replays does, one step after the other.

The record of a letter is the last message on `dlq.replayed.<the letter's sequence>`. Every record is published with
`Nats-Expected-Last-Subject-Sequence`: the sequence of the record that it replaces, 0 for the first. Of two runs that
want the same letter the server lets one through.

    no record --claim--> CLAIMED --done--> DONE        an event is published
    no record --done-------------------->  DONE        the event was there already
                 CLAIMED --claim--> CLAIMED            a later run takes over what an earlier one left

Steps of a letter: look for its ids in the stream; claim; look again; raw; its acknowledgement; normalised; its
acknowledgement; done. Where a run can end, and what the next one finds:

    before the claim is stored     no record: as if nothing had been
    claim stored, nothing more     CLAIMED, neither id in the stream: it claims again, looks, publishes both
    raw stored                     CLAIMED, raw found: normalised only
    both stored                    CLAIMED, both found: done
    done stored                    DONE: nothing, also when the events have expired

"Look" finds what is older than the server's memory of ids; what is younger the server itself calls a duplicate, so
neither of the two has to be enough. A run that was frozen between claim and publish, or whose bytes lay in the socket
of a server that hung, comes too late without doing harm: each of its messages carries the sequence of its own claim as
the last one expected on the record's subject, and whoever took over has moved that on. A claim holds the body and is
enough to finish, also when its letter has expired. A sender that meanwhile sends the right body itself has the same
identity and so the same ids: whoever comes second is the duplicate.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from gatewayd.bus.publication import Message, Stored
from gatewayd.ingress.admission import (
    BODY,
    KEY,
    Claim,
    Kind,
    Verdict,
    accepted_corr_id,
    digest,
    digest_behind,
    fingerprint,
    verdict,
)
from gatewayd.ingress.events import FACTS_HEADER, MSG_ID_HEADER, Envelope, Events, parse_facts, raw_id
from gatewayd.ingress.letters import Letter
from gatewayd.ingress.normalise import Generic, Invalid, Malformed, Signal
from gatewayd.ingress.sources import UNKNOWN_SOURCE, Rules, Source
from gatewayd.times import Wall

RECORDS: Final = "dlq.replayed"
RECORD_HEADER: Final = "Dlq-Replay"
REPLAYED_FROM_HEADER: Final = "Replayed-From"
SCHEME: Final = "replay"
"""What stands in the facts where another event has its signature's scheme."""

MAX_BODY_BYTES: Final = 1_048_576
"""As for a webhook."""

EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_EXPECTED_OF: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
_RECORD: Final = re.compile(
    r"1 (claimed|done) (key|body) ([0-9a-f]{32}) ([0-9a-f]{32}) (\d{13})(?: (\d{1,20}) (\d{1,20}))?", re.ASCII
)


class State(Enum):
    """What the record of a letter says."""

    CLAIMED = "claimed"  # its events are to be published; perhaps they are
    DONE = "done"  # its events are in the stream, or were until they expired


@dataclass(frozen=True, slots=True)
class Record:
    """
    One record: the letter's sequence and its own, what was to be published, since when, and where it was stored.

    `identity` is D and `body` the digest of the body, 16 bytes each; `stored` the sequences of raw and normalised, 0
    for one that was not in the stream any more.
    """

    letter: int
    sequence: int
    state: State
    kind: Kind
    identity: bytes
    body: bytes
    at: Wall
    source: str
    letter_corr_id: str
    key: str | None = None
    stored: tuple[int, int] | None = None

    @property
    def corr_id(self) -> str:
        """The corr_id of the event."""
        return accepted_corr_id(self.identity)


def record_subject(letter: int) -> str:
    """The subject of a letter's records."""
    return f"{RECORDS}.{letter}"


def parse_record(stored: Stored) -> Record | None:
    """A stored record; None for a message that is none."""
    number = stored.subject.removeprefix(f"{RECORDS}.")
    found = _RECORD.fullmatch(stored.headers.get(RECORD_HEADER, ""))
    if found is None or not (number.isascii() and number.isdigit()):
        return None
    return Record(
        int(number),
        stored.sequence,
        State(found[1]),
        Kind(found[2]),
        bytes.fromhex(found[3]),
        bytes.fromhex(found[4]),
        Wall(int(found[5]) / 1000),
        stored.headers.get("Source", ""),
        stored.headers.get("Corr-ID", ""),
        stored.headers.get("Idempotency-Key"),
        None if found[6] is None else (int(found[6]), int(found[7])),
    )


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a letter cannot become an event: a code, reasons, and the place in the body where there is one."""

    code: str
    reasons: tuple[str, ...]
    position: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The event that a letter becomes; `body` are the bytes that it holds."""

    letter: int
    letter_corr_id: str
    claim: Claim
    key: str | None
    signal: Signal
    body: bytes

    @property
    def corr_id(self) -> str:
        """The corr_id of the event."""
        return accepted_corr_id(self.claim.identity)

    @property
    def ids(self) -> tuple[str, str]:
        """The message ids of raw and normalised."""
        raw = raw_id(self.claim.identity).decode("ascii")
        return raw, raw.removesuffix("raw") + "norm"


def plan(letter: Letter, body: bytes, rules: Rules, *, edited: bool = False) -> Target | Unfit:
    """What `body` becomes, the letter's own or (`edited`) one that an operator corrected, however old it is."""
    named = None if letter.source == UNKNOWN_SOURCE else letter.source
    return _plan(
        _Origin(letter.sequence, letter.corr_id, named, letter.key, letter.key_is_identity, edited), body, rules
    )


def resume(record: Record, body: bytes, rules: Rules) -> Target | Unfit:
    """What a claim was made for; `body` is the claim's own."""
    origin = _Origin(record.letter, record.letter_corr_id, record.source, record.key, record.kind is KEY, trusted=True)
    found = _plan(origin, body, rules)
    if isinstance(found, Target) and (found.claim.identity, found.claim.body) != (record.identity, record.body):
        return Unfit("", ("the claim does not belong to the body that it holds",))
    return found


@dataclass(frozen=True, slots=True)
class _Origin:
    """What is known of a body beside itself; `source` is None where the body has to name it."""

    letter: int
    corr_id: str
    source: str | None
    key: str | None
    key_is_identity: bool
    trusted: bool


def _plan(origin: _Origin, body: bytes, rules: Rules) -> Target | Unfit:
    if len(body) > MAX_BODY_BYTES:
        return Unfit("GW-008", (f"the body has more than {MAX_BODY_BYTES} bytes",))
    source = None if origin.source is None else rules.sources.get(origin.source)
    if origin.source is not None and source is None:
        return Unfit("GW-007", (f"the source {origin.source} is not configured",))
    found = _read(body, source, rules, trusted=origin.trusted)
    if isinstance(found, Unfit):
        return found
    source, signal = found
    body_digest = digest(body)
    if origin.key_is_identity and origin.key is not None:
        kind, identity = KEY, digest_behind(source.prefixes.key, origin.key.encode("ascii"))
    else:
        kind, identity = BODY, digest_behind(source.prefixes.body, body)
    nonce = digest(RECORDS.encode("ascii"), b"%d" % origin.letter)
    print_ = fingerprint(kind, identity, body_digest)
    claim = Claim(source.name, kind, identity, body_digest, print_, nonce, None, source.limit)
    return Target(origin.letter, origin.corr_id, claim, origin.key, signal, body)


def _read(body: bytes, source: Source | None, rules: Rules, *, trusted: bool) -> tuple[Source, Signal] | Unfit:
    """
    Whose signal a body is. A known source's body may have come on the generic path: its format is tried second.

    Without a source the body names it. It was signed with a shared secret then, and may not speak for a source that
    has a secret of its own, unless an operator wrote it (`trusted`).
    """
    if source is None:
        return _read_generic(body, rules, trusted=trusted)
    own = source.read(body, source.name)
    if isinstance(own, Signal):
        return source, own
    other = rules.generic(body, None)
    for read in (own, other):
        if isinstance(read, Generic) and isinstance(read.signal, Signal) and read.source == source.name:
            return source, read.signal
    if isinstance(own, Generic) and own.source != source.name:
        return Unfit("GW-007", (f"the body names another source than {source.name}",))
    return _unfit(own)


def _read_generic(body: bytes, rules: Rules, *, trusted: bool) -> tuple[Source, Signal] | Unfit:
    read = rules.generic(body, None)
    if not isinstance(read, Generic):
        return _unfit(read)
    source = rules.sources.get(read.source)
    if source is None:
        return Unfit("GW-007", ("the body names a source that is not configured",))
    if not trusted and any(key.source is not None for key in source.keys):
        return Unfit("GW-001", (f"{source.name} has a secret of its own, and this was signed with a shared one",))
    return (source, read.signal) if isinstance(read.signal, Signal) else _unfit(read.signal)


def _unfit(read: Signal | Generic | Malformed | Invalid) -> Unfit:
    if isinstance(read, Malformed):
        cause = () if read.likely_cause is None else (read.likely_cause,)
        return Unfit("GW-013", (read.message, *cause), (read.line, read.column))
    if isinstance(read, Generic):
        read = read.signal
    faults = read.faults if isinstance(read, Invalid) else ()
    return Unfit("GW-003", tuple(f"{fault.path}: {fault.message}".removeprefix(": ") for fault in faults))


class Sightings:
    """Which of the wanted message ids the stream holds, and the body that each raw or normalised one was made of."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._found: dict[str, tuple[int, bytes | None] | None] = dict.fromkeys(ids)

    def see(self, headers: Mapping[str, str], sequence: int) -> None:
        """One message of the stream; the first with an id counts."""
        msg_id = headers.get(MSG_ID_HEADER)
        if msg_id in self._found and self._found[msg_id] is None:
            facts = parse_facts(headers.get(FACTS_HEADER))
            self._found[msg_id] = (sequence, None if facts is None else facts.body)

    def of(self, msg_id: str) -> tuple[int, bytes | None] | None:
        """Where a message stands and the digest of its body (None: foreign); None while it was not seen."""
        return self._found.get(msg_id)


@dataclass(frozen=True, slots=True)
class Publish:
    """Neither event is in the stream."""


@dataclass(frozen=True, slots=True)
class Complete:
    """Raw is there, at this sequence; normalised is missing."""

    raw: int


@dataclass(frozen=True, slots=True)
class There:
    """Nothing is to be done: sequences of raw (0: it has gone) and normalised."""

    raw: int
    normalised: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The key stands for another body, at this sequence: its sender has corrected the signal by itself."""

    sequence: int


def step(target: Target, seen: Sightings) -> Publish | Complete | There | Taken:
    """What is left to do for a target, by what the stream holds."""
    raw, normalised = (seen.of(msg_id) for msg_id in target.ids)
    known = raw or normalised
    if known is None:
        return Publish()
    if verdict(target.claim, known[1]) is Verdict.OTHER:
        return Taken(known[0])
    if normalised is None:
        return Complete(known[0])
    return There(0 if raw is None else raw[0], normalised[0])


def claim_message(target: Target, at: Wall, after: int) -> Message:
    """The claim of a target at `at`, which replaces the record with sequence `after`."""
    return _record(target, f"{State.CLAIMED.value} {_facts(target, at)}", after, target.body)


def done_message(target: Target, at: Wall, after: int, stored: tuple[int, int]) -> Message:
    """The end of a replay: where the events are. It replaces the record with sequence `after`."""
    return _record(target, f"{State.DONE.value} {_facts(target, at)} {stored[0]} {stored[1]}", after, b"")


def _facts(target: Target, at: Wall) -> str:
    claim = target.claim
    return f"{claim.kind.value} {claim.identity.hex()} {claim.body.hex()} {_ms(at)}"


def _record(target: Target, text: str, after: int, body: bytes) -> Message:
    lines = [
        f"{RECORD_HEADER}: 1 {text}",
        f"Source: {target.claim.source}",
        f"Corr-ID: {target.letter_corr_id}",
        *([] if target.key is None else [f"Idempotency-Key: {target.key}"]),
        f"{EXPECTED}: {after}",
    ]
    return Message(record_subject(target.letter).encode("ascii"), _block(lines), body)


def event_messages(target: Target, events: Events, at: Wall, fence: int) -> tuple[Message, Message]:
    """
    Raw and normalised as a webhook at `at` would have made them, marked with the letter they come from.

    `fence` is the sequence of the claim: the server refuses both once another run has claimed the letter.
    """
    envelope = Envelope(target.corr_id, Wall(_ms(at) / 1000), SCHEME, target.key, None)
    more = _block(
        [
            f"{REPLAYED_FROM_HEADER}: {target.letter}",
            f"{EXPECTED}: {fence}",
            f"{_EXPECTED_OF}: {record_subject(target.letter)}",
        ]
    )
    raw, normalised = events.pair(target.claim, target.signal, target.body, envelope)
    return (
        Message(raw.subject, raw.headers + more, raw.body),
        Message(normalised.subject, normalised.headers + more, normalised.body),
    )


def _ms(at: Wall) -> int:
    return int(at * 1000 + 0.5)


def _block(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")
