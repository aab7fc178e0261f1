"""
All connections of a listener, or of several: the factory of channels.

Refuses those that have no room, sweeps their deadlines once a second, counts the requests in flight, drains
and closes. Its collaborators say what is served and what a refusal looks like. Never reads a byte.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.errors import Refused
from gatewayd.http.capacity import Capacity, peer_of
from gatewayd.http.channel import Channel
from gatewayd.http.exchange import Guest
from gatewayd.http.framing import Kept
from gatewayd.http.message import Request, Response
from gatewayd.http.rules import Limits
from gatewayd.interfaces import ILeaf
from gatewayd.times import Wall

SWEEP_S = 1.0
"""A deadline is noticed at most this much later."""

REST_S = 0.5
WAKE_S = 0.02
"""A connection that rests is read again REST_S to twice REST_S later: within the second that it was told to wait."""

_WAKES: Final = round(REST_S / WAKE_S)

CLOSE_S = 0.5
"""
What close() waits for clients that do not read what was written, or keep TLS open by not answering its close_notify (an
idle client held a stop up for its whole budget, tried).
"""

LOOK_S = 0.02
"""How often it is looked whether every connection had its last answer."""

_log = Logger()


class Finished(Protocol):
    """What is told of each answer once it is written, or, `written` false, could not be: for the log and metrics."""

    def __call__(self, request: Request | None, response: Response, *, written: bool) -> None:
        """`request` is None for a request whose head could not be read."""


class Site(Factory):
    """
    The factory of channels. `open` counts connections, `in_flight` requests between their head and their answer, `kept`
    what there is of bodies that have not come to their end. `capacity` may be shared with other listeners.

    `route` gives the leaf at a path, None for 404. `refuse` makes the answer of a refusal by the channel itself:
    GW-008, GW-010, GW-015, GW-017; `request` is None when there is no head. `failed` makes the 500 for a bug of a leaf
    (and logs it). `finished` is told of every answer. `clock` must be monotonic.
    """

    noisy = False

    def __init__(
        self,
        *,
        route: Callable[[bytes], ILeaf | None],
        refuse: Callable[[Request | None, Refused], Response],
        failed: Callable[[Request | None, Failure], Response],
        finished: Finished,
        clock: IReactorTime,
        wall: Callable[[], Wall],
        limits: Limits | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self.route = route
        self.refuse = refuse
        self.failed = failed
        self.clock = clock
        self.wall = wall
        self.limits = limits or Limits()
        self.capacity = capacity or Capacity()
        self.draining = False
        self.in_flight = 0
        self.kept = Kept()
        self._finished = finished
        self._channels: set[Channel | Guest] = set()
        self._sweeping = False
        self._resting: deque[list[Channel]] = deque([] for _ in range(2 * _WAKES))
        self._rests = 0
        self._waking = False
        self._woken_at = 0.0
        self._waiting_idle: list[Deferred[None]] = []
        self._waiting_closed: list[Deferred[None]] = []

    @property
    def open(self) -> int:
        """Connections now, those handed over to another protocol included."""
        return len(self._channels)

    def buildProtocol(self, addr: IAddress | None) -> Channel | None:  # type: ignore[override] # slotted, no Protocol
        """A channel for a new connection; None, which closes it at once, when there are too many."""
        peer = peer_of(addr)
        return Channel(self, peer) if self.capacity.admits(peer) else None

    def retire(self, within_s: float) -> Deferred[None]:
        """
        From now on every answer is its connection's last. Fires once no connection waits for a request any more, after
        `within_s` seconds at the latest.

        A connection that is closed while it is idle dies under the request that its client is just sending: given some
        time it gets that request, whose answer tells the client to close.
        """
        self.draining = True
        done: Deferred[None] = Deferred()
        # Not at once: what was accepted in this turn of the loop becomes a channel in one of the next.
        self.clock.callLater(min(LOOK_S, within_s), self._look, done, self.clock.seconds() + within_s)
        return done

    def _look(self, done: Deferred[None], ends_at: float) -> None:
        if self.clock.seconds() < ends_at and any(channel.waits for channel in self._channels):
            self.clock.callLater(LOOK_S, self._look, done, ends_at)
        else:
            done.callback(None)

    def drain(self) -> Deferred[None]:
        """
        From now on every answer is its connection's last; idle connections are closed. Fires when no request is in
        flight. New connections are still served: refusing what they ask is the leaves' business.
        """
        self.draining = True
        for channel in tuple(self._channels):
            channel.retire()
        if not self.in_flight:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting_idle.append(waiting)
        return waiting

    def close(self) -> Deferred[None]:
        """Close every connection, answered or not; fires when they are gone, after CLOSE_S at the latest."""
        self.draining = True
        for channel in tuple(self._channels):
            channel.shut()
        if not self._channels:
            return succeed(None)
        cut = self.clock.callLater(CLOSE_S, self._cut)
        waiting: Deferred[None] = Deferred()
        waiting.addCallback(lambda _: cut.cancel() if cut.active() else None)
        self._waiting_closed.append(waiting)
        return waiting

    def _cut(self) -> None:
        for channel in tuple(self._channels):
            channel.transport.abortConnection()

    # -- what channels call ------------------------------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """Count a connection and watch its deadline."""
        self._channels.add(channel)
        self.capacity.add(channel.peer)
        if not self._sweeping:
            self._sweeping = True
            self.clock.callLater(SWEEP_S, self._sweep)

    def rest(self, channel: Channel) -> None:
        """Wake the channel when its rest is over; of those that rest from one moment on, a few at a time."""
        if not self._waking:
            self._waking = True
            self._woken_at = self.clock.seconds()
            self.clock.callLater(WAKE_S, self._wake)
        self._rests += 1
        self._resting[_WAKES + self._rests % _WAKES].append(channel)

    def _wake(self) -> None:
        late_by = min(2 * _WAKES, round((self.clock.seconds() - self._woken_at) / WAKE_S))
        self._woken_at = self.clock.seconds()
        waking = [channel for _ in range(late_by) for channel in self._resting.popleft()]
        self._resting.extend([] for _ in range(late_by))
        for channel in waking:
            try:
                channel.resumeProducing()
            except Exception:  # as in _sweep
                _log.failure("A connection could not be read again.", event="http_wake_failed")
        self._waking = any(self._resting)
        if self._waking:
            self.clock.callLater(WAKE_S, self._wake)

    def handed_over(self, channel: Channel, guest: Guest) -> None:
        """Another protocol has the connection: it is counted on."""
        self._channels.discard(channel)
        self._channels.add(guest)

    def closed(self, channel: Channel | Guest) -> None:
        """Forget a connection."""
        self._channels.discard(channel)
        self.capacity.discard(channel.peer)
        if not self._channels:
            waiting, self._waiting_closed = self._waiting_closed, []
            for deferred in waiting:
                deferred.callback(None)

    def settled(self, request: Request | None, response: Response | None, *, written: bool) -> None:
        """A request was answered, or never will be (`response` None)."""
        if request is not None:
            self.in_flight -= 1
        if response is not None:
            try:
                self._finished(request, response, written=written)
            except Exception:  # the account of an answer must not cost the connection its next one
                _log.failure("The account of an answer failed.", event="http_account_failed")
        if not self.in_flight and self._waiting_idle:
            waiting, self._waiting_idle = self._waiting_idle, []
            for deferred in waiting:
                deferred.callback(None)

    def _sweep(self) -> None:
        now = self.clock.seconds()
        for channel in [channel for channel in self._channels if channel.deadline <= now]:
            try:
                channel.expire()
            except Exception:  # one channel's fault must not end the deadlines of all others
                _log.failure("A connection could not be ended at its deadline.", event="http_sweep_failed")
        self._sweeping = bool(self._channels)
        if self._sweeping:
            self.clock.callLater(SWEEP_S, self._sweep)
