"""
How far the stream had been acknowledged at which time. Pure.

Decides which earlier time is kept: one mark per interval, and only while the sequence moves. Never reads a clock.
"""

from collections import deque


class Marks:
    """At most `count` marks, about `spacing_s` apart; the newest follows the present."""

    __slots__ = ("_marks", "_spacing_s")

    def __init__(self, spacing_s: float, count: int) -> None:
        self._spacing_s = spacing_s
        self._marks: deque[tuple[float, int]] = deque(maxlen=count)

    def note(self, now: float, sequence: int) -> None:
        """At `now` this was the largest sequence acknowledged; 0 says nothing."""
        marks = self._marks
        if not sequence or (marks and marks[-1][1] == sequence):
            return
        if len(marks) > 1 and now - marks[-2][0] < self._spacing_s:
            marks.pop()
        marks.append((now, sequence))

    def before(self, time: float) -> int:
        """A sequence that was acknowledged by then, the largest one known; 0 when none is."""
        return next((sequence for at, sequence in reversed(self._marks) if at <= time), 0)

    def last_below(self, sequence: int, since: float) -> int:
        """The largest marked sequence below this one that was acknowledged since then; 0 when there is none."""
        found = (known for at, known in reversed(self._marks) if known < sequence and at >= since)
        return next(found, 0)

    def clear(self) -> None:
        """The stream is another one."""
        self._marks.clear()
