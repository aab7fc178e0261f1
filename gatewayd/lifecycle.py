"""
The life of the process: what starts after what, what stops before what, and how it ends.

Decides the order of starting and stopping, how long each may take, what a failed start and a signal do, and what
systemd is told. Never decides what a service is: the wiring names them, and hands every clock and callback in.
"""

# Twisted's services and failures carry no annotations.
# mypy: disable-error-code="no-untyped-call"

import atexit
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from types import FrameType
from typing import Any, Final, Protocol

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import BindError, ReactorNotRunning
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable

_log = Logger()

START_BUDGET_S: Final = 60.0
STOP_BUDGET_S: Final = 5.0


class Reactor(Protocol):
    """What is asked of the reactor here; every reactor of Twisted gives it."""

    running: bool

    def stop(self) -> None:
        """Begin the shutdown; ReactorNotRunning when it has begun."""

    def callWhenRunning(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call it once the reactor runs; at once when it does."""

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call it in the reactor's next turn; safe in signal handlers."""

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[..., Any], *args: Any) -> Any:
        """Call it in a phase of the start or the shutdown."""


class StartFailed(Exception):
    """A service cannot start for a reason that its text tells a person in full: no traceback is logged with it."""


class Overrun(Exception):
    """Something took longer than its budget."""


_EXPECTED: Final = (StartFailed, Overrun, Unavailable, BindError, OSError)
"""What a start may fail with because of the world around it; anything else is a bug and shows its traceback."""


def within(clock: IReactorTime, waiting: Deferred[Any], budget_s: float) -> Deferred[Any]:
    """
    `waiting`'s outcome, or Overrun after budget_s seconds, by which it is cancelled.

    Unlike Deferred.addTimeout it also ends when the cancelled side swallows its cancellation; what that side comes to
    later is dropped. Cancelling the result cancels `waiting`.
    """
    outcome: Deferred[Any] = Deferred(lambda _: waiting.cancel())

    def overrun() -> None:
        outcome.errback(Overrun(f"took longer than {budget_s:g} s"))
        waiting.cancel()

    def settle(result: Any) -> None:
        if not outcome.called:
            timer.cancel()
            outcome.callback(result)

    timer = clock.callLater(budget_s, overrun)
    waiting.addBoth(settle)
    return outcome


