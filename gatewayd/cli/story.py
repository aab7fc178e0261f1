"""
What is known of one request, put together. Pure.

Decides how a stored message or a line of the log reads, which of them belong to one event, and what they mean
together. Never looks for them (tracing does).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gatewayd.bus.publication import Stored
from gatewayd.cli.choosing import Entry
from gatewayd.cli.console import plain
from gatewayd.ingress.events import FACTS_HEADER, MSG_ID_HEADER, parse_facts
from gatewayd.ingress.replaying import REPLAYED_FROM_HEADER, record_subject
from gatewayd.times import format_wall, parse_rfc3339

IN_ORDER: Final = frozenset({"accepted", "replayed"})
"""Stories of events that are stored, whole and once."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that happened: when (RFC 3339), in which subject and sequence (0: in the log), and what."""

    at: str
    corr_id: str
    subject: str
    sequence: int
    text: str
    members: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """For people."""
        place = f"{plain(self.subject)} {self.sequence}" if self.sequence else "log"
        return f"{self.at}  {place:<24}  {self.text}"

    @property
    def value(self) -> dict[str, Any]:
        """As JSON."""
        place = {"subject": self.subject, "sequence": self.sequence} if self.sequence else {"log": True}
        return {"time": self.at, "corr_id": self.corr_id, **place, "text": self.text, **self.members}


def scene_of_event(stored: Stored, body: Any) -> Scene:
    """A raw or a normalised message; `body` is the latter's JSON value, None where it was not read."""
    headers = stored.headers
    facts = parse_facts(headers.get(FACTS_HEADER))
    members: dict[str, Any] = {"msg_id": headers.get(MSG_ID_HEADER)}
    words = []
    if "Rejected" in headers:
        words.append(f"rejected {plain(headers['Rejected'])}, kept for review")
    elif facts is None:
        words.append("foreign: it has no facts of the gateway's")
    else:
        accepted = format_wall(facts.accepted_at)
        words.append(f"accepted {accepted} by {facts.scheme}, identity {facts.kind.value}")
        members["facts"] = {
            "accepted_at": accepted,
            "scheme": facts.scheme,
            "identity": facts.kind.value,
            "body_digest": facts.body.hex(),
            "nonce_digest": facts.nonce.hex(),
        }
    if REPLAYED_FROM_HEADER in headers:
        words.append(f"replayed from {plain(headers[REPLAYED_FROM_HEADER])}")
        members["replayed_from"] = headers[REPLAYED_FROM_HEADER]
    if isinstance(body, dict):
        said = [str(body[name]) for name in ("instrument", "side", "price", "timestamp") if body.get(name) is not None]
        words.append(plain(" ".join(said)))
        members["event"] = body
    at = format_wall(stored.time)
    return Scene(at, headers.get("Corr-ID", ""), stored.subject, stored.sequence, "; ".join(words), members)


def scenes_of_letter(entry: Entry) -> Iterable[Scene]:
    """A dead letter, and what its record says."""
    letter, record = entry.letter, entry.record
    if letter is not None:
        place = "" if letter.position is None else f" at line {letter.position[0]}, column {letter.position[1]}"
        reasons = plain("; ".join(letter.reasons))
        text = f"dead letter: {plain(letter.code)} {reasons}{place}"
        members: dict[str, Any] = {
            "code": letter.code,
            "reasons": list(letter.reasons),
            "received_at": letter.received_at,
        }
        yield Scene(format_wall(letter.stored_at), letter.corr_id, letter.subject, letter.sequence, text, members)
    if record is not None:
        done = "" if record.stored is None else f", stored as {numbers(record.stored)}"
        text = f"replay of {record.letter}: {record.state.value}{done}"
        said = {"state": record.state.value, "stored": None if record.stored is None else list(record.stored)}
        subject = record_subject(record.letter)
        yield Scene(format_wall(record.at), record.corr_id, subject, record.sequence, text, said)


def scene_of_line(line: Mapping[str, Any]) -> Scene:
    """A line of the gateway's log."""
    if "status" in line:
        request = " ".join(str(line.get(name, "")) for name in ("method", "path", "status", "code") if line.get(name))
        text = f"{request} in {line.get('latency_ms', '?')} ms, from {line.get('client_ip', '?')}"
    else:
        text = str(line.get("msg", ""))
    corr_id = line.get("corr_id") or line.get("requestId") or ""
    return Scene(str(line.get("timestamp", "")), str(corr_id), "", 0, plain(text), {"line": dict(line)})


def numbers(stored: Iterable[int]) -> str:
    """17 and 18."""
    return " and ".join(str(sequence) for sequence in stored if sequence)


