"""The publish lane: frames, outcomes, bounds, deadlines."""

import re
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.lane import Breaker, Lane, Outcome
from gatewayd.bus.publication import Ack, BusState, Cause, Message, Published, Unpublished
from tests.fakes.counts import Counts

FRAME = re.compile(rb"HPUB (\S+) (\S+)\.(\d+) (\d+) (\d+)\r\n")
NOW = 1000.0


def message(subject: bytes = b"signals.raw", headers: bytes = b"Nats-Msg-Id: a\r\n", body: bytes = b"{}") -> Message:
    return Message(subject, headers, body)


PAIR = [message(), message(b"signals.normalized", b"Nats-Msg-Id: b\r\n", b"[]")]


def ok(sequence: int, duplicate: bool = False) -> bytes:
    return b'{"stream":"s","seq":%d%b}' % (sequence, b',"duplicate": true' if duplicate else b"")


def error(number: int, text: str) -> bytes:
    return b'{"error":{"code":400,"err_code":%d,"description":"%b"},"stream":"s","seq":0}' % (number, text.encode())


class LaneCase(SynchronousTestCase):
    """A connected lane to the stream `s`, and what came of it."""

    def setUp(self) -> None:
        self.counts = Counts()
        self.bugs: list[Exception] = []
        self.outcomes: list[Outcome] = []
        self.lane = self.make()

    def make(self, **settings: object) -> Lane:
        lane = Lane("s", self.counts, self.bugs.append, **settings)  # type: ignore[arg-type]
        lane.connect(b"_INBOX.x", 1024 * 1024)
        return lane

    def publish(self, *messages: Message, now: float = NOW, done: Callable[[Outcome], object] | None = None) -> object:
        return self.lane.publish(messages, now, done or self.outcomes.append)

    def tokens(self) -> list[str]:
        return [found[3].decode() for found in FRAME.finditer(self.lane.outgoing())]


class FramesTests(LaneCase):
    def test_a_frame_is_hpub_with_reply_lengths_and_the_expected_stream(self) -> None:
        """Both frames of a pair leave in one piece, with exact lengths, tokens of their own and the stream's name."""
        self.assertIsNone(self.publish(*PAIR))
        first = b"NATS/1.0\r\nNats-Expected-Stream: s\r\nNats-Msg-Id: a\r\n\r\n"
        second = first.replace(b"Id: a", b"Id: b")
        self.assertEqual(
            self.lane.outgoing(),
            b"HPUB signals.raw _INBOX.x.4 %d %d\r\n%b{}\r\n" % (len(first), len(first) + 2, first)
            + b"HPUB signals.normalized _INBOX.x.5 %d %d\r\n%b[]\r\n" % (len(second), len(second) + 2, second),
        )
        self.assertEqual(self.lane.outgoing(), b"")

    def test_what_only_a_bug_hands_in_is_an_exception_and_leaves_no_trace(self) -> None:
        """No message, four of them, a subject that is none, headers that break the frame: ValueError."""
        wrong = [
            [],
            [message()] * 4,
            *[
                [message(subject=subject)]
                for subject in (b"", b"a b", b"a..b", b"a.*", b"signals.>", b"a\r\nPUB b", b".")
            ],
            *[[message(headers=headers)] for headers in (b"X: y", b"\r\n", b"X: y\r\n\r\nZ: 1\r\n", b"\r\nX: y\r\n")],
            [message(), message(subject=b"*")],
        ]
        for messages in wrong:
            self.assertRaises(ValueError, self.publish, *messages)
        self.assertEqual((self.lane.unacked, self.lane.outgoing()), (0, b""))

    def test_tokens_are_never_used_again(self) -> None:
        """Every publication has tokens that none had before, through any number of reconnects."""
        seen: list[str] = []
        for _ in range(3):
            self.publish(*PAIR)
            self.publish(message())
            seen += self.tokens()
            self.lane.disconnect("gone")
            self.lane.connect(b"_INBOX.y", 1024)
        self.assertEqual(len(set(seen)), 9)

    @given(st.lists(st.binary(max_size=200), min_size=1, max_size=3))
    def test_any_body_keeps_the_frames_apart(self, bodies: list[bytes]) -> None:
        """Whatever the bodies hold, reading by the lengths gives the messages back."""
        self.setUp()
        self.publish(*[message(body=body) for body in bodies])
        rest, read = self.lane.outgoing(), []
        while rest:
            found = FRAME.match(rest)
            assert found is not None
            head, total, begin = int(found[4]), int(found[5]), found.end()
            read.append(rest[begin + head : begin + total])
            self.assertEqual(rest[begin + total : begin + total + 2], b"\r\n")
            rest = rest[begin + total + 2 :]
        self.assertEqual(read, bodies)


