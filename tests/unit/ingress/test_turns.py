"""When the work of webhooks is done, and that the rest of the loop has its time."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.committed import Running, hand
from gatewayd.http.message import Request, Response
from gatewayd.ingress import turns
from gatewayd.ingress.shedding import CALM_S, STANDING_S, Shedding
from gatewayd.ingress.sources import Source
from gatewayd.ingress.turns import LATE_S, LONGEST_SLICE_S, SLICE_S, WAITING_BYTES, Turns
from gatewayd.times import Monotonic

COST_S = SLICE_S / 4


def as_deferred(answer: Response | Running[Response]) -> Deferred[Response]:
    """What the channel would wait for."""
    deferred: Deferred[Response] = Deferred(lambda _: answer.cancel())  # type: ignore[union-attr]
    if isinstance(answer, Response):
        deferred.callback(answer)
    else:
        hand(answer, deferred.callback)
    return deferred


class TurnsTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.soon: list[Callable[[], object]] = []
        self.turns = Turns(self.clock, self.soon.append, Shedding(), self.work, lambda request: Response(503))
        self.done: list[int] = []
        self.waits_for: Deferred[None] | None = None

    async def work(self, request: Request, source: Source | None) -> Response:
        """Takes COST_S of the loop's time."""
        self.assertIsNone(source)
        self.clock.rightNow += COST_S
        self.done.append(int(request.target))
        if self.waits_for is not None:
            await self.waits_for
        return Response(202)

    def run_one(self, number: int, *, body: bytes = b"") -> Any:
        target = b"%d" % number
        request = Request(b"POST", target, {}, body=body, received_at=Monotonic(self.clock.seconds()))
        return as_deferred(self.turns.run(request, None))

    def turn(self, *, rest_s: float = 0.0) -> None:
        """The next turn of the loop, in which everything else took `rest_s`."""
        self.clock.rightNow += rest_s
        soon, self.soon[:] = self.soon[:], []
        for call in soon:
            call()

    def statuses(self, waiting: list[Any]) -> list[int]:
        return [self.successResultOf(deferred).status for deferred in waiting if deferred.called]

    def test_at_once_while_there_is_time(self) -> None:
        """A webhook that comes alone is not made to wait: its work is done before run() returns."""
        self.assertEqual(self.statuses([self.run_one(1)]), [202])
        self.turn()
        self.assertEqual(self.soon, [])

    def test_in_order_and_in_slices(self) -> None:
        """What a turn has no time for is done in those that follow, a slice in each, in the order of arrival."""
        waiting = [self.run_one(number) for number in range(12)]
        self.assertEqual(self.done, [0, 1, 2, 3])
        self.turn()
        self.assertEqual(self.done, list(range(8)))
        waiting.append(self.run_one(12))  # behind those that wait, though this turn has time left
        self.turn()
        self.turn()
        self.assertEqual(self.done, list(range(13)))
        self.assertEqual(self.statuses(waiting), [202] * 13)
        self.assertEqual(self.soon, [])

    def test_a_flood_of_refusals_does_not_take_it_all(self) -> None:
        """Turns that are long for other reasons have longer slices: half as long again, up to a bound."""
        for number in range(1000):
            self.run_one(number)
        done = len(self.done)
        self.turn(rest_s=6 * SLICE_S)
        self.assertApproximates(len(self.done) - done, 3 * SLICE_S / COST_S, 1)
        done = len(self.done)
        self.turn(rest_s=1.0)
        self.assertApproximates(len(self.done) - done, LONGEST_SLICE_S / COST_S, 1)

    def test_a_client_that_goes_away_while_it_waits(self) -> None:
        """Its work is never begun; that of the others is."""
        waiting = [self.run_one(number) for number in range(8)]
        waiting[5].cancel()
        self.failureResultOf(waiting[5], CancelledError)
        self.turn()
        self.assertEqual(self.done, [0, 1, 2, 3, 4, 6, 7])

    def test_a_client_that_goes_away_afterwards(self) -> None:
        """What the work waits for is cancelled, as for a webhook that never waited."""
        for number in range(4):
            self.run_one(number)
        deferred = self.run_one(4)
        self.waits_for = Deferred()
        self.turn()
        self.assertEqual(self.done, [0, 1, 2, 3, 4])
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)

    def test_who_waited_too_long(self) -> None:
        """A sender that has given up is answered without the work."""
        waiting = [self.run_one(number) for number in range(5)]
        self.turn(rest_s=LATE_S)
        self.assertEqual(self.statuses(waiting), [202] * 4 + [503])
        self.assertEqual(self.done, [0, 1, 2, 3])

    def test_both_bounds(self) -> None:
        """Beyond a number of webhooks, or of bytes, the next one is refused at once; there is room again later."""
        self.patch(turns, "WAITING", 3)
        waiting = [self.run_one(number) for number in range(8)]
        self.assertEqual(self.statuses(waiting[7:]), [503])
        self.turn()
        waiting = [self.run_one(number) for number in range(10, 14)]
        self.turn()
        large = [self.run_one(20, body=bytes(WAITING_BYTES // 2)) for _ in range(7)]
        self.assertEqual(self.statuses(large), [202] * 4 + [503])

    def test_an_overload_is_seen(self) -> None:
        """As long as more comes than is done, the wait grows, until those that come are refused; then it is over."""
        refused = taken = 0
        for _ in range(600):
            for _ in range(12):  # half as much again as the two slices of a turn have time for
                if self.turns.refuses():
                    refused += 1
                else:
                    taken += 1
                    self.run_one(0)
            self.turn()
        self.assertGreater(refused, 100)
        self.assertGreater(taken, 4 * 500)
        self.assertLess(self.turns._oldest_s(Monotonic(self.clock.seconds())), STANDING_S)
        for _ in range(300):
            self.turn()
        self.clock.advance(CALM_S)
        self.assertFalse(self.turns.refuses())

    def test_a_fault(self) -> None:
        """A work that raises fails its own Deferred, and nobody else's."""
        waiting = [self.run_one(number) for number in range(9)]
        self.waits_for = fail(ZeroDivisionError())
        self.turn()
        for failed in waiting[4:8]:
            self.failureResultOf(failed, ZeroDivisionError)
        self.waits_for = None
        self.turn()
        self.assertEqual(self.statuses(waiting[8:]), [202])
