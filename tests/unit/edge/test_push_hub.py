"""The hub, without anything that sends."""

from collections.abc import Sequence
from typing import Any

from msgspec import structs
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.frames import Event, EventSigner
from gatewayd.push.hub import AHEAD_S, STUCK_S, Bounds, Broadcast, Close, Hub, Item, Joined, Read
from gatewayd.push.position import EVENTS, SIGNALS, Mark, Position
from gatewayd.push.stream import Stream
from gatewayd.push.wishes import Grant, Selection, Wish
from gatewayd.sessions.endings import LIMITED, OVERFLOWED, REVOKED, UNAVAILABLE_NOW, Ending
from gatewayd.sessions.signing import event_input
from tests.fakes.outlets import SlowOutlet, item, payloads, signal

NOW_MS = 1_700_000_000_123
ALL_SIGNALS = Selection((Grant("*", "*"),))
EVENTS_ONLY, BOTH, SIGNALS_ONLY = Wish(True, None), Wish(True, ALL_SIGNALS), Wish(False, ALL_SIGNALS)


def text(events: int | None, signals: int | None = None, epoch: str = "a") -> str:
    """A position's text."""
    marks = [None if at is None else Mark(epoch, (at, 0)) for at in (events, signals)]
    return Position((marks[0], marks[1])).text


class HubCase(SynchronousTestCase):
    """A hub at (100, 100) of both sources, its rings empty."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.make()

    def make(self, **bounds: Any) -> None:
        self.hub = Hub(Bounds(**bounds), EventSigner(lambda _: bytes(64), event_input))
        for source in (EVENTS, SIGNALS):
            self.hub.begin(source, Mark("a", (100, 0)), (100, 0), (), self.now)

    def stream(self, session: str = "ann/1", wish: Wish = EVENTS_ONLY) -> Stream:
        return Stream(SlowOutlet(), session.partition("/")[0], session, wish)

    def subscribe(self, stream: Stream, resume: str | bytes = b"") -> Any:
        resume = resume.encode() if isinstance(resume, str) else resume
        return self.hub.subscribe(stream, resume, self.now, NOW_MS, request_id="r", trace_id="t")

    def open(self, session: str = "ann/1", wish: Wish = EVENTS_ONLY, resume: str = "") -> Stream:
        stream = self.stream(session, wish)
        effects = self.subscribe(stream, resume)
        self.assertEqual(effects, [Joined(stream)])
        return stream

    def publish(self, *items: Item, source: int = EVENTS) -> None:
        for one in items:
            broadcast = self.hub.publish(source, one, self.now)
            assert broadcast is not None
            for stream in broadcast.streams:
                self.assertTrue(stream.hold(broadcast.event, 1000, 10**6))

    def take(self, stream: Stream) -> list[Event]:
        events = []
        while (event := stream.take()) is not None:
            events.append(event)
        return events

    def taken(self, stream: Stream) -> list[bytes]:
        """The payloads of what waits, without the first event."""
        first, *events = self.take(stream)
        self.assertEqual(first.event_type, "gateway.server_time")
        return [event.payload for event in events]


class SubscribeTest(HubCase):
    """Opening a stream."""

    def test_first_event(self) -> None:
        """It is the server's time in 8 bytes, bound to the request, and says where the stream stands."""
        (first,) = self.take(self.open())
        self.assertEqual(first.payload, NOW_MS.to_bytes(8, "big"))
        self.assertEqual((first.request_id, first.trace_id, first.timestamp_ms), ("r", "t", NOW_MS))
        self.assertEqual(first.position, "ea.100-0,sa.100-0")

    def test_bounds(self) -> None:
        """Too many streams of a session, of a user, in all: refused, with a time to come back; others get in."""
        self.make(streams=4, streams_per_user=3, streams_per_session=2)
        streams = [self.open("ann/1"), self.open("ann/1")]
        self.assertEqual(self.subscribe(self.stream("ann/1")), structs.replace(LIMITED, retry_after_ms=5000))
        streams.append(self.open("ann/2"))
        self.assertIsInstance(self.subscribe(self.stream("ann/3")), Ending)
        streams.append(self.open("bob/1"))
        self.assertIsInstance(self.subscribe(self.stream("eve/1")), Ending)
        self.assertEqual(len(self.hub), 4)
        for stream in streams:
            self.hub.drop(stream)
            self.hub.drop(stream)
        self.assertEqual((len(self.hub), self.hub.sessions), (0, []))
        self.open("ann/1")

    def test_before_a_source_is_there(self) -> None:
        """Nothing is opened that needs a source whose place is not known yet."""
        self.hub = Hub(Bounds(), EventSigner(lambda _: bytes(64), event_input))
        self.assertEqual(self.subscribe(self.stream()), UNAVAILABLE_NOW)
        self.hub.begin(EVENTS, Mark("a", (100, 0)), (100, 0), (), self.now)
        self.assertEqual(self.subscribe(self.stream("ann/1", BOTH)), UNAVAILABLE_NOW)
        self.assertEqual(self.take(self.open())[0].position, "ea.100-0")


