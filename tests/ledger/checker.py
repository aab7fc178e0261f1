"""
Reconciles what was answered with what is stored. Pure.

Decides from the plan, the ledger's lines, the whole stream and the faults that were made whether every answer was
kept: a 202 is stored once, raw before normalised, byte for byte; a refusal is not stored, or as its dead letter only;
whatever else is stored was attempted without an answer. Never reads a file, a server or a clock.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec

from tests.ledger.client import Line
from tests.ledger.plan import BROKEN, Kind, Step, Webhook
from tests.ledger.report import FROZEN, GATEWAY, NATS, Counted, Fault, Report
from tests.streams import Read

LATE_MS: Final = 2500.0

_TRANSIENT: Final = {(503, "GW-005"), (503, "GW-010"), (503, "GW-018"), (429, "GW-004")}
_RAW: Final = re.compile(
    rb'\{"corr_id":"(req_[0-9a-f]{20})","source":"([^"\\]*)","received_at":"[0-9TZ:.-]+","payload":(.*)\}', re.DOTALL
)
_ID: Final = re.compile(r"gw:([0-9a-f]{32}):(raw|norm)")


@dataclass(frozen=True, slots=True)
class _Raw:
    """A raw event as it is stored."""

    message: Read
    corr_id: str
    source: str
    digest: str

    @property
    def event(self) -> tuple[str, str, str]:
        """See Webhook.event."""
        return self.source, self.digest, self.message.headers.get("Idempotency-Key", "")


class _Stream:
    """The messages of the stream by what they are."""

    def __init__(self, messages: Sequence[Read], report: Report) -> None:
        self.raws: dict[tuple[str, str, str], list[_Raw]] = defaultdict(list)
        self.raws_by_corr_id: dict[str, list[_Raw]] = defaultdict(list)
        self.normalised: dict[str, list[Read]] = defaultdict(list)
        self.kept_raw: dict[str, list[_Raw]] = defaultdict(list)
        self.letters: dict[tuple[str, str], list[Read]] = defaultdict(list)
        for msg_id, times in Counter(message.headers.get("Nats-Msg-Id", "") for message in messages).items():
            if times > 1:
                report.note("repeated_id", f"{msg_id!r} {times} times")
        for message in messages:
            self._sort(message, report)

    def _sort(self, message: Read, report: Report) -> None:
        headers = message.headers
        corr_id = headers.get("Corr-ID", "")
        if message.subject == "signals.raw":
            found = _RAW.fullmatch(message.data)
            if found is None:
                report.note("altered", f"raw at {message.sequence} is no raw event")
                return
            raw = _Raw(message, found[1].decode(), found[2].decode(), sha256(found[3]).hexdigest())
            if raw.corr_id != corr_id or raw.source != headers.get("Source"):
                report.note("wrong_facts", f"raw at {message.sequence}: headers and body differ")
            if "Rejected" in headers:
                self.kept_raw[raw.digest].append(raw)
                return
            self.raws[raw.event].append(raw)
            self.raws_by_corr_id[raw.corr_id].append(raw)
        elif message.subject == "signals.normalized":
            self.normalised[corr_id].append(message)
        elif message.subject.startswith("dlq."):
            self.letters[sha256(message.data).hexdigest(), headers.get("Dlq-Code", "")].append(message)
        else:
            report.note("unexpected", f"{message.subject} at {message.sequence}")


class _Check:
    """One reconciliation, and what its steps share."""

    def __init__(
        self, plan: Sequence[Step], lines: Sequence[Line], messages: Sequence[Read], faults: Sequence[Fault]
    ) -> None:
        self.report = Report()
        self.plan = plan
        self.lines = lines
        self.faults = faults
        self.lost: dict[str, list[Line]] = {"letter": [], "raw": []}  # lost in an outage: the last answer of each
        self.stream = _Stream(messages, self.report)
        self.attempts: dict[tuple[int, int], list[Line]] = defaultdict(list)
        for line in lines:
            self.attempts[line.plan, line.copy].append(line)
        self.by_event: dict[tuple[str, str, str], list[Line]] = defaultdict(list)
        self.webhooks: dict[tuple[str, str, str], Webhook] = {}
        for step in plan:
            for copy, webhook in enumerate(step.webhooks):
                if step.kind is not Kind.BROKEN:
                    self.by_event[webhook.event] += self.attempts[step.id, copy]
                    self.webhooks.setdefault(webhook.event, webhook)

    def run(self) -> Report:
        """Every check, one after the other."""
        for line in self.lines:
            self._check_line(line)
        stored = {event: self._check_event(event, lines) for event, lines in self.by_event.items()}
        self._check_strangers()
        for step in self.plan:
            self._check_step(step)
        self._check_keys()
        self._check_letters()
        self._figure(stored.values())
        return self.report

    # Each line by itself.

    def _check_line(self, line: Line) -> None:
        shown = _show(line)
        if line.status >= 500 and (line.status, line.code) not in _TRANSIENT:
            self.report.note("other_5xx", shown)
        if line.odd:
            self.report.note("odd_answer", f"{line.odd}: {shown}")
        if line.latency_ms - 1000 * self._absent_s(line) > LATE_MS:
            self.report.note("late", shown)
        if line.status == 0 and not self._explained(line):
            self.report.note("cut", shown)

    def _explained(self, line: Line) -> bool:
        """True when the gateway was killed while this attempt was under way, or before and was not back yet."""
        return self._met(line, GATEWAY, FROZEN)

    def _met(self, line: Line, *names: str) -> bool:
        """True when one of these faults was made while this attempt was under way."""
        return any(
            fault.name in names and line.sent_at <= fault.open_at and line.ended_at >= fault.at for fault in self.faults
        )

    def _absent_s(self, line: Line) -> float:
        """How long of this attempt gatewayd was frozen, or not there: an inherited socket keeps connections waiting."""
        absent = [fault for fault in self.faults if fault.name in (GATEWAY, FROZEN)]
        return sum(max(0.0, min(line.ended_at, one.open_at) - max(line.sent_at, one.at)) for one in absent)

    # Each event against the stream.

    def _check_event(self, event: tuple[str, str, str], lines: Sequence[Line]) -> str:
        """Judge one event; returns what it came to: stored, unknown_stored or refused."""
        lines = sorted(lines, key=lambda line: line.id)
        webhook, raws = self.webhooks[event], self.stream.raws[event]
        told = [line for line in lines if _says_stored(line)]
        shown = f"{event[1][:12]} {event[2]}".strip()
        corr_ids = {line.original or line.corr_id for line in told}
        stored_as = {raw.corr_id for raw in raws}
        if len(corr_ids | stored_as) > 1:
            self.report.note("corr_id_changed", f"{shown}: answered {sorted(corr_ids)}, stored {sorted(stored_as)}")
        new = [line for line in told if line.duplicate is False]
        if len(new) > 1:
            self.report.note("doubled", f"{shown}: answered as new by lines {[line.id for line in new]}")
        failed = [line for line in lines if line.status == 0 or line.status >= 500]
        if told and not new and not any(line.sent_at <= told[0].ended_at for line in failed):
            self.report.note("wrong_answer", f"{shown}: a duplicate of nothing, {_show(told[0])}")
        if told and not raws:
            others = [raw for corr_id in corr_ids for raw in self.stream.raws_by_corr_id[corr_id]]
            name = "altered" if others else "lost"
            self.report.note(name, f"{shown}: {_show(told[0])}")
            return "lost"
        if not raws:
            return "refused"
        if not told and not failed:
            self.report.note("unexpected", f"{shown} at {raws[0].message.sequence}: {[_show(line) for line in lines]}")
        if len(raws) > 1:
            self.report.note("doubled", f"{shown}: raw at {[raw.message.sequence for raw in raws]}")
        self._check_pair(shown, webhook, raws[0])
        return "stored" if new else "unknown_stored"

    def _check_pair(self, shown: str, webhook: Webhook, raw: _Raw) -> None:
        """The normalised event of a stored raw one: once, after it, under its id, and what the body says."""
        normalised = self.stream.normalised[raw.corr_id]
        if not normalised:
            self.report.note("half", f"{shown}: raw at {raw.message.sequence} has no normalised event")
            return
        if len(normalised) > 1:
            self.report.note("doubled", f"{shown}: normalised at {[message.sequence for message in normalised]}")
        if normalised[0].sequence < raw.message.sequence:
            self.report.note("unordered", f"{shown}: {normalised[0].sequence} before {raw.message.sequence}")
        ids = [_ID.fullmatch(message.headers.get("Nats-Msg-Id", "")) for message in (raw.message, normalised[0])]
        if [found and (found[1], found[2]) for found in ids] != [
            (found and found[1], part) for found, part in zip(ids[:1] * 2, ("raw", "norm"), strict=True)
        ] or (ids[0] and raw.corr_id != f"req_{ids[0][1][:20]}"):
            self.report.note("wrong_facts", f"{shown}: message ids of {raw.corr_id}")
        for fault in wrong_facts(webhook, raw.corr_id, normalised[0]):
            self.report.note("wrong_facts", f"{shown} at {normalised[0].sequence}: {fault}")

    def _check_strangers(self) -> None:
        """What is stored and was never sent as it stands there."""
        corr_ids = {line.corr_id for line in self.lines if line.status == 202}
        for event, raws in self.stream.raws.items():
            if event not in self.by_event:
                name = "altered" if raws[0].corr_id in corr_ids else "unexpected"
                self.report.note(name, f"raw at {raws[0].message.sequence}: {event[1][:12]} {event[2]}")
        for corr_id, messages in self.stream.normalised.items():
            if messages and not self.stream.raws_by_corr_id[corr_id]:
                self.report.note("half", f"normalised at {messages[0].sequence} has no raw event: {corr_id}")

    # Each step against its answers.

    def _check_step(self, step: Step) -> None:
        for copy, webhook in enumerate(step.webhooks):
            attempts = self.attempts[step.id, copy]
            if not attempts or attempts[-1].status in (0, 429, 503):
                self.report.note("unanswered", f"step {step.id} {step.kind.value}: {len(attempts)} attempts")
                continue
            final = attempts[-1]
            good = _JUDGES[step.kind](self, step, webhook, attempts)
            if not good:
                self.report.note("wrong_answer", f"{step.kind.value}: {_show(final)}")
            for line in attempts[:-1]:
                if line.status and (line.status, line.code) not in _TRANSIENT:
                    self.report.note("wrong_answer", f"repeated although it was answered: {_show(line)}")

    def _base(self, step: Step) -> Line:
        """The answer of the step that this one follows; one that says nothing when there is none."""
        assert step.base is not None
        return (self.attempts[step.base, 0] or [_NOTHING])[-1]

    def judge_new(self, _: Step, __: Webhook, attempts: Sequence[Line]) -> bool:
        """A new event: 202."""
        return attempts[-1].status == 202

    def judge_stubborn(self, _: Step, __: Webhook, attempts: Sequence[Line]) -> bool:
        """
        The identical request until it is answered: 202; after a restart of gatewayd in between, or an attempt whose
        answer did not arrive, also the refusal of its nonce that says that the event is stored.
        """
        final = attempts[-1]
        unknown = attempts[0].life < final.life or any(line.status == 0 for line in attempts[:-1])
        return final.status == 202 or (_says_stored(final) and unknown)

    def judge_duplicate(self, step: Step, _: Webhook, attempts: Sequence[Line]) -> bool:
        """An accepted event again: 202, duplicate, with the first corr_id."""
        final = attempts[-1]
        return final.status == 202 and final.duplicate is True and final.corr_id == self._base(step).corr_id

    def judge_replay(self, step: Step, _: Webhook, attempts: Sequence[Line]) -> bool:
        """
        The accepted request itself: refused, and the refusal names the event. When that request found the event stored
        its nonce is in memory only, so that a restart of gatewayd makes it a duplicate.
        """
        final, base = attempts[-1], self._base(step)
        if final.status == 202:
            forgotten = base.duplicate is True and base.life < final.life
            return forgotten and final.duplicate is True and final.corr_id == base.corr_id
        return (final.status, final.code) == (401, "GW-002") and final.original == base.corr_id

    def judge_conflict(self, step: Step, webhook: Webhook, attempts: Sequence[Line]) -> bool:
        """Another body under a key: 409; a key that is not signed is in memory only, which a restart empties."""
        final, base = attempts[-1], self._base(step)
        if final.status == 202:
            return webhook.scheme == "sha256" and base.life < final.life and final.corr_id != base.corr_id
        return (final.status, final.code) == (409, "GW-006") and final.original == base.corr_id

    def judge_twin(self, step: Step, _: Webhook, attempts: Sequence[Line]) -> bool:
        """The identical request at once: 202, or, when it came after the first one's answer, the replay's refusal."""
        corr_ids = {line.corr_id for copy in range(len(step.webhooks)) for line in self.attempts[step.id, copy][-1:]}
        return (attempts[-1].status == 202 or _says_stored(attempts[-1])) and len(corr_ids) == 1

    def judge_sibling(self, step: Step, _: Webhook, attempts: Sequence[Line]) -> bool:
        """One event at once with several nonces: 202 and one corr_id for all."""
        corr_ids = {line.corr_id for copy in range(len(step.webhooks)) for line in self.attempts[step.id, copy][-1:]}
        return attempts[-1].status == 202 and len(corr_ids) == 1

    def judge_race(self, step: Step, _: Webhook, attempts: Sequence[Line]) -> bool:
        """Several bodies under one signed key: one gets 202, every other 409 with that one's corr_id."""
        finals = [line for copy in range(len(step.webhooks)) for line in self.attempts[step.id, copy][-1:]]
        winners = [line for line in finals if line.status == 202]
        final = attempts[-1]
        if len(winners) != 1:
            return False
        if final.status == 202:
            return True
        return (final.status, final.code) == (409, "GW-006") and final.original == winners[0].corr_id

    def judge_broken(self, step: Step, _: Webhook, attempts: Sequence[Line]) -> bool:
        """The refusal of its fault, which names no event."""
        expected, final = BROKEN[step.fault], attempts[-1]
        return (final.status, final.code, final.original) == (expected.status, expected.code, "")

    def _check_keys(self) -> None:
        """One corr_id, one event: what a signed key stands for is one body."""
        events: dict[str, set[str]] = defaultdict(set)
        for line in self.lines:
            if line.status == 202:
                events[line.corr_id].add(line.body)
        for corr_id, raws in self.stream.raws_by_corr_id.items():
            events[corr_id] |= {raw.digest for raw in raws}
        for corr_id, bodies in events.items():
            if len(bodies) > 1:
                self.report.note("conflict_accepted", f"{corr_id}: {sorted(body[:12] for body in bodies)}")

    # Dead letters.

    def _check_letters(self) -> None:
        expected: dict[tuple[str, str], list[Line]] = defaultdict(list)
        subjects: dict[tuple[str, str], Step] = {}
        for step in self.plan:
            if step.kind is Kind.BROKEN and BROKEN[step.fault].letter is not None:
                place = step.webhooks[0].digest, BROKEN[step.fault].code
                expected[place] += self.attempts[step.id, 0]
                subjects.setdefault(place, step)
        for place, step in subjects.items():
            self._check_letter(step, self.stream.letters[place], expected[place])
        kept = {place[0] for place, step in subjects.items() if BROKEN[step.fault].kept_raw}
        for place, letters in self.stream.letters.items():
            if letters and place not in subjects:
                self.report.note("letter_unexpected", f"{letters[0].subject} at {letters[0].sequence}")
        for digest, raws in self.stream.kept_raw.items():
            if raws and digest not in kept:
                self.report.note("letter_unexpected", f"rejected raw at {raws[0].message.sequence}")

    def _check_letter(self, step: Step, letters: Sequence[Read], lines: Sequence[Line]) -> None:
        """One refused body: its dead letter, and its rejected raw event where it has one."""
        refusal, webhook = BROKEN[step.fault], step.webhooks[0]
        answers = [line for line in lines if line.status == refusal.status]
        failed = [line for line in lines if line.status == 0 or line.status >= 500]
        shown = f"{step.fault} {webhook.digest[:12]}"
        raws = self.stream.kept_raw[webhook.digest] if refusal.kept_raw else []
        for kind, stored in (("letter", list(letters)), ("raw", [raw.message for raw in raws])):
            wanted = kind == "letter" or refusal.kept_raw
            if wanted and answers and not stored:
                if all(self._met(line, NATS, FROZEN) for line in answers):
                    self.lost[kind].append(answers[-1])
                else:
                    self.report.note("letter_missing", f"{shown}: no {kind}, {_show(answers[0])}")
            if len(stored) > 1 or (stored and not answers and not failed):
                self.report.note("letter_unexpected", f"{shown}: {kind} at {[one.sequence for one in stored]}")
            for one in stored:
                said = {one.headers.get("Corr-ID", "")} | {line.corr_id for line in answers}
                if len(said) > 1 or "Gw-Facts" in one.headers:
                    self.report.note("letter_unexpected", f"{shown}: {kind} at {one.sequence} says {sorted(said)}")
        if letters and letters[0].subject != refusal.letter:
            self.report.note("letter_unexpected", f"{shown}: under {letters[0].subject}")
        if raws and raws[0].message.headers.get("Rejected") != refusal.code:
            self.report.note("letter_unexpected", f"{shown}: rejected raw at {raws[0].message.sequence}")
        if raws and letters and raws[0].message.sequence < letters[0].sequence:
            self.report.note("unordered", f"{shown}: rejected raw before its dead letter")

    # Figures.

    def _figure(self, came_to: Iterable[str]) -> None:
        figures = self.report.figures
        latencies = sorted(line.latency_ms for line in self.lines if line.status)
        statuses = Counter(line.status for line in self.lines)
        states = Counter(came_to)
        figures["attempts"] = len(self.lines)
        for status, times in sorted(statuses.items()):
            figures[f"answered {status}" if status else "not answered"] = times
        figures["events stored"] = states["stored"] + states["unknown_stored"]
        figures["unknown_stored"] = states["unknown_stored"]
        figures["letters lost"] = len(self.lost["letter"])
        figures["rejected lost"] = len(self.lost["raw"])
        if latencies:
            figures["p50 ms"] = latencies[len(latencies) // 2]
            figures["p99 ms"] = latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)]
            figures["max ms"] = latencies[-1]
        for fault in self.faults:
            after = [line for line in self.lines if line.ended_at >= fault.open_at]
            back_at = min((line.ended_at for line in after if line.status == 202), default=float("inf"))
            figured = {"down s": fault.open_at - fault.at}
            if after and not any(other.open_at > fault.open_at and other.at <= back_at for other in self.faults):
                figured["202 s"] = back_at - fault.open_at
            for name, value in figured.items():
                figures[f"{fault.name} {name}"] = max(round(value, 3), figures.get(f"{fault.name} {name}", 0.0))


