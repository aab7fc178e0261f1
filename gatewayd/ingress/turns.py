"""
When a webhook's work is done: at once while this turn of the loop has time left, else in the turns to come, in order.

Decides how long webhooks may keep the loop before it reads and answers anything else (probes, acknowledgements, new
connections), how many may wait, and that one is not begun whose sender has given up. Whether new ones are refused is
shedding's decision. Never looks at a webhook.
"""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gatewayd.committed import Held, Running, run
from gatewayd.http.message import Request, Response
from gatewayd.ingress.shedding import Shedding
from gatewayd.ingress.sources import Source
from gatewayd.times import Monotonic

SLICE_S: Final = 0.005
"""A turn of the loop begins no webhook after this, unless everything else took more than twice as long since then."""

LONGEST_SLICE_S: Final = 0.25
"""
What a slice grows to at most. It is half as long as the rest of the turn: reading and refusing a flood must not take
all of the time. Were it as long, slices would stay long by themselves, since what they began is answered in the rest.
"""

WAITING: Final = 5_000
"""Webhooks that may wait: what is served in about a second."""

WAITING_BYTES: Final = 64 * 1024 * 1024
"""Bytes of their bodies."""

LATE_S: Final = 1.5
"""A webhook that has waited for so long is not begun: with the time to store it, its sender would have given up."""

Work = Callable[[Request, Source | None], Coroutine[Deferred[Any], Any, Response]]


class Turns:
    """
    The webhooks whose turn has not come.

    `work` is what is done with one, `refuse` makes the answer to one for which there is no room or no time left. `soon`
    calls a function once everything that is ready in this turn of the loop has run.
    """

    def __init__(
        self,
        clock: IReactorTime,
        soon: Callable[[Callable[[], object]], object],
        shedding: Shedding,
        work: Work,
        refuse: Callable[[Request], Response],
    ) -> None:
        self._seconds = clock.seconds
        self._soon = soon
        self._shedding = shedding
        self._work = work
        self._refuse = refuse
        self._waiting: deque[tuple[Request, Source | None, Held[Response]]] = deque()
        self._bytes = 0
        self._due = False
        self._ends_at = 0.0
        self._left_at = 0.0

    def refuses(self) -> bool:
        """True when a webhook that comes now is refused: see Shedding."""
        now = Monotonic(self._seconds())
        return self._shedding.refuses(self._oldest_s(now), now)

    def run(self, request: Request, source: Source | None) -> Response | Running[Response]:
        """
        Do the work of a complete request for its path's source, now or later; gives its answer at once when there is
        nothing to wait for.

        Cancelling what it gives gives up a work that has not begun; afterwards it is the work's own affair.
        """
        now = self._seconds()
        if not self._due:
            self._due = True
            self._ends_at = self._left_at = now + SLICE_S
            self._soon(self._turn)
        if not self._waiting and now < self._ends_at:
            return run(self._work(request, source))
        if len(self._waiting) >= WAITING or self._bytes + len(request.body) > WAITING_BYTES:
            return self._refuse(request)
        held: Held[Response] = Held()
        self._waiting.append((request, source, held))
        self._bytes += len(request.body)
        return held

    def _oldest_s(self, now: Monotonic) -> float:
        return now - self._waiting[0][0].received_at if self._waiting else 0.0

    def _turn(self) -> None:
        now = Monotonic(self._seconds())
        self._shedding.waited(self._oldest_s(now), now)
        ends_at = now + min(LONGEST_SLICE_S, max(SLICE_S, (now - self._left_at) / 2))
        while self._waiting and now < ends_at:
            request, source, held = self._waiting.popleft()
            self._bytes -= len(request.body)
            if held.given_up:
                continue
            if now - request.received_at < LATE_S:
                held.begin(self._work(request, source))
            else:
                held.refuse(self._refuse(request))
            now = Monotonic(self._seconds())
        self._due = bool(self._waiting)
        if self._due:
            self._left_at = now
            self._soon(self._turn)
