"""Running a request's coroutine, handing outcomes over, and Deferreds that cannot be cancelled."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import AlreadyCalledError, CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.committed import Committed, Held, Running, hand, run

T = TypeVar("T")


def waiting_for(coroutine: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """Run it as far as it goes, which is not to its end."""
    running = run(coroutine)
    assert isinstance(running, Running)
    deferred: Deferred[T] = Deferred(lambda _: running.cancel())
    hand(running, deferred.callback)
    return deferred


class RunningTests(SynchronousTestCase):
    """A coroutine behaves as under Deferred.fromCoroutine."""

    def test_results(self) -> None:
        """It waits for what has not fired, goes on at once with what has, and gives its result."""
        first: Deferred[int] = Deferred()

        async def work() -> list[int]:
            return [await succeed(1), await first, await succeed(3)]

        running = waiting_for(work())
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

        running = waiting_for(work())
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

        running = waiting_for(work())
        running.cancel()
        self.assertEqual(self.successResultOf(running), "went on")
        running.cancel()

    def test_committed(self) -> None:
        """Cancelling a request that waits for something committed changes nothing."""
        written: Committed[int] = Committed()

        async def work() -> int:
            return await written

        running = run(work())
        assert isinstance(running, Running)
        running.cancel()
        written.callback(7)
        came: list[object] = []
        running.hand(came.append)
        self.assertEqual(came, [7])

    def test_nothing_to_wait_for(self) -> None:
        """A coroutine that never waits is no Deferred at all: its result is there, or its exception."""

        async def work(fault: bool) -> int:
            if fault:
                raise ZeroDivisionError
            return await succeed(1)

        self.assertEqual(run(work(False)), 1)
        with self.assertRaises(ZeroDivisionError):
            run(work(True))


class HandTests(SynchronousTestCase):
    """An outcome goes straight to the one who waits for it."""

    def test_a_result(self) -> None:
        """Once, in the turn in which it is there; firing again is the fault that it always was."""
        for late in (True, False):
            outcome: Committed[int] = Committed()
            came: list[object] = []
            if not late:
                hand(outcome, came.append)
            outcome.callback(1)
            if late:
                hand(outcome, came.append)
            self.assertEqual(came, [1])
            with self.assertRaises(AlreadyCalledError):
                outcome.callback(2)

    def test_a_failure(self) -> None:
        """It comes as a Failure, however it was said, and nobody logs it as unhandled."""
        for fire in (
            lambda outcome: outcome.errback(KeyError("a")),
            lambda outcome: outcome.callback(Failure(KeyError("a"))),
        ):
            outcome: Committed[int] = Committed()
            came: list[Any] = []
            hand(outcome, came.append)
            fire(outcome)
            self.assertIsInstance(came[0].value, KeyError)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_waiter_that_raises(self) -> None:
        """Its exception is told to whoever fires."""

        def broken(_: object) -> None:
            raise ZeroDivisionError

        outcome: Committed[int] = Committed()
        hand(outcome, broken)
        with self.assertRaises(ZeroDivisionError):
            outcome.callback(1)

    def test_a_coroutine(self) -> None:
        """What a coroutine awaits may fail: it is raised there, and the coroutine goes on."""
        written: Committed[int] = Committed()

        async def work() -> str:
            try:
                await written
            except KeyError:
                return "heard"
            return "no"

        running = run(work())
        assert isinstance(running, Running)
        came: list[object] = []
        hand(running, came.append)
        written.errback(KeyError("a"))
        self.assertEqual(came, ["heard"])

    def test_held(self) -> None:
        """A held place gives its outcome over like any other, also when it is given up."""

        async def work() -> int:
            return 1

        begun: Held[int] = Held()
        given_up: Held[int] = Held()
        came: list[Any] = []
        hand(begun, came.append)
        hand(given_up, came.append)
        begun.begin(work())
        given_up.cancel()
        self.assertEqual(came[0], 1)
        self.assertIsInstance(came[1].value, CancelledError)
