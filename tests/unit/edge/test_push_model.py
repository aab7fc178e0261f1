"""
Two gateways, their sources and clients that come and go, at random: what a client was sent is what was for it.

The model: two logs, of client events and of signals, each with an epoch, trimmed or made anew now and then; two
gateways that follow both at their own pace, lose and restart; clients that keep the last position, as they are told
to, and come back to either gateway. Outlets that fill up, slices and reads that end late.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.delivery import OpenStream, Reader
from gatewayd.push.feeding import Feeding
from gatewayd.push.frames import Event
from gatewayd.push.hub import AHEAD_S, Bounds, Item
from gatewayd.push.position import EVENTS, SIGNALS, SOURCES, At, Mark, Position, parse_position
from gatewayd.sessions.endings import REVOKED, Ending
from tests.fakes.outlets import Desk, SlowOutlet, Turns, item, signal

BOUNDS = Bounds(
    streams_per_session=3, queue_events=4, ring_events=6, ring_s=120.0, replay_events=12, replay_bytes=100_000
)
GRANTS = "ann: */EURUSD; bob: */XAUUSD"
CLIENTS = (
    ("ann/1", "events.subscribe"),
    ("ann/2", "all.subscribe"),
    ("ann/2", "signals.subscribe"),
    ("bob/1", "all.subscribe"),
    ("bob/2", "events.subscribe"),
)
INSTRUMENT = {"ann": "EURUSD", "bob": "XAUUSD"}


@dataclass
class Log:
    """One source: its lives, each with all that was ever published in it and how much of that is gone."""

    source: int
    epoch: int = 0
    items: list[Item] = field(default_factory=list)
    trimmed: int = 0

    @property
    def name(self) -> str:
        return f"life-{self.epoch}"

    @property
    def last(self) -> int:
        return self.items[-1].at[0] if self.items else 0

    def renew(self) -> None:
        self.epoch += 1
        self.items, self.trimmed = [], 0

    def beyond(self, at: int, up_to: int) -> list[Item] | None:
        """What is there behind a place; None when some of it is gone."""
        kept = self.items[self.trimmed :]
        if self.trimmed and self.items[self.trimmed - 1].at[0] > at:
            return None
        return [one for one in kept if at < one.at[0] <= up_to]


class Gateway:
    """One process, as far as pushing goes."""

    def __init__(self, logs: Sequence[Log], clock: Clock) -> None:
        self.logs = logs
        self.turns = Turns()
        self.reads: list[tuple[int, Mark, At, Deferred[Sequence[Item] | None]]] = []
        self.desk = Desk(
            BOUNDS,
            grants=GRANTS,
            clock=clock,
            turns=self.turns,
            readers={EVENTS: self._reader(EVENTS), SIGNALS: self._reader(SIGNALS)},
        )
        self.feedings = [
            Feeding(
                source,
                self.desk.delivery,
                self._reader(source),
                back=lambda at: [(max(0, at[0] - 5), 0)],
                item_of=lambda one: one,
                clock=clock,
            )
            for source in SOURCES
        ]
        self.at = [log.last for log in logs]
        self.epochs = [log.epoch for log in logs]
        for log, feeding in zip(logs, self.feedings, strict=True):
            feeding.placed(log.name, (log.last, 0))
        self.answer_reads(everything=True)
        self.desk.delivery.start()

    def _reader(self, source: int) -> Reader:
        async def read(after: Mark, up_to: At, count: int, size_bytes: int) -> Sequence[Item] | None:
            reading: Deferred[Sequence[Item] | None] = Deferred()
            self.reads.append((source, after, up_to, reading))
            return await reading

        return read

    def answer_reads(self, *, everything: bool = False, fail: bool = False) -> None:
        """The sources answer what they were asked: the first read, or all."""
        while self.reads:
            source, after, up_to, reading = self.reads.pop(0)
            log = self.logs[source]
            found = log.beyond(after.at[0], up_to[0]) if after.epoch == log.name and not fail else None
            if not reading.called:
                reading.callback(found)
            if not everything:
                return

    def follow(self, source: int, most: int) -> None:
        """Read on, as a poller does."""
        log, feeding = self.logs[source], self.feedings[source]
        if self.epochs[source] != log.epoch:
            self.epochs[source], self.at[source] = log.epoch, 0
            feeding.gap()
            feeding.placed(log.name, (0, 0))
        found = log.beyond(self.at[source], log.last)
        if found is None:
            feeding.gap()
            self.at[source] = log.items[log.trimmed - 1].at[0]
            found = log.items[log.trimmed :]
        if found[:most]:
            self.at[source] = found[:most][-1].at[0]
            feeding.deliver(found[:most])


class Client:
    """One client and what it knows: the last position of its subscription, and everything that it was sent."""

    def __init__(self, case: SynchronousTestCase, session: str, message_type: str) -> None:
        self.case = case
        self.session = session
        self.user = session.partition("/")[0]
        self.message_type = message_type
        self.sources = {"e": (EVENTS,), "s": (SIGNALS,), "a": SOURCES}[message_type[0]]
        self.outlet: SlowOutlet | None = None
        self.seen = 0
        self.gateway: Gateway | None = None
        self.position = Position()
        self.began = False
        self.got: set[tuple[int, str, int]] = set()
        self.on_stream: set[tuple[int, str, int]] = set()
        self.told: set[tuple[int, str, int]] = set()

    def is_for(self, source: int, one: Item) -> bool:
        """Whether it should get this: said once more here, in other words than the hub's."""
        if source not in self.sources:
            return False
        if source == SIGNALS:
            assert one.topic is not None
            return one.topic[1] == INSTRUMENT[self.user]
        return one.user_id == self.user and one.device_session_id in (None, self.session)

    def connect(self, gateway: Gateway, room: int | None) -> None:
        self.leave()
        outlet = SlowOutlet(room)
        found: list[OpenStream | Ending] = []
        gateway.desk.ask(self.session, outlet, self.position.text, self.message_type).addCallback(found.append)
        if found and isinstance(found[0], OpenStream):
            self.outlet, self.seen, self.gateway = outlet, 0, gateway
            self.on_stream = set()

    def leave(self) -> None:
        self.look()
        if self.outlet is not None and self.outlet.stream is not None:
            self.outlet.stream.gone("client")
        self.outlet = None

    def look(self) -> None:
        """Take what came, as a client does."""
        if self.outlet is None:
            return
        for event in self.outlet.events[self.seen :]:
            self._take(event)
        self.seen = len(self.outlet.events)
        if self.outlet.endings:
            self.outlet = None

    def _take(self, event: Event) -> None:
        case = self.case
        position = parse_position(event.position.encode())
        assert position is not None
        for source in self.sources:
            mark, last = position.marks[source], self.position.marks[source]
            if (
                mark is not None
                and last is not None
                and mark.epoch == last.epoch
                and "resume_failed" not in event.event_type
            ):
                case.assertGreaterEqual(mark.at, last.at, "a position went back")
        self.position = position
        if not self.began or event.event_type == "gateway.resume_failed":
            self.began = True
            self._tell(position)
        if event.event_type.startswith("gateway."):
            return
        source = SIGNALS if event.event_type.startswith("signal") else EVENTS
        mark = position.marks[source]
        assert mark is not None
        assert self.gateway is not None
        key = (source, mark.epoch, event.timestamp_ms)
        case.assertEqual(mark.at[0], event.timestamp_ms, "an event's position is not its own place")
        case.assertNotIn(key, self.on_stream, "one stream got it twice")
        self.on_stream.add(key)
        self.got.add(key)
        log = self.gateway.logs[source]
        if mark.epoch == log.name:
            one = next(one for one in log.items if one.at == mark.at)
            case.assertTrue(self.is_for(source, one), "somebody else's event")

    def _tell(self, position: Position) -> None:
        """It begins here, or was told to: what is before this place, or gone from its source by now, it may lack."""
        assert self.gateway is not None
        for log in self.gateway.logs:
            mark = position.marks[log.source]
            if mark is not None and mark.epoch == log.name:
                gone = [one for index, one in enumerate(log.items) if one.at <= mark.at or index < log.trimmed]
                self.told |= {(log.source, log.name, one.at[0]) for one in gone}

    def check(self, log: Log) -> None:
        """Everything of this life of a source that was for it, it has, or was told that it may lack it."""
        for one in log.items if self.began else ():
            key = (log.source, log.name, one.at[0])
            known = key in self.got or key in self.told or not self.is_for(log.source, one)
            self.case.assertTrue(known, f"{key} was for {self.session} {self.message_type} and is lost")


