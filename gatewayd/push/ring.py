"""
What was published lately, kept for clients that come back. Pure: the time is handed in.

Decides what is kept and what goes first. Never decides for whom an event is (the hub does) and never reads a source.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

from gatewayd.push.frames import Event
from gatewayd.push.position import At, Position

EVERYBODY: Final = ""
"""The key of what is not for one user; no user has an empty id."""


class Entry:
    """
    One published event and whom it is for: `key` is a user's id, or EVERYBODY with a `topic`; a device_session_id
    narrows it to the streams of that session. `at` is its place in its source; `number` counts all that was published
    here, over every source. `cost` is in bytes.
    """

    __slots__ = ("at", "cost", "device_session_id", "event", "kept_at", "key", "later", "number", "position", "topic")

    def __init__(
        self,
        event: Event,
        position: Position,
        at: At,
        number: int,
        *,
        key: str,
        device_session_id: str | None = None,
        topic: tuple[str, str] | None = None,
    ) -> None:
        self.event = event
        self.position = position
        self.at = at
        self.number = number
        self.key = key
        self.device_session_id = device_session_id
        self.topic = topic
        self.cost = event.retained_bytes
        self.kept_at = 0.0
        self.later: Entry | None = None


class Ring:
    """
    The last entries of one source, in order: at most `events` of them, no older than `age_s`, in at most `limit_bytes`;
    the oldest goes first. `floor`: everything after it up to now is here.

    A user's entries are chained, so that finding them costs what they are and not what the ring is.
    """

    def __init__(self, events: int, age_s: float, limit_bytes: int) -> None:
        self._events = events
        self._age_s = age_s
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._entries: deque[Entry] = deque()
        self._first: dict[str, Entry] = {}
        self._last: dict[str, Entry] = {}
        self.floor: At = (0, 0)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._entries)

    def clear(self, floor: At) -> None:
        """Keep nothing; what comes will be after `floor`."""
        self._entries.clear()
        self._first.clear()
        self._last.clear()
        self._bytes = 0
        self.floor = floor

    def append(self, entry: Entry, now: float) -> None:
        """Keep one more, after all that are here; it belongs to the ring from now on."""
        entry.kept_at = now
        before = self._last.get(entry.key)
        if before is None:
            self._first[entry.key] = entry
        else:
            before.later = entry
        self._last[entry.key] = entry
        self._entries.append(entry)
        self._bytes += entry.cost
        while len(self._entries) > self._events or self._bytes > self._limit_bytes:
            self._drop()
        self.expire(now)

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        while self._entries and now - self._entries[0].kept_at > self._age_s:
            self._drop()

    def after(self, at: At, key: str) -> Iterator[Entry]:
        """The entries of one key beyond `at`, in order. To be used up before anything else is called."""
        entry = self._first.get(key)
        while entry is not None:
            if entry.at > at:
                yield entry
            entry = entry.later

    def _drop(self) -> None:
        entry = self._entries.popleft()
        self.floor = entry.at
        self._bytes -= entry.cost
        if entry.later is None:
            del self._first[entry.key], self._last[entry.key]
        else:
            self._first[entry.key] = entry.later
            entry.later = None  # it may be held for a while yet by a stream, and must not hold all that came after it
