"""The border between Twisted and asyncio, on the running reactor's own loop."""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError
from twisted.internet.defer import TimeoutError as DeadlinePassed
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from gatewayd.aio import Loop
from tests.buses import pause, reactor_clock, reactor_loop, until


@pytest.fixture
def lines() -> Iterator[list[LogEvent]]:
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


@pytest_twisted.ensureDeferred
async def test_results_and_failures_cross() -> None:
    """A coroutine's result or exception is the Deferred's, also one that awaits asyncio."""
    loop = Loop(reactor_loop())

    async def works(result: int) -> int:
        await asyncio.sleep(0.001)
        return result

    async def breaks() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    assert await loop.from_asyncio(works(3)) == 3
    with pytest.raises(ZeroDivisionError):
        await loop.from_asyncio(breaks())
    assert loop.unfinished == 0
    await loop.stop(generators=False)


@pytest_twisted.ensureDeferred
async def test_cancelling_the_deferred_cancels_the_task_and_releases_the_caller_at_once() -> None:
    """The caller is free when it cancels or its deadline passes, also while the task swallows the cancellation."""
    loop = Loop(reactor_loop())
    cancelled: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append("once")
            await asyncio.sleep(0.6)
            raise ValueError("after all") from None

    began = time.monotonic()
    waiting = loop.from_asyncio(stubborn())
    waiting.addTimeout(0.02, reactor_clock())
    with pytest.raises(DeadlinePassed):
        await waiting
    assert time.monotonic() - began < 0.5
    await pause(0)
    assert cancelled == ["once"]
    assert loop.unfinished == 1
    await until(lambda: not loop.unfinished)
    await loop.stop(generators=False)


@pytest_twisted.ensureDeferred
async def test_a_task_that_is_cancelled_from_within_fails_as_twisted_says_it() -> None:
    """asyncio's CancelledError becomes Twisted's."""
    loop = Loop(reactor_loop())

    async def gives_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(CancelledError):
        await loop.from_asyncio(gives_up())
    await loop.stop(generators=False)


@pytest_twisted.ensureDeferred
async def test_stop_ends_what_is_left_and_does_not_wait_for_what_will_not_end() -> None:
    """Tasks are cancelled and awaited, within the limit."""
    loop = Loop(reactor_loop())
    ended: list[str] = []

    async def tidy() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("tidy")

    async def stuck() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                ended.append("ignored")

    waiting = [loop.from_asyncio(tidy()), loop.from_asyncio(stuck())]
    for one in waiting:
        one.addErrback(lambda failure: failure.trap(CancelledError))
    await pause(0)
    began = time.monotonic()
    await loop.stop(0.1, generators=False)
    assert 0.09 < time.monotonic() - began < 0.4
    assert sorted(ended) == ["ignored", "tidy"]
    await pause(0.5)
    assert loop.unfinished == 0


@pytest_twisted.ensureDeferred
async def test_what_the_loop_reports_is_logged_and_counted(
    lines: list[LogEvent], no_logged_failures: list[LogEvent]
) -> None:
    """An exception that nobody retrieves is logged with its traceback, once; the known noise of TLS is not."""
    loop = Loop(reactor_loop())

    async def forgotten() -> None:
        raise ZeroDivisionError

    task = reactor_loop().create_task(forgotten())
    await pause(0.01)
    del task
    gc.collect()
    assert loop.errors == 1
    failures = [event["log_failure"] for event in lines if event.get("event") == "loop_error"]
    assert [type(failure) for failure in failures] == [Failure]
    assert "in forgotten" in failures[0].getTraceback()
    no_logged_failures.clear()
    reactor_loop().call_exception_handler({"message": "returning true from eof_received() has no effect"})
    logging.getLogger("asyncio").warning("returning true from eof_received() has no effect when using ssl")
    logging.getLogger("asyncio").warning("something else")
    logging.getLogger("nats.aio.client").error("nats: encountered error", exc_info=ValueError("a\nb"))
    assert loop.errors == 1
    assert [event["text"] for event in lines if "text" in event][1:] == [
        "something else",
        "nats: encountered error: ValueError",
    ]
    await loop.stop(generators=False)


@pytest_twisted.ensureDeferred
async def test_stop_gives_back_what_it_took() -> None:
    """The loop's exception handler and the loggers are as they were before."""
    logger, before = logging.getLogger("asyncio"), reactor_loop().get_exception_handler()
    handlers, propagate = list(logger.handlers), logger.propagate
    loop = Loop(reactor_loop())
    assert logger.handlers != handlers
    await loop.stop(generators=False)
    assert (logger.handlers, logger.propagate) == (handlers, propagate)
    assert reactor_loop().get_exception_handler() is before


@pytest_twisted.ensureDeferred
async def test_soon_runs_after_what_is_ready() -> None:
    """soon() lets everything of this turn come first."""
    loop = Loop(reactor_loop())
    order: list[int] = []
    loop.soon(lambda: order.append(2))
    order.append(1)
    await pause(0.01)
    assert order == [1, 2]
    await loop.stop(generators=False)
