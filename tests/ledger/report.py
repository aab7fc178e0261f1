"""
What a reconciliation may find, and what it is told beside the ledger and the stream.

Decides the names of violations and how a report looks. Never compares anything: the checker does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NATS: Final = "nats-server"
GATEWAY: Final = "gatewayd"
FROZEN: Final = "frozen gatewayd"

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
    """
    Something that was done to NATS (or to the way there), or to GATEWAY: killed, or FROZEN, which makes it late too.
    Wall times of when it began, and of when it was over (of a kill: when the port was open again).
    """

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


@dataclass
class Result:
    """
    What came of one fault. Times in seconds and milliseconds, None where there is nothing to measure: to the first
    refusal, of refusals while NATS is known to be down, from the fault's end to the next 202. `missed` are the promises
    that were not kept, in words; `not_run` is why it could not be tried.
    """

    name: str
    says: str = ""
    requests: int = 0
    accepted: int = 0
    refused: int = 0
    first_refusal_s: float | None = None
    refuse_p50_ms: float | None = None
    refuse_p99_ms: float | None = None
    recover_s: float | None = None
    lost: int = 0
    doubled: int = 0
    half: int = 0
    late: int = 0
    health_p99_ms: float | None = None
    missed: list[str] = field(default_factory=list)
    not_run: str = ""

    def cells(self) -> list[str]:
        """Its row of the table."""
        measured = (self.first_refusal_s, self.refuse_p50_ms, self.refuse_p99_ms, self.recover_s)
        counted = (self.lost, self.doubled, self.half, self.late)
        return [
            self.name,
            *map(str, (self.requests, self.accepted, self.refused)),
            *map(_shown, measured),
            *map(str, counted),
            _shown(self.health_p99_ms),
            f"not run: {self.not_run}" if self.not_run else str(len(self.missed)),
        ]


_HEAD: Final = (
    "fault | requests | 202 | 503 | first refusal s | refuse p50 ms | p99 ms | recover s "
    "| lost | doubled | half | late | healthz p99 ms | missed"
)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def markdown(results: Sequence[Result]) -> str:
    """The table of all faults, with a sum, and below it every promise that was not kept."""
    total = Result("**all**")
    for name in ("requests", "accepted", "refused", "lost", "doubled", "half", "late"):
        setattr(total, name, sum(getattr(one, name) for one in results))
    total.missed = [text for one in results for text in one.missed]
    rows = [f"| {_HEAD} |", "|" + " --- |" * len(_HEAD.split("|"))]
    rows += [f"| {' | '.join(one.cells())} |" for one in (*results, total)]
    rows += [f"\n{one.name}: {text}" for one in results for text in one.missed]
    return "\n".join(rows)
