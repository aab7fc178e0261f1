"""Frames counted by their heads: what is passed on, what is taken out, what is too much."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.h2limits import (
    BLOCK_BYTES,
    CAUSED,
    ENHANCE_YOUR_CALM,
    RULES,
    Excess,
    Meter,
    count_resets,
)
from gatewayd.times import Monotonic
from tests.h2peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RESET,
    SETTINGS,
    UPDATE,
    frame,
    settings,
)

NOW = Monotonic(1000.0)
FLOODED = {
    PRIORITY: frame(PRIORITY, 0, 1, bytes(5)),
    RESET: frame(RESET, 0, 1, bytes(4)),
    SETTINGS: settings(),
    PING: frame(PING, ACK, 0, bytes(8)),
    UPDATE: frame(UPDATE, 0, 0, bytes(4)),
    CONTINUATION: frame(CONTINUATION, 0, 1, b"x"),
    0xA: frame(0x77),
    0xB: frame(DATA, 0, 1),
    0xC: frame(DATA, 0, 1, b"x" * 255),
}
"""One frame of each counted kind."""


def begun(now: Monotonic = NOW) -> Meter:
    """The meter of a connection whose preface is through."""
    meter = Meter(now)
    assert meter.read(PREFACE, now) == PREFACE
    return meter


def pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The data in pieces of these sizes, over and over."""
    at = 0
    while at < len(data):
        for size in sizes:
            yield data[at : at + size]
            at += size


class MeterTests(SynchronousTestCase):
    def test_bursts(self) -> None:
        """Of each kind as many pass at once as its rule says, and not one more."""
        for kind, sent in FLOODED.items():
            meter, rule = begun(), RULES[kind]
            for _ in range(int(rule.burst)):
                self.assertEqual(meter.read(sent, NOW), sent)
            self.assertEqual(meter.read(sent, NOW), Excess(ENHANCE_YOUR_CALM, rule.name))

    def test_rates(self) -> None:
        """In the long run as many pass in a second as the rule says; resting saves up no more than a burst."""
        for kind, sent in FLOODED.items():
            meter, rule = begun(), RULES[kind]
            meter.read(sent * int(rule.burst), NOW)
            for second in range(1, 5):
                then = Monotonic(NOW + second)
                self.assertIsInstance(meter.read(sent * int(rule.per_s), then), bytes, rule)
            self.assertIsInstance(meter.read(sent, then), Excess, rule)
            later = Monotonic(NOW + 1_000_000)
            meter = begun()
            self.assertIsInstance(meter.read(sent * (int(rule.burst) + 1), later), Excess, rule)

    def test_what_carries_something_is_not_counted(self) -> None:
        """Requests and their data pass in any number."""
        meter = begun()
        request = frame(HEADERS, 4, 1, b"h" * 50) + frame(DATA, END_STREAM, 1, b"") + frame(DATA, 0, 1, b"x" * 256)
        for _ in range(5000):
            self.assertIsInstance(meter.read(request, NOW), bytes)

    def test_what_we_sent_entitles_to_answers(self) -> None:
        """A peer may open its windows twice for each event (a head and a body), and ping once, for any number."""
        meter = begun()
        answers = FLOODED[UPDATE] * 4 + FLOODED[PING]
        for _ in range(5000):
            meter.sent += 2
            self.assertIsInstance(meter.read(answers, NOW), bytes)

    def test_lengths(self) -> None:
        """A frame above 2^14 is refused by its head, a header block above its bound by its frames together."""
        self.assertEqual(begun().read(b"\x00\x40\x01\0\0\0\0\0\1", NOW), Excess(6, "frame_too_long"))
        meter, sent = begun(), 16_000
        meter.read(frame(HEADERS, 0, 1, b"h" * 16_000), NOW)
        while sent + 16_000 <= BLOCK_BYTES:
            sent += 16_000
            self.assertIsInstance(meter.read(frame(CONTINUATION, 0, 1, b"h" * 16_000), NOW), bytes)
        refused = meter.read(frame(CONTINUATION, 4, 1, b"h" * 16_000), NOW)
        self.assertEqual(refused, Excess(ENHANCE_YOUR_CALM, "header_block_too_long"))

    def test_settings(self) -> None:
        """64 settings in one frame pass, 65 do not; an acknowledgement carries none (RFC 9113, 6.5)."""
        self.assertIsInstance(begun().read(settings(*((n, 1) for n in range(64))), NOW), bytes)
        self.assertIsInstance(begun().read(settings(*((n, 1) for n in range(65))), NOW), Excess)
        self.assertEqual(begun().read(frame(SETTINGS, ACK, 0, bytes(6)), NOW), Excess(6, "settings_ack_with_payload"))

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 30), st.integers(8, 60))
    def test_a_farewell_is_taken_out(self, sizes: list[int], before: int, length: int) -> None:
        """However the bytes are cut, everything but a GOAWAY is passed on, in order."""
        first, last = frame(PING, 0, 0, bytes(8)) + frame(DATA, 1, 1, b"d" * before), frame(RESET, 0, 1, bytes(4))
        meter = Meter(NOW)
        passed = []
        for piece in pieces(PREFACE + first + frame(GOAWAY, 0, 0, bytes(length)) + last, sizes):
            passed.append(meter.read(piece, NOW))
        self.assertEqual(b"".join(passed), PREFACE + first + last)  # type: ignore[arg-type]
        self.assertTrue(meter.leaving)

    @given(st.binary(max_size=300), st.lists(st.integers(1, 40), min_size=1, max_size=5))
    def test_anything_is_judged_alike_in_any_pieces(self, data: bytes, sizes: list[int]) -> None:
        """Nothing raises; cut differently, the same bytes are passed on, or the same reason is given."""
        whole = begun().read(data, NOW)
        meter = begun()
        passed = b""
        for piece in pieces(data, sizes):
            got = meter.read(piece, NOW)
            if isinstance(got, Excess):
                self.assertEqual(got, whole)
                return
            passed += got
        self.assertEqual(passed, whole)

    def test_a_malformed_farewell_is_passed_on(self) -> None:
        """GOAWAY on a stream, or too short, is for the machine to refuse."""
        for wrong in (frame(GOAWAY, 0, 1, bytes(8)), frame(GOAWAY, 0, 0, bytes(7))):
            meter = begun()
            self.assertEqual(meter.read(wrong, NOW), wrong)
            self.assertFalse(meter.leaving)

    def test_forgiving(self) -> None:
        """A token that is given back can be used again."""
        meter = begun()
        rule = RULES[CAUSED]
        self.assertIsNone(meter.take(CAUSED, int(rule.burst)))
        meter.forgive(CAUSED)
        self.assertIsNone(meter.take(CAUSED))
        self.assertEqual(meter.take(CAUSED), Excess(ENHANCE_YOUR_CALM, rule.name))

    def test_counting_resets(self) -> None:
        """Resets are found among other frames of ours."""
        sent = frame(PING, 1, 0, bytes(8)) + frame(RESET, 0, 1, bytes(4)) + settings() + frame(RESET, 0, 3, bytes(4))
        self.assertEqual(count_resets(sent), 2)
        self.assertEqual(count_resets(b""), 0)