class PublishTest(HubCase):
    """For whom an event is."""

    def audience(self, source: int, one: Item) -> Sequence[Stream]:
        broadcast = self.hub.publish(source, one, self.now)
        assert broadcast is not None
        return broadcast.streams

    def test_isolation(self) -> None:
        """The user's streams, or one session's only; never anybody else's, nor one that asked for signals only."""
        ann1, ann2, bob = self.open("ann/1"), self.open("ann/2", BOTH), self.open("bob/1")
        self.open("ann/1", SIGNALS_ONLY)
        self.assertEqual(self.audience(EVENTS, item(101)), [ann1, ann2])
        self.assertEqual(self.audience(EVENTS, item(102, device_session_id="ann/2")), [ann2])
        self.assertEqual(self.audience(EVENTS, item(103, device_session_id="bob/1")), [])
        self.assertEqual(self.audience(EVENTS, item(104, "bob")), [bob])
        self.assertEqual(self.audience(EVENTS, item(105, "an")), [])

    def test_signals(self) -> None:
        """Who selects a signal's topic gets it, once, whatever the others select."""
        self.open("ann/1")
        streams = [self.open("ann/2", BOTH), self.open("bob/1", SIGNALS_ONLY)]
        narrow = Wish(False, Selection((Grant("tv", "*"),), frozenset({"EURUSD"})))
        some = self.open("eve/1", narrow)
        self.assertEqual(self.audience(SIGNALS, signal(101)), [*streams, some])
        self.assertEqual(self.audience(SIGNALS, signal(102, "XAUUSD")), streams)
        self.hub.drop(some)
        self.assertEqual(self.audience(SIGNALS, signal(103)), streams)

    def test_position(self) -> None:
        """Each event says how far both sources are; one that came before is not published again."""
        self.assertIsNone(self.hub.publish(EVENTS, item(100), self.now))
        stream = self.open("ann/1", BOTH)
        self.publish(item(101))
        self.publish(signal(105), source=SIGNALS)
        self.assertIsNone(self.hub.publish(EVENTS, item(101), self.now))
        self.publish(item(103))
        positions = [event.position for event in self.take(stream)]
        self.assertEqual(positions, [text(100, 100), text(101, 100), text(101, 105), text(103, 105)])


