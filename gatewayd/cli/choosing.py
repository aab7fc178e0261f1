"""
Which dead letters a command is about.

Decides what the options of a choice mean, which letters they name, and in which state each is. Never reads a body and
never changes anything.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gatewayd.bus.publication import Stored
from gatewayd.cli.console import Code, Failed, note
from gatewayd.cli.explanation import find
from gatewayd.ingress.letters import LETTERS, Letter, parse_letter
from gatewayd.ingress.replaying import RECORDS, Record, State, parse_record
from gatewayd.times import Wall, parse_rfc3339

KEPT: Final = 100_000
"""Letters that are looked at in one run at the most; beyond, the oldest are left out, which is said."""

SUBJECTS: Final = (LETTERS, f"{RECORDS}.>")
_AGO: Final = re.compile(r"(\d{1,9})(s|m|h|d)", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_moment(option: str, text: str, now: Wall) -> Wall:
    """RFC 3339 with a zone, or so long ago: 90s, 10m, 2h, 1d."""
    found = _AGO.fullmatch(text)
    moment = parse_rfc3339(text) if found is None else Wall(now - int(found[1]) * _UNITS[found[2]])
    if moment is None:
        raise Failed(Code.WRONG, f"{option}: RFC 3339 with a zone, or so long ago: 10m, 2h, 1d")
    return moment


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for. Nothing given means: every letter; `replayed` None means: in whatever state."""

    sequences: frozenset[int] = frozenset()
    since: Wall | None = None
    until: Wall | None = None
    codes: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    replayed: bool | None = None

    @classmethod
    def of(
        cls,
        now: Wall,
        *,
        sequences: Sequence[int] = (),
        since: str | None = None,
        until: str | None = None,
        codes: Sequence[str] = (),
        sources: Sequence[str] = (),
        replayed: bool | None = None,
    ) -> "Choice":
        """From the words of a command line; Failed names the option that cannot be understood."""
        rows = {text: find(text) for text in codes}
        wrong = next((text for text, row in rows.items() if row is None), None)
        if wrong is not None:
            raise Failed(Code.WRONG, f"--code: {wrong!r} is no code; `gatewayctl explain` lists them all")
        return cls(
            frozenset(sequences),
            None if since is None else parse_moment("--since", since, now),
            None if until is None else parse_moment("--until", until, now),
            frozenset(row.code for row in rows.values() if row is not None),
            frozenset(sources),
            replayed,
        )

    def takes(self, entry: "Entry") -> bool:
        """True when the entry is among those asked for. A letter that has expired has no code any more."""
        return (
            (not self.sequences or entry.sequence in self.sequences)
            and (self.since is None or entry.at >= self.since)
            and (self.until is None or entry.at <= self.until)
            and (not self.codes or (entry.letter is not None and entry.letter.code in self.codes))
            and (not self.sources or not self.sources.isdisjoint(entry.sources))
            and (self.replayed is None or self.replayed == entry.is_replayed)
        )


@dataclass(slots=True)
class Entry:
    """A dead letter and its record; one of the two may be missing: not replayed yet, or the letter has expired."""

    sequence: int
    letter: Letter | None = None
    record: Record | None = None

    @property
    def at(self) -> Wall:
        """When the letter was stored; when it was claimed, where that is all that is known."""
        if self.letter is not None:
            return self.letter.stored_at
        return Wall(0.0) if self.record is None else self.record.at

    @property
    def sources(self) -> tuple[str, ...]:
        """The source that the letter has, and the one that its claim found out where that was not known."""
        return tuple(dict.fromkeys(one.source for one in (self.letter, self.record) if one is not None))

    @property
    def is_replayed(self) -> bool:
        """True when nothing is left to do."""
        return self.record is not None and self.record.state is State.DONE

    @property
    def state(self) -> str:
        """One word: pending, claimed (a replay has begun and not ended) or replayed."""
        if self.record is None:
            return "pending"
        return "replayed" if self.is_replayed else "claimed"


@dataclass(slots=True)
class Box:
    """The dead letters of a stretch of the stream, with their records; `dropped` counts what was above the bound."""

    bound: int = KEPT
    entries: dict[int, Entry] = field(default_factory=dict)
    dropped: int = 0

    def see(self, stored: Stored) -> None:
        """One message: a letter or a record."""
        if stored.subject.startswith(f"{RECORDS}."):
            record = parse_record(stored)
            if record is not None:
                self._entry(record.letter).record = record
        else:
            self._entry(stored.sequence).letter = parse_letter(stored)
        if len(self.entries) > self.bound:
            del self.entries[next(iter(self.entries))]
            self.dropped += 1

    def chosen(self, choice: Choice) -> list[Entry]:
        """What was asked for of what is there or left to do, the oldest first."""
        if self.dropped:
            note(f"gatewayctl: the oldest {self.dropped} dead letters are left out; choose with --since and --until")
        there = (entry for entry in self.entries.values() if entry.letter is not None or not entry.is_replayed)
        found = [entry for entry in there if choice.takes(entry)]
        found.sort(key=lambda entry: entry.sequence)
        return found

    def _entry(self, sequence: int) -> Entry:
        return self.entries.setdefault(sequence, Entry(sequence))
