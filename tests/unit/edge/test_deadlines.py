"""Deadlines in slots: late by at most one slot, never early."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.deadlines import SLOT_S, Wheel
from gatewayd.times import Monotonic


class WheelTests(SynchronousTestCase):
    @given(st.lists(st.floats(1000, 1100), min_size=1, max_size=30))
    def test_due(self, deadlines: list[float]) -> None:
        """Looked at every slot, each thing comes out once, after its deadline, and less than two slots after it."""
        wheel: Wheel[int] = Wheel()
        for number, at in enumerate(deadlines):
            wheel.add(number, Monotonic(at))
        seen = []
        for tick in range(int(999 / SLOT_S), int(1102 / SLOT_S)):
            now = Monotonic(tick * SLOT_S)
            for number in wheel.due(now):
                self.assertGreaterEqual(now, deadlines[number] - 1e-9)
                self.assertLess(now, deadlines[number] + 2 * SLOT_S)
                seen.append(number)
        self.assertEqual(sorted(seen), list(range(len(deadlines))))
        self.assertTrue(wheel.empty)

    def test_remove(self) -> None:
        """What was removed does not come out, whenever it is removed; an empty wheel holds nothing."""
        wheel: Wheel[str] = Wheel()
        slot = wheel.add("a", Monotonic(1000.0))
        wheel.add("b", Monotonic(1000.0))
        wheel.remove("a", slot)
        self.assertEqual(len(wheel), 1)
        self.assertEqual(wheel.due(Monotonic(1001.0)), ["b"])
        wheel.remove("b", slot)
        self.assertTrue(wheel.empty)

    def test_order(self) -> None:
        """The earliest comes first, also when several slots are looked at together."""
        wheel: Wheel[str] = Wheel()
        for name, at in (("c", 1003.0), ("a", 1001.0), ("b", 1002.0)):
            wheel.add(name, Monotonic(at))
        self.assertEqual(wheel.due(Monotonic(1010.0)), ["a", "b", "c"])
