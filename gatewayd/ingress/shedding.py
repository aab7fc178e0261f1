"""
Whether new webhooks are refused because those that wait have waited too long. Pure.

Decides by how long the oldest webhook has been waiting for its turn, and for how long that has been so. One long pause
(a collection, a suspended process, a burst) refuses nobody: what waited through it is simply served. Never reads a
clock, never holds a request, never looks at what a webhook says.
"""

from typing import Final

from gatewayd.errors import Refused
from gatewayd.times import Monotonic

STANDING_S: Final = 0.2
"""Longer than this the oldest webhook waits only when more come than can be served."""

INTERVAL_S: Final = 0.5
"""For so long it must have been so before anybody is refused."""

CALM_S: Final = 5.0
"""So long after the last refusal the overload is over; sooner, it would begin anew with a long queue each time."""

KEPT_S: Final = 0.1
"""How long webhooks are let wait while others are refused: the loop always has work, and nobody waits for nothing."""

STEP_S: Final = 0.05
"""What one look counts for at most: the time of a pause says nothing of the load."""

OVERLOAD: Final = Refused("GW-010", {"reason": "overload"}, rest=True)


class Shedding:
    """
    The state of one process: `waited` is told, once a turn of the loop, how long the oldest webhook has been waiting
    (0.0: none does); `refuses` says what becomes of one that has just come.
    """

    __slots__ = ("_above_s", "_looked_at", "_refused_at", "_shedding")

    def __init__(self) -> None:
        self._shedding = False
        self._above_s = 0.0
        self._looked_at = Monotonic(0.0)
        self._refused_at = Monotonic(0.0)

    def waited(self, seconds: float, now: Monotonic) -> None:
        """The oldest webhook has been waiting for so long at `now`."""
        if seconds <= STANDING_S:
            self._above_s = 0.0
        else:
            self._above_s += min(STEP_S, now - self._looked_at)
            if self._above_s >= INTERVAL_S and not self._shedding:
                self._shedding, self._refused_at = True, now
        self._looked_at = now

    def refuses(self, seconds: float, now: Monotonic) -> bool:
        """True when a webhook that comes at `now`, behind one that has been waiting for so long, is refused."""
        if not self._shedding:
            return False
        if seconds > KEPT_S:
            self._refused_at = now
            return True
        self._shedding = now - self._refused_at < CALM_S
        return False
