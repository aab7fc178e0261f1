"""
Deferreds for what cannot be called back, and the cheapest way to run a request's coroutine.

Decides only how cancelling is passed on: not at all to what is written already, since its outcome must be heard also
when its client has gone; to whatever a coroutine waits for otherwise.
"""

# Failures carry no annotations.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Committed(Deferred[T]):
    """
    A Deferred whose cancel() does nothing. A coroutine that awaits one runs on to its outcome when it is cancelled,
    which spares the request a second Deferred around every publication (4 us).
    """

    def cancel(self) -> None:
        """Nothing: see the class."""


class Running(Deferred[T]):
    """
    A coroutine that runs, as Deferred.fromCoroutine makes it, for code that uses no context variables: without the
    copy of them and the bookkeeping of inlineCallbacks a request costs 5 us less.

    Cancelling it cancels what the coroutine waits for, and nothing else: the coroutine decides what comes of it.
    """

    def __init__(self, coroutine: Coroutine[Deferred[Any], Any, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._awaited: Deferred[Any] | None = None
        self._go_on(None)

    def cancel(self) -> None:
        """Cancel what the coroutine waits for now."""
        if self._awaited is not None:
            self._awaited.cancel()

    def _go_on(self, result: Any) -> None:
        """Run until the coroutine waits for a Deferred that has not fired, or ends."""
        self._awaited = None
        try:
            if isinstance(result, Failure):
                awaited = result.throwExceptionIntoGenerator(self._coroutine)
            else:
                awaited = self._coroutine.send(result)
        except StopIteration as ended:
            self.callback(ended.value)
        except BaseException:
            self.errback()
        else:
            self._awaited = awaited
            awaited.addBoth(self._go_on)


class Held(Running[T]):
    """A place for a coroutine that is made and run later, or, when it is cancelled before that, never."""

    def __init__(self) -> None:
        Deferred.__init__(self)
        self._awaited = None
        self.given_up = False
        self._begun = False

    def begin(self, coroutine: Coroutine[Deferred[Any], Any, T]) -> None:
        """Run it from now on; once, and not when it was given up."""
        self._begun = True
        self._coroutine = coroutine
        self._go_on(None)

    def cancel(self) -> None:
        """Give it up before it has begun; afterwards as Running."""
        if self._begun:
            super().cancel()
        elif not self.given_up:
            self.given_up = True
            self.errback(CancelledError())
