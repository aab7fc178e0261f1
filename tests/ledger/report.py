"""
What a reconciliation may find, and what it is told beside the ledger and the stream.

Decides the names of violations and how a report looks. Never compares anything: the checker does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

VIOLATIONS: Final[Mapping[str, str]] = {
    "lost": "answered 202, and not in the stream",
    "half": "one of the two events of a signal is missing",
    "doubled": "stored, or answered as new, more than once",
    "unordered": "normalised stands before raw",
    "unexpected": "in the stream, and nobody was told or left without an answer",
    "altered": "the stored body is not the body that was sent",
    "wrong_facts": "the normalised event, or a header, says something else than the body",
    "wrong_answer": "not the answer that this request must get",
    "corr_id_changed": "one event answered with several corr_ids, or another than the stored one",
    "conflict_accepted": "two bodies under one signed key",
    "letter_missing": "a refused body that should have been kept was not",
    "letter_unexpected": "a dead letter that nothing explains, or twice, or another than the refused body",
    "repeated_id": "two stored messages have one Nats-Msg-Id",
    "other_5xx": "a 5xx that is no GW-005, GW-010 or GW-018",
    "odd_answer": "an answer whose form breaks the contract",
    "late": "answered after more than 2.5 s",
    "cut": "no answer, although no fault explains it",
    "unanswered": "no final answer before the deadline",
    "miscounted": "a counter of a process that lived on differs from the answers that it gave",
    "logged": "a traceback, or a line that is no JSON object, in the log",
}
"""Everything that a report can find, in the order in which it is shown."""


@dataclass(frozen=True)
class Fault:
    """A kill: wall times of it, and of when the port of what was killed was open again."""

    name: str
    at: float
    open_at: float


@dataclass(frozen=True)
class Counted:
    """What one gatewayd process that was not killed counted: 2xx, 4xx, 5xx, duplicates, conflicts, lost letters."""

    life: int
    classes: Mapping[str, int]
    duplicates: int
    conflicts: int
    letters_lost: int
    internal_errors: int


@dataclass
class Report:
    """What was found, by the names of VIOLATIONS, and figures that are no violations."""

    found: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in VIOLATIONS})
    figures: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, text: str) -> None:
        """One violation."""
        self.found[name].append(text)

    @property
    def violations(self) -> int:
        """How many there are."""
        return sum(len(texts) for texts in self.found.values())

    def table(self) -> str:
        """The report as text: a row for each kind of violation, the first few of those found, and the figures."""
        rows = []
        for name, texts in self.found.items():
            rows.append(f"{name:<20}{len(texts):>8}   {VIOLATIONS[name]}")
            rows += [f"{'':<31}{text}" for text in texts[:5]]
        rows.append("")
        rows += [f"{name:<24}{value:>12.10g}" for name, value in self.figures.items()]
        return "\n".join(rows)
