"""
Virtual time: one heap of what happens in the world, and for each process an event loop that asyncio and Twisted share.

Decides in which order things happen, and nothing else: always the earliest next, ties in the order they were asked
for. Never reads a clock and never draws a number; who asks for a time has drawn it.

Twisted's task.Clock sorts its calls at every callLater; a heap costs a tenth of that, and a simulation makes millions.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any, Final

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

TURN_S: Final = 20e-6
"""What one turn of an event loop takes, so that what arrives meanwhile comes between two turns, as it does."""


class Timeline:
    """The world's time in seconds, its own events, and the event loops that live on it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.loops: list[EventLoop] = []
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = itertools.count()

    def at(self, when: float, function: Callable[..., object], *args: Any) -> None:
        """Call the function at that time; what cannot be undone needs no handle."""
        heappush(self._heap, (when, next(self._number), function, args))

    def after(self, delay_s: float, function: Callable[..., object], *args: Any) -> None:
        """Call the function that much later."""
        heappush(self._heap, (self.now + delay_s, next(self._number), function, args))

    def run(self, until: float, enough: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due until then, or until `enough` says so after an event of the world."""
        heap = self._heap
        while True:
            when, first, second = inf, None, inf
            for loop in self.loops:
                due = loop.due()
                if due < when:
                    when, first, second = due, loop, when
                elif due < second:
                    second = due
            if heap and heap[0][0] <= when:
                when, first = heap[0][0], None
            if when > until:
                self.now = max(self.now, until)
                return
            if when > self.now:
                self.now = when
            self.steps += 1
            if first is None:
                _, _, function, args = heappop(heap)
                function(*args)
                if enough is not None and enough():
                    return
            else:
                first.turn()
                # A turn makes the next one due; nothing else is, mostly.
                while (when := first.next_turn()) < second and when <= until and not (heap and heap[0][0] <= when):
                    self.now = when
                    first.turn()


@implementer(IDelayedCall)
class Call:
    """A call of callLater; also what the event loop's heap holds, so it runs as asyncio's own handles do."""

    __slots__ = ("_args", "_cancelled", "_done", "_function", "_kwargs", "_reactor", "_version", "_when")

    def __init__(
        self,
        reactor: "Reactor",
        when: float,
        function: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._reactor = reactor
        self._when = when
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._cancelled = False
        self._done = False
        self._version = 0

    def _run(self) -> None:
        self._done = True
        self._function(*self._args, **self._kwargs)

    def getTime(self) -> float:
        """When it is due."""
        return self._when

    def active(self) -> bool:
        """True until it ran or was cancelled."""
        return not (self._done or self._cancelled)

    def cancel(self) -> None:
        """Never run."""
        if self._done:
            raise AlreadyCalled
        if self._cancelled:
            raise AlreadyCancelled
        self._cancelled = True

    def delay(self, seconds: float) -> None:
        """Run that much later than planned."""
        raise NotImplementedError("nobody in the product moves a call")

    reset = delay


@implementer(IReactorTime)
class Reactor:
    """The part of a reactor that has to do with time, on a process's event loop."""

    def __init__(self, loop: "EventLoop") -> None:
        self._loop = loop

    def seconds(self) -> float:
        """The monotonic clock."""
        return self._loop.timeline.now

    def callLater(self, delay: float, function: Callable[..., object], *args: Any, **kwargs: Any) -> Call:
        """See IReactorTime."""
        when = self._loop.timeline.now + delay
        call = Call(self, when, function, args, kwargs)
        self._loop.push(when, call)
        return call

    def getDelayedCalls(self) -> list[Call]:
        """What is still to come."""
        return [item for item in self._loop.pending() if isinstance(item, Call) and item.active()]


class EventLoop(asyncio.AbstractEventLoop):
    """
    The event loop of one process on a Timeline.

    `connect` makes the transport of an outgoing connection. `steps_left`, when set, is how many more callbacks run
    before `crashed` is called instead of the next one. `paused_until` is when a stopped process goes on. `dead`: the
    process has ended, and nothing it does reaches anybody.
    """

    def __init__(self, timeline: Timeline, connect: Callable[["EventLoop", Callable[[], Any]], Any]) -> None:
        self.timeline = timeline
        self.paused_until = 0.0
        self.dead = False
        self.steps_left: int | None = None
        self.crashed: Callable[[], object] = lambda: None
        self._connect = connect
        self._ready: deque[Any] = deque()
        self._timers: list[tuple[float, int, Any]] = []
        self._number = itertools.count()
        self._turn_at = timeline.now
        self._handler: Any = None

    # what the timeline calls

    def due(self) -> float:
        """When there is something to do; inf for never."""
        if self._ready:
            when = self._turn_at
        elif self._timers:
            when = self._timers[0][0]
        else:
            return inf
        return max(when, self.paused_until)

    def next_turn(self) -> float:
        """When a turn is due for what the last one left; inf when it left nothing."""
        return inf if not self._ready or self.dead or self.paused_until else self._turn_at

    def turn(self) -> None:
        """One turn: everything that is due now, not what that makes due."""
        ready, timers, now = self._ready, self._timers, self.timeline.now
        while timers and timers[0][0] <= now:
            ready.append(heappop(timers)[2])
        self._turn_at = now + TURN_S
        outside = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                item = ready.popleft()
                if item._cancelled:
                    continue
                if self.steps_left is not None:
                    self.steps_left -= 1
                    if self.steps_left < 0:
                        self.steps_left = None
                        ready.appendleft(item)
                        self.crashed()
                        return
                item._run()
        finally:
            asyncio._set_running_loop(outside)

    def push(self, when: float, item: Any) -> None:
        """Run the item at that time."""
        heappush(self._timers, (when, next(self._number), item))

    def pending(self) -> list[Any]:
        """Everything that waits."""
        return [*self._ready, *(item for _, _, item in self._timers)]

    def arrive(self, when: float, function: Callable[..., object], *args: Any) -> None:
        """Input comes at that time: a callback of this process."""
        self.push(when, asyncio.Handle(function, args, self))

    def inside(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the function as if in a turn of this loop."""
        outside = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            return function(*args)
        finally:
            asyncio._set_running_loop(outside)

    # what asyncio calls

    def time(self) -> float:
        """The loop's clock."""
        return self.timeline.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        """See asyncio."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        """See asyncio."""
        return self.call_at(self.timeline.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        """See asyncio."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.push(when, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Left where it is: it is passed over when its time comes."""

    def create_future(self) -> "asyncio.Future[Any]":
        """See asyncio."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> "asyncio.Task[Any]":
        """See asyncio."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        """A connection to the one server there is."""
        return await self._connect(self, protocol_factory)

    async def shutdown_asyncgens(self) -> None:
        """There are none."""

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_running(self) -> bool:
        """Always, for whoever asks from inside."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def get_exception_handler(self) -> Any:
        """See asyncio."""
        return self._handler

    def set_exception_handler(self, handler: Any) -> None:
        """See asyncio."""
        self._handler = handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See asyncio."""
        if self._handler is not None:
            self._handler(self, context)
