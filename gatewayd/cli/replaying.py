"""
`gatewayctl dlq replay` at work: one letter after the other, each in the steps that ingress.replaying has.

Decides when the stream is looked at, and what is said of each letter. Never decides what a letter becomes or what is
left to do, and never goes on after an outcome that is not known: the next run finds out.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from gatewayd.bus.publication import Ack, Message, Stored, Unpublished
from gatewayd.cli.choosing import Entry
from gatewayd.cli.console import Code, Failed, Surroundings, plain
from gatewayd.cli.link import Link, pause, refused
from gatewayd.cli.reading import Progress, Stretch, read_last, read_message, stream_info
from gatewayd.ingress.admission import KEY
from gatewayd.ingress.events import ENVELOPE_BYTES, Events
from gatewayd.ingress.replaying import (
    Complete,
    Publish,
    Sightings,
    Taken,
    Target,
    There,
    Unfit,
    claim_message,
    done_message,
    event_messages,
    plan,
    record_subject,
    resume,
    step,
)
from gatewayd.ingress.sources import Rules
from gatewayd.times import Wall

LEAST_LOOK_BACK_S: Final = 3600.0
"""The stream is searched from so long before the oldest letter on, or from a duplicate window before it."""

MAX_BYTES: Final = 256 * 1024 * 1024
"""Bodies of one run."""

_WRONG_SEQUENCE: Final = ("(10071)", "(10164)")


class Outcome(Enum):
    """What became of a letter."""

    REPLAYED = "replayed"
    FINISHED = "finished"  # an earlier run had begun
    THERE = "there already"  # sent by its sender meanwhile, or replayed from an equal letter
    DONE = "replayed before"
    REFUSED = "still refused"
    TAKEN = "superseded"  # its sender used the same key for another body
    BUSY = "left to another run"


GOOD: Final = frozenset({Outcome.REPLAYED, Outcome.FINISHED, Outcome.THERE, Outcome.DONE})


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of one letter. `stored`: sequences of raw and normalised, 0 for one that is not there."""

    letter: int
    outcome: Outcome
    target: Target | None = None
    reasons: tuple[str, ...] = ()
    code: str = ""
    stored: tuple[int, int] | None = None

    def members(self, *, dry: bool) -> dict[str, Any]:
        """As JSON."""
        members: dict[str, Any] = {"letter": self.letter, "outcome": self.outcome.value, "dry_run": dry}
        if self.target is not None:
            members |= {"corr_id": self.target.corr_id, "source": self.target.claim.source}
            members["instrument"] = self.target.signal.instrument
        if self.stored is not None:
            members["stored"] = list(self.stored)
        if self.outcome not in GOOD:
            members |= {"code": self.code, "reasons": list(self.reasons)}
        return members

    def line(self, *, dry: bool) -> str:
        """As text."""
        if self.outcome is Outcome.REFUSED:
            reasons = "; ".join(self.reasons)
            return f"{self.letter}: still refused: {plain(f'{self.code} {reasons}'.strip())}"
        word = self.outcome.value
        if dry and self.outcome in (Outcome.REPLAYED, Outcome.FINISHED):
            word = f"would be {word}"
        text = f"{self.letter}: {word}"
        if self.stored is not None:
            text += f" as {' and '.join(str(sequence) for sequence in self.stored if sequence)}"
        if self.target is not None:
            signal = self.target.signal
            price = signal.price.decode("ascii")
            text += f" ({self.target.corr_id} {signal.instrument} {signal.side or '-'} {price})"
        return text + (f": {plain('; '.join(self.reasons))}" if self.reasons else "")


@dataclass(frozen=True, slots=True)
class _Job:
    """One letter with what it becomes."""

    entry: Entry
    target: Target | Unfit


class _Overtaken(Exception):
    """Another run has moved the record on."""


