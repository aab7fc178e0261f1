"""
One open stream: what it gets and what waits for it. Pure.

Decides what is sent next and when too much waits. Never sends: push.delivery does, whose streams extend this one.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from gatewayd.push.frames import Event
from gatewayd.push.wishes import Wish
from gatewayd.sessions.endings import Ending


class Outlet(Protocol):
    """Where a stream's events go; see push.api.IOutlet."""

    transport: str

    def send(self, event: Event, *, last: bool = False) -> bool:
        """Take one event, perhaps the last of this turn; False: no further one for now."""

    def close(self, ending: Ending) -> None:
        """End the stream."""


class Stream:
    """
    `live`: it gets what is published. `ready`, live or not: it may be sent something now and nothing waits before that;
    only then an event goes past what waits here. `blocked`: the outlet takes nothing now. `pumping`: it is being sent
    what waits. `closed` is for ever. `last_at` (monotonic) is when it was sent something last, or was opened.

    First come `replay`'s events, then those that wait, of which there are `waiting_bytes`.
    """

    __slots__ = (
        "blocked",
        "closed",
        "device_session_id",
        "last_at",
        "live",
        "outlet",
        "pumping",
        "ready",
        "replay",
        "user_id",
        "waiting",
        "waiting_bytes",
        "wish",
    )

    def __init__(self, outlet: Outlet, user_id: str, device_session_id: str, wish: Wish) -> None:
        self.outlet = outlet
        self.user_id = user_id
        self.device_session_id = device_session_id
        self.wish = wish
        self.blocked = True
        self.pumping = False
        self.closed = False
        self.live = False
        self.ready = False
        self.last_at = 0.0
        self.replay: Iterator[Event] | None = None
        self.waiting: deque[Event] | None = None
        self.waiting_bytes = 0

    def put_first(self, events: Iterable[Event]) -> None:
        """Send these behind what is replayed already and before everything that waits."""
        self.ready = False
        self.replay = iter(events) if self.replay is None else chain(self.replay, events)

    def hold(self, event: Event, most: int, most_bytes: int) -> bool:
        """
        Let it wait; False when more than `most` events or `most_bytes` would: then it is not kept. One event of any
        size may wait.
        """
        waiting = self.waiting
        if waiting is None:
            waiting = self.waiting = deque()
        if waiting and (len(waiting) >= most or self.waiting_bytes + event.size > most_bytes):
            return False
        waiting.append(event)
        self.waiting_bytes += event.size
        return True

    def take(self) -> Event | None:
        """The next one in order; None when nothing waits."""
        if self.replay is not None:
            event = next(self.replay, None)
            if event is not None:
                return event
            self.replay = None
        if self.waiting is None:
            return None
        event = self.waiting.popleft()
        self.waiting_bytes -= event.size
        if not self.waiting:
            self.waiting = None
        return event

    @property
    def stuck(self) -> bool:
        """True when something could be sent, if only the peer took it."""
        return not self.ready and (self.replay is not None or self.waiting is not None)

    def close(self) -> None:
        """Nothing is sent any more, and nothing is kept."""
        self.closed = True
        self.live = self.ready = False
        self.replay = self.waiting = None
        self.waiting_bytes = 0
