"""
A gateway that does everything right, as a model: the lines and the stream that a perfect run of a plan leaves behind.

Decides what each step must come to without any code of the gateway's. Never checks anything.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from tests.ledger.checker import check
from tests.ledger.client import Line
from tests.ledger.plan import BROKEN, Kind, Step, Webhook
from tests.ledger.report import Counted, Fault, Report
from tests.streams import Read

BEGAN = 1_800_000_000.0


def digest(*parts: str) -> str:
    """A stand-in for identities: what matters is that it is one for each event."""
    return sha256("|".join(parts).encode()).hexdigest()[:32]


@dataclass
class World:
    """What a perfect run of a plan leaves behind."""

    plan: Sequence[Step]
    lines: list[Line] = field(default_factory=list)
    stored: list[Read] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)

    def store(self, subject: str, msg_id: str, data: bytes, **headers: str) -> None:
        """Append a message."""
        known = {name.replace("_", "-"): text for name, text in headers.items() if text}
        self.stored.append(Read(len(self.stored) + 1, subject, {**known, "Nats-Msg-Id": msg_id}, data))

    def store_raw(self, msg_id: str, corr_id: str, webhook: Webhook, **headers: str) -> None:
        """Append a raw event."""
        head = (
            f'{{"corr_id":"{corr_id}","source":"{webhook.source}","received_at":"2027-01-15T08:00:00.000Z","payload":'
        )
        names = {"Corr_ID": corr_id, "Source": webhook.source, **headers}
        self.store("signals.raw", msg_id, head.encode() + webhook.body + b"}", **names)

    def store_pair(self, identity: str, webhook: Webhook) -> None:
        """Append both events of a signal."""
        assert webhook.facts is not None
        corr_id, facts = f"req_{identity[:20]}", webhook.facts
        self.store_raw(f"gw:{identity}:raw", corr_id, webhook, Idempotency_Key=webhook.key, Gw_Facts="1")
        members = {"idempotency_key": webhook.key, "strategy": facts.strategy}
        known = "".join(f',"{name}":{json.dumps(text, ensure_ascii=False)}' for name, text in members.items() if text)
        said = (
            f'{{"corr_id":"{corr_id}","source":"{webhook.source}","instrument":"{facts.instrument}",'
            f'"price":{facts.price},"side":{json.dumps(facts.side)},"strength":{facts.strength or "null"},'
            f'"timestamp":"{facts.time}","normalized_at":"2027-01-15T08:00:00.000Z"{known}}}'
        )
        names = {"Corr_ID": corr_id, "Source": webhook.source, "Instrument": facts.instrument, "Gw_Facts": "1"}
        self.store("signals.normalized", f"gw:{identity}:norm", said.encode(), **names)

    def answer(self, step: Step, copy: int, status: int, code: str = "", **said: object) -> None:
        """Append a line."""
        number = len(self.lines)
        line = Line(
            id=number,
            kind=step.kind.value,
            plan=step.id,
            copy=copy,
            attempt=0,
            life=1,
            body=step.webhooks[copy].digest,
            nonce=f"{number:024x}",
            sent_at=BEGAN + number,
            latency_ms=5.0,
            status=status,
            code=code,
        )
        self.lines.append(msgspec.structs.replace(line, **said))

    def run(self) -> "World":
        """Do the whole plan."""
        held: dict[str, str] = {}  # what is in the stream: identity -> body
        for step in self.plan:
            for copy, webhook in enumerate(step.webhooks):
                if step.kind is Kind.BROKEN:
                    self.refuse(step, webhook)
                    continue
                identity = digest(
                    webhook.source, webhook.key if webhook.scheme == "v1" and webhook.key else webhook.digest
                )
                corr_id = f"req_{identity[:20]}"
                if step.kind is Kind.CONFLICT and webhook.scheme == "sha256":
                    assert step.base is not None
                    base = next(line for line in self.lines if line.plan == step.base)
                    self.answer(step, copy, 409, "GW-006", original=base.corr_id, corr_id="req_of_body")
                elif held.setdefault(identity, webhook.digest) != webhook.digest:
                    self.answer(step, copy, 409, "GW-006", original=corr_id, corr_id="req_of_body")
                elif step.kind is Kind.REPLAY:
                    self.answer(step, copy, 401, "GW-002", original=corr_id, corr_id=corr_id)
                else:
                    known = any(line.corr_id == corr_id for line in self.lines)
                    self.answer(step, copy, 202, corr_id=corr_id, duplicate=known)
                    if not known:
                        self.store_pair(identity, webhook)
        self.count()
        return self

    def refuse(self, step: Step, webhook: Webhook) -> None:
        """Answer a broken webhook, and keep it where it belongs."""
        refusal, refused = BROKEN[step.fault], digest(webhook.source, "refused", webhook.digest)
        corr_id = f"req_{refused[:20]}"
        self.answer(step, 0, refusal.status, refusal.code, corr_id=corr_id)
        letter_id = f"gw:{refused}:{refusal.code}:dlq"
        if refusal.letter is None or any(one.headers["Nats-Msg-Id"] == letter_id for one in self.stored):
            return
        self.store(refusal.letter, letter_id, webhook.body, Dlq_Code=refusal.code, Corr_ID=corr_id)
        if refusal.kept_raw:
            self.store_raw(f"gw:{refused}:{refusal.code}:raw", corr_id, webhook, Rejected=refusal.code)

    def count(self) -> None:
        """Count as the gateway does."""
        classes = {
            name: sum(f"{line.status // 100}xx" == name for line in self.lines) for name in ("2xx", "4xx", "5xx")
        }
        duplicates = sum(line.duplicate is True for line in self.lines)
        conflicts = sum(line.status == 409 for line in self.lines)
        self.counted = [Counted(1, classes, duplicates, conflicts, 0, 0)]

    def check(self) -> Report:
        """What the checker says."""
        return check(self.plan, self.lines, self.stored, self.faults, self.counted)

    # What the faults below are made with.

    def at(self, kind: Kind, fault: str = "", **wanted: object) -> int:
        """Where the first line of such a step is."""
        steps = {step.id for step in self.plan if step.kind is kind and step.fault == fault}
        return next(
            place
            for place, line in enumerate(self.lines)
            if line.plan in steps and all(getattr(line, name) == value for name, value in wanted.items())
        )

    def change(self, place: int, **said: object) -> Line:
        """Let a line say something else; returns what it said."""
        line = self.lines[place]
        self.lines[place] = msgspec.structs.replace(line, **said)
        return line

    def message(self, corr_id: str, subject: str = "signals.raw") -> int:
        """Where the message of this corr_id is."""
        return next(
            place
            for place, one in enumerate(self.stored)
            if one.headers["Corr-ID"] == corr_id and one.subject == subject
        )

    def drop(self, corr_id: str, *subjects: str) -> None:
        """Take messages out of the stream."""
        self.stored = [
            one
            for one in self.stored
            if one.headers["Corr-ID"] != corr_id or (subjects and one.subject not in subjects)
        ]

    def insert_failed(self, place: int, **said: object) -> None:
        """Let an attempt without an answer stand before a line."""
        line = self.lines[place]
        values = {"status": 0, "code": "reset", "corr_id": "", "duplicate": None, "original": "", **said}
        self.lines.insert(place, msgspec.structs.replace(line, sent_at=line.sent_at - 0.5, **values))
