"""When the stream is looked at for halves, from where on, and what is done about those that are found."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.ingress.events import Events
from gatewayd.ingress.halves import Halves
from gatewayd.ingress.repair import PAUSE_S, SLICE, Repair
from gatewayd.times import Wall
from tests.buses import message
from tests.clients import generic_body, stamped, tradingview_body
from tests.fakes.tailing import TailingBus
from tests.unit.ingress.test_pipeline import NOW, Counts, World

DOWN = Unpublished(Cause.DISCONNECTED, "gone")


class RepairCounts(Counts):
    """What the repair counted, beside what the pipeline did."""

    def repaired(self, result: str) -> None:
        self.seen.append(result)

    def orphaned(self, count: int) -> None:
        self.seen.extend(["orphan"] * count)


class RepairTest(World):
    """A stream made by the product's own pipeline, of which messages are then taken away."""

    def setUp(self) -> None:
        super().setUp()
        self.bus: TailingBus = TailingBus()
        self.counts = RepairCounts()
        self.settings["RATE_LIMIT_RPS"] = "100000"
        self.begin()
        self.make()
        self.logged: list[LogEvent] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def make(self, **more: Any) -> None:
        self.repair = Repair(
            bus=self.bus,
            events=Events("signals.raw", "signals.normalized", "1.1.0"),
            rules=lambda: self.rules,
            clock=self.clock,
            wall=lambda: Wall(self.now),
            counters=self.counts,
            **more,
        )
        self.addCleanup(self.repair.stop)

    def tearDown(self) -> None:
        self.successResultOf(self.repair.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def half(self, number: int) -> None:
        """Leave the raw message of a signal in the stream alone, as a crash before its normalised one does."""
        body = tradingview_body(NOW, 1.0 + number / 1000)
        self.bus.fail(DOWN, ghost=True)
        assert self.send(body, stamped(body, self.now, key=f"key-{number}")).status == 503

    def run_for(self, seconds: float) -> None:
        """Let both clocks run."""
        for _ in range(round(seconds / 0.05)):
            self.bus.wall = Wall(self.bus.wall + 0.05)
            self.clock.advance(0.05)

    def wait(self, seconds: float) -> None:
        """Let the server's clock run alone: what is stored grows old."""
        self.bus.wall = Wall(self.bus.wall + seconds)

    def events(self, name: str) -> list[LogEvent]:
        return [event for event in self.logged if event.get("event") == name]

    def results(self) -> list[str]:
        return [one for one in self.counts.seen if isinstance(one, str)]


class LookTest(RepairTest):
    def test_a_half_is_completed(self) -> None:
        """It gets the normalised message of its own request, is counted and said with its corr_id; once."""
        self.half(1)
        self.wait(60)
        self.repair.begin(None)
        self.run_for(1)
        self.assertEqual(self.subjects(), ["signals.raw", "signals.normalized"])
        self.assertEqual(self.results(), ["normalized"])
        line = self.events("repair.normalised")[0]
        self.assertEqual((line["corr_id"], line["sequence"]), (self.bus.messages[2].headers["Corr-ID"], 1))
        self.run_for(60)
        self.assertEqual((self.results(), self.events("repair.orphans")), (["normalized"], []))
        self.assertEqual(self.repair.idle, True)

    def test_what_is_whole_and_what_is_foreign_stays_as_it_is(self) -> None:
        """Pairs, dead letters, rejected raws and other people's messages: nothing is read or published for them."""
        for number in range(5):
            self.send(tradingview_body(NOW, 1 + number))
            self.send(generic_body(NOW, "custom", price=number + 1), path="custom", key=f"k{number}")
        self.send(b'{"ticker":1}')
        self.bus.plant(message("gw:" + "0" * 32 + ":raw"))
        self.bus.plant(message("theirs", facts="theirs"))
        self.wait(60)
        before = len(self.bus.publications)
        self.repair.begin(None)
        self.run_for(60)
        self.assertEqual((len(self.bus.publications), self.bus.reads, self.results()), (before, [], []))
        self.assertEqual([line["seen"] for line in self.events("repair.looked")], [len(self.bus.messages)])

    def test_looks(self) -> None:
        """The first look goes ten minutes back; then it reads on, 5 and 30 s later, and rests."""
        self.send(tradingview_body(NOW))
        self.wait(60)
        self.repair.begin(None)
        self.run_for(4.9)
        self.assertEqual(self.bus.tails, [(600.0, None)])
        self.run_for(0.2)
        self.assertEqual(self.bus.tails, [(600.0, None), (None, 3)])
        self.run_for(60)
        self.assertEqual(self.bus.tails, [(600.0, None), (None, 3), (None, 3)])
        self.repair.begin(1)  # all of it has been seen
        self.run_for(1)
        self.assertEqual(self.bus.tails[3:], [(None, 3)])
        self.run_for(60)
        self.repair.begin(7)
        self.run_for(1)
        self.assertEqual(self.bus.tails[-1], (None, 7))

    def test_ghosts_are_found_later(self) -> None:
        """A half that a hung server stores 20 s after the reconnect is completed by the last look."""
        self.repair.begin(None)
        self.run_for(20)
        self.half(1)
        self.run_for(20)
        self.assertEqual(self.results(), ["normalized"])

    def test_a_half_under_way_is_left_alone(self) -> None:
        """A raw of now is looked at again when it is old enough; its own normalised message then makes it whole."""
        self.half(1)
        self.repair.begin(None)
        self.run_for(2)
        self.assertEqual(self.results(), [])
        before = len(self.bus.publications)
        body = tradingview_body(NOW, 1.001)
        assert self.send(body, stamped(body, self.now, key="key-1")).status == 202
        self.run_for(40)
        self.assertEqual((self.results(), len(self.bus.publications)), ([], before + 2))

    def test_a_young_half_is_completed_once_it_is_old(self) -> None:
        """Not before its grace is over, and without another begin()."""
        self.half(1)
        self.repair.begin(None)
        for _ in range(4):
            self.run_for(1)
        self.assertEqual(self.results(), ["normalized"])

    def test_a_server_that_does_not_say_its_time(self) -> None:
        """Our own clock is taken."""
        self.bus.says_time = False
        self.half(1)
        self.repair.begin(None)
        self.run_for(1)
        self.assertEqual(self.results(), [])
        self.now += 60
        self.run_for(5)
        self.assertEqual(self.results(), ["normalized"])

    def test_somebody_was_faster(self) -> None:
        """A publish that JetStream calls a duplicate is no repair, and nothing is said."""
        self.send(tradingview_body(NOW))
        self.bus.drop(2)
        self.wait(60)
        self.repair.begin(None)
        self.run_for(60)
        self.assertEqual((self.results(), self.events("repair.normalised")), ([], []))

    def test_an_orphan_is_counted_once(self) -> None:
        """A normalised message without its raw one: said and counted, and nothing else."""
        self.send(tradingview_body(NOW))
        self.wait(60)
        self.send(tradingview_body(NOW, 2.0))
        self.bus.drop(3)
        self.wait(60)
        before = len(self.bus.publications)
        self.repair.begin(None)
        self.run_for(60)
        self.assertEqual((self.results(), len(self.bus.publications)), (["orphan"], before))
        self.assertIn(self.bus.messages[4].headers["Corr-ID"], self.events("repair.orphans")[0]["corr_ids"])

    def test_a_dead_letter(self) -> None:
        """A raw whose source is gone is a dead letter, counted as both; the next start adds nothing."""
        body = generic_body(NOW, "custom")
        self.bus.fail(DOWN, ghost=True)
        self.send(body, stamped(body, self.now, key="k"), path="custom")
        self.wait(60)
        self.settings["ALLOWED_SOURCES"] = "tradingview,partner"
        self.begin()
        for _ in range(2):
            self.repair.begin(None)
            self.run_for(60)
        self.assertEqual(self.results(), ["dead_letter"])
        self.assertIn(("dead_letter", "GW-009"), self.counts.seen)
        self.assertEqual(self.subjects(), ["signals.raw", "dlq.signals.normalized"])
        self.assertEqual(self.events("repair.dead_letter")[0]["code"], "GW-009")

    def test_a_damaged_raw(self) -> None:
        """It is said and counted, once, and keeps nobody else from being completed."""
        self.half(1)
        self.half(2)
        stored = self.bus.messages[1]
        self.bus.messages[1] = type(stored)(1, stored.subject, stored.headers, b"{}", stored.time)
        self.wait(60)
        self.repair.begin(None)
        self.run_for(60)
        self.assertEqual(self.results(), ["failed", "normalized"])
        self.assertEqual([line["sequence"] for line in self.events("repair.damaged")], [1])

    def test_a_raw_that_is_gone(self) -> None:
        """Purged between the look and the read: nothing is made of it, nothing is tried again."""
        self.half(1)
        self.wait(60)
        self.bus.hold()
        self.repair.begin(None)
        self.run_for(0.1)
        self.bus.drop(1)
        self.bus.release()
        self.run_for(60)
        self.assertEqual((self.results(), self.bus.messages), ([], {}))


class TroubleTest(RepairTest):
    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def test_nothing_is_forgotten_while_nats_is_away(self) -> None:
        """Looks that fail are made again until one succeeds; a later begin() further on does not skip anything."""
        self.half(1)
        self.wait(60)
        self.bus.go_down()
        self.repair.begin(1)
        self.run_for(20)
        self.assertEqual(self.results(), [])
        self.repair.begin(1000)
        self.run_for(60)
        tried = len(self.bus.tails)
        self.assertLess(tried, 30)
        self.bus.come_up()
        self.run_for(10)
        self.assertEqual(self.results(), ["normalized"])

    def test_a_completion_that_fails_is_made_again(self) -> None:
        """Counted as failed each time, then done; what comes behind it waits and is done, too."""
        self.half(1)
        self.half(2)
        self.wait(60)
        self.bus.fail(DOWN, count=2)
        self.repair.begin(None)
        self.run_for(0.4)
        self.assertEqual(self.results(), ["failed"])
        self.assertEqual(self.events("repair.looked")[0]["nats_error"], "gone")
        self.run_for(20)
        self.assertEqual(self.results(), ["failed", "failed", "normalized", "normalized"])

    def test_a_raw_that_cannot_be_read_now(self) -> None:
        """No answer to the read: again later."""
        self.half(1)
        self.wait(60)
        self.bus.refuse_reads(Unpublished(Cause.TIMEOUT, "no answer"))
        self.repair.begin(None)
        self.run_for(0.4)
        self.bus.refuse_reads(None)
        self.run_for(5)
        self.assertEqual(self.results(), ["failed", "normalized"])

    def test_a_ghost_of_our_own(self) -> None:
        """A completion that was stored although it failed is a duplicate the next time: not counted twice."""
        self.half(1)
        self.wait(60)
        self.bus.fail(Unpublished(Cause.TIMEOUT, "late"), ghost=True)
        self.repair.begin(None)
        self.run_for(60)
        self.assertEqual((self.results(), self.subjects()), (["failed"], ["signals.raw", "signals.normalized"]))

    def test_it_reads_in_slices_with_pauses(self) -> None:
        """A long stretch comes in slices; the half at its beginning, whole only at its end, is not published."""
        self.half(0)
        for number in range(SLICE):
            self.send(tradingview_body(NOW, 10.0 + number))
        body = tradingview_body(NOW, 1.0)
        assert self.send(body, stamped(body, self.now, key="key-0")).status == 202
        self.wait(60)
        self.repair.begin(None)
        self.clock.advance(0)
        self.assertEqual(len(self.bus.tails), 1)
        self.clock.pump([PAUSE_S] * 6)
        self.assertEqual([start for _, start in self.bus.tails], [None, SLICE + 1, 2 * SLICE + 1])
        self.assertEqual((self.results(), self.bus.reads[1:]), ([], []))

    def test_too_many_halves(self) -> None:
        """Beyond the bound the oldest are completed before the end of the stretch is seen: none is left out."""
        self.make(halves=lambda: Halves(limit=20))
        for number in range(3 * SLICE):
            self.half(number)
        self.wait(60)
        self.repair.begin(None)
        self.run_for(5)
        self.assertEqual(self.results(), ["normalized"] * 3 * SLICE)
        self.assertEqual(self.events("repair.overflow")[0]["count"], SLICE - 20)

    def test_a_bound_that_is_reached_while_nothing_can_be_published(self) -> None:
        """The look ends there, so that no more than a slice is held beyond the bound; later it goes on."""
        self.make(halves=lambda: Halves(limit=20))
        for number in range(3 * SLICE):
            self.half(number)
        self.wait(60)
        self.bus.fail(DOWN, count=3)
        self.repair.begin(None)
        self.run_for(0.4)
        self.assertEqual(len(self.bus.tails), 1)
        self.run_for(60)
        self.assertEqual(self.results().count("normalized"), 3 * SLICE)

    def test_another_stream(self) -> None:
        """begin(None) drops what was known, also while a look is under way, whose messages are not taken any more."""
        self.half(1)
        self.wait(60)
        gate = self.bus.gate = Deferred()
        self.repair.begin(None)
        self.clock.advance(0)
        old = self.bus.messages.pop(1)
        assert self.bus.seen is not None
        shown = self.bus.seen
        self.repair.begin(None)
        shown(old.subject, old.headers, 99, old.time)
        self.assertFalse(gate.called and self.results())
        self.run_for(60)
        self.assertEqual((self.results(), self.bus.tails[1][0]), ([], 600.0))

    def test_stop(self) -> None:
        """It ends in whatever it is doing: resting, reading, completing; a begin() after it does nothing."""
        self.half(1)
        self.wait(60)
        self.bus.hold()
        self.repair.begin(None)
        self.run_for(0.1)
        stopped = self.repair.stop()
        self.bus.release()
        self.successResultOf(stopped)
        self.repair.begin(None)
        self.run_for(60)
        self.assertEqual((self.results(), len(self.bus.tails)), ([], 1))

    def test_stop_waits_for_what_is_written(self) -> None:
        """A publication that is under way has its outcome first."""
        self.half(1)
        self.wait(60)
        self.repair.begin(None)
        self.bus.hold()
        self.clock.advance(0)
        held, self.bus._held = self.bus._held, None
        assert held is not None
        self.bus.hold()
        for waiting in held:
            waiting.callback(None)  # the read; the publication is held now
        stopped = self.repair.stop()
        self.assertNoResult(stopped)
        self.bus.release()
        self.successResultOf(stopped)
        self.assertEqual(self.results(), ["normalized"])

    def test_a_fault_of_ours_is_said_and_does_not_end_it(self) -> None:
        """A look that raises is logged with its traceback and made again."""
        self.half(1)
        self.wait(60)
        gate: Deferred[None] = Deferred()
        self.bus.gate = gate
        self.repair.begin(None)
        self.clock.advance(0)
        gate.errback(ZeroDivisionError("a fault"))
        self.run_for(5)
        self.assertEqual(self.results(), ["normalized"])
        self.assertEqual([event["event"] for event in self.failures], ["repair.failed"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.failures.clear()