class OutcomesTests(LaneCase):
    def test_both_acknowledgements_make_one_outcome_in_the_order_of_the_messages(self) -> None:
        """One Published with both acks, in the order of the messages, whichever came first; counted and timed."""
        self.publish(*PAIR)
        raw, norm = self.tokens()
        self.lane.answer(norm, None, ok(8, True), NOW + 0.1)
        self.assertEqual(self.outcomes, [])
        self.lane.answer(raw, None, ok(7), NOW + 0.25)
        self.assertEqual(self.outcomes, [Published((Ack(7, False), Ack(8, True)))])
        self.assertEqual(self.counts.messages, {(b"signals.raw", True): 1, (b"signals.normalized", True): 1})
        self.assertEqual(self.counts.seconds, [0.25])
        self.assertEqual((self.lane.last_sequence, self.lane.last_ack_at, self.lane.unacked), (8, NOW + 0.25, 0))

    def test_acknowledgements_in_other_spellings(self) -> None:
        """A domain, other members, other blanks: still an acknowledgement."""
        for body in (
            b'{"stream":"s","domain":"hub","seq":9,"duplicate":true}',
            b'{ "seq": 9, "stream": "s", "duplicate": true, "batch": "x" }',
        ):
            self.publish(message())
            self.lane.answer(self.tokens()[0], None, body, NOW)
        self.assertEqual(self.outcomes, [Published((Ack(9, True),))] * 2)

    def test_errors_of_jetstream(self) -> None:
        """Full is STREAM_FULL; nobody there, another stream, no acknowledgement at all: REJECTED, with the text."""
        cases: list[tuple[dict[str, str] | None, bytes, Cause, str]] = [
            (None, error(10077, "maximum bytes exceeded"), Cause.STREAM_FULL, "maximum bytes exceeded (10077)"),
            (None, error(10099, "maximum things exceeded"), Cause.STREAM_FULL, "maximum things exceeded (10099)"),
            (None, error(10060, "expected stream does not match"), Cause.REJECTED, "expected stream"),
            ({"Status": "503"}, b"", Cause.REJECTED, "no stream listens"),
            ({"Status": "408"}, b"", Cause.REJECTED, "408"),
            (None, b"", Cause.REJECTED, "no acknowledgement"),
            (None, b"[]", Cause.REJECTED, "no acknowledgement"),
            (None, b'{"seq":0}', Cause.REJECTED, "no acknowledgement"),
            (None, b'{"error":"x"}', Cause.REJECTED, "no acknowledgement"),
            (None, b"\xff{", Cause.REJECTED, "no acknowledgement"),
        ]
        for headers, body, cause, text in cases:
            self.publish(message())
            self.lane.answer(self.tokens()[0], headers, body, NOW)
            outcome = self.outcomes.pop()
            assert isinstance(outcome, Unpublished)
            self.assertIs(outcome.cause, cause)
            self.assertIn(text, outcome.error)
        self.assertEqual(self.counts.messages, {(b"signals.raw", False): len(cases)})

    def test_one_error_is_the_outcome_of_the_pair(self) -> None:
        """Raw stored and normalised refused: the pair is not known to be stored."""
        self.publish(*PAIR)
        raw, norm = self.tokens()
        self.lane.answer(norm, None, error(10077, "maximum messages exceeded"), NOW)
        self.lane.answer(raw, None, ok(1), NOW)
        self.assertEqual([type(outcome) for outcome in self.outcomes], [Unpublished])
        self.assertEqual(self.counts.seconds, [])

    def test_a_twin_being_proposed_is_published_again_within_the_deadline(self) -> None:
        """10158: the message is written again at the next sweep and its answer counts; else the deadline ends it."""
        twin = error(10158, "duplicate message id is in process")
        self.publish(*PAIR)
        raw, norm = self.tokens()
        self.lane.answer(raw, None, twin, NOW)
        self.lane.answer(norm, None, ok(2), NOW)
        self.assertEqual(self.outcomes, [])
        self.lane.sweep(NOW + 0.05)
        self.assertEqual(self.tokens(), [raw])
        self.lane.answer(raw, None, ok(1, True), NOW + 0.1)
        self.assertEqual(self.outcomes, [Published((Ack(1, True), Ack(2, False)))])
        self.publish(message())
        self.lane.answer(self.tokens()[0], None, twin, NOW)
        self.lane.sweep(NOW + 2.0)
        self.assertEqual(self.tokens(), [])
        self.assertEqual(self.outcomes[1], Unpublished(Cause.TIMEOUT, "no acknowledgement within 2 s"))

    def test_late_unknown_and_repeated_acknowledgements_are_counted_and_harm_nobody(self) -> None:
        """An acknowledgement without somebody who waits for it changes no outcome."""
        self.publish(*PAIR)
        raw, _ = self.tokens()
        for token in ("0", "3", "6", "7", "999999"):
            self.lane.answer(token, None, ok(1), NOW)
        self.lane.answer(raw, None, ok(1), NOW)
        self.lane.answer(raw, None, ok(1), NOW)
        self.assertEqual((self.outcomes, self.counts.late), ([], 6))
        self.lane.disconnect("gone")
        self.lane.answer(raw, None, ok(1), NOW)
        self.assertEqual((len(self.outcomes), self.counts.late), (1, 7))

    def test_a_disconnect_ends_everything_and_writes_nothing_later(self) -> None:
        """All under way is DISCONNECTED once; frames that were not taken are gone, so no ghost comes of them."""
        for _ in range(3):
            self.publish(*PAIR)
        self.lane.disconnect("reset by peer")
        self.assertEqual(self.outcomes, [Unpublished(Cause.DISCONNECTED, "reset by peer")] * 3)
        self.assertIsInstance(self.publish(message()), Unpublished)
        self.lane.connect(b"_INBOX.z", 1024)
        self.assertEqual((self.lane.outgoing(), self.lane.unacked, self.lane.sweep(NOW + 9)), (b"", 0, 0))

    def test_a_waiter_that_raises_is_reported_and_the_next_one_is_told(self) -> None:
        """An exception of a waiter stops neither an acknowledgement nor a sweep nor a disconnect."""

        def broken(_: Outcome) -> None:
            raise ZeroDivisionError

        for end in (
            lambda tokens: [self.lane.answer(token, None, ok(1), NOW) for token in tokens],
            lambda _: self.lane.sweep(NOW + 5),
            lambda _: self.lane.disconnect("gone"),
        ):
            self.publish(message(), done=broken)
            self.publish(message())
            end(self.tokens())
        self.assertEqual((len(self.outcomes), len(self.bugs)), (3, 3))

    def test_a_waiter_may_publish(self) -> None:
        """What a waiter publishes from within its outcome is a publication like any other."""
        self.publish(message(), done=lambda _: self.publish(message()))
        self.lane.answer(self.tokens()[0], None, ok(1), NOW)
        self.assertEqual((self.lane.unacked, len(self.tokens())), (1, 1))
        self.publish(message(), done=lambda _: self.publish(message(), now=NOW + 2))
        self.assertEqual(self.lane.sweep(NOW + 2), 2)
        self.assertEqual(self.lane.unacked, 1)


