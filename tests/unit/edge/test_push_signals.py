"""Following signals, on a stream that misbehaves."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.inlet import Delivery
from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.push.position import EVENTS, SIGNALS, Mark
from gatewayd.push.signals import SignalFollower, SignalStream, feed_signals, signal_item
from gatewayd.times import Wall
from tests.fakes.outlets import WALL, Desk, SlowOutlet

AWAY = Unpublished(Cause.DISCONNECTED, "not connected")


class StreamBus:
    """
    JetStream as far as it is asked: `stored` are sequences of signals, `first` the stream's first one. A slice that
    waits ends when end() is called. `away`: nothing is answered.
    """

    def __init__(self) -> None:
        self.created = "2024-01-01T00:00:00Z"
        self.first, self.last = 1, 0
        self.stored: list[int] = []
        self.away = False
        self.consumers: dict[str, int] = {}
        self.made = 0
        self.broken: Exception | None = None
        self.waiting: list[tuple[str, Callable[[Delivery], object], Deferred[Unpublished | None]]] = []

    def request(self, subject: str, payload: bytes, timeout_s: float) -> Deferred[bytes | Unpublished]:
        if self.away:
            return succeed(AWAY)
        if self.broken is not None:
            raise self.broken
        members: dict[str, Any] = {}
        if subject == "$JS.API.STREAM.INFO.s":
            members = {"created": self.created, "state": {"first_seq": self.first, "last_seq": self.last}}
        elif subject == "$JS.API.CONSUMER.CREATE.s":
            config = json.loads(payload)["config"]
            self.made += 1
            members = {"name": f"c{self.made}"}
            self.consumers[f"c{self.made}"] = config["opt_start_seq"]
        elif subject.startswith("$JS.API.CONSUMER.DELETE.s."):
            del self.consumers[subject.rpartition(".")[2]]
        return succeed(json.dumps(members).encode())

    def slice(
        self, subject: str, payload: bytes, count: int, timeout_s: float, heard: Callable[[Delivery], object]
    ) -> Deferred[Unpublished | None]:
        name = subject.rpartition(".")[2]
        ended: Deferred[Unpublished | None] = Deferred()
        if self.away or name not in self.consumers:
            return succeed(AWAY if self.away else None)
        self.hand(name, heard, count)
        if "no_wait" in json.loads(payload):
            return succeed(None)
        self.waiting.append((name, heard, ended))
        return ended

    def hand(self, name: str, heard: Callable[[Delivery], object], count: int) -> None:
        """What a consumer has not handed out yet."""
        behind = [at for at in self.stored if at >= self.consumers[name]]
        for number, at in enumerate(behind[:count], 1):
            self.consumers[name] = at + 1
            headers = {"Nats-Msg-Id": f"gw:{at}", "Source": "tv", "Instrument": "EURUSD"}
            reply = f"$JS.ACK.s.{name}.1.{at}.{number}.{int(WALL)}000000000.{len(behind) - number}"
            heard(Delivery(1, "signals.normalized", reply, headers, 0, b"s%d" % at))

    def store(self, *sequences: int) -> None:
        """Store signals, and hand them to who waits."""
        self.stored += sequences
        self.last = max(self.last, *sequences)
        for name, heard, _ in self.waiting:
            self.hand(name, heard, 100)

    def end(self, outcome: Unpublished | None = None) -> None:
        """The slices that wait are over."""
        waiting, self.waiting = self.waiting, []
        for _, _, ended in waiting:
            ended.callback(outcome)


class SignalsCase(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[LogEvent]) -> None:
        self.failures = no_logged_failures

    def setUp(self) -> None:
        self.bus = StreamBus()
        self.stream = SignalStream(self.bus, "s", "signals.normalized")
        self.desk = Desk(grants="*: *", readers={SIGNALS: self.stream.read})
        self.desk.delivery.begin(EVENTS, Mark("a", (1, 0)), (1, 0), ())
        self.feeding = feed_signals(self.desk.delivery, self.stream, self.desk.clock)
        self.follower = SignalFollower(
            self.stream,
            self.feeding,
            metrics=self.desk.metrics,
            clock=self.desk.clock,
            wall=self.desk.wall,
            soon=self.desk.turns,
            chance=lambda: 1.0,
        )
        self.addCleanup(self.follower.stop)

    def open(self, resume: str = "") -> SlowOutlet:
        return self.desk.open("ann/1", resume=resume, message_type="signals.subscribe")

    def start(self) -> SlowOutlet:
        """Follow a stream that is there, with one stream open."""
        self.follower.start()
        self.successResultOf(self.feeding.begun())
        return self.open()

    def count(self, outcome: str) -> float:
        return self.desk.sample("edge_stream_entries_total", stream="signals", outcome=outcome)


class FollowerTest(SignalsCase):
    """Following."""

    def test_from_now_on(self) -> None:
        """What was there before is not pushed; what comes is, at the end of the turn in which it came, together."""
        self.bus.store(1, 3)
        outlet = self.start()
        self.bus.store(5)
        self.bus.store(7)
        self.assertEqual(outlet.payloads, [])
        self.assertEqual(self.desk.turns.spin(), 1)
        self.assertEqual((outlet.payloads, self.count("ok")), ([b"s5", b"s7"], 2))

    def test_looks_again(self) -> None:
        """When nothing came for a while the consumer is given back, and a new one goes on where the last one was."""
        outlet = self.start()
        self.bus.store(2)
        self.bus.end()
        self.assertEqual(outlet.payloads, [b"s2"])
        self.bus.end()
        self.assertEqual(self.bus.consumers, {})
        self.bus.store(4)
        self.desk.clock.advance(0.05)
        self.desk.turns.spin()
        self.assertEqual(outlet.payloads, [b"s2", b"s4"])
        self.assertEqual(len(self.bus.consumers), 1)

    def test_away(self) -> None:
        """While the server is away it is asked again, ever more seldom, and nothing is missed afterwards."""
        self.bus.away = True
        self.follower.start()
        self.assertNoResult(begun := self.feeding.begun())
        self.desk.clock.pump([0.05] * 100)
        self.bus.away = False
        self.desk.clock.advance(1.0)
        self.successResultOf(begun)
        outlet = self.open()
        self.bus.away = True
        self.bus.end(AWAY)
        self.bus.store(1, 2)
        self.desk.clock.pump([0.5] * 10)
        self.bus.away = False
        self.desk.clock.advance(1.0)
        self.desk.turns.spin()
        self.assertEqual(outlet.payloads, [b"s1", b"s2"])

    def test_trimmed(self) -> None:
        """What was removed before it could be read is told to everybody, and the rest comes."""
        outlet = self.start()
        self.bus.away = True
        self.bus.end(AWAY)
        self.bus.stored, self.bus.first, self.bus.last = [9], 8, 9
        self.bus.away = False
        self.desk.clock.advance(2.0)
        self.desk.turns.spin()
        self.assertEqual(outlet.types[1:], ["gateway.resume_failed", "signal.normalized"])
        self.assertEqual(self.count("gap"), 1)

    def test_another_stream(self) -> None:
        """A stream that was made anew, or went back, is followed from what it has; everybody is told."""
        outlet = self.start()
        self.bus.store(5)
        for created in ("2025-01-01T00:00:00Z", "2025-01-01T00:00:00Z"):
            self.bus.end()
            self.bus.created, self.bus.stored, self.bus.last = created, [], self.bus.last - 2
            self.bus.end()
            self.desk.clock.advance(1.0)
            self.assertEqual(outlet.types[-1], "gateway.resume_failed")
            self.bus.store(self.bus.last + 1)
            self.desk.turns.spin()
            self.assertEqual(outlet.types[-1], "signal.normalized")

    def test_waits_for_delivery(self) -> None:
        """No more is asked for while what came is still being delivered."""
        self.start()
        slow = [self.desk.open(f"user-{number}/1", message_type="all.subscribe") for number in range(1000)]
        self.bus.store(1)
        self.bus.end()
        self.assertEqual(self.bus.waiting, [])
        self.desk.turns.spin()
        self.assertEqual((len(self.bus.waiting), slow[-1].payloads), (1, [b"s1"]))

    def test_stop(self) -> None:
        """Nothing is delivered after it, and nothing waits."""
        outlet = self.start()
        self.bus.store(1)
        stopped = self.follower.stop()
        assert stopped is not None
        self.successResultOf(stopped)
        self.bus.store(2)
        self.desk.turns.spin()
        self.assertEqual(outlet.payloads, [])
        self.assertEqual(self.desk.clock.getDelayedCalls(), [])
        self.assertIsNone(self.follower.stop())

    def test_a_bug(self) -> None:
        """It is logged, and the stream is followed on."""
        self.bus.broken = RuntimeError("a bug")
        self.follower.start()
        self.bus.broken = None
        self.desk.clock.advance(1.0)
        self.successResultOf(self.feeding.begun())
        self.failures.clear()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class ReaderTest(SignalsCase):
    """Reading again."""

    def setUp(self) -> None:
        super().setUp()
        self.bus.store(*range(1, 1001))
        stand = self.successResultOf(Deferred.fromCoroutine(self.stream.stand()))
        assert not isinstance(stand, Unpublished)
        self.epoch = stand.epoch

    def read(self, after: int, up_to: int, count: int = 10_000, size_bytes: int = 10**6) -> list[int] | None:
        mark = Mark(self.epoch, (after, 0))
        found = self.successResultOf(Deferred.fromCoroutine(self.stream.read(mark, (up_to, 0), count, size_bytes)))
        self.assertEqual(self.bus.consumers, {})
        return None if found is None else [one.at[0] for one in found]

    def test_stretch(self) -> None:
        """All behind the one place up to and with the other, over as many slices as it takes."""
        self.assertEqual(self.read(10, 700), list(range(11, 701)))
        self.assertEqual(self.read(999, 1000), [1000])
        self.assertEqual(self.read(1000, 1005), [])

    def test_too_much(self) -> None:
        """More than was asked for is nothing."""
        self.assertIsNone(self.read(0, 1000, count=500))
        self.assertIsNone(self.read(0, 1000, size_bytes=500))

    def test_gone(self) -> None:
        """What was removed, is of another stream, or of a server that is away, is nothing."""
        self.bus.first = 12
        self.assertIsNone(self.read(10, 700))
        self.assertEqual(self.read(11, 12), [12])
        self.bus.away = True
        self.assertIsNone(self.read(11, 12))
        self.bus.away = False
        self.bus.created = "2025-01-01T00:00:00Z"
        self.assertIsNone(self.read(11, 12))


class ItemTest(SynchronousTestCase):
    """A stored message as the hub takes it."""

    def test_members(self) -> None:
        """Its id, its topic, its trace, its bytes; without an id, a source or an instrument it is none of ours."""
        headers = {"Nats-Msg-Id": "gw:1:norm", "Source": "tv", "Instrument": "EURUSD", "traceparent": "00-ab-cd-01"}
        item = signal_item(7, Wall(1_700_000_000.123), headers, b"{}")
        assert item is not None
        self.assertEqual((item.at, item.event_type, item.event_id), ((7, 0), "signal.normalized", "gw:1:norm"))
        self.assertEqual((item.topic, item.trace_id, item.timestamp_ms), (("tv", "EURUSD"), "ab", 1_700_000_000_123))
        self.assertEqual((item.payload, item.user_id), (b"{}", ""))
        for name in ("Nats-Msg-Id", "Source", "Instrument"):
            self.assertIsNone(signal_item(7, Wall(0.0), {**headers, name: ""}, b"{}"))
        strange = signal_item(7, Wall(0.0), {**headers, "traceparent": "strange"}, b"{}")
        assert strange is not None
        self.assertEqual(strange.trace_id, "")
