"""
What must always hold, checked while a simulated world runs and once more when it has come to rest.

Decides from the plan, the answers and the model's stream whether gatewayd kept its word. It knows the truth (what is
stored, when, by whom) and asks the product only for its counters. Never draws a number, never changes anything.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from tests.simulation.process import Process
from tests.simulation.signals import Signal, hexed, members_of, payload_of
from tests.simulation.stream import Kept

ANSWER_WITHIN_S: Final = 2.5

_ID: Final = re.compile(rb"\r\nNats-Msg-Id: gw:([0-9a-f]{32}):([A-Za-z0-9:-]+)\r\n")
_FACTS: Final = re.compile(rb"\r\nGw-Facts: 1 (key|body) ([0-9a-f]{32}) ([0-9a-f]{32}) [a-z0-9-]+ \d{13}\r\n")
_CORR_ID: Final = re.compile(r"req_[0-9a-f]{20}")


@dataclass(slots=True, eq=False)
class Attempt:
    """
    One request of a client. `index` is its place among the complete requests of its process, 0 before that. `old` says
    that the signal is older than its ids are remembered.
    """

    signal: Signal
    process: Process
    nonce: str
    timestamp: str
    sent_at: float
    old: bool = False
    index: int = 0
    complete_at: float = 0.0
    written_at: float = 0.0

    @property
    def request(self) -> tuple[str, str]:
        """Which request this is, beyond its nonce and time."""
        return self.signal.identity, self.signal.digest


@dataclass(frozen=True, slots=True)
class Raw:
    """A raw event in the stream."""

    sequence: int
    digest: str
    connection: int


class Invariants:
    """
    The account of one world. `broken` are the violations, each a line; `seen` counts what happened.

    The world sets `clock_trouble` when a process' wall clock may be wrong and `full` when the stream was full;
    `operated` says that somebody removed what was stored.
    """

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.seen: Counter[str] = Counter()
        self.raws: dict[str, Raw] = {}
        self.normalised: dict[str, int] = {}
        self.letters: dict[str, int] = {}
        self.bodies: dict[str, dict[str, Signal]] = {}  # identity -> digest -> what was sent under it
        self.holders: dict[tuple[str, str], set[str]] = {}  # source and unsigned key -> identities sent with it
        self.nonces: dict[tuple[str, str], set[tuple[str, str]]] = {}
        self.fresh: dict[str, Attempt] = {}  # identity -> the attempt that was told it is new
        self.accepted: set[str] = set()
        self.clock_trouble = False
        self.full = False
        self.operated = False
        self.gone: set[str] = set()  # identities that an operator removed
        self.used: dict[tuple[str, str], Attempt] = {}  # source and nonce -> the first that was accepted with it
        self.stored_nonces: dict[str, float] = {}  # nonce, as the stream has it -> since when
        self.forgets_until = 0.0

    def remove_all(self) -> None:
        """An operator removed everything that is stored: what becomes of it from now on is nobody's promise."""
        self.operated = True
        self.gone.update(self.raws, self.normalised)
        self.stored_nonces.clear()
        self.letters.clear()

    def violate(self, text: str) -> None:
        """A promise was broken."""
        if len(self.broken) < 20:
            self.broken.append(text)

    # what clients send

    def complete(self, attempt: Attempt) -> None:
        """A process has a whole request."""
        signal = attempt.signal
        self.seen["requests"] += 1
        if signal.forged:
            return
        self.bodies.setdefault(signal.identity, {})[signal.digest] = signal
        self.nonces.setdefault((signal.source, attempt.nonce), set()).add(attempt.request)
        if signal.key and signal.scheme == "sha256":
            self.holders.setdefault((signal.source, signal.key), set()).add(signal.identity)

    # what is stored

    def stored(self, kept: Kept) -> None:
        """A message went into the stream."""
        found = _ID.search(kept.headers)
        if found is None:
            self.violate(f"stored without an id: {kept.sequence}")
            return
        identity, what = found[1].decode(), found[2].decode()
        if identity in self.gone:
            return
        if what == "raw":
            self._raw(identity, kept)
        elif what == "norm":
            self._normalised(identity, kept)
        elif what.endswith(":dlq"):
            self._letter(identity, what[:-4], kept)
        elif what.endswith(":raw"):
            if f"{identity}:{what[:-4]}" not in self.letters and not self.operated:
                self.violate(f"a rejected raw without its letter: {identity}")
        else:
            self.violate(f"an id of no known kind: {what}")

    def _sent(self, identity: str, kept: Kept) -> Signal | None:
        """What was sent that is this stored event; None, and a violation, for an event that nobody sent."""
        facts = _FACTS.search(kept.headers)
        signal = self.bodies.get(identity, {}).get(facts[2].decode()) if facts is not None else None
        if signal is None or signal.code:
            self.violate(f"an event that nobody sent: {identity} at {kept.sequence}")
            return None
        return signal

    def _raw(self, identity: str, kept: Kept) -> None:
        signal = self._sent(identity, kept)
        if signal is None:
            return
        if identity in self.raws:
            self.violate(f"raw stored twice: {identity} at {self.raws[identity].sequence} and {kept.sequence}")
        if payload_of(kept.body) != signal.body:
            self.violate(f"raw is not what was sent: {identity}")
        self.raws[identity] = Raw(kept.sequence, signal.digest, _connection(kept))
        self.seen["raws"] += 1

    def _normalised(self, identity: str, kept: Kept) -> None:
        signal = self._sent(identity, kept)
        if signal is None:
            return
        raw = self.raws.get(identity)
        if identity in self.normalised:
            self.violate(f"normalised stored twice: {identity}")
        if raw is None:
            self.violate(f"normalised before its raw: {identity}")
        elif raw.digest != signal.digest:
            self.violate(f"normalised of another body than its raw: {identity}")
        if f'"price":{signal.price},'.encode() not in kept.body or signal.corr_id.encode() not in kept.body:
            self.violate(f"normalised is not what was sent: {identity}")
        self.normalised[identity] = kept.sequence
        facts = _FACTS.search(kept.headers)
        if facts is not None:
            self.stored_nonces.setdefault(facts[3].decode(), kept.at)

    def _letter(self, identity: str, code: str, kept: Kept) -> None:
        if f"{identity}:{code}" in self.letters:
            self.violate(f"a dead letter stored twice: {identity}")
        signal = next(iter(self.bodies.get(identity, {}).values()), None)
        if signal is None or signal.code != code or kept.body != signal.body:
            self.violate(f"a dead letter that nobody sent: {identity} {code}")
        self.letters[f"{identity}:{code}"] = kept.sequence

    # what is answered

    def written(self, attempt: Attempt, now: float) -> None:
        """A process wrote its answer."""
        attempt.written_at = now
        if now - attempt.complete_at > ANSWER_WITHIN_S and attempt.complete_at >= attempt.process.loop.paused_until:
            self.violate(f"answered after {now - attempt.complete_at:.3f} s: {attempt.signal.identity}")

    def judge(self, attempt: Attempt, status: int, head: bytes, body: bytes) -> dict[str, Any]:
        """One answer; returns its members."""
        members: dict[str, Any] = members_of(body)
        code = str(members.get("code", ""))
        self.seen[f"{status} {code}".strip()] += 1
        corr_id = str(members["corr_id"])
        shown = f"{status} {code} for {attempt.signal.identity} ({attempt.signal.scheme}, key {attempt.signal.key!r})"
        if f"X-Correlation-ID: {corr_id}\r\n".encode() not in head + b"\r\n" or not _CORR_ID.fullmatch(corr_id):
            self.violate(f"no correlation id: {shown}")
        if status in (429, 503) and b"\r\nRetry-After: " not in head:
            self.violate(f"no Retry-After: {shown}")
        rules = {202: self._accepted, 409: self._conflict, 401: self._unauthorised, 503: self._unavailable}
        if attempt.signal.code and status in (400, 422):
            self._refused(attempt, status, code, members)
        elif status in rules:
            wrong = rules[status](attempt, code, members)
            if wrong:
                self.violate(f"{wrong}: {shown}")
        else:
            self.violate(f"no answer for this: {shown}")
        return members

    def _accepted(self, attempt: Attempt, _: str, members: dict[str, Any]) -> str:
        signal = attempt.signal
        identity = signal.identity
        if signal.forged or signal.code or attempt.old:
            return "accepted what must be refused"
        if members["corr_id"] != signal.corr_id:
            return "another corr_id"
        if identity in self.gone:
            return ""
        if self._is_replay(attempt):
            return "accepted under a nonce that was used"
        raw = self.raws.get(identity)
        if raw is None or raw.digest != signal.digest:
            return "accepted and not stored"
        if identity not in self.normalised:
            return "accepted without its normalised event"
        self.accepted.add(identity)
        if members["duplicate"]:
            self.seen["duplicates"] += 1
        elif identity in self.fresh:
            return "new for the second time"
        else:
            self.fresh[identity] = attempt
        return ""

    def _is_replay(self, attempt: Attempt) -> bool:
        """
        True when this process must know the nonce: it accepted it before this request was complete, or the nonce was
        in the stream before the process was born. Remembers the nonce of the first that was accepted.
        """
        if attempt.complete_at < self.forgets_until:
            return False
        at = self.stored_nonces.get(hexed(attempt.signal.source.encode(), attempt.nonce.encode()))
        if at is not None and at < attempt.process.born_wall and not self.forgets_until:
            return True
        first = self.used.setdefault((attempt.signal.source, attempt.nonce), attempt)
        return first.process is attempt.process and first.written_at < attempt.complete_at

    def _conflict(self, attempt: Attempt, _: str, members: dict[str, Any]) -> str:
        signal, details = attempt.signal, members["details"]
        if not signal.key:
            return "a conflict without a key"
        if signal.scheme == "v1":
            raw = self.raws.get(signal.identity)
            if signal.identity in self.gone:
                return ""
            if raw is None or raw.digest == signal.digest:
                return "a conflict with nothing"
            return "" if details["original_corr_id"] == signal.corr_id else "another original"
        others = self.holders[signal.source, signal.key] - {signal.identity}
        if others & self.gone:
            return ""
        stored = {f"req_{other[:20]}" for other in others if other in self.raws}
        return "" if details["original_corr_id"] in stored else "a conflict with nothing"

    def _unauthorised(self, attempt: Attempt, code: str, members: dict[str, Any]) -> str:
        signal, details = attempt.signal, members["details"]
        if code == "GW-001":
            return "" if signal.forged else "a good signature refused"
        reason = details["reason"]
        if reason != "nonce_used":
            return "" if self.clock_trouble or attempt.old else f"refused for its time ({reason})"
        if signal.forged:
            return "a nonce looked at before the signature"
        original = details.get("original_corr_id")
        if original is None:
            others = self.nonces[signal.source, attempt.nonce] - {attempt.request}
            return "" if others else "a fresh nonce refused"
        self.seen["replays"] += 1
        if signal.identity in self.gone:
            return ""
        raw = self.raws.get(signal.identity)
        if original != signal.corr_id or members["corr_id"] != signal.corr_id:
            return "another original"
        if raw is None or raw.digest != signal.digest:
            return "said to be stored, and is not"
        return ""

    def _unavailable(self, attempt: Attempt, code: str, members: dict[str, Any]) -> str:
        del attempt
        if code == "GW-010" and members["details"]["reason"] == "stream_full" and not self.full:
            return "the stream is not full"
        return "" if code in ("GW-005", "GW-010", "GW-018") else "another code"

    def _refused(self, attempt: Attempt, status: int, code: str, members: dict[str, Any]) -> None:
        signal = attempt.signal
        if (status, code) != (signal.status, signal.code) or members["corr_id"] != signal.corr_id:
            self.violate(f"{status} {code} for a body that means {signal.status} {signal.code}")
        if f"{signal.identity}:{code}" not in self.letters:
            attempt.process.letters_lost += 1

    # when everything has come to rest

    def finish(self) -> None:
        """The whole account, after the last fault has ended and everybody has been told."""
        for identity in self.raws:
            if identity in self.normalised or identity in self.gone:
                continue
            if identity in self.accepted:
                self.violate(f"accepted, and half of it is gone: {identity}")
            else:
                self.violate(f"half an event is left: {identity} at {self.raws[identity].sequence}")
        self._order()

    def _order(self) -> None:
        """Of one source and instrument, on one connection, without keys: stored as their requests were complete."""
        lines: dict[tuple[int, str, str], list[tuple[int, int]]] = {}
        for identity, attempt in self.fresh.items():
            raw = self.raws[identity]
            if not attempt.signal.key and identity not in self.gone:
                place = (raw.connection, attempt.signal.source, attempt.signal.instrument)
                lines.setdefault(place, []).append((attempt.index, raw.sequence))
        for place, pairs in lines.items():
            sequences = [sequence for _, sequence in sorted(pairs)]
            if sequences != sorted(sequences):
                self.violate(f"out of order on {place}: {sequences}")

    def at_rest(self, process: Process) -> None:
        """Nothing may be left in a process that has stopped in good order."""
        core: Any = process.core
        name = f"process {process.number}"
        left = {
            "requests": core.site.in_flight,
            "publications": core.bus.unacked,
            "API requests": len(core.bus._requests),
            "claims": len(core.store.admission._flights),
            "nonces in flight": len(core.store.admission._flying),
        }
        for what, count in left.items():
            if count:
                self.violate(f"{name} has {count} {what} left")
        if process.world.loop.errors:
            self.violate(f"{name}: {process.world.loop.errors} errors on its event loop")

    def conserve(self, process: Process) -> None:
        """What the process counted is what its clients saw, but for those that went away."""
        core: Any = process.core
        self.seen["repaired halves"] += core.metrics._repairs.labels("normalized").value
        if process.letters_lost > core.metrics._dead_lost.value and not self.operated:
            self.violate(f"process {process.number} lost {process.letters_lost} dead letters and did not count them")
        if core.metrics._orphans.value and not self.gone:
            self.violate(f"process {process.number} found {core.metrics._orphans.value} normalised events without raw")
        for status in (2, 4, 5):
            counted = sum(
                core.metrics.received.labels(source, f"{status}xx").value
                for source in ("tradingview", "custom", "test", "_other")
            )
            seen = process.answered[status]
            if not seen <= counted <= seen + process.cut:
                self.violate(f"process {process.number} counted {counted} of {status}xx, its clients {seen}")


def _connection(kept: Kept) -> int:
    number: int = kept.by.number  # type: ignore[attr-defined]
    return number