OFTEN = "event event event event signal signal follow follow follow follow connect connect connect "
ACTS = (OFTEN + "room turn leave read fail_read trim renew restart time revoke").split()
FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")


class ModelTest(SynchronousTestCase):
    """All of it."""

    @settings(max_examples=10_000 if FULL else 500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.binary(min_size=60, max_size=200))
    def test_whatever_happens(self, steps: bytes) -> None:
        """
        Nobody gets another's event; no position goes back; no stream gets an event twice; and in the end everybody has
        all that was for it, or was told that something may be missing.
        """
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.logs = [Log(source) for source in SOURCES]
        self.gateways = [Gateway(self.logs, self.clock) for _ in range(2)]
        self.clients = [Client(self, session, message_type) for session, message_type in CLIENTS]
        for act, on in zip(steps[::2], steps[1::2], strict=False):
            getattr(self, f"_{ACTS[act % len(ACTS)]}")(on % 5, on // 5 % 4)
            for client in self.clients:
                client.look()
        self._end()
        for client in self.clients:
            for log in self.logs:
                client.check(log)

    def _event(self, one: int, other: int) -> None:
        log = self.logs[EVENTS]
        for number in range(1 + other):
            session, _ = CLIENTS[(one + number // 2) % len(CLIENTS)]
            at, narrow = log.last + 1 + one % 2, session if number == 2 else None
            log.items.append(item(at, session.partition("/")[0], device_session_id=narrow))

    def _signal(self, one: int, other: int) -> None:
        log = self.logs[SIGNALS]
        for number in range(1 + one):
            log.items.append(signal(log.last + 1 + one % 2, "EURUSD" if (other + number) % 2 else "XAUUSD"))

    def _follow(self, one: int, other: int) -> None:
        self.gateways[one % 2].follow(other % 2, 1 + 3 * one)

    def _connect(self, one: int, other: int) -> None:
        self.clients[one].connect(self.gateways[other % 2], None if other < 2 else other)

    def _leave(self, one: int, _: int) -> None:
        self.clients[one].leave()

    def _room(self, one: int, other: int) -> None:
        outlet = self.clients[one].outlet
        if outlet is not None and outlet.room is not None:
            outlet.make_room(outlet.room + other or None)

    def _turn(self, one: int, _: int) -> None:
        self.gateways[one % 2].turns.turn()

    def _read(self, one: int, _: int) -> None:
        self.gateways[one % 2].answer_reads()

    def _fail_read(self, one: int, _: int) -> None:
        self.gateways[one % 2].answer_reads(fail=True)

    def _trim(self, one: int, other: int) -> None:
        log = self.logs[other % 2]
        log.trimmed = max(log.trimmed, len(log.items) - one)

    def _renew(self, _: int, other: int) -> None:
        self.logs[other % 2].renew()

    def _restart(self, one: int, _: int) -> None:
        old = self.gateways[one % 2]
        old.desk.delivery.stop(0.0)
        for client in self.clients:
            if client.gateway is old:
                client.leave()
        self.gateways[one % 2] = Gateway(self.logs, self.clock)

    def _time(self, one: int, _: int) -> None:
        self.clock.advance(20.0 * one)

    def _revoke(self, one: int, other: int) -> None:
        session, gateway = self.clients[one].session, self.gateways[other % 2]
        concerned = [
            client.outlet
            for client in self.clients
            if client.outlet is not None and client.gateway is gateway and client.session == session
        ]
        gateway.desk.delivery.revoke(session)
        for outlet in concerned:
            self.assertEqual(outlet.endings, [REVOKED])

    def _end(self) -> None:
        """Everything that can still come comes, and then every client comes back once more."""
        self._settle()
        for client in self.clients:
            if client.outlet is None:
                client.connect(self.gateways[0], None)
        self._settle()
        self.clock.advance(AHEAD_S)
        self._settle()

    def _settle(self) -> None:
        for _ in range(8):
            for gateway in self.gateways:
                gateway.answer_reads(everything=True)
                for source in SOURCES:
                    gateway.follow(source, 1000)
                gateway.turns.spin()
            for client in self.clients:
                if client.outlet is not None and client.outlet.room is not None:
                    client.outlet.make_room(None)
                client.look()