@dataclass(frozen=True, slots=True)
class Story:
    """What the scenes of one event mean: a stable word, and a sentence."""

    corr_ids: tuple[str, ...]
    kind: str
    text: str


def families(asked: Iterable[str], entries: Iterable[Entry]) -> list[frozenset[str]]:
    """The corr_ids that stand for one event each: a replay ties that of the refusal to that of the event."""
    found = [frozenset({corr_id}) for corr_id in asked]
    for entry in entries:
        tied = frozenset(_corr_ids(entry))
        found = [tied.union(*(one for one in found if one & tied)), *(one for one in found if not one & tied)]
    return found


def _corr_ids(entry: Entry) -> list[str]:
    found = [] if entry.letter is None else [entry.letter.corr_id]
    if entry.record is not None:
        found += [entry.record.letter_corr_id, entry.record.corr_id]
    return [corr_id for corr_id in found if corr_id]


def belongs(entry: Entry, wanted: Iterable[str]) -> bool:
    """True when a letter or its replay has one of these corr_ids."""
    return not frozenset(wanted).isdisjoint(_corr_ids(entry))


def tell(
    family: frozenset[str], scenes: Sequence[Scene], entries: Iterable[Entry], raw_subject: str, since: str
) -> Story:
    """What became of one event."""
    mine = [scene for scene in scenes if scene.corr_id in family]
    events = [scene for scene in mine if "facts" in scene.members]
    raws = [scene.sequence for scene in events if scene.subject == raw_subject]
    normalised = [scene.sequence for scene in events if scene.subject != raw_subject]
    letters = [entry for entry in entries if belongs(entry, family)]
    answers = [scene.members["line"] for scene in mine if "status" in scene.members.get("line", ())]
    kind, text = _refused(letters, answers, since) if not events else _stored(raws, normalised, letters, events)
    if len(answers) > 1:
        text += f"; answered {len(answers)} times: {', '.join(str(answer['status']) for answer in answers[:20])}"
    return Story(tuple(sorted(family)), kind, text)


def _stored(
    raws: Sequence[int], normalised: Sequence[int], letters: Sequence[Entry], events: Sequence[Scene]
) -> tuple[str, str]:
    if len(raws) > 1 or len(normalised) > 1:
        places = numbers(sorted([*raws, *normalised]))
        return "doubled", f"stored more than once: {places}; the ids were forgotten before it was sent again"
    if not normalised:
        return "half", f"half stored: raw {raws[0]} has no normalised event; send it again, which completes it"
    if not raws:
        return (
            "half",
            f"half stored: normalised {normalised[0]} has no raw event (deleted, or older than was looked at)",
        )
    replayed = next((scene.members["replayed_from"] for scene in events if "replayed_from" in scene.members), None)
    if replayed is not None:
        code = next((f"{entry.letter.code}, " for entry in letters if entry.letter is not None), "")
        return "replayed", f"refused {code}dead letter {plain(replayed)}, replayed as {raws[0]} and {normalised[0]}"
    return "accepted", f"accepted once, stored as {raws[0]} and {normalised[0]}"


def _refused(letters: Sequence[Entry], answers: Sequence[Mapping[str, Any]], since: str) -> tuple[str, str]:
    for entry in letters:
        if entry.record is not None and entry.is_replayed:
            return (
                "replayed",
                f"replayed from dead letter {entry.sequence}; its events have expired since, or were deleted",
            )
        if entry.record is not None:
            again = f"`gatewayctl dlq replay {entry.sequence}` finishes it"
            return "unfinished", f"the replay of dead letter {entry.sequence} has begun and not ended; {again}"
    if letters:
        refusals = ", ".join(
            f"{entry.letter.code}, dead letter {entry.sequence}" for entry in letters if entry.letter is not None
        )
        return "refused", f"refused {refusals}, not replayed"
    if answers:
        last = answers[-1]
        status, code = last.get("status"), f" {last['code']}" if last.get("code") else ""
        if status == 202:
            return "gone", f"answered 202, and not in the stream since {since}: expired, deleted, or another stream"
        advice = "send it again" if isinstance(status, int) and status >= 500 else "nothing of it was kept"
        return "refused", f"answered {status}{plain(code)}; nothing in the stream since {since}: not stored; {advice}"
    return "unknown", f"unknown: nothing in the stream since {since}: not stored; send it again"


def in_time(scenes: Iterable[Scene]) -> list[Scene]:
    """In order of time; what happened in the same millisecond in order of the stream, the log last."""
    return sorted(scenes, key=lambda scene: (parse_rfc3339(scene.at) or 0.0, scene.sequence == 0, scene.sequence))
