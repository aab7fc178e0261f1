"""
What the hub decides, done: subscriptions opened, events sent, streams closed, sources read again.

Decides how much is done in one turn of the reactor and in which order: closes at once, broadcasts one after the other
in slices, so that one event for thousands keeps nobody else waiting. Never decides who gets what (the hub does), and
never keeps more broadcasts than were handed in at once: whoever publishes is made to wait instead.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any, Final, TypeAlias, cast

from msgspec import structs
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.lifecycle import Ticker
from gatewayd.push.api import PushStream
from gatewayd.push.frames import Event
from gatewayd.push.hub import Broadcast, Close, Effect, Hub, Item, Joined, Read
from gatewayd.push.position import At, Mark
from gatewayd.push.stream import Outlet, Stream
from gatewayd.push.wishes import Grants, Wish, granted, parse_asked
from gatewayd.sessions.endings import FAULT, NO_ROUTE, OVERFLOWED, SHUTTING_DOWN, Ending, malformed
from gatewayd.sessions.values import Envelope, Session
from gatewayd.times import Wall

_log = Logger()

SLICE: Final = 128
"""
Deliveries in one turn, 1 to 2 ms of WebSockets. More of them cost more each, since what they touch is written out only
behind the last and is no longer in the processor's caches then (5,000 WebSockets, tried: 11.4 us at 500, 10.8 at 128).
"""
_NEW_EVENT: Final = 10
"""What a new event counts for beside them: signing and encoding it takes as long as ten."""
_TOGETHER: Final = 16
_TOGETHER_BYTES: Final = 32 * 1024
"""
Events in a row for the same streams that go out as one write to each, at most: the write is nearly all that a delivery
costs (a burst of 100 events to 1,000 WebSockets: 9.7 -> 1.7 us of CPU for each, measured).
"""
_PUMPED: Final = 100
"""Events that one stream is sent in one turn when many wait for it; one that is signed for it alone costs 60 us."""

READ_EVENTS: Final = 10_000
READ_BYTES: Final = 8 * 1024 * 1024
READ_S: Final = 10.0
READS: Final = 4
"""Reads of sources under way, of at most READ_EVENTS and READ_BYTES each."""
READS_WAITING: Final = 64
"""Beyond, a stream is not resumed: reading for it would be too late anyway."""

CLOSES_A_SECOND: Final = 2000
RETURNS_A_SECOND: Final = 500
"""Streams closed by a shutdown, and clients told to come back, in one second."""
_CLOSING_STEP_S: Final = 0.05
_RETURN_MS: Final = (1000, 30_000)

Reader: TypeAlias = Callable[[Mark, At, int, int], Coroutine[Deferred[Any], Any, Sequence[Item] | None]]
"""
All that a source holds after a mark up to and with a place, in order: at most so many items of so many bytes. None when
that is more, or not there any more, or cannot be read now. Never fails with anything expected.
"""


class OpenStream(Stream):
    """What a transport holds of its stream (PushStream)."""

    __slots__ = ("_delivery",)

    def __init__(self, delivery: "Delivery", outlet: Outlet, session: Session, wish: Wish) -> None:
        super().__init__(outlet, session.user_id, session.device_session_id, wish)
        self._delivery = delivery

    def writable(self) -> None:
        """See PushStream."""
        self.blocked = False
        self._delivery.pump(self)

    def gone(self, reason: str) -> None:
        """See PushStream."""
        self._delivery.leave(self, reason)


class Delivery:
    """
    The hub's hands. `verify` says who sent an envelope, or why it may not pass; what it answers holds in the turn in
    which it does. `readers` read the sources that can be read. `soon` calls a function after everything that is ready
    now; `chance` is uniform from 0 to 1.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        verify: Callable[[Envelope], Awaitable[Session | Ending]],
        grants: Grants,
        readers: Mapping[int, Reader],
        metrics: EdgeMetrics,
        clock: IReactorTime,
        wall: Callable[[], Wall],
        soon: Callable[[Callable[[], object]], object],
        chance: Callable[[], float],
    ) -> None:
        self.hub = hub
        self._verify = verify
        self._grants = grants
        self._readers = readers
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._soon = soon
        self._chance = chance
        self._broadcasts: deque[Broadcast] = deque()
        self._next = 0  # of the first broadcast's streams
        self._together = 1  # broadcasts that are being sent
        self._due = False
        self._drained: list[Deferred[None]] = []
        self._heartbeat: Event | None = None
        self._permits = DeferredSemaphore(READS)
        self._reads: set[Deferred[None]] = set()
        self._window_ms: int | None = None  # set: this process stops
        self._ticker = Ticker(clock, min(1.0, hub.bounds.heartbeat_s / 4), self._beat, "push heartbeat")

    def start(self) -> None:
        """Begin with the heartbeats."""
        self._ticker.startService()

    def stop(self, budget_s: float) -> Deferred[None]:
        """
        Refuse new streams and close the open ones, spread over a part of the budget when they are many, each with a
        moment to come back at. Fires when all are closed; never fails.
        """
        return Deferred.fromCoroutine(self._stop(budget_s))

    # Sources

    def begin(self, source: int, mark: Mark, floor: At, items: Sequence[Item]) -> None:
        """See Hub.begin()."""
        self.hub.begin(source, mark, floor, items, self._clock.seconds())

    def publish(self, source: int, items: Sequence[Item]) -> Deferred[None] | None:
        """
        Publish these, in order. None when all is done; else a Deferred that fires when it is, upon which the next may
        be published. Cancelling it changes nothing.
        """
        now = self._clock.seconds()
        for item in items:
            broadcast = self.hub.publish(source, item, now)
            if broadcast is None:
                continue
            if broadcast.streams:
                self._broadcasts.append(broadcast)
            else:
                self._metrics.event(item.event_type, "no_subscriber")
        self._perform(self.hub.settle(now, self._now_ms()))
        return self._run()

    def reset(self, source: int, mark: Mark) -> None:
        """What came up to `mark` may have been missed; see Hub.reset()."""
        self._perform([self.hub.reset(source, mark, self._now_ms())])
        self._run()

    def gap(self, source: int) -> None:
        """What comes next may come after something that was missed; see Hub.gap()."""
        self._perform([self.hub.gap(source, self._now_ms())])
        self._run()

    def revoke(self, device_session_id: str) -> None:
        """End the session's streams now, ahead of everything that waits."""
        close = self.hub.revoke(device_session_id)
        if close is not None:
            self._close(close)

    # Streams

    def subscribe(self, envelope: Envelope, outlet: object) -> Deferred[PushStream | Ending]:
        """See push.api.Subscribe; `outlet` is an IOutlet. What the message type says is in push.wishes."""
        return Deferred.fromCoroutine(self._open(envelope, cast("Outlet", outlet)))

    async def _open(self, envelope: Envelope, outlet: Outlet) -> PushStream | Ending:
        opened = await self._subscribe(envelope, outlet)
        if isinstance(opened, Ending):
            self._metrics.refused(opened.reason)
        return opened

    async def _subscribe(self, envelope: Envelope, outlet: Outlet) -> PushStream | Ending:
        asked = parse_asked(envelope.message_type)
        if asked is None:
            return malformed("message_type")
        session = self._refusal() or await self._verify(envelope)
        if isinstance(session, Ending):
            return session
        wish = granted(asked, session.user_id, self._grants)
        stopping = self._refusal()  # since then
        if wish is None or stopping is not None:
            return stopping or NO_ROUTE
        stream = OpenStream(self, outlet, session, wish)
        bound = {"request_id": envelope.request_id, "trace_id": envelope.trace_id}
        effects = self.hub.subscribe(stream, envelope.payload, self._clock.seconds(), self._now_ms(), **bound)
        if isinstance(effects, Ending):
            return effects
        self._metrics.streams[outlet.transport].value += 1
        self._perform(effects)
        return stream

    def pump(self, stream: Stream) -> None:
        """Send what waits for a stream until it can take no more, or nothing waits."""
        if stream.pumping or stream.ready:
            return
        stream.pumping = True
        left = _PUMPED
        while left and not stream.blocked and not stream.closed:
            event = stream.take()
            if event is None:
                break
            left -= 1
            stream.blocked = True  # writable() says otherwise, also from within send()
            self._send(stream, event)
        stream.pumping = False
        if left < _PUMPED:
            stream.last_at = self._clock.seconds()
        if left:
            stream.ready = not stream.blocked and not stream.closed
        elif not stream.blocked:
            self._soon(lambda: self.pump(stream))

    def leave(self, stream: Stream, reason: str) -> None:
        """The client is gone."""
        if not stream.closed:
            self.hub.drop(stream)
            self._left(stream, reason)

    # Effects

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Broadcast):
                self._broadcasts.append(effect)
            elif isinstance(effect, Close):
                self._close(effect)
            elif isinstance(effect, Joined):
                self.pump(effect.stream)
            else:
                reading = Deferred.fromCoroutine(self._read(effect))
                if not reading.called:
                    self._reads.add(reading)
                    reading.addBoth(self._read_ended, reading)

    def _run(self) -> Deferred[None] | None:
        """Do what waits, or let it be done after what is being done already."""
        if not self._due:
            self._turn()
        if not self._broadcasts:
            return None
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        return drained

    def _turn(self) -> None:
        """One slice of the broadcasts that wait."""
        self._due = False
        budget = SLICE
        while self._broadcasts and budget > 0:
            streams, begin = self._broadcasts[0].streams, self._next
            if not begin:
                self._together = self._count_alike()
            end = min(len(streams), begin + ceil(budget / self._together))
            part = streams if end - begin == len(streams) else streams[begin:end]
            for broadcast in tuple(islice(self._broadcasts, self._together)):
                budget -= end - begin + _NEW_EVENT
                self._send_all(broadcast.event, part, last=self._together == 1)
            self._next = end
            if end == len(streams):
                self._next = 0
                for _ in range(self._together):
                    self._done(self._broadcasts.popleft())
        if self._broadcasts:
            self._due = True
            self._soon(self._turn)
            return
        drained, self._drained = self._drained, []
        for waiting in drained:
            if not waiting.called:
                waiting.callback(None)

    def _count_alike(self) -> int:
        """How many of the broadcasts that wait, from the first on, go to the same streams and out together."""
        count, size = 0, 0
        for broadcast in islice(self._broadcasts, _TOGETHER):
            size += broadcast.event.size
            if count and (size > _TOGETHER_BYTES or broadcast.streams != self._broadcasts[0].streams):
                break
            count += 1
        return count

    def _send_all(self, event: Event, streams: Sequence[Stream], *, last: bool) -> None:
        """One event to some of its streams. The inside of the loop is what a delivery costs: 0.3 us."""
        now, sent = self._clock.seconds(), 0
        for stream in streams:
            if stream.ready:
                stream.last_at = now
                sent += 1
                try:
                    if not stream.outlet.send(event, last=last):
                        stream.ready = False
                        stream.blocked = True
                except Exception:
                    self._broken(stream)
            elif not stream.closed:
                close = self.hub.hold(stream, event)
                if close is not None:
                    self._metrics.event(event.event_type, "overflow")
                    self._close(close)
        if sent:
            self._metrics.event(event.event_type, "delivered", sent)

    def _send(self, stream: Stream, event: Event) -> None:
        """One event of those that waited."""
        self._metrics.event(event.event_type, "delivered")
        try:
            if stream.outlet.send(event):
                stream.blocked = False
        except Exception:
            self._broken(stream)

    def _done(self, broadcast: Broadcast) -> None:
        """The last of its streams has it, or has it waiting."""
        event = broadcast.event
        if event is self._heartbeat:
            self._heartbeat = None
        if broadcast.source is not None:
            self._metrics.delivery_seconds(max(0.0, self._wall() - event.timestamp_ms / 1000))

    def _close(self, close: Close) -> None:
        for stream in close.streams:
            self._left(stream, close.ending.reason)
            if close.ending is OVERFLOWED:
                _log.warn(
                    "A push stream of user {user_id} overflowed",
                    user_id=stream.user_id,
                    device_session_id=stream.device_session_id,
                    event="push.overflow",
                    repeats=True,
                )
            try:
                stream.outlet.close(close.ending)
            except Exception:
                _log.failure("A push stream cannot be closed", event="push.fault", repeats="close")

    def _broken(self, stream: Stream) -> None:
        """An outlet raised, which is a bug of its transport: said, and kept from all other streams."""
        _log.failure("An event cannot be sent", event="push.fault", repeats="send")
        if not stream.closed:
            self.hub.drop(stream)
            self._close(Close((stream,), FAULT))

    def _left(self, stream: Stream, reason: str) -> None:
        self._metrics.streams[stream.outlet.transport].value -= 1
        self._metrics.closed(reason)

    async def _read(self, read: Read) -> None:
        """Read a source for a stream that is resumed; no more than READS at a time."""
        items: Sequence[Item] | None = None
        reader = self._readers.get(read.source)
        if reader is not None and len(self._reads) < READS + READS_WAITING:
            await self._permits.acquire()
            try:
                if not read.stream.closed:
                    reading = Deferred.fromCoroutine(reader(read.after, read.up_to, READ_EVENTS, READ_BYTES))
                    items = await reading.addTimeout(READ_S, self._clock, lambda _, __: None)
            except CancelledError:
                raise
            except Exception:
                _log.failure("A source cannot be read again", event="push.fault", repeats="read")
            finally:
                self._permits.release()
        self._perform(self.hub.read_back(read, items, self._now_ms()))

    def _read_ended(self, _: object, reading: Deferred[None]) -> None:
        self._reads.discard(reading)

    # Time

    def _beat(self) -> None:
        if self._heartbeat is not None:
            return  # streams have not even got the last one
        effects = self.hub.beat(self._clock.seconds(), self._now_ms())
        for effect in effects:
            if isinstance(effect, Broadcast):
                self._heartbeat = effect.event
        self._perform(effects)
        self._run()

    def _now_ms(self) -> int:
        return int(self._wall() * 1000)

    def _refusal(self) -> Ending | None:
        """What a stopping process says, with a moment to come back at."""
        if self._window_ms is None:
            return None
        return structs.replace(SHUTTING_DOWN, retry_after_ms=round(self._chance() * self._window_ms))

    async def _stop(self, budget_s: float) -> None:
        count = len(self.hub)
        least, most = _RETURN_MS
        self._window_ms = window_ms = min(most, max(least, 1000 * count // RETURNS_A_SECOND))
        self._ticker.stopService()
        for reading in list(self._reads):
            reading.cancel()
        spread_s = min(0.8 * budget_s, count / CLOSES_A_SECOND)
        each = max(1, ceil(count * _CLOSING_STEP_S / spread_s)) if spread_s else count
        while closes := self.hub.end(each, window_ms, self._chance):
            for close in closes:
                self._close(close)
            if len(self.hub):
                await deferLater(self._clock, _CLOSING_STEP_S)
