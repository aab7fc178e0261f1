"""
Signals of which only one of the two messages is in the stream, and what such a half is made whole with. Pure.

Decides which raw messages lack their normalised one and which normalised ones lack their raw one, once a stretch of
the stream has been seen, and which bytes complete a raw message: the ones that its own request would have published.
Never reads the stream, never publishes, and never looks at a message without facts: that one is somebody else's.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gatewayd.bus.publication import Message, Stored
from gatewayd.ingress.admission import KEY, Claim, accepted_corr_id, digest, fingerprint
from gatewayd.ingress.events import (
    FACTS_HEADER,
    MSG_ID_HEADER,
    DeadLetter,
    Envelope,
    Events,
    Facts,
    parse_facts,
    refused_digest,
)
from gatewayd.ingress.normalise import Generic, Invalid, Malformed, Signal
from gatewayd.ingress.sources import Rules
from gatewayd.times import Wall

LIMIT: Final = 10_000
"""Halves held at most; beyond, the oldest are judged before the end of the stretch has been seen."""

GRACE_S: Final = 2.5
"""A younger half may be under way: the publish deadline and a margin."""

LEAD_S: Final = 10.0
"""A normalised message so near to the beginning of a stretch may have its raw one before it."""

_ID: Final = re.compile(r"gw:([0-9a-f]{32}):(raw|norm)", re.ASCII)
_RAW: Final = re.compile(
    rb'\{"corr_id":"[A-Za-z0-9_-]{1,128}","source":"([^"\\]{1,128})","received_at":"[0-9TZ:.-]{20,30}","payload":'
)


@dataclass(frozen=True, slots=True)
class Half:
    """One message without its other one: D of 16 bytes, the stream sequence, the time at which it was stored."""

    identity: bytes
    sequence: int
    at: Wall

    @property
    def corr_id(self) -> str:
        """The corr_id of the event."""
        return accepted_corr_id(self.identity)


class Halves:
    """
    The halves of a stretch of the stream, which is shown message by message, in order, over any number of looks.

    What is whole is forgotten; what is not stays until it is dropped. `now` is the server's time, everything up to
    which has been seen. A half from the future (the server's clock stepped back) counts as old: completing one that
    is under way is harmless.
    """

    def __init__(self, *, limit: int = LIMIT, grace_s: float = GRACE_S, lead_s: float = LEAD_S) -> None:
        self._limit = limit
        self._grace_s = grace_s
        self._lead_s = lead_s
        self._judged_from: float | None = None
        self._raws: dict[bytes, Half] = {}
        self._normalised: dict[bytes, Half] = {}
        self._dropped: dict[bytes, None] = {}  # what completes them is in the stream further on

    def __len__(self) -> int:
        """Halves held now."""
        return len(self._raws) + len(self._normalised)

    def see(self, headers: Mapping[str, str], sequence: int, at: Wall) -> None:
        """One message of the stretch."""
        if self._judged_from is None:
            self._judged_from = at + self._lead_s if sequence > 1 else at
        found = _ID.fullmatch(headers.get(MSG_ID_HEADER, ""))
        if found is None or parse_facts(headers.get(FACTS_HEADER)) is None:
            return
        identity = bytes.fromhex(found[1])
        if found[2] == "raw":
            if self._normalised.pop(identity, None) is None:
                self._raws[identity] = Half(identity, sequence, at)
        elif self._raws.pop(identity, None) is None:
            if identity in self._dropped:
                del self._dropped[identity]
            else:
                self._normalised[identity] = Half(identity, sequence, at)

    def overflow(self) -> tuple[list[Half], list[Half]]:
        """What is beyond the limit, the oldest first: raws to complete, and the orphans, which are forgotten."""
        excess = len(self) - self._limit
        if excess <= 0:
            return [], []
        oldest = set(sorted(self._all(), key=_sequence)[:excess])
        raws = [half for half in self._raws.values() if half in oldest]
        return raws, self._forget([half for half in self._normalised.values() if half in oldest])

    def incomplete(self, now: Wall) -> list[Half]:
        """Raws whose normalised message is missing and no longer under way, the oldest first."""
        return [half for half in self._raws.values() if self._is_old(half, now)]

    def take_orphans(self, now: Wall) -> list[Half]:
        """Normalised messages without a raw one, the oldest first; they are forgotten."""
        return self._forget([half for half in self._normalised.values() if self._is_old(half, now)])

    def ripens_in(self, now: Wall) -> float | None:
        """Seconds until the next half is old enough to be judged; None when none is waited for."""
        waits = [half.at + self._grace_s - now for half in self._all() if not self._is_old(half, now)]
        return min(waits, default=None)

    def drop(self, half: Half) -> None:
        """Done with a raw, complete or not to be completed; its normalised message, when it comes, is no orphan."""
        if self._raws.pop(half.identity, None) is not None:
            self._dropped[half.identity] = None
        if len(self._dropped) > self._limit:
            del self._dropped[next(iter(self._dropped))]

    def _all(self) -> list[Half]:
        return [*self._raws.values(), *self._normalised.values()]

    def _is_old(self, half: Half, now: Wall) -> bool:
        return not 0.0 <= now - half.at < self._grace_s

    def _forget(self, orphans: list[Half]) -> list[Half]:
        """Forget them; those are left that are far enough from the stretch's beginning to be orphans."""
        for half in orphans:
            del self._normalised[half.identity]
        return [half for half in orphans if self._judged_from is not None and half.at >= self._judged_from]


def _sequence(half: Half) -> int:
    return half.sequence


@dataclass(frozen=True, slots=True)
class Restored:
    """What completes a raw message: the normalised one, or a dead letter, whose code `dead` is then."""

    message: Message
    source: str
    dead: str | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A raw message that is not what its own facts say; nothing is made of it."""

    reason: str


def restore(
    half: Half, stored: Stored, events: Events, rules: Rules, report: Callable[[str], None]
) -> Restored | Damaged:
    """
    What the request that published this raw message would have published next, byte for byte.

    A body that its source's reader no longer takes, or whose source is gone, becomes a dead letter. `report` logs the
    exception being handled, when a reader raises.
    """
    facts = parse_facts(stored.headers.get(FACTS_HEADER))
    found = _RAW.match(stored.body)
    if facts is None or found is None or not stored.body.endswith(b"}"):
        return Damaged("it is no raw event")
    body = stored.body[found.end() : -1]
    if digest(body) != facts.body:
        return Damaged("its payload is not the body that it was accepted for")
    name = found[1].decode("utf-8", "replace")
    signal = _read(name, body, stored.headers.get("Instrument"), rules, report)
    if isinstance(signal, _Unreadable):
        refused = refused_digest(name, body)
        letter = DeadLetter(
            refused,
            signal.code,
            name,
            facts.accepted_at,
            parsed=True,
            reasons=signal.reasons,
            key=stored.headers.get("Idempotency-Key"),
            key_is_identity=facts.kind is KEY,
        )
        return Restored(letter.message(body), name, signal.code)
    source = rules.sources[name]
    print_ = fingerprint(facts.kind, half.identity, facts.body)
    claim = Claim(name, facts.kind, half.identity, facts.body, print_, facts.nonce, None, source.limit)
    _, normalised = events.pair(claim, signal, body, _envelope(half, stored.headers, facts))
    return Restored(normalised, name)


def _envelope(half: Half, headers: Mapping[str, str], facts: Facts) -> Envelope:
    traceparent = headers.get("traceparent")
    return Envelope(
        half.corr_id,
        facts.accepted_at,
        facts.scheme,
        headers.get("Idempotency-Key"),
        None if traceparent is None else traceparent.encode("ascii"),
    )


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Why a body is no signal any more: the code of its dead letter and the reasons."""

    code: str
    reasons: tuple[str, ...]


def _read(
    name: str, body: bytes, instrument: str | None, rules: Rules, report: Callable[[str], None]
) -> Signal | _Unreadable:
    """
    The body as its source's reader takes it now, else as the generic path does, which takes any source's bodies.

    Of a body that both take it is the reading whose instrument the raw message's header names.
    """
    source = rules.sources.get(name)
    if source is None:
        return _Unreadable("GW-009", (f"the source {name} is no longer configured",))
    try:
        read = [_signal_of(source.read(body, name), name), _signal_of(rules.generic(body, None), name)]
    except Exception:
        report("read")
        return _Unreadable("GW-009", ("fault of the gateway",))
    signals = [one for one in read if isinstance(one, Signal)]
    if signals:
        return next((one for one in signals if one.instrument == instrument), signals[0])
    own = read[0]
    if isinstance(own, Invalid):
        return _Unreadable("GW-003", tuple(f"{fault.path}: {fault.message}" for fault in own.faults))
    return _Unreadable("GW-009", (own.message if isinstance(own, Malformed) else "it is no signal",))


def _signal_of(read: Signal | Generic | Malformed | Invalid, name: str) -> Signal | Malformed | Invalid | None:
    """What was read, of a body that names its source: the signal, None when it names another one."""
    if not isinstance(read, Generic):
        return read
    return read.signal if read.source == name else None
