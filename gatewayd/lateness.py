"""
How late the event loop is: what `gateway_reactor_lag_seconds` shows. Pure.

Decides what a tick that comes late says of the loop, and how long that is remembered: a scrape comes every 15 s or 60,
and must still see the second that the loop was stuck in between. Never reads a clock: whoever ticks hands it in.
"""

from collections import deque
from typing import Final

from gatewayd.times import Monotonic

TICK_S: Final = 0.05
"""How often the loop is asked to tick. Whatever keeps it busy for longer is seen, short of this much."""

PART_S: Final = 10.0
PARTS: Final = 6


class Lateness:
    """
    The worst of the last minute, in parts of ten seconds: at least a minute is covered, at most ten seconds more.

    `tick` is to be called every TICK_S seconds by a Ticker, which makes up for no tick that it missed.
    """

    def __init__(self) -> None:
        self._due: Monotonic | None = None
        self._part = 0
        self._worst: deque[float] = deque([0.0], maxlen=PARTS + 1)

    def tick(self, now: Monotonic) -> None:
        """A tick came at `now`."""
        due = now if self._due is None else self._due
        self._due = max(Monotonic(due + TICK_S), now)
        self._turn_to(now)
        self._worst[-1] = max(self._worst[-1], now - due)

    def worst(self, now: Monotonic) -> float:
        """Seconds: the latest tick of the last minute, or the one that is still to come at `now`."""
        self._turn_to(now)
        outstanding = 0.0 if self._due is None else now - self._due
        return max(*self._worst, outstanding, 0.0)

    def _turn_to(self, now: Monotonic) -> None:
        part = int(now / PART_S)
        for _ in range(min(part - self._part, PARTS + 1)):
            self._worst.append(0.0)
        self._part = part
