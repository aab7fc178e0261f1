"""What the hub decides, done."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from msgspec import structs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.delivery import READS, READS_WAITING, SLICE
from gatewayd.push.frames import Event
from gatewayd.push.hub import Bounds, Item
from gatewayd.push.position import EVENTS, SIGNALS, At, Mark, Position
from gatewayd.sessions.endings import AUTHENTICATION_FAILED, NO_ROUTE, REVOKED, Ending
from tests.fakes.outlets import Desk, SlowOutlet, item, signal


def text(events: int) -> str:
    """A position's text."""
    return Position((Mark("a", (events, 0)), None)).text


class DeliveryCase(SynchronousTestCase):
    """A delivery whose events stand at 100."""

    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def setUp(self) -> None:
        self.make()

    def shown(self) -> int:
        """How many RuntimeErrors were logged with their traceback."""
        self.failures.clear()
        return len(self.flushLoggedErrors(RuntimeError))

    def make(self, bounds: Bounds | None = None, **options: Any) -> None:
        self.desk = Desk(bounds, **options)
        self.delivery = self.desk.delivery
        self.delivery.begin(EVENTS, Mark("a", (100, 0)), (100, 0), ())

    def publish(self, *items: Item, source: int = EVENTS) -> Deferred[None] | None:
        return self.delivery.publish(source, items)


class SubscribeTest(DeliveryCase):
    """Who may have a stream."""

    def test_nothing_before_writable(self) -> None:
        """The transport says when the first event may come, which is bound to the request; then come the others."""
        outlet = self.desk.open("ann/1", SlowOutlet(0))
        self.publish(item(101))
        self.assertEqual(outlet.events, [])
        outlet.make_room(None)
        self.assertEqual(outlet.types, ["gateway.server_time", "trade.filled"])
        self.assertEqual((outlet.events[0].request_id, outlet.events[0].trace_id), ("request-1", "trace-1"))
        self.assertEqual(int.from_bytes(outlet.events[0].payload, "big"), 1_700_000_000_000)
        self.assertEqual(self.desk.sample("edge_push_streams", transport="websocket"), 1)

    def test_refused(self) -> None:
        """A verification's refusal is the answer, counted by its reason, and nothing is open."""
        self.desk.refusals["ann/1"] = AUTHENTICATION_FAILED
        asked = self.desk.ask("ann/1", SlowOutlet())
        self.assertEqual(self.successResultOf(asked), AUTHENTICATION_FAILED)
        self.assertEqual((len(self.desk.hub), self.desk.sample("edge_push_streams", transport="websocket")), (0, 0))
        self.assertEqual(self.desk.sample("edge_push_refused_total", reason="authentication"), 1)

    def test_message_types(self) -> None:
        """A malformed one is named before anything is checked; signals need a grant."""
        self.desk.refusals["ann/1"] = AUTHENTICATION_FAILED
        nearly = self.successResultOf(self.desk.ask("ann/1", SlowOutlet(), message_type="signals.subscribe:"))
        assert isinstance(nearly, Ending)
        self.assertEqual(nearly.message, "message_type is missing or malformed")
        refused = self.desk.ask("bob/1", SlowOutlet(), message_type="signals.subscribe")
        self.assertEqual(self.successResultOf(refused), NO_ROUTE)

    def test_given_up(self) -> None:
        """A client that goes while it is checked has no stream afterwards."""
        self.desk.verified = Deferred()
        asked = self.desk.ask("ann/1", SlowOutlet())
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(len(self.desk.hub), 0)

    def test_stopped_while_checked(self) -> None:
        """Nobody gets a stream after the stop, whenever it was asked for."""
        self.desk.verified = Deferred()
        outlet = SlowOutlet()
        asked = self.desk.ask("ann/1", outlet)
        self.successResultOf(self.delivery.stop(1.0))
        self.desk.verified.callback(None)
        ending = self.successResultOf(asked)
        assert isinstance(ending, Ending)
        self.assertEqual((ending.message, ending.retry_after_ms), ("gateway is shutting down", 500))
        self.assertEqual(outlet.endings, [])