class BoundsTests(LaneCase):
    def test_the_bound_on_publications(self) -> None:
        """The 1001st unacknowledged publication is refused at once and not written; an ack makes room."""
        for _ in range(1000):
            self.assertIsNone(self.publish(message()))
        tokens = self.tokens()
        refused = self.publish(message())
        assert isinstance(refused, Unpublished)
        self.assertIs(refused.cause, Cause.BUFFER)
        self.assertEqual(self.tokens(), [])
        self.lane.answer(tokens[500], None, ok(1), NOW)
        self.assertIsNone(self.publish(message()))

    def test_the_bound_on_bytes_is_kept_through_every_kind_of_end(self) -> None:
        """Bytes under way are bounded, and every end gives them back."""
        self.lane = self.make(limit_bytes=1000)
        big = message(headers=b"", body=b"x" * 600)
        for end in (
            lambda tokens: self.lane.answer(tokens[0], None, ok(1), NOW),
            lambda tokens: self.lane.answer(tokens[0], None, error(1, "no"), NOW),
            lambda _: self.lane.sweep(NOW + 2),
            lambda _: (self.lane.disconnect("gone"), self.lane.connect(b"i", 1024 * 1024)),
            lambda _: None,
        ):
            self.assertIsNone(self.publish(big))
            refused = self.publish(big)
            assert isinstance(refused, Unpublished)
            self.assertIs(refused.cause, Cause.BUFFER)
            end(self.tokens())

    def test_the_largest_message(self) -> None:
        """max_message is exactly what the server's max_payload leaves; one byte more is REJECTED, at once."""
        self.lane.connect(b"_INBOX.x", 500)
        fits = message(headers=b"A: b\r\n", body=b"x" * (self.lane.max_message - 6))
        self.assertIsNone(self.publish(fits))
        found = FRAME.match(self.lane.outgoing())
        assert found is not None
        self.assertEqual(int(found[5]), 500)
        refused = self.publish(message(), message(headers=b"A: b\r\n", body=fits.body + b"x"))
        assert isinstance(refused, Unpublished)
        self.assertIs(refused.cause, Cause.REJECTED)
        self.assertEqual(self.lane.outgoing(), b"")

    def test_deadlines(self) -> None:
        """A publication ends at its own deadline, with TIMEOUT, and not before; the younger one stays."""
        self.publish(message(), now=NOW)
        self.publish(message(), now=NOW + 1)
        self.assertEqual(self.lane.sweep(NOW + 1.99), 0)
        self.assertEqual(self.lane.sweep(NOW + 2.0), 1)
        self.assertEqual(self.outcomes, [Unpublished(Cause.TIMEOUT, "no acknowledgement within 2 s")])
        self.assertEqual((self.lane.unacked, self.counts.errors["timeout"]), (1, 1))


