"""When webhooks are refused because others have waited too long, and when they are not."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import RETRYABLE
from gatewayd.ingress.shedding import CALM_S, INTERVAL_S, KEPT_S, OVERLOAD, STANDING_S, STEP_S, Shedding
from gatewayd.times import Monotonic

TURN_S = 0.01


class SheddingTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.shedding = Shedding()
        self.now = 100.0
        self.turn(0.0)

    def turn(self, waited_s: float, times: int = 1, *, lasting_s: float = TURN_S) -> None:
        """Turns of the loop in which the oldest webhook has waited for so long."""
        for _ in range(times):
            self.now += lasting_s
            self.shedding.waited(waited_s, Monotonic(self.now))

    def refuses(self, waited_s: float) -> bool:
        return self.shedding.refuses(waited_s, Monotonic(self.now))

    def overload(self) -> None:
        self.turn(2 * STANDING_S, int(INTERVAL_S / TURN_S) + 2)

    def test_a_wait_that_stands_refuses(self) -> None:
        """Refused once the oldest has waited too long for the whole interval, in every turn of it, not before."""
        self.turn(2 * STANDING_S, int(INTERVAL_S / TURN_S) - 1)
        self.assertFalse(self.refuses(2 * STANDING_S))
        self.turn(2 * STANDING_S, 3)
        self.assertTrue(self.refuses(2 * STANDING_S))

    def test_a_wait_that_is_common_does_not(self) -> None:
        """However long it lasts, a wait of less than STANDING_S is no overload."""
        self.turn(STANDING_S, 10_000)
        self.assertFalse(self.refuses(STANDING_S))

    def test_one_turn_without_it_begins_anew(self) -> None:
        """A queue that empties now and then is no standing one."""
        for _ in range(10):
            self.turn(2 * STANDING_S, int(INTERVAL_S / TURN_S) - 2)
            self.turn(0.0)
        self.assertFalse(self.refuses(2 * STANDING_S))

    def test_a_pause_says_nothing(self) -> None:
        """A process that was stopped for ten seconds, twice, refuses nobody of those who waited through it."""
        for _ in range(2):
            self.turn(10.0, lasting_s=10.0)
            self.turn(10.1, 5)
        self.assertLess(2 * STEP_S + 10 * TURN_S, INTERVAL_S)
        self.assertFalse(self.refuses(10.2))

    def test_enough_work_is_kept(self) -> None:
        """In overload whoever comes while the oldest has waited only a little is taken: the loop never runs dry."""
        self.overload()
        self.assertFalse(self.refuses(KEPT_S))
        self.assertTrue(self.refuses(KEPT_S + 0.001))
        self.assertFalse(self.refuses(0.0))

    def test_it_ends(self) -> None:
        """Nobody refused for a while: over, and it takes another whole interval of waiting to begin again."""
        self.overload()
        self.assertTrue(self.refuses(2 * KEPT_S))
        self.now += CALM_S / 2
        self.assertFalse(self.refuses(0.0))
        self.assertTrue(self.refuses(2 * KEPT_S))
        self.turn(0.0)
        self.now += CALM_S
        self.assertFalse(self.refuses(0.0))
        self.assertFalse(self.refuses(2 * STANDING_S))

    def test_the_answer(self) -> None:
        """503 GW-010 with its own reason, which carries Retry-After; and its connection rests."""
        self.assertEqual((OVERLOAD.code, OVERLOAD.details), ("GW-010", {"reason": "overload"}))
        self.assertIn(OVERLOAD.http_status, RETRYABLE)
        self.assertTrue(OVERLOAD.rest)
