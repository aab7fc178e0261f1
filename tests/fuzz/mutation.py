"""
Fuzzing: good and bad inputs are damaged at random, and what behaves in a new way is damaged further.

A target takes bytes, raises when a promise is broken, and returns what it made of them (anything hashable): that takes
the place of coverage. The chance is seeded, so that a run by number is the same every time.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Final

MAX_BYTES: Final = 4096
MAX_POOL: Final = 2000
_EDGES: Final = (
    bytes([0, 9, 10, 13, 32, 34, 44, 58, 59, 61, 92, 127, 128, 133, 160, 194, 237, 239, 255]) + b"0919afAF+-._"
)

Target = Callable[[bytes], Hashable]


class Broken(AssertionError):
    """A promise was broken; the text has the input, as small as it could be made."""


@dataclass
class Fuzzer:
    """One target, the inputs to begin with, and pieces that are put in as a whole."""

    target: Target
    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    chance: Random
    pool: list[bytes] = field(default_factory=list)
    known: set[Hashable] = field(default_factory=set)
    runs: int = 0

    def start(self) -> None:
        """Try the seeds as they are."""
        for seed in self.seeds:
            self._try(seed)
            if seed not in self.pool and len(seed) <= MAX_BYTES:
                self.pool.append(seed)

    def run(self, *, runs: int = 0, seconds: float = 0.0) -> None:
        """Damage and try, so often or for so long."""
        ends = time.monotonic() + seconds
        while self.runs < runs or (seconds and time.monotonic() < ends):
            self._try(self._damage(self.chance.choice(self.pool)))

    def _try(self, data: bytes) -> None:
        self.runs += 1
        try:
            outcome = self.target(data)
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error} on {self._shrink(data, type(error))!r}") from error
        if outcome not in self.known and len(self.pool) < MAX_POOL and len(data) <= MAX_BYTES:
            self.known.add(outcome)
            self.pool.append(data)

    def _shrink(self, data: bytes, kind: type[Exception]) -> bytes:
        """Leave out what can be left out without another failure coming of it."""
        size = len(data) // 2
        while size:
            at = 0
            while at < len(data):
                shorter = data[:at] + data[at + size :]
                if self._fails(shorter, kind):
                    data = shorter
                else:
                    at += size
            size //= 2
        return data

    def _fails(self, data: bytes, kind: type[Exception]) -> bool:
        try:
            self.target(data)
        except kind:
            return True
        except Exception:
            return False
        return False

    def _damage(self, good: bytes) -> bytes:
        data, chance = bytearray(good), self.chance
        for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
            at = chance.randint(0, len(data))
            end = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 64)))
            match chance.randrange(9):
                case 0:
                    data[at:at] = bytes([chance.choice(_EDGES)])
                case 1:
                    data[at : at + 1] = bytes([chance.choice(_EDGES)])
                case 2:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 3:
                    del data[at:end]
                case 4:
                    data[at:at] = data[at:end] * chance.choice((1, 1, 2, 3, 40))
                case 5:
                    data[at:at] = chance.choice(self.tokens)
                case 6:
                    data[at:end] = chance.choice(self.tokens)
                case 7:
                    other = chance.choice(self.pool)
                    data[at:] = other[chance.randint(0, len(other)) :]
                case _:
                    with suppress(IndexError):
                        data[at] ^= 1 << chance.randrange(8)
        return bytes(data[:MAX_BYTES])
