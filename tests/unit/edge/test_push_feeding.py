"""From a source to the hub."""

from collections.abc import Sequence

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.delivery import READ_S
from gatewayd.push.feeding import Feeding, event_item
from gatewayd.push.hub import Item
from gatewayd.push.position import EVENTS, At, Mark
from gatewayd.sessions.endings import UNAVAILABLE_NOW
from gatewayd.streams.cursor import StreamId
from gatewayd.streams.entries import ClientEvent
from tests.fakes.outlets import Desk, SlowOutlet, item


class FeedingTest(SynchronousTestCase):
    """One source's way."""

    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def setUp(self) -> None:
        self.reads: list[tuple[At, At, Deferred[Sequence[Item] | None]]] = []
        self.desk = Desk()
        self.feeding = Feeding[Item](
            EVENTS,
            self.desk.delivery,
            self.read,
            back=lambda at: [(at[0] - 50, 0), (at[0] - 5, 0)],
            item_of=lambda one: one,
            clock=self.desk.clock,
        )

    async def read(self, after: Mark, up_to: At, count: int, size_bytes: int) -> Sequence[Item] | None:
        bounds = self.desk.hub.bounds
        self.assertEqual((after.epoch, count, size_bytes), ("a", bounds.ring_events, bounds.ring_bytes))
        reading: Deferred[Sequence[Item] | None] = Deferred()
        self.reads.append((after.at, up_to, reading))
        return await reading

    def test_reads_back_first(self) -> None:
        """No stream is opened, and nothing published, before what came lately is in memory."""
        self.feeding.placed("a", (100, 0))
        self.assertEqual(self.successResultOf(self.desk.ask("ann/1", SlowOutlet())), UNAVAILABLE_NOW)
        delivered = self.feeding.deliver([item(101)])
        assert delivered is not None
        begun = self.feeding.begun()
        self.assertNoResult(begun)
        self.assertEqual(self.reads[0][:2], ((50, 0), (100, 0)))
        self.reads[0][2].callback([item(60), item(90)])
        self.successResultOf(begun)
        self.successResultOf(delivered)
        self.successResultOf(self.feeding.begun())
        self.assertEqual(self.desk.open("ann/1", resume="ea.60-0").payloads, [b"90", b"101"])
        self.assertIsNone(self.feeding.deliver([item(102)]))

    def test_after_a_quiet_time(self) -> None:
        """Who was there before what was read back, when nothing had come for long, finds all of it in memory."""

        async def quiet_from(mark: Mark) -> At:
            self.assertEqual(mark, Mark("a", (50, 0)))
            return (7, 0)

        self.feeding = Feeding(
            EVENTS,
            self.desk.delivery,
            self.read,
            back=lambda at: [(50, 0)],
            quiet_from=quiet_from,
            item_of=lambda one: one,
            clock=self.desk.clock,
        )
        self.feeding.placed("a", (100, 0))
        self.reads[0][2].callback([item(60), item(100)])
        self.assertEqual(self.desk.open("ann/1", resume="ea.7-0").payloads, [b"60", b"100"])
        self.assertEqual(
            self.desk.open("ann/2", resume="ea.6-0").types, ["gateway.server_time", "gateway.resume_failed"]
        )

    def test_less_far_back(self) -> None:
        """When that is too much, or fails, or takes too long, less is read, and then nothing."""
        self.feeding.placed("a", (100, 0))
        self.reads[0][2].callback(None)
        self.assertEqual(self.reads[1][0], (95, 0))
        self.desk.clock.advance(READ_S)
        self.successResultOf(self.feeding.begun())
        self.assertEqual(self.desk.hub.position.text, "ea.100-0")
        self.assertEqual(
            self.desk.open("ann/1", resume="ea.99-0").types, ["gateway.server_time", "gateway.resume_failed"]
        )

    def test_a_bug_in_the_reader(self) -> None:
        """It is logged, and the source begins all the same."""
        self.feeding.placed("a", (100, 0))
        self.reads[0][2].errback(RuntimeError("a bug"))
        self.successResultOf(self.feeding.begun())
        self.failures.clear()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_stopped_meanwhile(self) -> None:
        """Whoever delivers may give up waiting."""
        self.feeding.placed("a", (100, 0))
        delivered = self.feeding.deliver([item(101)])
        assert delivered is not None
        delivered.cancel()
        self.failureResultOf(delivered, CancelledError)
        self.reads[0][2].callback([])
        self.assertEqual(self.desk.hub.position.text, "ea.100-0")

    def test_gives_up_waiting(self) -> None:
        """Who waits for the beginning may leave, also when another one that waited makes it."""
        self.feeding.placed("a", (100, 0))
        gone, first, second, third = (self.feeding.begun() for _ in range(4))
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        first.addCallback(lambda _: second.cancel())
        self.reads[0][2].callback([])
        self.failureResultOf(second, CancelledError)
        self.successResultOf(third)

    def test_another_source_meanwhile(self) -> None:
        """What was read back of a source that is another one now is dropped."""
        self.feeding.placed("a", (100, 0))
        self.feeding.gap()
        self.feeding.placed("b", (7, 0))
        self.reads[0][2].callback([item(60)])
        self.assertEqual(self.desk.hub.position.text, "eb.7-0")
        self.assertEqual(self.desk.open("ann/1", resume="eb.7-0").types, ["gateway.server_time"])

    def test_gap_meanwhile(self) -> None:
        """A gap that is found before the source has begun is told to who resumes."""
        self.feeding.placed("a", (100, 0))
        self.feeding.gap()
        self.reads[0][2].callback([])
        outlet = self.desk.open("ann/1", resume="ea.100-0")
        self.assertEqual([event.payload for event in outlet.events[1:]], [b"gap"])

    def test_later(self) -> None:
        """Once begun, a gap and another source are told to who is there."""
        self.feeding.placed("a", (100, 0))
        self.reads[0][2].callback([])
        outlet = self.desk.open("ann/1")
        self.feeding.gap()
        self.feeding.placed("b", (7, 0))
        self.feeding.deliver([item(8)])
        self.assertEqual([event.position for event in outlet.events], ["ea.100-0", "ea.100-0", "eb.7-0", "eb.8-0"])


class EventItemTest(SynchronousTestCase):
    """Client events as the hub takes them."""

    def test_members(self) -> None:
        """Nothing is lost; the time is the id's, as far as 63 bits can say it."""
        event = ClientEvent(StreamId(5, 6), "ann", "ann/1", "trade.filled", "ev-1", b"\0\xff", "r", "t")
        self.assertEqual(
            event_item(event),
            Item((5, 6), "trade.filled", "ev-1", 5, b"\0\xff", "r", "t", user_id="ann", device_session_id="ann/1"),
        )
        late = ClientEvent(StreamId(2**64 - 1, 0), "ann", None, "trade.filled", "ev-1", b"", "", "")
        self.assertEqual(event_item(late).timestamp_ms, 2**63 - 1)