class Ending:
    """How the process ends by itself. One per process; `flush` writes the log out, bounded in time."""

    def __init__(
        self,
        reactor: Reactor,
        flush: Callable[[], object],
        *,
        leave: Callable[[int], object] = os._exit,
        at_exit: Callable[[Callable[[], object]], object] = atexit.register,
    ) -> None:
        self._reactor = reactor
        self._flush = flush
        self._leave = leave
        self._at_exit = at_exit
        self.status: int | None = None

    def fail(self, reason: str, status: int = 1, failure: Failure | None = None) -> None:
        """
        Log `reason` in one line, stop every service, then end with `status` (1 to 255). The first call decides.

        Works before the reactor runs and while it stops. The status is given by the interpreter's last act, not in the
        reactor's last one: reactor.stop() alone ends twistd with 0, and os._exit in a shutdown trigger would leave the
        pid file behind, over which the next start of a container stumbles (there the pid is always the same).
        """
        if self.status is not None:
            _log.error("{reason}", event="process.failed", reason=reason)
            return
        self.status = status
        more = {} if failure is None else {"log_failure": failure}
        _log.critical("{reason}", event="process.failed", reason=reason, status=status, **more)
        self._at_exit(lambda: self.at_once(status))
        if self._reactor.running:
            self._stop()
        else:
            self._reactor.callWhenRunning(self._stop)

    def at_once(self, status: int) -> None:
        """Write the log out and end now: nothing is stopped, nothing is cleaned up."""
        self._flush()
        self._leave(status)

    def _stop(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            _log.debug("The shutdown is under way already.", event="process.stopping")


class OrderedServices(MultiService):
    """
    Services in an order: each is started when the one before it is up, and stopped when the one after it is down.

    A child's startService and stopService may return a Deferred (or be a coroutine function); each has a budget. With
    an `ending` a failed start ends the process; without one (inside another OrderedServices) startService's Deferred
    fails. `started` is called once all are up. A stop that fails or overruns is logged, and the next one begins.
    Children are added before the start.
    """

    def __init__(
        self,
        clock: IReactorTime,
        ending: Ending | None = None,
        *,
        start_budget_s: float = START_BUDGET_S,
        stop_budget_s: float = STOP_BUDGET_S,
        started: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._ending = ending
        self._start_budget_s = start_budget_s
        self._stop_budget_s = stop_budget_s
        self._started = started
        self._begun: list[IService] = []
        self._starting: Deferred[None] | None = None

    def addService(self, service: IService) -> None:
        """Put `service` after the ones that are here."""
        if self.running:
            raise RuntimeError("a service cannot join an order that has been started")
        super().addService(service)

    def removeService(self, service: IService) -> Any:
        """Take `service` out; while running, its stop is returned and it is not stopped again."""
        if service in self._begun:
            self._begun.remove(service)
        return super().removeService(service)

    def startService(self) -> Deferred[None]:
        """
        Start the children downwards; fires when all are up.

        twistd calls this before the reactor runs: children that are up at once are so when this returns, the first
        one that is not continues in the reactor's turns.
        """
        Service.startService(self)
        self._starting = Deferred.fromCoroutine(self._start())
        return self._starting

    def stopService(self) -> Deferred[None]:
        """Stop the children upwards, those only that were begun; fires when all are down, and never fails."""
        Service.stopService(self)
        if self._starting is not None:
            self._starting.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        for service in list(self):
            self._begun.append(service)
            since = self._clock.seconds()
            try:
                await within(self._clock, maybeDeferred(service.startService), self._start_budget_s)
            except Exception:  # whatever it is, the services that are up must be stopped in order
                if self.running:  # else it is the stop that cancelled this start
                    self._failed(service, Failure())
                return
            took = self._clock.seconds() - since
            _log.debug("{service} is up", event="service.started", service=_name(service), ms=round(took * 1000))
        if self._started is not None:
            self._started()

    def _failed(self, service: IService, failure: Failure) -> None:
        if self._ending is None:
            failure.raiseException()
        reason = f"{_name(service)} did not start: {str(failure.value) or type(failure.value).__name__}"
        self._ending.fail(reason, failure=None if failure.check(*_EXPECTED) else failure)

    async def _stop(self) -> None:
        begun, self._begun = self._begun, []
        for service in reversed(begun):
            since = self._clock.seconds()
            try:
                await within(self._clock, maybeDeferred(service.stopService), self._stop_budget_s)
            except Overrun as overrun:
                _log.error(
                    "{service} did not stop: {reason}",
                    event="service.stop_overrun",
                    service=_name(service),
                    reason=str(overrun),
                )
            except Exception:  # one that fails must not keep the others from stopping
                _log.failure("{service} did not stop cleanly", event="service.stop_failed", service=_name(service))
            else:
                ms = round((self._clock.seconds() - since) * 1000)
                _log.info("{service} stopped in {ms} ms", event="service.stopped", service=_name(service), ms=ms)


def _name(service: IService) -> str:
    return str(service.name or type(service).__name__)


class Ticker(Service):
    """
    Calls `tick` every interval_s seconds, whatever the last call came to.

    Unlike a LoopingCall it goes on after an error (logged; `errors` counts; `failed` is called, for a metric). Ticks
    never overlap: one that is late, or a process that was suspended, skips ticks and never makes up for them. The stop
    waits for a tick that is under way; cancelling the stop cancels the tick.
    """

    def __init__(
        self,
        clock: IReactorTime,
        interval_s: float,
        tick: Callable[[], Deferred[Any] | Coroutine[Deferred[Any], Any, Any] | None],
        name: str,
        *,
        at_once: bool = False,
        failed: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self._clock = clock
        self._interval_s = interval_s
        self._tick = tick
        self._at_once = at_once
        self._counted = failed
        self._due = 0.0
        self._timer: Any = None
        self._under_way: Deferred[Any] | None = None
        self._stopped: Deferred[None] | None = None
        self.errors = 0

    def startService(self) -> None:
        """Begin; the first tick is one interval away unless at_once."""
        super().startService()
        self._due = self._clock.seconds() + (0.0 if self._at_once else self._interval_s)
        self._wait()

    def stopService(self) -> Deferred[None] | None:
        """End; fires when a tick that is under way has ended."""
        super().stopService()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        under_way = self._under_way
        if under_way is None:
            return None
        self._stopped = Deferred(lambda _: under_way.cancel())
        return self._stopped

    def _wait(self) -> None:
        self._timer = self._clock.callLater(max(0.0, self._due - self._clock.seconds()), self._run)

    def _run(self) -> None:
        self._timer = None
        self._under_way = maybeDeferred(self._tick)
        self._under_way.addErrback(self._failed)
        self._under_way.addBoth(self._ended)

    def _failed(self, failure: Failure) -> None:
        if not self.running and failure.check(CancelledError):
            return
        self.errors += 1
        _log.failure("{name} failed", failure, event="tick.failed", name=self.name, repeats=self.name)
        if self._counted is not None:
            self._counted()

    def _ended(self, _: object) -> None:
        self._under_way = None
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            if not stopped.called:  # else it was cancelled, and the tick did not end by that
                stopped.callback(None)
        elif self.running:
            self._due = max(self._due + self._interval_s, self._clock.seconds())
            self._wait()


class Notifier:
    """
    What systemd is told (sd_notify(3)): one datagram for each call, none when NOTIFY_SOCKET is unset.

    Never raises and never blocks: a datagram that the socket has no room for is lost.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._stopping = False
        self.watchdog_s = _watchdog_s(environ) if address else None

    @property
    def listens(self) -> bool:
        """True when there is somebody to tell."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Started, or reloaded; a process that is stopping is neither any more."""
        if not self._stopping:
            self._send("READY=1" + (_status(status) if status else ""))

    def status(self, text: str) -> None:
        """The one line that `systemctl status` shows."""
        self._send(_status(text)[1:])

    def reloading(self) -> None:
        """A reload begins; ready() ends it. systemd wants the time to tell it from an older one."""
        if not self._stopping:
            self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The shutdown begins."""
        self._stopping = True
        self._send("STOPPING=1" + _status("stopping: what was asked is answered, then everything is closed"))

    def watchdog(self) -> None:
        """The process is alive: due within watchdog_s seconds, again and again."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as told:
                told.sendto(text.encode(), self._address)
        except (OSError, ValueError) as error:
            _log.debug("systemd was not told: {reason}", event="systemd.untold", reason=str(error))


def _status(text: str) -> str:
    # A line feed would begin another assignment.
    return "\nSTATUS=" + " ".join(text.split())[:500]


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    interval, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (interval.isascii() and interval.isdigit() and int(interval) > 0):
        return None
    return int(interval) / 1e6 if pid in ("", str(os.getpid())) else None


def watchdog(clock: IReactorTime, notifier: Notifier) -> Ticker | None:
    """The Ticker that feeds systemd's watchdog at a third of its interval; None when it asks for none."""
    if notifier.watchdog_s is None:
        return None
    return Ticker(clock, notifier.watchdog_s / 3, notifier.watchdog, "watchdog", at_once=True)


class Signals(Service):
    """
    What signals do. First child of the tree: it is to be there until everything else is down.

    `calls` (SIGHUP, SIGUSR2) are made in the reactor's turn. The first SIGTERM or SIGINT goes to Twisted, which stops
    the reactor and lets the process end by that signal's status; the second ends it at once, also when the reactor is
    stuck, with 128 + the signal's number.
    """

    name = "signals"

    def __init__(
        self,
        reactor: Reactor,
        ending: Ending,
        calls: Mapping[signal.Signals, Callable[[], object]],
    ) -> None:
        self._reactor = reactor
        self._ending = ending
        self._calls = dict(calls)
        self._before: dict[int, Any] = {}
        self._asked = 0
        self._stopping = False

    def startService(self) -> None:
        """Install the calls now, and the rest once Twisted has installed its own."""
        super().startService()
        for number in self._calls:
            self._before[number] = signal.signal(number, self._called)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._shutdown)
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        """Put back what was there before."""
        super().stopService()
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _install(self) -> None:
        if not self.running:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if callable(before):  # ignored (nohup) stays ignored
                self._before[number] = before
                signal.signal(number, self._ended)

    def _shutdown(self) -> None:
        self._stopping = True

    def _called(self, number: int, _: FrameType | None) -> None:
        self._reactor.callFromThread(self._calls[signal.Signals(number)])

    def _ended(self, number: int, frame: FrameType | None) -> None:
        # A signal handler: it may stand in the middle of anything, so it neither logs nor changes what others hold.
        self._asked += 1
        if self._asked > 1:
            self._ending.at_once(128 + number)
            return
        self._reactor.callFromThread(self._stop, number, frame)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:  # by a failure: Twisted's own would only raise ReactorNotRunning
            _log.info("The shutdown is under way; the next signal ends it at once.", event="process.stopping")
            return
        self._before[number](number, frame)