class Replaying:
    """One run. `tell` hears what became of each letter, in order; `rate` is how many are published a second at most."""

    def __init__(
        self,
        link: Link,
        rules: Rules,
        events: Events,
        subjects: tuple[str, str],
        surroundings: Surroundings,
        *,
        dry: bool,
        rate: float | None,
        tell: Callable[[Told], object],
    ) -> None:
        self._link = link
        self._rules = rules
        self._events = events
        self._subjects = subjects
        self._surroundings = surroundings
        self._dry = dry
        self._rate = rate
        self._tell = tell
        self._seen = Sightings(())
        self._stretch = Stretch(link, subjects)
        self.tally: Counter[Outcome] = Counter()
        self.left = 0

    async def run(self, entries: Sequence[Entry], corrected: bytes | None = None) -> None:
        """Every letter; `corrected` is the body for the one that there is then."""
        self.left = len(entries)
        jobs = await self._prepare(entries, corrected)
        targets = [job.target for job in jobs if isinstance(job.target, Target)]
        self._seen = Sightings(msg_id for target in targets for msg_id in target.ids)
        window_s = int((await stream_info(self._link))["config"].get("duplicate_window", 0)) / 1e9
        oldest = min((job.entry.at for job in jobs), default=Wall(0.0))
        since = Wall(oldest - max(window_s, LEAST_LOOK_BACK_S))
        progress = Progress(self._surroundings.monotonic, "looking in the stream for what is there already")
        self._stretch = Stretch(self._link, self._subjects, since=since, progress=progress.say)
        published = 0
        for job in jobs:
            if published and self._rate is not None:
                await pause(1 / self._rate)
            told = await self._replay(job)
            published = int(told.outcome in (Outcome.REPLAYED, Outcome.FINISHED) and not self._dry)
            self.tally[told.outcome] += 1
            self.left -= 1
            self._tell(told)

    async def _prepare(self, entries: Sequence[Entry], corrected: bytes | None) -> list[_Job]:
        jobs, size = [], 0
        for entry in entries:
            target = await self._plan(entry, corrected)
            size += len(target.body) if isinstance(target, Target) else 0
            if size > MAX_BYTES:
                raise Failed(Code.WRONG, f"these letters have more than {MAX_BYTES} bytes; choose fewer with --limit")
            jobs.append(_Job(entry, target))
        return jobs

    async def _plan(self, entry: Entry, corrected: bytes | None) -> Target | Unfit:
        if entry.is_replayed:
            return Unfit("", ())
        record, letter = entry.record, entry.letter
        sequence = entry.sequence if record is None else record.sequence
        stored = await read_message(self._link, sequence) if record is not None or corrected is None else None
        if record is None and letter is not None and corrected is not None:
            target = plan(letter, corrected, self._rules, edited=True)
        elif stored is None:
            return Unfit("", ("it has gone from the stream meanwhile",))
        elif record is not None:
            target = resume(record, stored.body, self._rules)
            if corrected is not None and corrected != stored.body:
                return Unfit("", ("a replay with another body has begun; run it without --body to finish that one",))
        else:
            assert letter is not None  # noqa: S101 - an entry has one of the two
            target = plan(letter, stored.body, self._rules)
        if isinstance(target, Target) and len(target.body) + ENVELOPE_BYTES > self._link.max_payload:
            return Unfit("GW-008", ("it is longer than the server's max_payload allows",))
        return target

    async def _replay(self, job: _Job) -> Told:
        entry, target = job.entry, job.target
        if entry.is_replayed:
            assert entry.record is not None  # noqa: S101 - it says that it is replayed
            return Told(entry.sequence, Outcome.DONE, stored=entry.record.stored)
        if isinstance(target, Unfit):
            return Told(entry.sequence, Outcome.REFUSED, reasons=target.reasons, code=target.code)
        found = await self._look(target)
        if self._dry:
            return self._foretell(entry, target, found)
        record = entry.record
        at = self._surroundings.wall() if record is None else record.at
        fence = 0 if record is None else record.sequence
        word = Outcome.REPLAYED if record is None else Outcome.FINISHED
        try:
            if not isinstance(found, There | Taken):
                fence = (await self._store(claim_message(target, at, fence))).sequence
                found = await self._look(target)
            elif record is None and isinstance(found, There):
                word = Outcome.THERE
            return await self._publish(target, at, fence, found, word)
        except _Overtaken:
            return await self._overtaken(target, fence)

    async def _publish(
        self, target: Target, at: Wall, fence: int, found: Publish | Complete | There | Taken, word: Outcome
    ) -> Told:
        """Whatever is missing, then the end of the record. Raw before normalised: its acknowledgement is a verdict."""
        raw, normalised = event_messages(target, self._events, at, fence)
        if isinstance(found, Publish):
            ack = await self._store(raw)
            if ack.duplicate:
                # The server remembers the id: it was stored since the last look, or what it remembers has been deleted.
                await self._see(ack.sequence)
                found = step(target, self._seen)
                if isinstance(found, Publish) and target.claim.kind is KEY:
                    found = Taken(ack.sequence)  # what it stood for has gone, and may have been another body
            if not isinstance(found, There | Taken):
                found = Complete(ack.sequence)
        if isinstance(found, Taken):
            return _superseded(target, found)
        stored = (found.raw, found.normalised) if isinstance(found, There) else None
        if stored is None:
            stored = found.raw, (await self._store(normalised)).sequence
        await self._store(done_message(target, at, fence, stored))
        return Told(target.letter, word, target, stored=stored)

    async def _look(self, target: Target) -> Publish | Complete | There | Taken:
        await self._stretch.read(self._show)
        return step(target, self._seen)

    def _show(self, stored: Stored) -> None:
        self._seen.see(stored.headers, stored.sequence)

    async def _see(self, sequence: int) -> None:
        stored = await read_message(self._link, sequence)
        if stored is not None:
            self._show(stored)

    async def _store(self, message: Message) -> Ack:
        answer = await self._link.publish(message)
        if isinstance(answer, Unpublished):
            if answer.error.endswith(_WRONG_SEQUENCE):
                raise _Overtaken
            raise refused(answer)
        return answer

    async def _overtaken(self, target: Target, fence: int) -> Told:
        last = await read_last(self._link, record_subject(target.letter))
        if fence and last is not None and last.sequence == fence:
            raise Failed(
                Code.NOT_IN_ORDER,
                f"the server (nats-server {self._link.server_version}) cannot replay exactly once: it does not know "
                "Nats-Expected-Last-Subject-Sequence-Subject; 2.12.6 does",
            )
        return Told(target.letter, Outcome.BUSY, target)

    def _foretell(self, entry: Entry, target: Target, found: Publish | Complete | There | Taken) -> Told:
        if isinstance(found, Taken):
            return _superseded(target, found)
        if isinstance(found, There) and entry.record is None:
            return Told(target.letter, Outcome.THERE, target, stored=(found.raw, found.normalised))
        return Told(target.letter, Outcome.REPLAYED if entry.record is None else Outcome.FINISHED, target)


def _superseded(target: Target, found: Taken) -> Told:
    reason = f"its sender used the same Idempotency-Key for another body, stored as {found.sequence}"
    return Told(target.letter, Outcome.TAKEN, target, (reason,), "GW-006")
