"""Running a request's coroutine, and Deferreds that cannot be cancelled."""

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.committed import Committed, Running


class RunningTests(SynchronousTestCase):
    """A coroutine behaves as under Deferred.fromCoroutine."""

    def test_results(self) -> None:
        """It waits for what has not fired, goes on at once with what has, and gives its result."""
        first: Deferred[int] = Deferred()

        async def work() -> list[int]:
            return [await succeed(1), await first, await succeed(3)]

        running = Running(work())
        self.assertNoResult(running)
        first.callback(2)
        self.assertEqual(self.successResultOf(running), [1, 2, 3])

    def test_failures(self) -> None:
        """What fails is raised where it is awaited, and what the coroutine raises is its failure."""
        late: Deferred[int] = Deferred()

        async def work() -> None:
            try:
                await fail(KeyError("a"))
            except KeyError:
                await late

        running = Running(work())
        late.errback(ZeroDivisionError())
        self.failureResultOf(running, ZeroDivisionError)

    def test_cancelling(self) -> None:
        """Cancelling reaches what is waited for; the coroutine may go on all the same."""
        waiting: Deferred[int] = Deferred()

        async def work() -> str:
            try:
                await waiting
            except CancelledError:
                return "went on"
            return "was not cancelled"

        running = Running(work())
        running.cancel()
        self.assertEqual(self.successResultOf(running), "went on")
        running.cancel()

    def test_committed(self) -> None:
        """Cancelling a request that waits for something committed changes nothing."""
        written: Committed[int] = Committed()

        async def work() -> int:
            return await written

        running = Running(work())
        running.cancel()
        self.assertNoResult(running)
        written.callback(7)
        self.assertEqual(self.successResultOf(running), 7)
