"""
The cheapest ways to wait that a request has: for what cannot be called back, and for its own coroutine.

Decides only how an outcome reaches the one who waits for it, and how cancelling is passed on: not at all to what is
written already, since its outcome must be heard also when its client has gone; to whatever a coroutine waits for
otherwise. Never decides what is waited for.
"""

# Failures carry no annotations.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from twisted.internet.defer import AlreadyCalledError, CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")

_NONE_YET: Final = object()


class Direct(Deferred[T]):
    """A Deferred that one waits for: hand() spares it the chain of callbacks (3 us each time)."""

    _to: Callable[[Any], object] | None = None

    def hand(self, to: Callable[[Any], object]) -> None:
        """
        Call `to` with the outcome, a Failure where it failed, like addBoth(). What `to` raises reaches whoever fires
        this, instead of a log at some later time. Nothing else may be added, before or after.
        """
        if self.called:
            self.addBoth(to)
        else:
            self._to = to

    def callback(self, result: Any) -> None:
        """See Deferred; a Failure goes the way of errback()."""
        to = self._to
        if to is None or isinstance(result, Failure):
            self._chain()
            super().callback(result)
            return
        if self.called:
            raise AlreadyCalledError
        self.called = True
        self.result = result
        to(result)

    def errback(self, fail: Failure | BaseException | None = None) -> None:
        """See Deferred."""
        self._chain()
        super().errback(fail)

    def _chain(self) -> None:
        to, self._to = self._to, None
        if to is not None:
            self.addBoth(to)


class Committed(Direct[T]):
    """
    A Deferred whose cancel() does nothing. A coroutine that awaits one runs on to its outcome when it is cancelled,
    which spares the request a second Deferred around every publication (4 us).
    """

    def cancel(self) -> None:
        """Nothing: see the class."""


class Running(Generic[T]):
    """
    A coroutine that waits for something: what Deferred.fromCoroutine makes, for one who waits and code that uses no
    context variables. Without a Deferred of its own, the copy of the context and the bookkeeping of inlineCallbacks a
    request costs 8 us less.

    Cancelling it cancels what the coroutine waits for, and nothing else: the coroutine decides what comes of it.
    """

    __slots__ = ("_awaited", "_coroutine", "_outcome", "_to")

    def __init__(
        self, coroutine: Coroutine[Deferred[Any], Any, T] | None = None, awaited: Deferred[Any] | None = None
    ) -> None:
        self._coroutine = coroutine
        self._awaited = awaited
        self._to: Callable[[Any], object] | None = None
        self._outcome: Any = _NONE_YET
        if awaited is not None:
            hand(awaited, self._go_on)

    def hand(self, to: Callable[[Any], object]) -> None:
        """Call `to` once with the outcome, a Failure where it failed; at once when it is there."""
        if self._outcome is _NONE_YET:
            self._to = to
        else:
            to(self._outcome)

    def cancel(self) -> None:
        """Cancel what the coroutine waits for now."""
        if self._awaited is not None:
            self._awaited.cancel()

    def _go_on(self, result: Any) -> None:
        """Run until the coroutine waits for a Deferred that has not fired, or ends."""
        self._awaited = None
        outcome: Any
        try:
            if isinstance(result, Failure):
                awaited = result.throwExceptionIntoGenerator(self._coroutine)
            else:
                awaited = self._coroutine.send(result)  # type: ignore[union-attr] # one that waits has one
        except StopIteration as ended:
            outcome = ended.value
        except BaseException:
            outcome = Failure()
        else:
            self._awaited = awaited
            hand(awaited, self._go_on)
            return
        self._end(outcome)

    def _end(self, outcome: Any) -> None:
        self._outcome = outcome
        if self._to is not None:
            self._to(outcome)


def run(coroutine: Coroutine[Deferred[Any], Any, T]) -> T | Running[T]:
    """Run a coroutine: its result when it never had to wait, and it raises what that raised; else what runs on."""
    try:
        awaited = coroutine.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    return Running(coroutine, awaited)


class Held(Running[T]):
    """A place for a coroutine that is made and run later, or, when it is cancelled before that, never."""

    __slots__ = ("_begun", "given_up")

    def __init__(self) -> None:
        super().__init__()
        self.given_up = False
        self._begun = False

    def begin(self, coroutine: Coroutine[Deferred[Any], Any, T]) -> None:
        """Run it from now on; once, and not when it was given up."""
        self._begun = True
        self._coroutine = coroutine
        self._go_on(None)

    def refuse(self, answer: T) -> None:
        """Its outcome without a coroutine."""
        self._end(answer)

    def cancel(self) -> None:
        """Give it up before it has begun; afterwards as Running."""
        if self._begun:
            super().cancel()
        elif not self.given_up:
            self.given_up = True
            self._end(Failure(CancelledError()))


def hand(outcome: Deferred[Any] | Running[Any], to: Callable[[Any], object]) -> None:
    """Call `to` with the outcome, a Failure where it failed, at the least cost."""
    if isinstance(outcome, Running | Direct):
        outcome.hand(to)
    else:
        outcome.addBoth(to)