class BroadcastTest(DeliveryCase):
    """Events to many."""

    def setUp(self) -> None:
        self.make(grants="*: *")
        self.delivery.begin(SIGNALS, Mark("a", (0, 0)), (0, 0), ())

    def open_many(self, count: int) -> list[SlowOutlet]:
        return [self.desk.open(f"user-{number}/1", message_type="all.subscribe") for number in range(count)]

    def test_slices(self) -> None:
        """One for very many takes several turns, in order, and whoever publishes waits for the last of them."""
        outlets = self.open_many(2 * SLICE + 1)
        done = self.publish(signal(1), source=SIGNALS)
        later = self.publish(signal(2), source=SIGNALS)
        assert done is not None
        assert later is not None
        self.assertEqual(
            [len(outlet.payloads) for outlet in (outlets[0], outlets[SLICE - 1], outlets[SLICE])], [1, 1, 0]
        )
        self.assertNoResult(done)
        self.assertGreater(self.desk.turns.spin(), 3)
        self.successResultOf(done)
        self.successResultOf(later)
        self.assertTrue(all(outlet.payloads == [b"s1", b"s2"] for outlet in outlets))
        delivered = self.desk.sample("edge_push_events_total", event_type="_other", outcome="delivered")
        self.assertEqual(delivered, 2 * len(outlets))

    def test_together(self) -> None:
        """Events in a row for the same streams reach each stream in one turn, to be one write; others their own way."""
        outlets = self.open_many(SLICE)
        self.publish(signal(1), signal(2), source=SIGNALS)
        had = [len(outlet.payloads) for outlet in outlets]
        self.assertEqual(had, [2] * (SLICE // 2) + [0] * (SLICE // 2))
        self.publish(item(101, "user-0"))
        self.publish(*(signal(at) for at in range(3, 63)), source=SIGNALS)
        self.desk.turns.spin()
        whole = [b"s%d" % at for at in range(1, 63)]
        self.assertEqual(outlets[-1].payloads, whole)
        self.assertEqual(outlets[0].payloads, [b"s1", b"s2", b"101", *whole[2:]])

    def test_the_last_of_a_turn(self) -> None:
        """An event that is alone is sent as the last of its turn, events that go out together are not."""
        (outlet,) = self.open_many(1)
        del outlet.lasts[:]
        self.publish(signal(1), source=SIGNALS)
        self.publish(signal(2), signal(3), source=SIGNALS)
        self.desk.turns.spin()
        self.assertEqual(outlet.lasts, [True, False, False])

    def test_together_within_bounds(self) -> None:
        """Large events are not put together: what one stream is written at once stays bounded."""
        outlets = self.open_many(SLICE)
        self.publish(*(structs.replace(signal(at), payload=bytes(20_000)) for at in (1, 2)), source=SIGNALS)
        self.assertEqual([len(outlet.payloads) for outlet in (outlets[0], outlets[-1])], [1, 1])
        self.desk.turns.spin()
        self.assertEqual(len(outlets[-1].payloads), 2)

    def test_at_once(self) -> None:
        """What fits in a turn is sent in it, and nobody waits."""
        outlets = self.open_many(10)
        self.assertIsNone(self.publish(signal(1), source=SIGNALS))
        self.assertEqual(outlets[9].payloads, [b"s1"])
        self.assertEqual(self.desk.turns.spin(), 0)

    def test_many_events(self) -> None:
        """A batch of events for one each is sliced too: each is signed and encoded."""
        outlet = self.desk.open("ann/1")
        done = self.publish(*(item(at) for at in range(101, 201)))
        assert done is not None
        self.assertLess(len(outlet.payloads), 60)
        self.desk.turns.spin()
        self.assertEqual(len(outlet.payloads), 100)
        self.successResultOf(done)

    def test_revoke_goes_ahead(self) -> None:
        """A revoked session gets nothing of what waits in other slices."""
        outlets = self.open_many(2 * SLICE)
        self.publish(signal(1), source=SIGNALS)
        last = outlets[-1]
        self.delivery.revoke(f"user-{2 * SLICE - 1}/1")
        self.assertEqual(last.endings, [REVOKED])
        self.desk.turns.spin()
        self.assertEqual(last.payloads, [])
        self.assertEqual(self.desk.sample("edge_push_stream_closed_total", reason="revoked"), 1)
        self.assertEqual(outlets[-2].payloads, [b"s1"])

    def test_joins_between_slices(self) -> None:
        """A stream that opens between two slices gets what came before once by its position, or not at all."""
        self.open_many(SLICE + 1)
        self.publish(signal(1), signal(2), source=SIGNALS)
        live = self.desk.open("eve/1", message_type="all.subscribe")
        resumed = self.desk.open("eve/2", resume="ea.100-0,sa.0-0", message_type="all.subscribe")
        self.desk.turns.spin()
        self.publish(signal(3), source=SIGNALS)
        self.desk.turns.spin()
        self.assertEqual((live.payloads, resumed.payloads), ([b"s3"], [b"s1", b"s2", b"s3"]))

    def test_published_while_slices_wait(self) -> None:
        """What another source publishes meanwhile comes after, for everybody in the same order."""
        outlets = self.open_many(SLICE + 1)
        first = self.publish(signal(1), source=SIGNALS)
        second = self.publish(item(101, f"user-{SLICE}"))
        assert first is not None
        assert second is not None
        self.desk.turns.spin()
        self.assertEqual(outlets[-1].payloads, [b"s1", b"101"])
        self.successResultOf(second)

    def test_cancelled(self) -> None:
        """Whoever publishes may stop waiting."""
        self.open_many(SLICE + 1)
        done = self.publish(signal(1), source=SIGNALS)
        assert done is not None
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.desk.turns.spin()
        self.assertIsNone(self.publish(item(101)))


class Raising(SlowOutlet):
    """An outlet with a bug."""

    def send(self, event: Event, *, last: bool = False) -> bool:
        raise RuntimeError("a bug")

    def close(self, ending: Ending) -> None:
        super().close(ending)
        raise RuntimeError("another one")


class BackPressureTest(DeliveryCase):
    """Streams that cannot take."""

    def test_waits(self) -> None:
        """A full outlet gets what waits, in order, when there is room, and what comes then behind it."""
        slow, other = self.desk.open("ann/1", SlowOutlet(2)), self.desk.open("ann/2")
        self.publish(*(item(at) for at in range(101, 105)))
        self.assertEqual((slow.payloads, len(other.payloads)), ([b"101"], 4))
        slow.make_room(2)
        self.publish(item(105))
        self.assertEqual(slow.payloads, [b"101", b"102", b"103"])
        slow.make_room(None)
        self.assertEqual(slow.payloads, [b"101", b"102", b"103", b"104", b"105"])
        self.publish(item(106))
        self.assertEqual(slow.payloads[-1], b"106")

    def test_writable_within_send(self) -> None:
        """An outlet that empties itself while it is sent something is sent the rest, in order."""
        outlet = SlowOutlet(1)
        outlet.writes_at_once = True
        self.publish(*(item(at) for at in range(101, 140)))
        self.desk.open("ann/1", outlet, resume=text(100))
        self.assertEqual(outlet.payloads, [b"%d" % at for at in range(101, 140)])

    def test_overflow(self) -> None:
        """The stream that has too much waiting ends; its user's others go on, and it is counted and said."""
        self.make(Bounds(queue_events=3))
        slow, other = self.desk.open("ann/1", SlowOutlet(1)), self.desk.open("ann/2")
        self.publish(*(item(at) for at in range(101, 106)))
        self.assertEqual([ending.message for ending in slow.endings], ["push stream overflowed"])
        self.assertEqual((slow.payloads, len(other.payloads), other.endings), ([], 5, []))
        overflowed = self.desk.sample("edge_push_events_total", event_type="trade.filled", outcome="overflow")
        self.assertEqual(overflowed, 1)
        self.assertEqual(self.desk.sample("edge_push_stream_closed_total", reason="overflow"), 1)
        assert slow.stream is not None
        slow.stream.writable()
        slow.stream.gone("client")
        self.assertEqual(self.desk.sample("edge_push_streams", transport="websocket"), 1)

    def test_gone(self) -> None:
        """A client that leaves is out, once, under its reason."""
        outlet = self.desk.open("ann/1")
        assert outlet.stream is not None
        for reason in ("client", "lost"):
            outlet.stream.gone(reason)
        self.publish(item(101))
        self.assertEqual((outlet.payloads, outlet.endings), ([], []))
        self.assertEqual(self.desk.sample("edge_push_stream_closed_total", reason="client"), 1)
        self.assertEqual(self.desk.sample("edge_push_streams", transport="websocket"), 0)
        missed = self.desk.sample("edge_push_events_total", event_type="trade.filled", outcome="no_subscriber")
        self.assertEqual(missed, 1)

    def test_long_replay(self) -> None:
        """Many that wait for one stream are sent in several turns."""
        self.publish(*(item(at) for at in range(101, 501)))
        self.desk.turns.spin()
        outlet = self.desk.open("ann/1", resume=text(100))
        self.assertLess(len(outlet.payloads), 110)
        self.publish(item(501))
        self.desk.turns.spin()
        self.assertEqual(outlet.payloads, [b"%d" % at for at in range(101, 502)])

    def test_a_bug_in_an_outlet(self) -> None:
        """It ends that stream with INTERNAL, is logged, and nobody else notices."""
        good, bad = self.desk.open("ann/1"), self.desk.open("ann/2", SlowOutlet(None))
        bad.__class__ = Raising
        last = self.desk.open("ann/3")
        self.publish(item(101))
        self.assertEqual((good.payloads, last.payloads), ([b"101"], [b"101"]))
        self.assertEqual([ending.message for ending in bad.endings], ["internal error"])
        self.assertEqual(len(self.desk.hub), 2)
        self.desk.open("ann/4", Raising())
        self.assertEqual(len(self.desk.hub), 2)
        self.assertEqual(self.shown(), 4)


class ReadTest(DeliveryCase):
    """Sources that are read again."""

    def setUp(self) -> None:
        self.reads: list[tuple[Mark, At, Deferred[Sequence[Item] | None]]] = []

        async def read(after: Mark, up_to: At, count: int, size_bytes: int) -> Sequence[Item] | None:
            self.assertGreater(min(count, size_bytes), 0)
            reading: Deferred[Sequence[Item] | None] = Deferred()
            self.reads.append((after, up_to, reading))
            return await reading

        self.make(readers={EVENTS: read})

    def test_resumed(self) -> None:
        """What was read comes first, then what came meanwhile."""
        outlet = self.desk.open("ann/1", resume=text(50))
        self.publish(item(101))
        self.assertEqual(outlet.types, ["gateway.server_time"])
        after, up_to, reading = self.reads[0]
        self.assertEqual((after.at, up_to), ((50, 0), (100, 0)))
        reading.callback([item(60), item(61, "bob")])
        self.publish(item(102))
        self.assertEqual(outlet.payloads, [b"60", b"101", b"102"])

    def test_failed(self) -> None:
        """A read that fails, finds nothing, or takes too long: the client is told, and a failure is logged."""
        outlets = [self.desk.open(f"ann/{number}", resume=text(50)) for number in range(3)]
        self.reads[0][2].callback(None)
        self.reads[1][2].errback(RuntimeError("a bug"))
        self.desk.clock.advance(10.0)
        self.publish(item(101))
        for outlet in outlets:
            self.assertEqual(outlet.types[1:], ["gateway.resume_failed", "trade.filled"])
        self.assertEqual(self.shown(), 1)

    def test_bounded(self) -> None:
        """Few are under way at a time, some wait, the rest is told at once."""
        outlets = [self.desk.open(f"user-{number}/1", resume=text(50)) for number in range(READS + READS_WAITING + 1)]
        self.assertEqual(len(self.reads), READS)
        self.assertEqual([outlet.types[1:] for outlet in outlets[-2:]], [[], ["gateway.resume_failed"]])
        for number in range(READS + READS_WAITING):
            self.reads[number][2].callback([])
        self.assertEqual(len(self.reads), READS + READS_WAITING)
        self.publish(item(101, "user-0"))
        self.assertEqual(outlets[0].payloads, [b"101"])

    def test_closed_while_waiting(self) -> None:
        """For a client that is gone nothing is read; nothing is left when the process stops."""
        outlets = [self.desk.open(f"user-{number}/1", resume=text(50)) for number in range(READS + 2)]
        for outlet in outlets[-2:-1]:
            assert outlet.stream is not None
            outlet.stream.gone("client")
        self.reads[0][2].callback([])
        self.assertEqual(len(self.reads), READS + 1)
        self.successResultOf(self.delivery.stop(1.0))
        self.assertEqual([len(outlet.endings) for outlet in outlets], [1] * READS + [0, 1])


class BeatTest(DeliveryCase):
    """Heartbeats."""

    def setUp(self) -> None:
        super().setUp()
        self.delivery.start()
        self.addCleanup(lambda: self.delivery.stop(0.0))

    def test_after_silence(self) -> None:
        """A quiet stream gets one event, and not a second one before it was silent again; a busy one gets none."""
        quiet, busy = self.desk.open("ann/1"), self.desk.open("bob/1")
        for at in range(101, 117):
            self.desk.clock.advance(1.0)
            self.publish(item(at, "bob"))
        self.assertEqual(quiet.types, ["gateway.server_time", "gateway.heartbeat"])
        self.assertNotIn("gateway.heartbeat", busy.types)
        self.assertEqual(quiet.events[1].timestamp_ms, 1_700_000_015_000)
        self.desk.clock.pump([1.0] * 15)
        self.assertEqual(quiet.types.count("gateway.heartbeat"), 2)

    def test_one_at_a_time(self) -> None:
        """While the last one has not reached everybody there is no other one."""
        outlets = [self.desk.open(f"user-{number}/1") for number in range(SLICE + 10)]
        self.desk.clock.pump([1.0] * 60)
        self.assertEqual([outlet.types.count("gateway.heartbeat") for outlet in (outlets[0], outlets[-1])], [1, 0])
        self.desk.turns.spin()
        self.assertEqual(outlets[-1].types.count("gateway.heartbeat"), 1)

    def test_stuck(self) -> None:
        """A stream that takes nothing for a minute is closed as overflowed, however little waits."""
        stuck = self.desk.open("ann/1", SlowOutlet(1))
        self.publish(item(101))
        self.desk.clock.pump([1.0] * 61)
        self.assertEqual([ending.message for ending in stuck.endings], ["push stream overflowed"])

    def test_ahead(self) -> None:
        """A client from a gateway that is further joins when this one is as far."""
        outlet = self.desk.open("ann/1", resume=text(102))
        self.publish(item(101), item(102), item(103))
        self.publish(item(104))
        self.assertEqual(outlet.payloads, [b"103", b"104"])
        outlet = self.desk.open("ann/1", resume=text(999))
        self.desk.clock.pump([1.0] * 11)
        self.assertEqual(outlet.types, ["gateway.server_time", "gateway.resume_failed"])


class StopTest(DeliveryCase):
    """The end of the process."""

    def test_spread(self) -> None:
        """Many are closed a few at a time within the budget, each told its own moment; none is forgotten."""
        outlets = [self.desk.open(f"user-{number}/1") for number in range(3000)]
        stopped = self.delivery.stop(1.0)
        closed = []
        for _ in range(16):
            closed.append(sum(len(outlet.endings) for outlet in outlets))
            self.desk.clock.advance(0.05)
        self.assertLess(closed[0], 300)
        self.assertTrue(all(0 < later - before < 300 for before, later in pairwise(closed)))
        self.successResultOf(stopped)
        self.assertEqual({len(outlet.endings) for outlet in outlets}, {1})
        self.assertEqual(outlets[0].endings[0].retry_after_ms, 3000)  # half of 3000 / 500 s
        self.assertEqual(self.desk.sample("edge_push_stream_closed_total", reason="shutdown"), 3000)

    def test_few(self) -> None:
        """A few are closed at once, and with none there is nothing to wait for."""
        outlet = self.desk.open("ann/1")
        self.successResultOf(self.delivery.stop(10.0))
        self.assertEqual([ending.retry_after_ms for ending in outlet.endings], [500])

    def test_slices_end(self) -> None:
        """Whoever waits for slices is told when all streams are closed."""
        self.make(grants="*: *")
        self.delivery.begin(SIGNALS, Mark("a", (0, 0)), (0, 0), ())
        outlets = [self.desk.open(f"user-{number}/1", message_type="all.subscribe") for number in range(SLICE + 1)]
        done = self.publish(signal(1), source=SIGNALS)
        assert done is not None
        stopped = self.delivery.stop(0.0)
        self.desk.turns.spin()
        self.successResultOf(stopped)
        self.successResultOf(done)
        self.assertEqual(outlets[-1].payloads, [])


class MetricsTest(DeliveryCase):
    """What is measured."""

    def test_delivery_seconds(self) -> None:
        """From the time in the entry's id to the last write; a writer's clock that is ahead counts as no time."""
        self.desk.open("ann/1")
        now_ms = 1_700_000_000_000
        self.publish(item(101, timestamp_ms=now_ms - 200), item(102, timestamp_ms=now_ms + 5000))
        self.assertAlmostEqual(self.desk.sample("edge_push_delivery_seconds_sum"), 0.2)
        self.assertEqual(self.desk.sample("edge_push_delivery_seconds_count"), 2)
