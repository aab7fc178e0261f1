"""
A push hub and an executor for the tests of a transport: no Redis, no sessions, one queue a stream.

What a request gets is told by its message type: see FakeHub.
"""

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred, succeed

from gatewayd.push.api import PushStream
from gatewayd.push.frames import Event, EventSigner
from gatewayd.sessions.endings import LIMITED, NO_ROUTE, OVERFLOWED, SHUTTING_DOWN, Ending
from gatewayd.sessions.signing import event_input
from gatewayd.sessions.values import Envelope, Reply

QUEUE_EVENTS = 256
SIGNER = EventSigner(lambda _: b"s" * 64, event_input)


def make_event(number: int, payload: bytes = b"x" * 40) -> Event:
    """Event `number` of a test."""
    return Event(
        SIGNER,
        event_type="test.event",
        event_id=f"event-{number}",
        timestamp_ms=1_700_000_000_000 + number,
        payload=payload,
        position=str(number),
    )


class FakeStream:
    """A stream as a transport holds it. `gone_for` has the reasons that gone() was told."""

    def __init__(self, outlet: Any) -> None:
        self.outlet = outlet
        self.queue: deque[Event] = deque()
        self.gone_for: list[str] = []
        self.ended: Ending | None = None
        self.overflowed_at = 0
        self._ready = False

    def publish(self, event: Event) -> None:
        """Send it, or queue it while the transport is full; overflow ends the stream."""
        if self.gone_for or self.ended:
            return
        if self._ready:
            self._ready = self.outlet.send(event)
            return
        self.queue.append(event)
        if len(self.queue) > QUEUE_EVENTS:
            self.end(OVERFLOWED)

    def end(self, ending: Ending) -> None:
        """As a hub ends a stream."""
        if not self.ended and not self.gone_for:
            self.ended = ending
            self.queue.clear()
            self.outlet.close(ending)

    def writable(self) -> None:
        """As push.api has it."""
        self._ready = True
        while self.queue and self._ready:
            self._ready = self.outlet.send(self.queue.popleft())

    def gone(self, reason: str) -> None:
        """As push.api has it."""
        self.gone_for.append(reason)


class FakeHub:
    """
    `execute`: message type "never" is never answered, "broken" fails, "no.route" and "limited" are refused, "big" is
    answered with as many bytes as its payload says, anything else with its own payload. `subscribe`: "never" and
    "limited" as well, "stubborn" gets its stream when it is given up, anything else one that begins with event 0.
    `cancelled` counts what was given up.
    """

    def __init__(self) -> None:
        self.executed: list[tuple[Envelope, float | None]] = []
        self.streams: list[FakeStream] = []
        self.cancelled = 0
        self.pending: list[Deferred[Any]] = []

    def execute(self, envelope: Envelope, deadline_s: float | None) -> "Deferred[Reply | Ending]":
        """As push.api has it."""
        self.executed.append((envelope, deadline_s))
        kind = envelope.message_type
        if kind == "never":
            return self._never()
        if kind == "broken":
            raised: Deferred[Reply | Ending] = Deferred()
            raised.errback(RuntimeError("a bug"))
            return raised
        refused = {"no.route": NO_ROUTE, "limited": Ending("limit", 8, 1008, LIMITED.message, 1500)}.get(kind)
        if refused is not None:
            return succeed(refused)
        payload = b"b" * int(envelope.payload) if kind == "big" else envelope.payload
        return succeed(Reply("v1", envelope.request_id, 1_700_000_000_000, "ok", payload, b"h" * 32, b"s" * 64))

    def subscribe(self, envelope: Envelope, outlet: Any) -> "Deferred[PushStream | Ending]":
        """As push.api has it."""
        if envelope.message_type == "never":
            return self._never()
        if envelope.message_type == "limited":
            return succeed(Ending("limit", 8, 1008, LIMITED.message, 1500))
        if envelope.message_type == "stubborn":
            self.streams.append(FakeStream(outlet))
            return Deferred(lambda waiting: waiting.callback(self.streams[-1]))
        stream = FakeStream(outlet)
        stream.queue.append(make_event(0))
        self.streams.append(stream)
        return succeed(stream)

    def publish(self, event: Event) -> None:
        """Send an event to every stream."""
        for stream in self.streams:
            stream.publish(event)

    def close(self, retry_after_ms: int | None = None) -> None:
        """As a hub closes: every stream ends."""
        ending = Ending("shutdown", SHUTTING_DOWN.grpc_status, 1012, SHUTTING_DOWN.message, retry_after_ms)
        for stream in self.streams:
            stream.end(ending)

    def _never(self) -> "Deferred[Any]":
        def cancel(_: Deferred[Any]) -> None:
            self.cancelled += 1

        pending: Deferred[Any] = Deferred(cancel)
        self.pending.append(pending)
        return pending