_Judge = Callable[[_Check, Step, Webhook, Sequence[Line]], bool]
_JUDGES: Final[Mapping[Kind, _Judge]] = {
    Kind.VALID: _Check.judge_new,
    Kind.STUBBORN: _Check.judge_stubborn,
    Kind.DUPLICATE: _Check.judge_duplicate,
    Kind.REPLAY: _Check.judge_replay,
    Kind.CONFLICT: _Check.judge_conflict,
    Kind.TWINS: _Check.judge_twin,
    Kind.SIBLINGS: _Check.judge_sibling,
    Kind.RACE: _Check.judge_race,
    Kind.BROKEN: _Check.judge_broken,
}
_NOTHING: Final = Line(-1, "", -1, 0, 0, 0, "", "", 0.0, 0.0)


def check(
    plan: Sequence[Step],
    lines: Sequence[Line],
    messages: Sequence[Read],
    faults: Sequence[Fault] = (),
    counted: Sequence[Counted] = (),
) -> Report:
    """Reconcile a run: the plan, every attempt in the order written, the whole stream, and the faults made."""
    made = _Check(plan, lines, messages, faults)
    report = made.run()
    for one in counted:
        _check_counted(report, one, [line for line in lines if line.life == one.life])
        lost = sum(line.life == one.life for line in made.lost["letter"])
        if one.letters_lost < lost:
            report.note("miscounted", f"process {one.life}: {one.letters_lost} letters lost, and {lost} are missing")
    return report


