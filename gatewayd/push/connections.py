"""
All push connections of the public listener together: what they have to write in a turn, and their deadlines.

Decides when the events of one turn go out, when deadlines are looked at, and how those connections end that carry no
stream yet when the gateway stops. Never reads or makes a byte, never ends an open stream: the hub does.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from gatewayd.times import Monotonic

SWEEP_S: Final = 1.0
"""A deadline is noticed at most this much later."""

SLICE: Final = 500
"""Deadlines that are acted on in one turn: a ping is a system call, and 5,000 of them would be 40 ms."""

_log: Final = Logger()


class Connected(Protocol):
    """One connection, as it is seen from here. `deadline`: the monotonic second after which expire() is due."""

    deadline: float

    def flush(self) -> None:
        """Write what has been put."""

    def expire(self, now: Monotonic) -> None:
        """The deadline has passed."""

    def retire(self) -> None:
        """The gateway stops: end what is no open stream."""

    def cut(self) -> None:
        """The time for a clean end is over."""


class Connections:
    """
    `soon` calls a function after everything that is ready now has run; `clock` must be monotonic.

    There are at most as many as the listener's site has connections. `stopping` is True from stop() on: nothing is to
    be opened any more.
    """

    def __init__(self, clock: IReactorTime, soon: Callable[[Callable[[], object]], None]) -> None:
        self.stopping = False
        self._clock = clock
        self._soon = soon
        self._open: set[Connected] = set()
        self._unwritten: list[Connected] = []
        self._sweeping = False
        self._waiting: Deferred[None] | None = None

    @property
    def open(self) -> int:
        """Connections now, those included that are being closed."""
        return len(self._open)

    def now(self) -> Monotonic:
        """The monotonic clock."""
        return Monotonic(self._clock.seconds())

    def add(self, connection: Connected) -> None:
        """Count a connection and watch its deadline."""
        self._open.add(connection)
        if not self._sweeping:
            self._sweeping = True
            self._clock.callLater(SWEEP_S, self._sweep)

    def discard(self, connection: Connected) -> None:
        """Forget a connection that is gone."""
        self._open.discard(connection)
        if not self._open and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def unwritten(self, connection: Connected) -> None:
        """Have it flushed at the end of this turn: one callback for all, where one each would cost more."""
        if not self._unwritten:
            self._soon(self._flush)
        self._unwritten.append(connection)

    def stop(self, within_s: float) -> Deferred[None]:
        """
        End what is no open stream, wait for what is being closed, cut what is left after `within_s`. To be called once,
        when the hub has closed its streams, and before the listener closes its connections.
        """
        self.stopping = True
        for connection in tuple(self._open):
            connection.retire()
        if not self._open:
            return succeed(None)
        gone = self._waiting = Deferred()
        timer = self._clock.callLater(within_s, self._cut)
        gone.addCallback(lambda _: timer.cancel() if timer.active() else None)
        return gone

    def _cut(self) -> None:
        for connection in tuple(self._open):
            connection.cut()

    def _flush(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        for connection in unwritten:
            try:
                connection.flush()
            except Exception:  # one connection's fault must not keep the events of all others
                _log.failure("A connection could not be written to.", event="push_flush_failed")

    def _sweep(self) -> None:
        now = self.now()
        self._expire([connection for connection in self._open if connection.deadline <= now], now)
        self._sweeping = bool(self._open)
        if self._sweeping:
            self._clock.callLater(SWEEP_S, self._sweep)

    def _expire(self, expired: list[Connected], now: Monotonic) -> None:
        for connection in expired[:SLICE]:
            try:
                if connection.deadline <= now:
                    connection.expire(now)
            except Exception:  # one connection's fault must not end the deadlines of all others
                _log.failure("A connection could not be ended at its deadline.", event="push_sweep_failed")
        if len(expired) > SLICE:
            self._soon(partial(self._expire, expired[SLICE:], now))
