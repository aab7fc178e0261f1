"""The breaker: when a service is asked, and when no more."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.commands.breaker import FAILURES, LONGEST_PAUSE_S, PAUSE_S, SUCCESSES, Breaker, State
from gatewayd.times import Monotonic


class BreakerTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = Monotonic(1000.0)
        self.breaker = Breaker()

    def pass_s(self, seconds: float) -> None:
        self.now = Monotonic(self.now + seconds)

    def once(self, *, ok: bool | None) -> None:
        ticket = self.breaker.enter(self.now)
        assert ticket is not None
        self.breaker.settle(ticket, self.now, ok=ok)

    def break_it(self) -> None:
        for _ in range(FAILURES):
            self.once(ok=False)
        self.assertIs(self.breaker.state, State.OPEN)

    def test_failures_in_a_row_open_it(self) -> None:
        """Five in a row open it; one that goes well begins the count anew, one that says nothing does not."""
        for _ in range(FAILURES - 1):
            self.once(ok=False)
        self.once(ok=True)
        for _ in range(FAILURES - 1):
            self.once(ok=False)
        self.once(ok=None)
        self.assertIs(self.breaker.state, State.CLOSED)
        self.once(ok=False)
        self.assertIs(self.breaker.state, State.OPEN)

    def test_open_refuses_at_once(self) -> None:
        """Open, nothing passes until the pause is over, and a refusal says how long that is."""
        self.break_it()
        self.assertIsNone(self.breaker.enter(self.now))
        self.pass_s(PAUSE_S - 0.25)
        self.assertIsNone(self.breaker.enter(self.now))
        self.assertAlmostEqual(self.breaker.wait_s(self.now), 0.25)
        self.pass_s(0.25)
        self.assertIsNotNone(self.breaker.enter(self.now))

    def test_one_probe_at_a_time(self) -> None:
        """Half-open, the second has to wait for the first; one that was given up makes room and counts for nothing."""
        self.break_it()
        self.pass_s(PAUSE_S)
        first = self.breaker.enter(self.now)
        assert first is not None
        self.assertIsNone(self.breaker.enter(self.now))
        self.assertGreater(self.breaker.wait_s(self.now), 0)
        self.breaker.settle(first, self.now, ok=None)
        self.assertIs(self.breaker.state, State.HALF_OPEN)
        self.assertIsNotNone(self.breaker.enter(self.now))

    def test_probes_close_it(self) -> None:
        """Three probes that go well close it."""
        self.break_it()
        self.pass_s(PAUSE_S)
        for _ in range(SUCCESSES):
            self.assertIsNot(self.breaker.state, State.CLOSED)
            self.once(ok=True)
        self.assertIs(self.breaker.state, State.CLOSED)

    def test_pauses_grow(self) -> None:
        """Each failed probe doubles the pause, up to the longest; once closed, it begins anew."""
        self.break_it()
        for pause_s in (PAUSE_S, 2.0, 4.0, 8.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S):
            self.assertAlmostEqual(self.breaker.wait_s(self.now), pause_s)
            self.pass_s(pause_s)
            self.once(ok=False)
        self.pass_s(LONGEST_PAUSE_S)
        for _ in range(SUCCESSES):
            self.once(ok=True)
        self.break_it()
        self.assertAlmostEqual(self.breaker.wait_s(self.now), PAUSE_S)

    def test_stragglers_judge_nobody(self) -> None:
        """What was let through before the breaker opened neither opens it further nor closes it."""
        stragglers = [self.breaker.enter(self.now) for _ in range(10)]
        self.break_it()
        self.pass_s(PAUSE_S)
        probe = self.breaker.enter(self.now)
        for ticket in stragglers:
            assert ticket is not None
            self.breaker.settle(ticket, self.now, ok=True)
            self.breaker.settle(ticket, self.now, ok=False)
        self.assertIs(self.breaker.state, State.HALF_OPEN)
        self.assertIsNone(self.breaker.enter(self.now))
        assert probe is not None
        self.breaker.settle(probe, self.now, ok=True)
        self.assertIs(self.breaker.state, State.HALF_OPEN)

    @given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0, 15)), max_size=60))
    def test_it_always_comes_back(self, story: list[tuple[bool | None, float]]) -> None:
        """After whatever happened, a service that answers is asked again within the longest pause and three probes."""
        breaker, now = Breaker(), Monotonic(0.0)
        for ok, seconds in story:
            ticket = breaker.enter(now)
            if ticket is not None:
                breaker.settle(ticket, now, ok=ok)
            now = Monotonic(now + seconds)
        now = Monotonic(now + LONGEST_PAUSE_S)
        for _ in range(SUCCESSES):
            ticket = breaker.enter(now)
            assert ticket is not None
            breaker.settle(ticket, now, ok=True)
        self.assertIs(breaker.state, State.CLOSED)
