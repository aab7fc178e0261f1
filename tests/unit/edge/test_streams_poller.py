"""Following a stream: what is delivered, in which order, what ends a reading and what does not."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Unavailable
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.streams.cursor import ORIGIN, StreamId
from gatewayd.streams.entries import Malformed, RawEntry
from gatewayd.streams.poller import BATCH_BYTES, BATCH_ENTRIES, BLOCK_S, LONGEST_PAUSE_S, Feed, StreamPoller
from gatewayd.streams.redis_stream import RedisStream
from gatewayd.times import Wall
from tests.fakes.redis_streams import FakeReader, FakeStreams

NOW = 1000.0


class Counted:
    """What the poller counts."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.lags: list[float] = []

    def entry(self, stream: str, outcome: str, count: int = 1) -> None:
        assert stream == "events"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count

    def lag(self, stream: str, seconds: float) -> None:
        assert stream == "events"
        self.lags.append(seconds)


class Taken:
    """A feed that keeps what it gets, and answers or fails as told."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.batches: list[int] = []
        self.placed: list[tuple[str, StreamId]] = []
        self.gaps = 0
        self.currents: list[float] = []
        self.waiting: Deferred[None] | None = None
        self.errors: list[Exception] = []
        self.poison: bytes | None = None

    def feed(self) -> Feed[bytes]:
        return Feed(self.parse, self.deliver, self._placed, self.gap, self.currents.append)

    def parse(self, entry: RawEntry) -> bytes | Malformed:
        assert entry.fields is not None
        if entry.fields[1] == b"raise":
            raise RuntimeError("a parser's fault")
        return Malformed("missing") if entry.fields[1] == b"bad" else entry.fields[1]

    def deliver(self, batch: Sequence[bytes]) -> Deferred[Any] | None:
        if self.poison in batch:
            raise RuntimeError("a taker's fault")
        if self.errors:
            return fail(self.errors.pop(0))
        self.texts += batch
        self.batches.append(len(batch))
        return self.waiting

    def _placed(self, epoch: str, at: StreamId) -> None:
        self.placed.append((epoch, at))

    def gap(self) -> None:
        self.gaps += 1


class PollerCase(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def shown(self, kind: type[Exception]) -> int:
        """How many errors of this kind, and no others, were logged with their traceback."""
        found = [event["log_failure"] for event in self.failures]
        self.failures.clear()
        self.assertTrue(all(failure.check(kind) for failure in found), found)
        return len(self.flushLoggedErrors(kind))

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.streams = FakeStreams(self.clock)
        self.taken = Taken()
        self.counted = Counted()
        self.logged: list[LogEvent] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def poller(self, *, from_beginning: bool = False, start: bool = True) -> StreamPoller[bytes]:
        epochs = iter(range(1, 1000))
        poller = StreamPoller(
            "events",
            RedisStream("key", self.streams, lambda: f"epoch-{next(epochs)}"),
            self.streams.reader(),
            self.taken.feed(),
            from_beginning=from_beginning,
            counts=self.counted,
            clock=self.clock,
            wall=lambda: Wall(self.clock.seconds()),
            jitter=lambda: 1.0,
        )
        if start:
            poller.startService()
            self.addCleanup(poller.stopService)
        return poller

    @property
    def reader(self) -> FakeReader:
        return self.streams.readers[-1]

    def pump(self, seconds: float = 0.0) -> None:
        """Let so much time pass, in small steps, after whatever is ready now."""
        self.clock.pump([0.0] * 8 + [0.05] * round(seconds / 0.05))

    def add(self, *texts: bytes) -> None:
        for text in texts:
            self.streams.add(b"text", text)
        self.pump()

    def events(self, name: str) -> list[LogEvent]:
        return [event for event in self.logged if event.get("event") == name]


class FollowingTest(PollerCase):
    def test_from_now_on(self) -> None:
        """What was there at the start is left; what comes is delivered in order, each once."""
        self.add(b"old")
        self.poller()
        self.pump()
        self.assertEqual(self.taken.placed, [("epoch-0", self.streams.last)])
        self.add(b"1", b"2")
        self.pump(3.0)
        self.add(b"3")
        self.assertEqual(self.taken.texts, [b"1", b"2", b"3"])
        self.assertEqual(self.counted.outcomes, {"ok": 3})

    def test_the_place_is_resolved_once(self) -> None:
        """While the server is away the place stays: what was added meanwhile is not skipped."""
        self.poller()
        self.pump()
        self.streams.error = Unavailable("away")
        self.reader.lose()
        self.pump(5.0)
        self.streams.error = None
        self.add(b"1", b"2")
        self.pump(2.0)
        self.assertEqual(self.taken.texts, [b"1", b"2"])
        self.assertNotIn("$", [argument for call in self.reader.calls for argument in call])

    def test_from_the_beginning(self) -> None:
        """All that is there is read in bounded batches, and caught_up fires when it has been delivered."""
        texts = [b"%d" % number for number in range(BATCH_ENTRIES * 5 // 2)]  # no answer has fewer than were asked for
        self.add(*texts)
        poller = self.poller(from_beginning=True)
        caught_up = poller.caught_up()
        self.assertEqual(poller.current_at, float("-inf"))
        self.assertNoResult(caught_up)
        self.pump(0.5)
        self.successResultOf(caught_up)
        self.assertEqual(self.taken.texts, texts)
        self.assertLessEqual(max(self.taken.batches), BATCH_ENTRIES)
        self.assertEqual(self.taken.placed, [("epoch-0", ORIGIN)])
        self.assertGreaterEqual(poller.current_at, NOW)

    def test_nothing_there_is_caught_up(self) -> None:
        """An empty stream, or none, has been read at once."""
        poller = self.poller(from_beginning=True)
        self.pump()
        self.successResultOf(poller.caught_up())

    def test_the_server_is_not_there_at_the_start(self) -> None:
        """It is waited for: nothing is known, and nothing is caught up, until it answers."""
        self.streams.error = Unavailable("away")
        poller = self.poller(from_beginning=True)
        caught_up = poller.caught_up()
        self.pump(10.0)
        self.assertNoResult(caught_up)
        self.assertEqual(self.taken.currents, [])
        self.streams.error = None
        self.pump(2.0)
        self.successResultOf(caught_up)

    def test_large_entries_are_read_few_at_a_time(self) -> None:
        """Batches hold about BATCH_BYTES once the size of entries is known."""
        large = b"x" * (BATCH_BYTES // 4)
        self.poller()
        self.pump()
        self.add(*[large] * 100)
        self.pump(1.0)
        self.assertEqual(len(self.taken.texts), 100)
        self.assertEqual({call[4] for call in self.reader.calls[4:-1]}, {3})


class BackPressureTest(PollerCase):
    def test_the_next_read_waits(self) -> None:
        """Nothing is asked for while those who take are behind; then all of it comes, once."""
        self.poller()
        self.pump()
        waiting = self.taken.waiting = Deferred()
        self.add(b"1")
        calls = len(self.reader.calls)
        self.add(b"2", b"3")
        self.pump(10.0)
        self.assertEqual((self.taken.texts, len(self.reader.calls)), ([b"1"], calls))
        self.taken.waiting = None
        waiting.callback(None)
        self.pump()
        self.assertEqual(self.taken.texts, [b"1", b"2", b"3"])

    def test_a_taker_that_cannot_now(self) -> None:
        """A batch whose taker says Unavailable comes again until it is taken, and what is behind it waits."""
        self.poller()
        self.pump()
        self.taken.errors = [Unavailable("not now")] * 4
        self.add(b"1")
        self.add(b"2")
        self.assertEqual(self.taken.texts, [])
        self.pump(3.0)
        self.assertEqual(self.taken.texts, [b"1", b"2"])
        self.assertEqual(self.counted.outcomes, {"ok": 2})
        self.assertEqual(len(self.events("stream.unreadable")), 1)


class PoisonTest(PollerCase):
    def test_malformed_entries(self) -> None:
        """They are dropped and counted; the log says one of a kind a minute, and how many it left out."""
        self.poller()
        self.pump()
        self.add(b"1", b"bad", b"2", b"bad", b"bad")
        self.assertEqual(self.taken.texts, [b"1", b"2"])
        self.assertEqual(self.counted.outcomes, {"ok": 2, "malformed_missing": 3})
        self.assertEqual(len(self.events("stream.malformed")), 1)
        self.pump(61.0)
        self.add(b"bad", b"3")
        self.assertEqual([event["held_back"] for event in self.events("stream.malformed")], [0, 2])
        self.assertEqual(self.taken.texts[-1], b"3")

    def test_a_taker_that_raises(self) -> None:
        """A bug costs the one entry that it is about: it is shown, counted and skipped."""
        self.poller()
        self.pump()
        self.taken.poison = b"2"
        self.streams.add(b"text", b"1")
        self.streams.add(b"text", b"2")
        self.streams.add(b"text", b"3")
        self.pump()
        self.add(b"4", b"2", b"5")
        self.assertEqual(self.taken.texts, [b"1", b"3", b"4", b"5"])
        self.assertEqual(self.counted.outcomes, {"ok": 4, "fault": 2})
        self.assertEqual(self.shown(RuntimeError), 1)

    def test_a_taker_that_fails_later(self) -> None:
        """The same when the failure comes by the Deferred."""
        self.poller()
        self.pump()
        self.taken.errors = [RuntimeError("a fault")]
        self.add(b"1", b"2")
        self.assertEqual((self.taken.texts, self.counted.outcomes), ([b"2"], {"fault": 1, "ok": 1}))
        self.assertEqual(self.shown(RuntimeError), 1)

    def test_a_parser_that_raises(self) -> None:
        """Costs its entry only."""
        self.poller()
        self.pump()
        self.add(b"raise", b"1")
        self.assertEqual((self.taken.texts, self.counted.outcomes), ([b"1"], {"fault": 1, "ok": 1}))
        self.assertEqual(self.shown(RuntimeError), 1)


class TroubleTest(PollerCase):
    def test_every_error_is_survived(self) -> None:
        """Refusals, outages and nonsense alike: reading goes on from the same place."""
        self.poller()
        self.pump()
        errors = [RedisRefused("WRONGTYPE", "WRONGTYPE no stream"), Unavailable("NOAUTH"), ValueError("nonsense")]
        for number, error in enumerate(errors):
            self.streams.error = error
            self.pump(3.0)
            self.streams.error = None
            self.add(b"%d" % number)
            self.pump(2.0)
        self.assertEqual(self.taken.texts, [b"0", b"1", b"2"])
        self.assertEqual(len(self.events("stream.unreadable")), 2)
        self.assertEqual(len(self.events("stream.read_again")), 3)
        self.assertEqual(self.shown(ValueError), 1)

    def test_attempts_are_bounded(self) -> None:
        """A server that is away for a minute is asked about once a second, and the log has one line of it."""
        self.poller()
        self.pump()
        self.streams.error = Unavailable("away")
        self.reader.lose()
        self.pump(5.0)
        calls = len(self.reader.calls)
        self.pump(50.0)
        attempts = len(self.reader.calls) - calls
        self.assertLessEqual(attempts, 50 / LONGEST_PAUSE_S)
        self.assertGreater(attempts, 40 / LONGEST_PAUSE_S)
        self.assertEqual(len(self.events("stream.unreadable")), 2)  # "lost" and "away"

    def test_a_look_that_fails_alone(self) -> None:
        """The reading does not depend on the other connections: entries come all the same, and are believed."""
        poller = self.poller()
        self.pump()
        self.streams.look_error = Unavailable("away")
        for number in range(4):
            self.pump(1.5)
            self.add(b"%d" % number)
        self.assertEqual(self.taken.texts, [b"0", b"1", b"2", b"3"])
        self.assertLessEqual(self.clock.seconds() - poller.current_at, 2 * BLOCK_S)
        self.pump(2.0)
        for _ in range(16):
            self.pump(0.25)
            self.assertLessEqual(self.clock.seconds() - poller.current_at, BLOCK_S + 0.1)
        self.assertEqual((self.streams.looks, len(self.events("stream.unreadable"))), (1, 1))

    def test_after_an_error_the_stream_is_looked_at_first(self) -> None:
        """Before anything is read: a gap is told before what comes after it."""
        order: list[str] = []
        self.taken.gap = lambda: order.append("gap")  # type: ignore[method-assign]
        self.taken.parse = lambda entry: order.append("entry") or b""  # type: ignore[func-returns-value,method-assign]
        self.poller()
        self.pump()
        self.add(b"1")
        self.reader.lose()
        for text in (b"2", b"3"):
            self.streams.add(b"text", text)
        self.streams.trim(1)
        self.pump(0.3)
        self.assertEqual(order, ["entry", "gap", "entry"])


class CurrentTest(PollerCase):
    def test_silence_is_not_quiet(self) -> None:
        """On a quiet stream `current` moves on with every answer; while nothing answers it stands still."""
        poller = self.poller()
        for _ in range(20):
            self.pump(0.5)
            self.assertLessEqual(self.clock.seconds() - poller.current_at, BLOCK_S + 0.1)
        self.streams.error = Unavailable("away")
        self.reader.lose()
        stood = poller.current_at
        self.pump(6.0)
        self.assertEqual(poller.current_at, stood)
        self.assertEqual(self.taken.currents, sorted(self.taken.currents))

    def test_a_reading_that_is_behind_is_not_current(self) -> None:
        """Answers alone say nothing: while there is more than was asked for, only what was looked at before counts."""
        poller = self.poller(from_beginning=True, start=False)
        self.add(*[b"x"] * 10 * BATCH_ENTRIES)
        waits: list[Deferred[None]] = []

        def deliver(batch: Sequence[bytes]) -> Deferred[None]:
            self.taken.texts += batch
            waits.append(Deferred())
            return waits[-1]

        self.taken.deliver = deliver  # type: ignore[method-assign]
        poller = self.poller(from_beginning=True)
        for _ in range(9):
            self.pump(1.0)
            self.assertEqual(poller.current_at, float("-inf"))
            waits.pop().callback(None)
        self.pump(1.0)
        for _ in range(3):
            if waits:
                waits.pop().callback(None)
            self.pump(0.5)
        self.assertEqual(len(self.taken.texts), 10 * BATCH_ENTRIES)
        self.assertGreaterEqual(poller.current_at, NOW)

    def test_another_stream_while_behind(self) -> None:
        """What the old stream had got to is no measure of the new one."""
        self.add(*[b"x"] * 4 * BATCH_ENTRIES)
        poller = self.poller(from_beginning=True, start=False)
        waits: list[Deferred[None]] = []

        def deliver(batch: Sequence[bytes]) -> Deferred[None]:
            waits.append(Deferred())
            return waits[-1]

        self.taken.deliver = deliver  # type: ignore[method-assign]
        poller = self.poller(from_beginning=True)
        self.pump(1.5)
        self.streams.recreate()
        for number in range(10 * BATCH_ENTRIES):
            self.streams.add(b"text", b"y", at=StreamId(1, number + 1))
        ages = []
        while waits:
            self.streams.add(b"text", b"y", at=StreamId(2, len(ages) * BATCH_ENTRIES + 1))
            for number in range(BATCH_ENTRIES - 1):  # as fast as they are read: no answer is ever short
                self.streams.add(b"text", b"y", at=StreamId(2, len(ages) * BATCH_ENTRIES + number + 2))
            waits.pop().callback(None)
            self.pump(0.5)
            ages.append(self.clock.seconds() - poller.current_at)
            if len(ages) == 30:
                break
        self.assertLess(ages[-1], 12.0)
        self.assertEqual(self.taken.gaps, 1)

    def test_lag(self) -> None:
        """The age of what was read last, never negative; nothing waits: 0."""
        self.poller()
        self.pump()
        self.streams.add(b"text", b"1", at=StreamId(int(NOW * 1000) - 2500, 0))
        self.pump()
        self.assertAlmostEqual(self.counted.lags[-1], 2.5)
        self.pump(1.5)
        self.assertEqual(self.counted.lags[-1], 0.0)
        self.streams.add(b"text", b"1", at=StreamId((1 << 64) - 1, 0))
        self.pump()
        self.assertEqual(min(self.counted.lags), 0.0)
        self.assertEqual(self.taken.texts, [b"1", b"1"])


class GapTest(PollerCase):
    def test_trimmed_unread(self) -> None:
        """Entries that were removed while the reader was away are said, with their number, before what comes next."""
        self.poller()
        self.pump()
        self.add(b"1")
        self.reader.lose()
        for text in (b"2", b"3", b"4"):
            self.streams.add(b"text", text)
        self.streams.trim(1)
        self.pump(2.0)
        self.assertEqual((self.taken.texts, self.taken.gaps), ([b"1", b"4"], 1))
        self.assertEqual((self.counted.outcomes["gap"], self.counted.outcomes["lost"]), (1, 2))
        self.assertEqual(len(self.taken.placed), 1)
        self.pump(5.0)
        self.assertEqual(self.taken.gaps, 1)

    def test_trimmed_behind_the_reader(self) -> None:
        """What was read may go: that is no gap."""
        self.poller(from_beginning=True)
        self.add(b"1", b"2", b"3")
        self.streams.trim(0)
        self.pump(3.0)
        self.assertEqual((len(self.taken.texts), self.taken.gaps), (3, 0))

    def test_another_stream(self) -> None:
        """It was deleted and made anew, with lower ids: read from its beginning, under another epoch."""
        self.poller()
        self.pump()
        self.add(b"1")
        self.streams.recreate()
        self.streams.add(b"text", b"2", at=StreamId(1, 1))
        self.pump(2.5)
        self.assertEqual((self.taken.texts, self.taken.gaps), ([b"1", b"2"], 1))
        self.assertEqual(self.taken.placed[1:], [("epoch-0'", ORIGIN)])

    def test_a_server_that_lost_its_tail(self) -> None:
        """What is left was read before; what comes, however low its id, is delivered."""
        self.poller(from_beginning=True)
        self.add(b"1", b"2")
        self.pump(2.5)
        self.add(b"3", b"4")
        self.streams.rewind(2)
        self.pump(2.5)
        self.assertEqual(self.taken.gaps, 1)
        self.streams.add(b"text", b"5", at=StreamId(self.streams.last.ms, self.streams.last.seq + 1))
        self.pump(2.5)
        self.assertEqual(self.taken.texts, [b"1", b"2", b"3", b"4", b"5"])
        self.assertEqual(len(self.taken.placed), 2)


class StopTest(PollerCase):
    def test_the_stop_ends_a_read_that_waits(self) -> None:
        """At once, with its connection, and nothing is delivered or said afterwards."""
        poller = self.poller()
        self.pump()
        stopped = poller.stopService()
        assert stopped is not None
        self.successResultOf(stopped)
        self.assertEqual(self.reader.disconnects, 1)
        currents = len(self.taken.currents)
        self.add(b"1")
        self.pump(5.0)
        self.assertEqual((self.taken.texts, len(self.taken.currents)), ([], currents))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.events("stream.unreadable"), [])

    def test_the_stop_ends_a_pause_and_a_delivery(self) -> None:
        """Whatever is waited for: the pause after an error, a taker who is behind."""
        for error in (Unavailable("away"), None):
            poller = self.poller(start=False)
            self.streams.error = error
            cancelled: list[object] = []
            self.taken.waiting = Deferred(cancelled.append)
            self.taken.waiting.addErrback(lambda failure: failure)
            poller.startService()
            self.pump()
            self.streams.add(b"text", b"1")
            self.pump()
            stopped = poller.stopService()
            assert stopped is not None
            self.successResultOf(stopped)
            self.assertEqual(len(cancelled), 0 if error else 1)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_without_a_start(self) -> None:
        """A service that was never started can be stopped."""
        self.assertIsNone(self.poller(start=False).stopService())


STEP = st.sampled_from(["add", "add", "add", "lose", "away", "back", "behind", "taken", "wait", "cannot"])


class NothingLostTest(PollerCase):
    @settings(max_examples=150, deadline=None)
    @given(st.lists(STEP, max_size=40))
    def test_nothing_is_lost_or_doubled(self, steps: list[str]) -> None:
        """Whatever happens to connections and takers, every entry is delivered once, in order."""
        self.setUp()
        poller = self.poller(from_beginning=True, start=False)
        poller.startService()
        added = 0
        for step in steps:
            if step == "add":
                added += 1
                self.streams.add(b"text", b"%d" % added)
            elif step == "lose":
                self.reader.lose()
            elif step in ("away", "back"):
                self.streams.error = Unavailable("away") if step == "away" else None
            elif step == "behind":
                self.taken.waiting = self.taken.waiting or Deferred()
            elif step == "taken":
                self.release()
            elif step == "cannot":
                self.taken.errors.append(Unavailable("not now"))
            else:
                self.pump(0.3)
        self.streams.error = None
        self.release()
        self.pump(6.0)
        stopped = poller.stopService()
        assert stopped is not None
        self.assertEqual(self.taken.texts, [b"%d" % number for number in range(1, added + 1)])
        self.assertEqual(self.taken.gaps, 0)
        self.assertEnded(stopped)

    def release(self) -> None:
        waiting, self.taken.waiting = self.taken.waiting, None
        if waiting is not None:
            waiting.callback(None)

    def assertEnded(self, stopped: Deferred[None]) -> None:
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.failures, [])
