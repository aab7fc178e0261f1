"""
A circuit breaker: whether a service that failed again and again is asked at all. Pure.

Decides from outcomes and the time that it is handed. Never calls anything, never reads a clock.
"""

from enum import Enum
from typing import Final

from gatewayd.times import Monotonic

FAILURES: Final = 5
"""So many in a row, with nothing in between that went well, open it."""

SUCCESSES: Final = 3
"""So many probes in a row close it."""

PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 10.0


class State(Enum):
    """What a breaker does with the next call."""

    CLOSED = "closed"  # lets it pass
    OPEN = "open"  # refuses it until the pause is over
    HALF_OPEN = "half-open"  # lets one pass at a time, and looks what becomes of it


class Breaker:
    """
    One service's breaker. Its pause begins with PAUSE_S, doubles with every probe that fails, up to LONGEST_PAUSE_S,
    and begins anew once it was closed.

    enter() gives a ticket, which settle() takes back with the outcome; what was let through before the breaker changed
    its state says nothing about the state that it is in now.
    """

    __slots__ = ("_again_at", "_count", "_pause_s", "_probing", "_turn", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._count = 0  # failures in a row while closed, successes in a row while half-open
        self._turn = 0
        self._pause_s = PAUSE_S
        self._again_at = Monotonic(0.0)
        self._probing = False

    def enter(self, now: Monotonic) -> int | None:
        """A ticket for one call at `now`; None when it must not be made."""
        if self.state is State.OPEN and now >= self._again_at:
            self._change(State.HALF_OPEN)
        if self.state is State.OPEN or (self.state is State.HALF_OPEN and self._probing):
            return None
        self._probing = self.state is State.HALF_OPEN
        return self._turn

    def wait_s(self, now: Monotonic) -> float:
        """When to come back after a refusal, in seconds from `now`."""
        return max(0.1, self._again_at - now)

    def settle(self, ticket: int, now: Monotonic, *, ok: bool | None) -> None:
        """What became of the call: it went well, it failed, or, None, it says nothing (its caller gave it up)."""
        if ticket != self._turn:
            return
        self._probing = False
        if ok is None:
            return
        if self.state is State.CLOSED:
            self._count = 0 if ok else self._count + 1
            if self._count >= FAILURES:
                self._open(now)
        elif ok:
            self._count += 1
            if self._count >= SUCCESSES:
                self._pause_s = PAUSE_S
                self._change(State.CLOSED)
        else:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._open(now)

    def _open(self, now: Monotonic) -> None:
        self._again_at = Monotonic(now + self._pause_s)
        self._change(State.OPEN)

    def _change(self, state: State) -> None:
        self.state = state
        self._turn += 1
        self._count = 0
        self._probing = False
