"""
The border between Twisted and asyncio: coroutines of the one in Deferreds of the other.

Decides how a cancellation crosses, what becomes of tasks that are left at the end, and what is done with errors that
the event loop reports to nobody. Never makes a loop and never installs a reactor: it is handed the loop that the
reactor was installed with. On that loop `create_task` works also where no loop runs yet (in startService);
asyncio.create_task does not (tried).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

T = TypeVar("T")

_log = Logger()

# Both loops warn of the first whenever a TLS connection is closed by the peer, asyncio of the second at each write to a
# connection whose loss it has not told yet: any client that pipelines and resets makes it. Neither says anything.
_NOISE: Final = ("returning true from eof_received", "socket.send() raised exception")
_LEVELS: Final = {
    logging.DEBUG: LogLevel.debug,
    logging.INFO: LogLevel.info,
    logging.WARNING: LogLevel.warn,
    logging.ERROR: LogLevel.error,
    logging.CRITICAL: LogLevel.critical,
}


class _Relay(logging.Handler):
    """Hands what asyncio and the driver log to twisted.logger, without tracebacks and without the known noise."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        text = record.getMessage()
        if any(noise in text for noise in _NOISE):
            return
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text = f"{text}: {type(error).__name__}"
        _log.emit(_LEVELS.get(record.levelno, LogLevel.warn), "{text}", text=text, event=f"{record.name}_message")


class Loop:
    """
    The reactor's event loop, as the rest of the product may use it.

    `errors` counts what the loop reported: exceptions of callbacks and of tasks that nobody waits for. `loggers` are
    names of the standard library's loggers whose records go to twisted.logger from now until stop().
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, loggers: Sequence[str] = ("asyncio", "nats")) -> None:
        self.errors = 0
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._relay = _Relay()
        self._loggers = [logging.getLogger(name) for name in loggers]
        self._propagated = [logger.propagate for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self._relay)
            logger.propagate = False
        self._handler = loop.get_exception_handler()
        loop.set_exception_handler(self._reported)

    @property
    def unfinished(self) -> int:
        """How many tasks that came by from_asyncio() have not ended."""
        return len(self._tasks)

    @property
    def event_loop(self) -> Any:
        """The loop itself, for who hands it its sockets."""
        return self._loop

    def from_asyncio(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """
        Run an asyncio coroutine as a task; the Deferred fires with its result or failure.

        Cancelling the Deferred cancels the task, and the Deferred fires with CancelledError at once, even when the
        task swallows its cancellation: a deadline on the Deferred holds whatever the task does. A failure of the task
        after that is dropped. A task that is cancelled from the other side makes the Deferred fail with Twisted's
        CancelledError.
        """
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)

        def cancel(_: Deferred[T]) -> None:
            task.cancel()

        deferred: Deferred[T] = Deferred(cancel)

        def ended(task: "asyncio.Task[T]") -> None:
            self._tasks.discard(task)
            error = CancelledError() if task.cancelled() else task.exception()
            if deferred.called:
                return
            if error is None:
                deferred.callback(task.result())
            else:
                deferred.errback(error)

        task.add_done_callback(ended)
        return deferred

    def soon(self, function: Callable[[], object]) -> None:
        """Call `function` once, after everything that is ready now has run."""
        self._loop.call_soon(function)

    def stop(self, limit_s: float = 2.0, *, generators: bool = True) -> Deferred[None]:
        """
        Cancel every task that is left, wait for them for at most `limit_s`, and give the loop's exception handler and
        the loggers back. Fires with None, never fails.

        `generators` ends the loop's asynchronous generators too, which makes it refuse new ones from then on: not for
        a loop that lives longer than this object.
        """
        return self.from_asyncio(self._end(limit_s, generators))

    async def _end(self, limit_s: float, generators: bool) -> None:
        left = self._tasks - {asyncio.current_task(self._loop)}
        for task in left:
            task.cancel()
        if left:
            _, stuck = await asyncio.wait(left, timeout=limit_s)
            if stuck:
                _log.warn("{count} tasks did not end", count=len(stuck), event="tasks_stuck")
        if generators:
            await self._loop.shutdown_asyncgens()
        self._loop.set_exception_handler(self._handler)
        for logger, propagated in zip(self._loggers, self._propagated, strict=True):
            logger.removeHandler(self._relay)
            logger.propagate = propagated

    def _reported(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler: count it and say it once, with the traceback where there is one."""
        text = str(context.get("message", ""))
        if any(noise in text for noise in _NOISE):
            return
        self.errors += 1
        error = context.get("exception")
        if isinstance(error, BaseException):
            failure = Failure(error, type(error), error.__traceback__)  # type: ignore[no-untyped-call]
            _log.failure("{text}", failure, text=text, event="loop_error")
        else:
            _log.error("{text}", text=text, event="loop_error")
