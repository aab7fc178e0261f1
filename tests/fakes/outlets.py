"""Where events of push streams go in tests: outlets without a connection, and a delivery around a hub."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.push.delivery import Delivery, OpenStream, Reader
from gatewayd.push.frames import Event, EventSigner
from gatewayd.push.hub import Bounds, Hub, Item
from gatewayd.push.wishes import parse_grants
from gatewayd.sessions.endings import Ending
from gatewayd.sessions.signing import event_input
from gatewayd.sessions.values import Envelope, Session
from gatewayd.times import Wall

WALL = Wall(1_700_000_000.0)


class SlowOutlet:
    """
    Takes `room` more events before it is full, any number when that is None. `writes_at_once`: it says writable()
    from within send(), as a transport that empties itself does.
    """

    transport = "websocket"

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.events: list[Event] = []
        self.endings: list[Ending] = []
        self.stream: OpenStream | None = None
        self.writes_at_once = False
        self.lasts: list[bool] = []

    @property
    def types(self) -> list[str]:
        """The types of what came."""
        return [event.event_type for event in self.events]

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of what came and is none of the gateway's own."""
        return [event.payload for event in self.events if not event.event_type.startswith("gateway.")]

    def send(self, event: Event, *, last: bool = False) -> bool:
        """See IOutlet."""
        assert not self.endings, "sent after the close"
        assert self.room is None or self.room > 0, "sent while full"
        self.events.append(event)
        self.lasts.append(last)
        if self.room is None:
            return True
        self.room -= 1
        if not self.room and self.writes_at_once:
            self.make_room(1)
            return False
        return self.room > 0

    def close(self, ending: Ending) -> None:
        """See IOutlet."""
        assert not self.endings, "closed twice"
        self.endings.append(ending)

    def make_room(self, room: int | None) -> None:
        """The peer reads."""
        self.room = room
        if self.stream is not None and not self.endings:
            self.stream.writable()


class Turns:
    """What is to be called soon, one call a turn."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], object]] = deque()

    def __call__(self, function: Callable[[], object]) -> None:
        self.waiting.append(function)

    def turn(self) -> bool:
        """The next call; False when there is none."""
        if self.waiting:
            self.waiting.popleft()()
            return True
        return False

    def spin(self) -> int:
        """All turns until nothing waits; how many."""
        turns = 0
        while self.turn():
            turns += 1
        return turns


class Desk:
    """
    A Delivery on a Clock. Sessions are `user/device`, both in the device_session_id; `refusals` are the sessions that
    verification refuses; `verified`, when set, is awaited before it answers.
    """

    def __init__(
        self,
        bounds: Bounds | None = None,
        *,
        grants: str = "",
        readers: dict[int, Reader] | None = None,
        clock: Clock | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.clock = clock or Clock()
        if clock is None:
            self.clock.advance(1000.0)
        self.turns = turns or Turns()
        self.registry = CollectorRegistry()
        self.metrics = EdgeMetrics(self.registry, event_types=("trade.filled",))
        self.hub = Hub(bounds or Bounds(), EventSigner(_unsigned, event_input))
        self.refusals: dict[str, Ending] = {}
        self.verified: Deferred[None] | None = None
        self.delivery = Delivery(
            self.hub,
            verify=self._verify,
            grants=parse_grants(grants),
            readers=readers or {},
            metrics=self.metrics,
            clock=self.clock,
            wall=self.wall,
            soon=self.turns,
            chance=lambda: 0.5,
        )

    def wall(self) -> Wall:
        """Wall time, which the Clock moves."""
        return Wall(WALL + self.clock.seconds() - 1000.0)

    async def _verify(self, envelope: Envelope) -> Session | Ending:
        if self.verified is not None:
            await self.verified
        refusal = self.refusals.get(envelope.device_session_id)
        return refusal or Session(envelope.device_session_id, envelope.device_session_id.partition("/")[0], b"")

    def ask(
        self, session: str, outlet: SlowOutlet, resume: str = "", message_type: str = "events.subscribe"
    ) -> Deferred[OpenStream | Ending]:
        """Subscribe; the transport then says writable() as soon as it has its stream."""
        envelope = Envelope("v1", session, message_type, 1, "request-1", resume.encode(), b"", b"", "trace-1")

        def opened(stream: OpenStream | Ending) -> OpenStream | Ending:
            if not isinstance(stream, Ending):
                outlet.stream = stream
                if outlet.room != 0:
                    stream.writable()
            return stream

        return self.delivery.subscribe(envelope, outlet).addCallback(opened)

    def open(
        self,
        session: str,
        outlet: SlowOutlet | None = None,
        resume: str = "",
        message_type: str = "events.subscribe",
    ) -> SlowOutlet:
        """Subscribe, which must succeed at once."""
        outlet = outlet or SlowOutlet()
        found: list[Any] = []
        self.ask(session, outlet, resume, message_type).addBoth(found.append)
        assert isinstance(found[0], OpenStream), found
        return outlet

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.registry.get_sample_value(name, labels) or 0.0


def _unsigned(signed: bytes) -> bytes:
    return signed[:2].ljust(64, b"s")


def item(at: int, user_id: str = "ann", payload: bytes = b"", **members: Any) -> Item:
    """A client event at `at`."""
    members = {"event_type": "trade.filled", "event_id": f"ev-{at}", "timestamp_ms": at, **members}
    return Item(at=(at, 0), user_id=user_id, payload=payload or b"%d" % at, **members)


def signal(at: int, instrument: str = "EURUSD", source: str = "tv") -> Item:
    """A signal at `at`."""
    return Item((at, 0), "signal.normalized", f"gw:{at}", at, b"s%d" % at, topic=(source, instrument))


def payloads(items: Sequence[Item]) -> list[bytes]:
    """What a client sees of them."""
    return [one.payload for one in items]
