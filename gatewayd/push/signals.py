"""
Signals as push events: the stream of normalised signals in JetStream, followed and read again by sequence.

Decides how a stored signal becomes an event and how the stream is followed: by a consumer of its own without
acknowledgements, asked for a bounded number at a time, which the server forgets half a minute after nobody asked.
Never acknowledges, never changes the stream, never decides who gets a signal (push.wishes does).
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, Protocol

from msgspec import Struct
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.bus import inlet
from gatewayd.bus.api import Api, api
from gatewayd.bus.publication import Unpublished
from gatewayd.bus.stored import place
from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.push.delivery import Delivery
from gatewayd.push.feeding import Feeding
from gatewayd.push.hub import Item
from gatewayd.push.position import SIGNALS, At, Mark
from gatewayd.times import Wall

_log = Logger()

EVENT_TYPE: Final = "signal.normalized"
BATCH: Final = 128
"""Signals asked for at a time; the next ones when these are delivered."""
WAIT_S: Final = 5.0
"""How long one asking waits at most; the server answers that there is nothing a little earlier."""
_EXPIRES_NS: Final = 4_000_000_000
_FORGOTTEN_NS: Final = 30_000_000_000
_PAUSE_S: Final = (0.05, 1.0)
_BACK: Final = (20_000, 2_000, 200)
"""How many messages of the stream, raw ones among them, are read back at the start: the first of these that works."""


class Bus(Api, Protocol):
    """The connection to NATS; see bus.nats."""

    def slice(
        self, subject: str, payload: bytes, count: int, timeout_s: float, heard: Callable[[inlet.Delivery], object]
    ) -> Awaitable[Unpublished | None]:
        """Ask, and hear `count` messages or fewer."""


class Stand(Struct, frozen=True):
    """The stream at one moment: which one it is, and its first and last sequence."""

    epoch: str
    first: int
    last: int


def signal_item(sequence: int, time: Wall, headers: Mapping[str, str], body: bytes) -> Item | None:
    """A stored signal as the hub takes it, its body as it was stored; None for a message that is no signal of ours."""
    event_id, source, instrument = (headers.get(name) for name in ("Nats-Msg-Id", "Source", "Instrument"))
    if not event_id or not source or not instrument:
        return None
    parts = headers.get("traceparent", "").split("-")
    return Item(
        at=(sequence, 0),
        event_type=EVENT_TYPE,
        event_id=event_id,
        timestamp_ms=round(time * 1000),
        payload=body,
        trace_id=parts[1] if len(parts) == 4 else "",
        topic=(source, instrument),
    )


class SignalStream:
    """The messages of `subject` in the stream `name`."""

    def __init__(self, bus: Bus, name: str, subject: str) -> None:
        self._bus = bus
        self._name = name
        self._subject = subject

    async def stand(self) -> Stand | Unpublished:
        """How it stands now."""
        info = await api(self._bus, f"$JS.API.STREAM.INFO.{self._name}", {})
        if isinstance(info, Unpublished):
            return info
        state = info["state"]
        # A stream that was made anew counts from 1 again: its birth tells the one from the other.
        epoch = sha256(str(info["created"]).encode()).hexdigest()[:12]
        return Stand(epoch, int(state["first_seq"]), int(state["last_seq"]))

    async def open(self, sequence: int) -> str | Unpublished:
        """The name of a new consumer whose first message is at `sequence` or behind it."""
        config: dict[str, Any] = {"ack_policy": "none", "replay_policy": "instant", "filter_subject": self._subject}
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, sequence)}
        config |= {"mem_storage": True, "num_replicas": 1, "inactive_threshold": _FORGOTTEN_NS}
        create = {"stream_name": self._name, "config": config}
        made = await api(self._bus, f"$JS.API.CONSUMER.CREATE.{self._name}", create)
        return made if isinstance(made, Unpublished) else str(made["name"])

    async def next(
        self, consumer: str, count: int, heard: Callable[[inlet.Delivery], object], *, wait: bool
    ) -> Unpublished | None:
        """Hear up to `count` messages; with `wait`, those too that come within some seconds."""
        ask: dict[str, Any] = {"batch": count, "expires": _EXPIRES_NS} if wait else {"batch": count, "no_wait": True}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._name}.{consumer}"
        return await self._bus.slice(subject, json.dumps(ask).encode(), count, WAIT_S, heard)

    async def close(self, consumer: str) -> None:
        """Have the server forget it now; it does so by itself when this fails."""
        await api(self._bus, f"$JS.API.CONSUMER.DELETE.{self._name}.{consumer}", {})

    async def read(self, after: Mark, up_to: At, count: int, size_bytes: int) -> Sequence[Item] | None:
        """See push.delivery.Reader."""
        stand = await self.stand()
        if isinstance(stand, Unpublished) or stand.epoch != after.epoch or stand.first > after.at[0] + 1:
            return None
        consumer = await self.open(after.at[0] + 1)
        if isinstance(consumer, Unpublished):
            return None
        try:
            return await self._read(consumer, up_to, count, size_bytes)
        finally:
            await self.close(consumer)

    async def _read(self, consumer: str, up_to: At, count: int, size_bytes: int) -> Sequence[Item] | None:
        items: list[Item] = []
        size, heard, over = 0, 0, False

        def hear(message: inlet.Delivery) -> None:
            nonlocal size, heard, over
            heard += 1
            sequence, _, time, pending = place(message.reply)
            over = over or sequence >= up_to[0] or not pending
            item = signal_item(sequence, time, message.headers, message.body) if sequence <= up_to[0] else None
            if item is not None:
                items.append(item)
                size += len(item.payload)

        while not over:
            before = heard
            if (
                await self.next(consumer, BATCH, hear, wait=False) is not None
                or len(items) > count
                or size > size_bytes
            ):
                return None
            if heard == before:
                break
        return items


class SignalFollower:
    """
    Follows the stream for as long as the process lives. `feeding` gets what is stored from the first look on;
    `chance` is uniform from 0 to 1.
    """

    def __init__(
        self,
        stream: SignalStream,
        feeding: "Feeding[Item]",
        *,
        metrics: EdgeMetrics,
        clock: IReactorTime,
        wall: Callable[[], Wall],
        soon: Callable[[Callable[[], object]], object],
        chance: Callable[[], float],
    ) -> None:
        self._stream = stream
        self._feeding = feeding
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._soon = soon
        self._chance = chance
        self._epoch = ""
        self._at = 0
        self._heard: list[Item] = []
        self._flow: Deferred[None] | None = None
        self._life: Deferred[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin; NATS need not be there yet."""
        self._life = Deferred.fromCoroutine(self._run())

    def stop(self) -> Deferred[None] | None:
        """End; nothing is delivered any more. Never fails."""
        self._stopped = True
        self._heard = []
        life, self._life = self._life, None
        if life is not None:
            life.addErrback(_cancelled)
            life.cancel()
        return life

    async def _run(self) -> None:
        pause_s, longest_s = _PAUSE_S
        while True:
            try:
                found = await self._follow()
            except CancelledError:
                raise
            except Exception:  # whatever it is, the stream must be followed on
                _log.failure("The signals cannot be followed", event="signals.fault", repeats=True)
                found = False
            pause_s = _PAUSE_S[0] if found else min(longest_s, 2 * pause_s)
            await deferLater(self._clock, pause_s * (0.5 + 0.5 * self._chance()))

    async def _follow(self) -> bool:
        """From where we are until nothing came for a while; False when the server did not let us."""
        stand = await self._stream.stand()
        if isinstance(stand, Unpublished):
            return False
        if stand.epoch != self._epoch or stand.last < self._at:
            self._epoch, self._at = stand.epoch, stand.last
            self._feeding.placed(stand.epoch, (stand.last, 0))
        elif stand.first > self._at + 1:
            self._metrics.entry("signals", "gap")
            self._at = stand.first - 1
            self._feeding.placed(stand.epoch, (self._at, 0))
        await self._feeding.begun()
        consumer = await self._stream.open(self._at + 1)
        if isinstance(consumer, Unpublished):
            return False
        try:
            while True:
                before = self._at
                ended = await self._stream.next(consumer, BATCH, self._hear, wait=True)
                self._deliver()
                if self._flow is not None:
                    await self._flow
                if ended is not None:
                    return False
                if self._at == before:
                    self._metrics.lag("signals", 0.0)
                    return True  # and look at the stream again: it, or the consumer, may be another one
        finally:
            if not self._stopped:
                await self._stream.close(consumer)

    def _hear(self, message: inlet.Delivery) -> None:
        """One message: it is delivered with all that come in the same turn. Must not raise."""
        sequence, _, time, _ = place(message.reply)
        if self._stopped or sequence <= self._at:
            return
        self._at = sequence
        item = signal_item(sequence, time, message.headers, message.body)
        self._metrics.entry("signals", "malformed" if item is None else "ok")
        if item is None:
            return
        self._metrics.lag("signals", max(0.0, self._wall() - time))
        self._heard.append(item)
        if len(self._heard) == 1:
            self._soon(self._deliver)

    def _deliver(self) -> None:
        heard, self._heard = self._heard, []
        if heard:
            self._flow = self._feeding.deliver(heard)


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)  # type: ignore[no-untyped-call]


def feed_signals(delivery: Delivery, stream: SignalStream, clock: IReactorTime) -> "Feeding[Item]":
    """The signals' way to the hub."""

    def back(at: At) -> Sequence[At]:
        return [(max(0, at[0] - messages), 0) for messages in _BACK]

    return Feeding(SIGNALS, delivery, stream.read, back=back, item_of=lambda item: item, clock=clock)