class StateTests(LaneCase):
    def timeouts(self, count: int, now: float) -> float:
        """Let publications time out, one after the other, and say when the last one did."""
        for _ in range(count):
            self.assertIsNone(self.publish(message(), now=now))
            now += 2.0
            self.lane.sweep(now)
        return now

    def test_before_and_after_a_connection(self) -> None:
        """Disconnected until connect() and after disconnect(), and a publish is then refused at once."""
        lane = Lane("s", self.counts, self.bugs.append)
        self.assertIs(lane.state(NOW), BusState.DISCONNECTED)
        refused = lane.publish(PAIR, NOW, self.outcomes.append)
        self.assertEqual(refused, Unpublished(Cause.DISCONNECTED, "not connected"))
        lane.connect(b"i", 1024)
        self.assertIs(lane.state(NOW), BusState.CONNECTED)
        lane.disconnect("gone")
        self.assertIs(lane.state(NOW), BusState.DISCONNECTED)

    def test_one_timeout_degrades_for_ten_seconds(self) -> None:
        """A timeout is remembered for 10 s."""
        now = self.timeouts(1, NOW)
        self.assertIs(self.lane.state(now + 9.9), BusState.DEGRADED)
        self.assertIs(self.lane.state(now + 10), BusState.CONNECTED)

    def test_slow_refused_and_full_degrade(self) -> None:
        """An acknowledgement after more than a second, an error, a full buffer: degraded."""
        self.lane = self.make(limit=1)
        self.publish(message())
        self.lane.answer(self.tokens()[0], None, ok(1), NOW + 0.9)
        self.assertIs(self.lane.state(NOW + 1), BusState.CONNECTED)
        self.publish(message())
        self.lane.answer(self.tokens()[0], None, ok(1), NOW + 1.1)
        self.assertIs(self.lane.state(NOW + 1.1), BusState.DEGRADED)
        self.publish(message(), now=NOW + 20)
        self.lane.answer(self.tokens()[0], None, error(1, "no"), NOW + 20)
        self.assertIs(self.lane.state(NOW + 20), BusState.DEGRADED)
        self.publish(message(), now=NOW + 40)
        self.publish(message(), now=NOW + 40)
        self.assertIs(self.lane.state(NOW + 40), BusState.DEGRADED)

    def test_a_server_that_never_acknowledges_is_known_to_be_down_and_tried_once_a_second(self) -> None:
        """After three timeouts in a row publishes are refused at once but one a second; one answer ends it."""
        now = self.timeouts(3, NOW)
        self.assertIs(self.lane.state(now), BusState.DISCONNECTED)
        refused = self.publish(message(), now=now + 0.99)
        assert isinstance(refused, Unpublished)
        self.assertIs(refused.cause, Cause.DISCONNECTED)
        self.tokens()
        now += 1.0
        self.assertIs(self.lane.state(now), BusState.DEGRADED)
        self.assertIsNone(self.publish(message(), now=now))
        self.assertIsNotNone(self.publish(message(), now=now + 0.5))
        self.assertIs(self.lane.state(now + 0.5), BusState.DISCONNECTED)
        self.lane.answer(self.tokens()[0], None, ok(1), now + 0.6)
        self.assertIs(self.lane.state(now + 0.6), BusState.DEGRADED)
        self.assertIsNone(self.publish(message(), now=now + 0.6))
        self.assertIs(self.lane.state(now + 20), BusState.CONNECTED)

    def test_an_answer_between_timeouts_keeps_the_breaker_closed(self) -> None:
        """Only timeouts in a row count; an error is an answer too."""
        now = self.timeouts(2, NOW)
        self.publish(message(), now=now)
        self.lane.answer(self.tokens()[-1], None, error(10077, "maximum bytes exceeded"), now)
        now = self.timeouts(2, now)
        self.assertIs(self.lane.state(now), BusState.DEGRADED)
        self.assertEqual(self.lane.timeouts, 2)

    def test_a_new_connection_begins_anew(self) -> None:
        """The timeouts of the old server say nothing of the new one."""
        now = self.timeouts(3, NOW)
        self.lane.disconnect("left")
        self.lane.connect(b"i", 1024)
        self.assertIsNone(self.publish(message(headers=b""), now=now))

    @given(st.lists(st.sampled_from(["timeout", "answer", "try", "wait"]), max_size=40))
    def test_a_breaker_never_closes_for_ever_and_opens_only_after_three_in_a_row(self, steps: list[str]) -> None:
        """Whatever happens: closed below three timeouts in a row; open, one try a second is allowed."""
        breaker, now, row = Breaker(), NOW, 0
        breaker.connected = True
        for step in steps:
            if step == "timeout":
                breaker.timed_out(now)
                row += 1
            elif step == "answer":
                breaker.answered()
                row = 0
            elif step == "wait":
                now += 1.0
                self.assertIsNot(breaker.state(now), BusState.DISCONNECTED)
            elif row < 3:
                self.assertTrue(breaker.allows(now))
            else:
                breaker.allows(now)
                self.assertFalse(breaker.allows(now))