class ResumeTest(HubCase):
    """Going on where a client was."""

    def test_from_memory(self) -> None:
        """What came since, in order and only what is for this stream, then what comes."""
        self.publish(item(101), item(102, "bob"), item(103, device_session_id="ann/2"), item(104))
        stream = self.open(resume=text(101, 100))
        self.publish(item(105))
        self.assertEqual(self.taken(stream), [b"104", b"105"])

    def test_both_sources_in_order(self) -> None:
        """Events and signals come in the order in which they were published here."""
        self.publish(item(101))
        self.publish(signal(101), source=SIGNALS)
        self.publish(item(102))
        self.publish(signal(102), source=SIGNALS)
        self.assertEqual(self.taken(self.open(wish=BOTH, resume=text(100, 100))), [b"101", b"s101", b"102", b"s102"])
        self.assertEqual(self.taken(self.open(wish=SIGNALS_ONLY, resume=text(100, 101))), [b"s102"])
        self.assertEqual(self.taken(self.open(wish=BOTH, resume=text(102, 100))), [b"s101", b"s102"])

    def test_no_position_goes_back(self) -> None:
        """A client of another gateway, which saw the sources in another order, gets positions that only grow."""
        self.publish(item(101), item(102))
        self.publish(signal(101), source=SIGNALS)
        stream = self.open(wish=BOTH, resume=text(101, 101))
        self.assertEqual([event.position for event in self.take(stream)], [text(101, 101), text(102, 101)])

    def test_shared(self) -> None:
        """A replayed event is the one that was broadcast, not a copy to be signed again."""
        broadcast = self.hub.publish(EVENTS, item(101), self.now)
        assert broadcast is not None
        self.assertIs(self.take(self.open(resume=text(100)))[1], broadcast.event)

    def test_a_source_it_had_not(self) -> None:
        """Where its position says nothing of a source, the stream begins with what comes."""
        self.publish(signal(101), source=SIGNALS)
        stream = self.open(wish=BOTH, resume=text(100, None))
        self.publish(item(101))
        self.assertEqual([event.position for event in self.take(stream)], [text(100, 101), text(101, 101)])

    def fails(self, resume: str, reason: bytes, wish: Wish = EVENTS_ONLY, first_at: str = "") -> None:
        """It is told so behind the first event, which says where the client stood if that is known."""
        stream = self.open(wish=wish, resume=resume)
        at = self.hub.position.text
        first, failed = self.take(stream)
        self.assertEqual((failed.event_type, failed.payload), ("gateway.resume_failed", reason))
        self.assertEqual((failed.request_id, failed.trace_id), ("r", "t"))
        self.assertEqual((first.position, failed.position), (first_at or at, at))
        self.assertTrue(stream.live)

    def test_not_a_position(self) -> None:
        """What is none fails, and one of another life of a source that is wanted; of another one it says nothing."""
        self.fails("1700000000000-0", b"malformed")
        self.fails("eb.100-0,sb.100-0", b"epoch", first_at="eb.100-0")
        self.fails("eb.100-0,sb.100-0", b"epoch", SIGNALS_ONLY, first_at="sb.100-0")
        other = Position((Mark("a", (100, 0)), Mark("b", (9, 0)))).text
        self.assertEqual(self.take(self.open(resume=other))[0].position, text(100))

    def test_read_again(self) -> None:
        """What is not in memory any more is read once, and then the stream goes on with what is."""
        self.make(ring_events=2)
        self.publish(item(101), item(102), item(103))
        stream = self.stream()
        effects = self.subscribe(stream, text(50, 100))
        self.assertEqual(effects, [Read(stream, EVENTS, Mark("a", (50, 0)), (101, 0))])
        self.publish(item(104))
        (read,) = effects
        effects = self.hub.read_back(read, [item(60), item(70, "bob"), item(101)], NOW_MS)
        too_old = self.take(stream)[-1]
        self.assertEqual((effects, too_old.payload), ([Joined(stream)], b"too_old"))  # 102 was forgotten meanwhile
        stream = self.stream()
        (read,) = self.subscribe(stream, text(50, 100))
        self.hub.read_back(read, [item(60), item(70, "bob"), item(101), item(102)], NOW_MS)
        self.publish(item(105))
        self.assertEqual(self.taken(stream), [b"60", b"101", b"102", b"103", b"104", b"105"])

    def test_both_read_again(self) -> None:
        """Both sources may have to be read, one after the other; positions say what of each was sent."""
        self.make(ring_events=1)
        self.publish(item(101), item(102))
        self.publish(signal(101), signal(102), source=SIGNALS)
        stream = self.stream(wish=BOTH)
        (read,) = self.subscribe(stream, text(90, 90))
        (second,) = self.hub.read_back(read, [item(101)], NOW_MS)
        self.assertEqual((read.source, second.source, second.up_to), (EVENTS, SIGNALS, (101, 0)))
        self.assertEqual(self.hub.read_back(second, [signal(95), signal(101)], NOW_MS), [Joined(stream)])
        events = self.take(stream)[1:]
        self.assertEqual(
            [(event.payload, event.position) for event in events],
            [
                (b"101", text(101, 90)),
                (b"s95", text(101, 95)),
                (b"s101", text(101, 101)),
                (b"102", text(102, 101)),
                (b"s102", text(102, 102)),
            ],
        )

    def test_cannot_be_read(self) -> None:
        """When the source does not have it, or cannot be asked, the client is told."""
        stream = self.stream()
        (read,) = self.subscribe(stream, text(50))
        self.assertEqual(self.hub.read_back(read, None, NOW_MS), [Joined(stream)])
        self.publish(item(101))
        self.assertEqual(self.taken(stream), [b"too_old", b"101"])

    def test_gone_while_read(self) -> None:
        """What is read for a stream that is over goes nowhere."""
        stream = self.stream()
        (read,) = self.subscribe(stream, text(50))
        self.hub.drop(stream)
        self.assertEqual(self.hub.read_back(read, [item(60)], NOW_MS), [])
        self.assertIsNone(stream.take())

    def test_too_much(self) -> None:
        """More than a stream may hold, in number or in bytes, is not replayed."""
        self.make(replay_events=3)
        self.publish(*(item(at) for at in range(101, 104)))
        self.assertEqual(len(self.taken(self.open(resume=text(100)))), 3)
        self.publish(item(104))
        self.fails(text(100), b"too_much", first_at=text(100))
        self.make(replay_bytes=2000)
        self.publish(item(101, payload=bytes(3000)))
        self.fails(text(100), b"too_much", first_at=text(100))

    def test_ahead(self) -> None:
        """A client that is further than this gateway waits for it, and gets nothing twice."""
        stream = self.stream()
        self.assertEqual(self.subscribe(stream, text(103)), [])
        self.assertEqual(self.take(stream)[0].position, text(103))
        self.publish(item(101), item(102))
        self.assertEqual(self.hub.settle(self.now + 1, NOW_MS), [])
        self.publish(item(103), item(104))
        self.assertEqual(self.hub.settle(self.now + 2, NOW_MS), [Joined(stream)])
        self.publish(item(105))
        self.assertEqual([event.payload for event in self.take(stream)], [b"104", b"105"])

    def test_ahead_for_long(self) -> None:
        """One that stays ahead was told something that this source does not have."""
        stream = self.stream()
        self.subscribe(stream, text(10**15))
        self.assertEqual(self.hub.settle(self.now + AHEAD_S, NOW_MS), [Joined(stream)])
        self.assertEqual(self.taken(stream), [b"ahead"])


