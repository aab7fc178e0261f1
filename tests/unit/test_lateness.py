"""What the loop's lag shows."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.lateness import PART_S, PARTS, TICK_S, Lateness
from gatewayd.lifecycle import Ticker
from gatewayd.times import Monotonic


class LatenessTest(SynchronousTestCase):
    """Ticked as in the product, by a Ticker."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.lateness = Lateness()
        self.ticker = Ticker(self.clock, TICK_S, lambda: self.lateness.tick(self.now), "lag")
        self.ticker.startService()
        self.addCleanup(self.ticker.stopService)
        self.run_for(1.0)

    @property
    def now(self) -> Monotonic:
        return Monotonic(self.clock.seconds())

    def run_for(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))

    def stuck(self, seconds: float) -> None:
        """One turn of the loop takes so long."""
        self.clock.advance(seconds)

    def test_a_loop_in_time(self) -> None:
        """Nothing late, nothing shown."""
        self.run_for(100.0)
        self.assertApproximates(self.lateness.worst(self.now), 0.0, 0.011)

    def test_a_loop_that_was_stuck(self) -> None:
        """Its length is seen, short of one tick at most, for a minute and not for ever."""
        self.stuck(2.0)
        self.assertApproximates(self.lateness.worst(self.now), 2.0, TICK_S + 1e-9)
        self.run_for(PART_S * PARTS - 1)
        self.assertApproximates(self.lateness.worst(self.now), 2.0, TICK_S + 1e-9)
        self.run_for(PART_S + 2)
        self.assertLess(self.lateness.worst(self.now), 0.011)

    def test_a_loop_that_is_always_late(self) -> None:
        """Late by the same each time is late, though the ticks come at an even pace."""
        for _ in range(100):
            self.stuck(0.03)
        self.assertGreater(self.lateness.worst(self.now), 0.009)
        for _ in range(20):
            self.stuck(0.3)
        self.assertGreater(self.lateness.worst(self.now), 0.24)

    def test_a_scrape_in_the_turn_that_is_late(self) -> None:
        """The tick that is overdue while the answer is made counts."""
        self.clock.rightNow += 0.7
        self.assertApproximates(self.lateness.worst(self.now), 0.7, TICK_S + 1e-9)

    def test_a_long_sleep(self) -> None:
        """A process that was stopped for hours shows it, once."""
        self.stuck(7200.0)
        self.assertGreater(self.lateness.worst(self.now), 7199.0)
        self.run_for(PART_S * (PARTS + 1) + 1)
        self.assertLess(self.lateness.worst(self.now), 0.011)
