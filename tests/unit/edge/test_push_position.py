"""Positions: their text, and which is further."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.position import EVENTS, LONGEST, SIGNALS, Mark, Position, parse_position

NUMBERS = st.integers(0, 2**64 - 1)
MARKS = st.none() | st.builds(Mark, st.from_regex("[0-9A-Za-z_-]{1,36}", fullmatch=True), st.tuples(NUMBERS, NUMBERS))
POSITIONS = st.builds(Position, st.tuples(MARKS, MARKS))
NEAR = st.builds(
    Position,
    st.tuples(
        *[st.none() | st.builds(Mark, st.just("a"), st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(2)]
    ),
)


class PositionTest(SynchronousTestCase):
    """Positions."""

    @given(POSITIONS)
    def test_text(self, position: Position) -> None:
        """What is written is read back, is short, and needs no escape anywhere; nothing at all is no position."""
        text = position.text
        self.assertLessEqual(len(text), LONGEST)
        self.assertRegex(text, r"\A[0-9A-Za-z_.,-]*\Z")
        self.assertEqual(parse_position(text.encode()), position if text else None)

    @given(st.binary(max_size=60) | POSITIONS.map(lambda one: one.text.encode()[:-1] + b"0 "))
    def test_anything(self, text: bytes) -> None:
        """Whatever is sent is a position that would be written like that, or none."""
        found = parse_position(text)
        self.assertTrue(found is None or found.text.encode() == text)

    def test_refused(self) -> None:
        """Each of these is nearly a position."""
        good = "ea.1-2,sb.3-0"
        self.assertEqual(parse_position(good.encode()), Position((Mark("a", (1, 2)), Mark("b", (3, 0)))))
        for text in (
            "",
            ",",
            "ea.1-2,",
            ",sb.3-0",
            "ea.1-2sb.3-0",
            "sb.3-0,ea.1-2",
            "ea.1-2,ea.1-2",
            "ea.01-2",
            "ea.1-",
            "ea.1",
            "e.1-2",
            "ea.-1-2",
            "ea.1-2\n",
            "ea.18446744073709551616-0",
            "1700000000000-0",
            "$",
            "ea.1-2" + "0" * LONGEST,
            "ea.\u0661-2",
        ):
            self.assertIsNone(parse_position(text.encode()), text)

    def test_order(self) -> None:
        """Numbers are compared as numbers, one after the other."""
        nine, ten = Position((Mark("a", (9, 9)), None)), Position((Mark("a", (10, 0)), None))
        self.assertIs(nine.joined(ten), ten)
        self.assertEqual(ten.joined(nine), ten)

    @given(NEAR, NEAR)
    def test_joined(self, one: Position, other: Position) -> None:
        """Joined, each mark is the further of both, and what changes nothing makes nothing new."""
        joined = one.joined(other)
        for source in (EVENTS, SIGNALS):
            marks = [mark for mark in (one.marks[source], other.marks[source]) if mark is not None]
            self.assertEqual(joined.marks[source], max(marks, key=lambda mark: mark.at, default=None))
        self.assertEqual(joined is other, joined == other)

    def test_another_epoch(self) -> None:
        """Numbers of two epochs are not compared: what comes after is what holds."""
        old, new = Position((Mark("a", (9, 0)), None)), Position((Mark("b", (1, 0)), None))
        self.assertIs(old.joined(new), new)
