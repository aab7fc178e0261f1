"""All connections together: what is written in a turn, deadlines, the stop."""

from math import inf

from gatewayd.push.connections import SLICE
from gatewayd.times import Monotonic
from tests.fakes.pushing import Pushing, PushingCase


class Connected:
    """One connection, and what it was told."""

    def __init__(self, world: Pushing, deadline: float = inf, *, fails: bool = False) -> None:
        self.world = world
        self.deadline = deadline
        self.fails = fails
        self.told: list[str] = []
        world.connections.add(self)

    def flush(self) -> None:
        self.told.append("flush")
        if self.fails:
            raise ZeroDivisionError

    def expire(self, now: Monotonic) -> None:
        self.told.append("expire")
        self.deadline = inf
        if self.fails:
            raise ZeroDivisionError

    def retire(self) -> None:
        self.told.append("retire")

    def cut(self) -> None:
        self.told.append("cut")
        self.world.connections.discard(self)


class ConnectionsTests(PushingCase):
    def setUp(self) -> None:
        self.world = Pushing()

    def test_flush(self) -> None:
        """What many put in one turn costs one callback, and one that fails does not keep the others from theirs."""
        many = [Connected(self.world, fails=i == 1) for i in range(3)]
        for each in many:
            self.world.connections.unwritten(each)
        self.assertEqual(self.world.soon.scheduled, 1)
        self.world.soon.turn()
        self.assertEqual([each.told for each in many], [["flush"]] * 3)
        self.assert_failed("push_flush_failed")
        self.world.connections.unwritten(many[0])
        self.world.soon.turn()
        self.assertEqual(many[0].told, ["flush"] * 2)

    def test_deadlines(self) -> None:
        """A deadline is noticed within a second; a bug of one connection leaves the others theirs."""
        start = self.world.clock.seconds()
        early, late = Connected(self.world, start + 1.5, fails=True), Connected(self.world, start + 3)
        never = Connected(self.world)
        self.world.advance(2.0)
        self.assertEqual((early.told, late.told), (["expire"], []))
        self.world.advance(1.0)
        self.assertEqual((late.told, never.told), (["expire"], []))
        self.assert_failed("push_sweep_failed")

    def test_slices(self) -> None:
        """Thousands of deadlines at once are acted on in slices, and what has lost its reason meanwhile is left out."""
        now = self.world.clock.seconds()
        many = [Connected(self.world, now) for _ in range(2 * SLICE + 1)]
        self.world.clock.advance(1.0)
        self.assertEqual(sum(bool(each.told) for each in many), SLICE)
        spared = next(each for each in many if not each.told)
        spared.deadline = inf
        self.world.soon.turn()
        self.assertEqual([each for each in many if not each.told], [spared])

    def test_idle(self) -> None:
        """Without connections no timer runs."""
        each = Connected(self.world)
        self.world.connections.discard(each)
        self.world.advance(1.0)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        Connected(self.world)
        self.assertEqual(len(self.world.clock.getDelayedCalls()), 1)

    def test_stop(self) -> None:
        """The stop tells everybody, waits for those that go, and cuts the rest in time; nothing is opened any more."""
        self.assertFalse(self.world.connections.stopping)
        goes, stays = Connected(self.world), Connected(self.world)
        stopped = self.world.connections.stop(2.0)
        self.assertTrue(self.world.connections.stopping)
        self.world.connections.discard(goes)
        self.world.clock.advance(1.9)
        self.assertNoResult(stopped)
        self.world.clock.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual((goes.told, stays.told), (["retire"], ["retire", "cut"]))
        self.successResultOf(self.world.connections.stop(2.0))

    def test_early_stop(self) -> None:
        """When the last one is gone nothing is waited for."""
        each = Connected(self.world)
        stopped = self.world.connections.stop(2.0)
        self.world.connections.discard(each)
        self.successResultOf(stopped)
        self.world.advance(1.0)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
