"""
From a source to the hub: where the source stands, what it published lately, what it publishes now.

Decides when the source is there for the hub: once what it published lately was read back, so that those who come back
after a restart of this process find it in memory. Never reads the source by itself, but through a Reader.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gatewayd.push.delivery import READ_S, Delivery, Reader
from gatewayd.push.hub import Item
from gatewayd.push.position import EVENTS, At, Mark
from gatewayd.streams.cursor import StreamId
from gatewayd.streams.entries import ClientEvent, parse_client_event
from gatewayd.streams.redis_stream import Cut, RedisStream

_log = Logger()
T = TypeVar("T")

_BACK_MS: Final = (600_000, 60_000, 5_000)
"""How far client events are read back at the start: the first of these that is not too much."""


class Feeding(Generic[T]):
    """
    One source's way to the hub. `back` says from where on to read at the start, given where the source stands: several
    places, the furthest first. `quiet_from` says from where on nothing came up to such a place, so that those who were
    there last, which after a quiet hour is everybody, find what came since in memory. `item_of` makes what the hub
    takes of what the source gives.
    """

    def __init__(
        self,
        source: int,
        delivery: Delivery,
        read: Reader,
        *,
        back: Callable[[At], Sequence[At]],
        item_of: Callable[[T], Item],
        clock: IReactorTime,
        quiet_from: Callable[[Mark], Awaitable[At]] | None = None,
    ) -> None:
        self._source = source
        self._delivery = delivery
        self._read = read
        self._back = back
        self._quiet_from = quiet_from
        self._item_of = item_of
        self._clock = clock
        self._mark: Mark | None = None
        self._begun = False
        self._gap = False  # one that is not known to the hub yet
        self._waiting: list[Deferred[None]] = []

    def begun(self) -> Deferred[None]:
        """Fires when the source is there for the hub; streams that get it can be opened from then on."""
        begun: Deferred[None] = Deferred(self._waiting.remove)
        if self._begun:
            begun.callback(None)
        else:
            self._waiting.append(begun)
        return begun

    def placed(self, epoch: str, at: At) -> None:
        """What comes next comes after `at` in this epoch: at the start, and when the source is another one."""
        mark = Mark(epoch, (at[0], at[1]))
        first = self._mark is None
        self._mark, self._gap = mark, False
        if self._begun:
            self._delivery.reset(self._source, mark)
        elif first:
            Deferred.fromCoroutine(self._begin(mark))

    def gap(self) -> None:
        """Something before what comes next was lost."""
        if self._begun:
            self._delivery.gap(self._source)
        else:
            self._gap = True

    def deliver(self, batch: Sequence[T]) -> Deferred[None] | None:
        """Publish a batch, in order; None or a Deferred that fires when the next one may come."""
        items = [self._item_of(one) for one in batch]
        if self._begun:
            return self._delivery.publish(self._source, items)
        return self.begun().addCallback(lambda _: self._delivery.publish(self._source, items))

    async def _begin(self, mark: Mark) -> None:
        floor, items = await self._lately(mark)
        if self._mark is not None and self._mark is not mark:  # it is another one meanwhile
            mark, floor, items = self._mark, self._mark.at, ()
        self._delivery.begin(self._source, mark, floor, items)
        self._begun = True
        if self._gap:
            self._delivery.gap(self._source)
        while self._waiting:  # one may cancel another
            self._waiting.pop(0).callback(None)

    async def _lately(self, mark: Mark) -> tuple[At, Sequence[Item]]:
        """What was published up to `mark`, and after which place that is all."""
        bounds = self._delivery.hub.bounds
        for back in self._back(mark.at):
            after = Mark(mark.epoch, back)
            reading = Deferred.fromCoroutine(self._read(after, mark.at, bounds.ring_events, bounds.ring_bytes))
            try:
                items = await reading.addTimeout(READ_S, self._clock, lambda _, __: None)
            except Exception:
                _log.failure("A source cannot be read back", event="push.fault", repeats="begin")
                break
            if items is not None:
                return back if self._quiet_from is None else await self._quiet_from(after), items
        return mark.at, ()


def event_item(event: ClientEvent) -> Item:
    """A client event as the hub takes it. Its time is that in its id: the same from every gateway, at any time."""
    return Item(
        at=(event.id.ms, event.id.seq),
        event_type=event.event_type,
        event_id=event.event_id,
        timestamp_ms=event.at_ms,
        payload=event.payload,
        request_id=event.request_id,
        trace_id=event.trace_id,
        user_id=event.user_id,
        device_session_id=event.device_session_id,
    )


def events_reader(stream: RedisStream) -> Reader:
    """Reads the client events stream again."""

    async def read(after: Mark, up_to: At, count: int, size_bytes: int) -> Sequence[Item] | None:
        found = await stream.read_range(
            after.epoch,
            StreamId(*after.at),
            StreamId(*up_to),
            parse_client_event,
            count=count,
            size_bytes=size_bytes,
        )
        return None if isinstance(found, Cut) else [event_item(event) for event in found]

    return read


def feed_events(delivery: Delivery, stream: RedisStream, clock: IReactorTime) -> Feeding[ClientEvent]:
    """The client events' way: its placed, gap and deliver are those of the poller's Feed."""

    def back(at: At) -> Sequence[At]:
        return [(max(0, at[0] - ms), 0) for ms in _BACK_MS]

    async def quiet_from(mark: Mark) -> At:
        return await stream.quiet_from(mark.epoch, StreamId(*mark.at))

    reader = events_reader(stream)
    return Feeding(EVENTS, delivery, reader, back=back, quiet_from=quiet_from, item_of=event_item, clock=clock)