class ResetTest(HubCase):
    """A source that has a gap, or is another one."""

    def test_told(self) -> None:
        """Every live stream that gets its events is told; nobody resumes from before; signals are not concerned."""
        ann, bob, signals = self.open("ann/1"), self.open("bob/1", BOTH), self.open("eve/1", SIGNALS_ONLY)
        self.publish(item(101))
        broadcast = self.hub.reset(EVENTS, Mark("b", (7, 0)), NOW_MS)
        self.assertEqual(list(broadcast.streams), [ann, bob])
        self.assertEqual((broadcast.event.payload, broadcast.event.position), (b"gap", "eb.7-0,sa.100-0"))
        self.assertFalse(signals.closed)
        stream = self.open("ann/1", resume=text(101))
        self.assertEqual(self.taken(stream), [b"epoch"])
        self.publish(item(8))
        self.assertEqual(self.taken(self.open("ann/1", resume="eb.7-0")), [b"8"])

    def test_gap(self) -> None:
        """After a gap everybody is told once: who is there, who comes before the next item, who was before it."""
        live, waiting, ahead = self.open("ann/1"), self.stream("ann/2"), self.stream("ann/3")
        self.publish(item(101))
        (read,) = self.subscribe(waiting, text(50))
        self.subscribe(ahead, text(105))
        self.assertEqual(list(self.hub.gap(EVENTS, NOW_MS).streams), [live])
        self.assertEqual(self.taken(self.open("ann/4", resume=text(101))), [b"gap"])
        self.hub.read_back(read, [item(60)], NOW_MS)
        self.assertEqual(self.taken(waiting), [b"gap"])
        self.publish(item(107))
        (read,) = self.hub.settle(self.now, NOW_MS)
        assert isinstance(read, Read)
        self.assertEqual((read.stream, read.up_to), (ahead, (107, 0)))
        self.assertIsInstance(self.subscribe(self.stream("ann/5"), text(101))[0], Read)
        self.publish(item(108))
        self.assertEqual(self.taken(self.open("ann/6", resume=text(107))), [b"108"])

    def test_while_read(self) -> None:
        """A stream for which the source is read then is told too."""
        stream = self.stream()
        (read,) = self.subscribe(stream, text(50))
        self.hub.reset(EVENTS, Mark("b", (7, 0)), NOW_MS)
        self.hub.read_back(read, [item(60)], NOW_MS)
        self.assertEqual(self.taken(stream), [b"epoch"])

    def test_while_ahead(self) -> None:
        """And one that was ahead of it."""
        stream = self.stream()
        self.subscribe(stream, text(103))
        self.hub.reset(EVENTS, Mark("b", (7, 0)), NOW_MS)
        self.assertEqual(self.hub.settle(self.now, NOW_MS), [Joined(stream)])
        self.assertEqual(self.taken(stream), [b"epoch"])


