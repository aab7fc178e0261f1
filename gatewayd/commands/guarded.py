"""
A route with its bounds: its own deadline, its breaker, and how many commands may be under way.

Decides whether a command is handed over at all, for how long, and what its outcome says about the service. Never
decides what an answer is: the route behind it does.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.commands.api import IRoute
from gatewayd.commands.breaker import Breaker, State
from gatewayd.sessions.endings import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from gatewayd.sessions.values import Answered, Command
from gatewayd.times import Monotonic

ROUTE_COMMANDS: Final = 256
"""Commands under way on one route, so that a service that hangs does not take the places of the others."""

ALL_COMMANDS: Final = 1000
"""The same on all routes: half of what NATS takes requests of ours in."""

ALL_BYTES: Final = 33_554_432
"""Payloads under way, all together: half of what may wait for NATS before its connection is given up."""

FULL: Final = msgspec.structs.replace(UPSTREAM_FAILED, retry_after_ms=250)

_log: Final = Logger()


class Room:
    """Places for commands and their bytes; whoever finds none is refused at once."""

    __slots__ = ("_bytes", "_commands")

    def __init__(self, commands: int = ALL_COMMANDS, payload_bytes: int = ALL_BYTES) -> None:
        self._commands = commands
        self._bytes = payload_bytes

    def enter(self, size: int) -> bool:
        """Take a place for a payload of `size` bytes, if there is one."""
        if self._commands < 1 or self._bytes < size:
            return False
        self._commands -= 1
        self._bytes -= size
        return True

    def leave(self, size: int) -> None:
        """Give it back."""
        self._commands += 1
        self._bytes += size


class GuardedRoute:
    """The route `name` with everything that bounds it; what sessions.execution calls."""

    def __init__(self, name: str, route: IRoute, deadline_s: float, *, room: Room, clock: IReactorTime) -> None:
        self.name = name
        self._route = route
        self._deadline_s = deadline_s
        self._room = room
        self._clock = clock
        self._breaker = Breaker()
        self._under_way = 0

    def call(self, command: Command, deadline_s: float | None = None) -> Deferred[Answered | Ending]:
        """
        As IRoute.call, within the shorter of the route's deadline and the caller's own (None: it has none). A refusal
        says in `retry_after_ms` when to come back, where that is known. Cancelling it gives the answer up.
        """
        limit_s = self._deadline_s if deadline_s is None else min(self._deadline_s, deadline_s)
        if limit_s <= 0:
            return succeed(UPSTREAM_TIMED_OUT)
        now, size = self._now(), len(command.payload)
        if self._under_way >= ROUTE_COMMANDS or not self._room.enter(size):
            return succeed(FULL)
        ticket = self._breaker.enter(now)
        if ticket is None:
            self._room.leave(size)
            wait_ms = int(self._breaker.wait_s(now) * 1000) + 1
            return succeed(msgspec.structs.replace(UPSTREAM_FAILED, retry_after_ms=wait_ms))
        self._under_way += 1
        return self._watch(self._route.call(command, limit_s), ticket, size, patient=limit_s >= self._deadline_s)

    def _watch(
        self, called: Deferred[Answered | Ending], ticket: int, size: int, *, patient: bool
    ) -> Deferred[Answered | Ending]:
        """Settle when `called` has fired; what was given up, or had less time than the route has, judges nobody."""
        outcome: Deferred[Answered | Ending] = Deferred(lambda _: called.cancel())

        def settle(result: Answered | Ending | Failure) -> None:
            self._under_way -= 1
            self._room.leave(size)
            self._judge(ticket, _verdict(result, patient=patient))
            if not outcome.called:
                outcome.callback(result)  # a Failure goes the way of errback()

        called.addBoth(settle)
        return outcome

    def _judge(self, ticket: int, ok: bool | None) -> None:
        breaker = self._breaker
        before = breaker.state
        breaker.settle(ticket, self._now(), ok=ok)
        if breaker.state is State.OPEN and before is not State.OPEN:
            wait_s = round(breaker.wait_s(self._now()), 1)
            _log.warn(
                "the service of {route} is not asked for {wait_s} s: it failed again and again",
                route=self.name,
                wait_s=wait_s,
                event="command.breaker_open",
            )
        elif breaker.state is State.CLOSED and before is not State.CLOSED:
            _log.info("the service of {route} is asked again", route=self.name, event="command.breaker_closed")

    def _now(self) -> Monotonic:
        return Monotonic(self._clock.seconds())


def _verdict(result: Answered | Ending | Failure, *, patient: bool) -> bool | None:
    """What an outcome says about the service: well, failed, or nothing."""
    if isinstance(result, Answered):
        return True
    if result == UPSTREAM_TIMED_OUT:
        return False if patient else None
    return False if result == UPSTREAM_FAILED else None


class Complaints:
    """What went wrong on the way to services, for the log: one line a second for each route, the others counted."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._next: dict[str, tuple[float, int]] = {}

    def about(self, name: str) -> Callable[[str], None]:
        """What the route `name` complains with; the text holds nothing of a command."""

        def say(reason: str) -> None:
            at, left_out = self._next.get(name, (0.0, 0))
            now = self._clock.seconds()
            if now < at:
                self._next[name] = at, left_out + 1
                return
            self._next[name] = now + 1.0, 0
            _log.warn(
                "the service of {route} did not answer: {reason}",
                route=name,
                reason=reason,
                left_out=left_out,
                event="command.failed",
            )

        return say