def _check_counted(report: Report, counted: Counted, lines: Sequence[Line]) -> None:
    """One process: its counters against the answers that the client has from it."""
    classes = Counter(f"{line.status // 100}xx" for line in lines if line.status)
    timeouts = sum(line.code == "timeout" for line in lines)
    answered = {
        **{name: classes[name] for name in ("2xx", "4xx", "5xx")},
        "duplicates": sum(line.duplicate is True for line in lines),
        "conflicts": sum(line.status == 409 for line in lines),
        "internal errors": sum(line.code == "GW-016" for line in lines),
    }
    counts = {
        **{name: counted.classes.get(name, 0) for name in ("2xx", "4xx", "5xx")},
        "duplicates": counted.duplicates,
        "conflicts": counted.conflicts,
        "internal errors": counted.internal_errors,
    }
    for name, count in counts.items():
        if not answered[name] <= count <= answered[name] + timeouts:
            report.note("miscounted", f"process {counted.life}: {name} {count}, answered {answered[name]}")
    report.figures[f"letters lost, said by {counted.life}"] = counted.letters_lost


def wrong_facts(webhook: Webhook, corr_id: str, message: Read) -> list[str]:
    """What a normalised event says otherwise than the webhook's body does."""
    assert webhook.facts is not None
    facts = webhook.facts
    try:
        said = msgspec.json.decode(message.data, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return ["no JSON object"]
    expected = {
        "corr_id": _json(corr_id),
        "source": _json(webhook.source),
        "instrument": _json(facts.instrument),
        "price": facts.price,
        "side": _json(facts.side),
        "strength": facts.strength or "null",
        "timestamp": _json(facts.time),
        "idempotency_key": _json(webhook.key) if webhook.key else None,
        "strategy": _json(facts.strategy) if facts.strategy else None,
    }
    found = {name: bytes(said[name]).decode() if name in said else None for name in expected}
    faults = [f"{name} {found[name]}, not {value}" for name, value in expected.items() if found[name] != value]
    headers = {"Corr-ID": corr_id, "Source": webhook.source, "Instrument": facts.instrument}
    return faults + [f"header {name}" for name, value in headers.items() if message.headers.get(name) != value]


def _json(value: str | None) -> str:
    return msgspec.json.encode(value).decode()


def _says_stored(line: Line) -> bool:
    """A 202, or the one refusal that says that the event is in the stream."""
    return line.status == 202 or (line.status == 401 and line.code == "GW-002" and line.original != "")


def _show(line: Line) -> str:
    """One line in short."""
    return (
        f"line {line.id} step {line.plan}.{line.copy} {line.kind} attempt {line.attempt} life {line.life}: "
        f"{line.status} {line.code} {line.corr_id} {'' if line.duplicate is None else line.duplicate} "
        f"{line.original} {line.latency_ms:g} ms"
    )