class LedgerTests(LaneCase):
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["publish", "ack", "error", "again", "late", "sweep", "lose"]), st.integers(0, 9)
            ),
            max_size=80,
        )
    )
    def test_every_publication_has_exactly_one_outcome(self, steps: list[tuple[str, int]]) -> None:
        """In any order of acks, errors, retries, sweeps and losses: one outcome each, and no bytes left behind."""
        self.setUp()
        now, accepted, due = NOW, 0, []
        for step, n in steps:
            now += 0.01 * n
            if step == "publish":
                accepted += self.publish(*PAIR, now=now) is None
            elif step in ("ack", "error", "again") and due:
                body = {"ack": ok(n + 1), "error": error(1, "no"), "again": error(10158, "twin")}[step]
                self.lane.answer(due.pop(n % len(due)), None, body, now)
            elif step == "late":
                self.lane.answer(str(n), None, ok(1), now)
            elif step == "sweep":
                self.lane.sweep(now + n)
            elif step == "lose":
                self.lane.disconnect("gone")
                self.lane.connect(b"i", 1024 * 1024)
            due += self.tokens()
        self.lane.disconnect("end")
        self.assertEqual((len(self.outcomes), self.lane.unacked, self.bugs), (accepted, 0, []))
        self.assertEqual(self.lane._bytes, 0)
