"""How far the stream had been acknowledged, at times kept sparsely."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.marks import Marks


class MarksTest(SynchronousTestCase):
    @given(st.lists(st.tuples(st.floats(0.01, 20.0), st.integers(0, 5)), max_size=60), st.floats(0, 400))
    def test_what_is_kept_is_true(self, steps: list[tuple[float, int]], time: float) -> None:
        """Never a sequence that was acknowledged later than asked; never one that was not acknowledged."""
        marks, now, sequence, noted = Marks(7.0, 8), 0.0, 0, [(0.0, 0)]
        for seconds, more in steps:
            now, sequence = now + seconds, sequence + more
            marks.note(now, sequence)
            noted.append((now, sequence))
        self.assertLessEqual(marks.before(time), max(known for at, known in noted if at <= time))
        found = marks.last_below(sequence, time)
        self.assertTrue(found == 0 or (found < sequence and any(known == found and at >= time for at, known in noted)))

    def test_spacing_and_bound(self) -> None:
        """One mark per interval, the newest follows the present; a sequence that rests makes none; old ones go."""
        marks = Marks(10.0, 3)
        for at in range(100):
            marks.note(float(at), at + 1)
        self.assertEqual([marks.before(float(at)) for at in (99, 98, 89, 81, 80)], [100, 91, 82, 82, 0])
        marks.note(500.0, 100)
        self.assertEqual(marks.before(99.0), 100)
        marks.clear()
        self.assertEqual(marks.before(1000.0), 0)

    def test_last_below(self) -> None:
        """The newest mark below a sequence, when it is young enough."""
        marks = Marks(1.0, 10)
        for at in range(5):
            marks.note(float(at), 10 * at)
        self.assertEqual(marks.last_below(25, 0.0), 20)
        self.assertEqual(marks.last_below(25, 2.5), 0)
        self.assertEqual(marks.last_below(10, 0.0), 0)