class EndTest(HubCase):
    """How streams end."""

    def test_revoke(self) -> None:
        """All streams of that session, no other, and nothing waits for them any more."""
        one, two, other = self.open("ann/1"), self.open("ann/1", BOTH), self.open("ann/2")
        waiting = self.stream()
        self.subscribe(waiting, text(50))
        close = self.hub.revoke("ann/1")
        self.assertEqual(close, Close((one, two, waiting), REVOKED))
        self.assertEqual((one.take(), two.closed, other.closed), (None, True, False))
        self.assertIsNone(self.hub.revoke("ann/1"))
        self.assertEqual((len(self.hub), self.hub.sessions), (1, ["ann/2"]))
        broadcast = self.hub.publish(EVENTS, item(101), self.now)
        assert broadcast is not None
        self.assertEqual(list(broadcast.streams), [other])

    def test_overflow(self) -> None:
        """One event or one byte too many that waits ends the stream, and that stream only."""
        self.make(queue_events=3, queue_bytes=3000)
        slow, other = self.open("ann/1"), self.open("ann/2")
        for at in range(101, 104):
            broadcast = self.hub.publish(EVENTS, item(at), self.now)
            assert broadcast is not None
            self.assertIsNone(self.hub.hold(slow, broadcast.event))
        self.assertEqual(self.hub.hold(slow, broadcast.event), Close((slow,), OVERFLOWED))
        self.assertEqual((slow.closed, slow.waiting, other.closed), (True, None, False))
        large = Event(
            EventSigner(lambda _: b"", event_input),
            event_type="a",
            event_id="b",
            timestamp_ms=1,
            payload=bytes(2500),
            position="",
        )
        self.assertIsNone(self.hub.hold(other, large))
        self.assertEqual(self.hub.hold(other, large), Close((other,), OVERFLOWED))

    def test_stuck(self) -> None:
        """A stream that takes nothing for a minute while something waits has overflowed too; a quiet one has not."""
        stuck, quiet = self.open("ann/1"), self.open("ann/2")
        self.take(quiet)
        effects = self.hub.beat(self.now + STUCK_S, NOW_MS)
        self.assertIn(Close([stuck], OVERFLOWED), effects)
        self.assertFalse(quiet.closed)

    def test_shutdown(self) -> None:
        """So many at a time, each told a moment to come back at."""
        for number in range(5):
            self.open(f"user-{number}/1")
        chances = iter([0.0, 0.5, 1.0, 0.25, 0.75])
        closes = self.hub.end(3, 1000, lambda: next(chances)) + self.hub.end(3, 1000, lambda: next(chances))
        self.assertEqual([close.ending.retry_after_ms for close in closes], [0, 500, 1000, 250, 750])
        self.assertEqual({close.ending.message for close in closes}, {"gateway is shutting down"})
        self.assertEqual((len(self.hub), self.hub.end(3, 1000, lambda: 0.0)), (0, []))


class HeartbeatTest(HubCase):
    """Quiet streams."""

    def test_one_for_all(self) -> None:
        """One event for every stream that had nothing for so long, with the position; the others get none."""
        quiet = [self.open("ann/1"), self.open("bob/1")]
        for stream in quiet:
            self.take(stream)
            stream.ready = True
        self.now += 10
        busy, blocked = self.open("ann/2"), self.open("ann/3")
        busy.ready = True
        self.publish(item(101, "bob", device_session_id="bob/9"))
        blocked.last_at = self.now - 20
        self.assertEqual(self.hub.beat(self.now + 4.9, NOW_MS), [])
        (beat,) = self.hub.beat(self.now + 5.1, NOW_MS)
        assert isinstance(beat, Broadcast)
        self.assertEqual(list(beat.streams), quiet)
        self.assertEqual((beat.event.event_type, beat.event.position), ("gateway.heartbeat", text(101, 100)))

    def test_not_while_it_joins(self) -> None:
        """A stream for which the source is read gets none: its position would skip what is read."""
        stream = self.stream()
        self.subscribe(stream, text(50))
        self.take(stream)
        stream.ready = True
        self.assertEqual(self.hub.beat(self.now + 100, NOW_MS), [])


class BeginTest(HubCase):
    """A source whose last items were read back."""

    def test_resumed_from_them(self) -> None:
        """A client that comes back after a restart finds in memory what the source had."""
        self.hub = Hub(Bounds(), EventSigner(lambda _: bytes(64), event_input))
        items = [item(51), item(52, "bob"), item(53)]
        self.hub.begin(EVENTS, Mark("a", (60, 0)), (50, 0), items, self.now)
        self.assertEqual(self.hub.position.text, text(60))
        self.assertEqual(self.taken(self.open(resume=text(51))), [b"53"])
        self.assertIsNone(self.hub.publish(EVENTS, item(60), self.now))
        stream = self.open(resume=text(50))
        self.publish(item(61))
        self.assertEqual(self.taken(stream), [*payloads([items[0], items[2]]), b"61"])
