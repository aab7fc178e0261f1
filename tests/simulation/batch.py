"""
Many worlds, one after the other or in several processes, and what they came to together.

Decides nothing: it counts, and names the seeds that found something.
"""

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final

from twisted.logger import globalLogBeginner

from tests.simulation.world import World

REQUESTS_PER_WORLD: Final = 300

_SHOWN: Final = (
    ("requests", ("requests",)),
    ("202", ("202",)),
    ("duplicates", ("duplicates",)),
    ("conflicts", ("409 GW-006",)),
    ("replays", ("replays",)),
    ("503", ("503 GW-005", "503 GW-010", "503 GW-018")),
    ("dead letters", ("400 GW-013", "422 GW-003")),
    ("crashes", ("crashes",)),
    ("starts", ("starts",)),
    ("graceful restarts", ("graceful restarts",)),
    ("server restarts", ("server restarts",)),
    ("freezes", ("freezes",)),
    ("stalls", ("stalls",)),
    ("cut connections", ("cut connections",)),
    ("clock steps", ("clock steps",)),
    ("ghosts", ("ghosts",)),
    ("repaired halves", ("repaired halves",)),
)


@dataclass(frozen=True, slots=True)
class Lived:
    """What one world came to."""

    seed: int
    broken: tuple[str, ...]
    seen: dict[str, int]


@dataclass(slots=True)
class Summary:
    """What many worlds came to."""

    worlds: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    broken: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def add(self, lived: Lived) -> None:
        """One more."""
        self.worlds += 1
        self.seen.update(lived.seen)
        if lived.broken:
            self.broken[lived.seed] = lived.broken

    def lines(self) -> Iterator[str]:
        """For people."""
        counted = ", ".join(f"{sum(self.seen[name] for name in names)} {shown}" for shown, names in _SHOWN)
        yield f"{self.worlds} worlds: {counted}"
        for seed, broken in self.broken.items():
            yield f"seed {seed}: {broken[0]}"


def prepare() -> None:
    """In each process: what is there now is no garbage, and looking for it all the time would take a quarter of it."""
    gc.freeze()
    gc.disable()
    # Until logging begins Twisted keeps the last 65,536 events, and with them the worlds that they speak of.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)


def live(seed: int) -> Lived:
    """One world."""
    world = World(seed, REQUESTS_PER_WORLD).run()
    lived = Lived(seed, tuple(world.invariants.broken), dict(world.seen))
    del world
    gc.collect()
    return lived


def run(
    seeds: Iterable[int],
    enough: Callable[[Summary], bool],
    *,
    processes: int = 1,
    progress_s: float = 0.0,
    ahead: int = 8,
) -> Summary:
    """Worlds of these seeds, in their order, until it is enough; a line of progress every so often, 0 for none."""
    summary, said_at, source = Summary(), time.monotonic(), iter(seeds)
    with ProcessPoolExecutor(processes, get_context("spawn"), prepare) as pool:
        under_way = [pool.submit(live, seed) for seed, _ in zip(source, range(processes * ahead), strict=False)]
        while under_way and not enough(summary):
            summary.add(under_way.pop(0).result())
            following = next(source, None)
            if following is not None:
                under_way.append(pool.submit(live, following))
            if progress_s and time.monotonic() - said_at > progress_s:
                said_at = time.monotonic()
                print(next(summary.lines()), file=sys.stderr, flush=True)
        for waiting in under_way:
            waiting.cancel()
    return summary
