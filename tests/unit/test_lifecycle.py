"""Order, budgets and endings, on a Clock and a reactor that only remembers what it was asked."""

import gc
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from twisted.application.service import Application, IService, Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.lifecycle import (
    Ending,
    Notifier,
    OrderedServices,
    Overrun,
    Signals,
    StartFailed,
    Ticker,
    watchdog,
    within,
)


class FakeReactor:
    """Holds what it is told until the test runs it."""

    def __init__(self) -> None:
        self.running = False
        self.stopped = False
        self.when_running: list[Callable[[], Any]] = []
        self.from_thread: list[Callable[[], Any]] = []
        self.before_shutdown: list[Callable[[], Any]] = []

    def run(self) -> None:
        self.running = True
        for call in self.when_running:
            call()

    def turn(self) -> None:
        calls, self.from_thread = self.from_thread, []
        for call in calls:
            call()

    def stop(self) -> None:
        if self.stopped:
            raise ReactorNotRunning("stopped already")
        self.stopped = True
        for call in self.before_shutdown:
            call()

    def callWhenRunning(self, call: Callable[..., Any], *args: Any) -> None:
        if self.running:
            call(*args)
        else:
            self.when_running.append(lambda: call(*args))

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:
        self.from_thread.append(lambda: call(*args))

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[..., Any], *args: Any) -> None:
        assert (phase, event) == ("before", "shutdown")
        self.before_shutdown.append(call)


class Recorded(Service):
    """Writes down its start and stop; `up` and `down` are what they return (or raise)."""

    def __init__(self, name: str, log: list[str], up: Any = None, down: Any = None) -> None:
        self.name = name
        self._log = log
        self._up = up
        self._down = down

    def startService(self) -> Any:
        super().startService()
        self._log.append(f"+{self.name}")
        return self._answer(self._up)

    def stopService(self) -> Any:
        super().stopService()
        self._log.append(f"-{self.name}")
        return self._answer(self._down)

    def _answer(self, given: Any) -> Any:
        if isinstance(given, Exception):
            raise given
        return given


class Case(SynchronousTestCase):
    @pytest.fixture(autouse=True)
    def _failures(self, no_logged_failures: list[dict[str, Any]]) -> None:
        self.failures = no_logged_failures

    def expect_failures(self, *kinds: type[Exception]) -> None:
        """Exactly these were logged, in this order."""
        self.assertEqual([event["log_failure"].type for event in self.failures], list(kinds))
        self.failures.clear()
        self.flushLoggedErrors(*kinds)

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.log: list[str] = []
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("event") == event]


class WithinTest(Case):
    def test_the_outcome_passes_through(self) -> None:
        """An answer in time is the outcome, and no timer is left behind."""
        waiting: Deferred[int] = Deferred()
        outcome = within(self.clock, waiting, 2.0)
        self.assertNoResult(outcome)
        waiting.callback(7)
        self.assertEqual(self.successResultOf(outcome), 7)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_answer_that_is_there_already(self) -> None:
        """What has fired before is passed through, failures too."""
        self.assertEqual(self.successResultOf(within(self.clock, succeed(1), 2.0)), 1)
        self.failureResultOf(within(self.clock, fail(KeyError()), 2.0), KeyError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_side_that_swallows_its_cancellation_cannot_hold_us(self) -> None:
        """The budget ends the wait even when the other side goes on for ever, and its late answer is dropped."""

        async def stubborn() -> int:
            try:
                return await Deferred()
            except CancelledError:
                return await Deferred()

        outcome = within(self.clock, Deferred.fromCoroutine(stubborn()), 2.0)
        self.clock.advance(2.0)
        self.failureResultOf(outcome, Overrun)

    def test_a_late_failure_is_dropped(self) -> None:
        """A failure after the budget is nobody's business: nothing is logged as unhandled."""
        last: Deferred[int] = Deferred()

        async def stubborn() -> int:
            try:
                return await Deferred()
            except CancelledError:
                return await last

        outcome = within(self.clock, Deferred.fromCoroutine(stubborn()), 2.0)
        self.clock.advance(2.0)
        self.failureResultOf(outcome, Overrun)
        last.errback(KeyError("late"))
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])


class OrderedServicesTest(Case):
    def tree(self, **more: Any) -> OrderedServices:
        return OrderedServices(self.clock, stop_budget_s=5.0, start_budget_s=10.0, **more)

    def test_each_start_waits_for_the_one_before(self) -> None:
        """A service starts only when the one before it is up; `started` is called after the last."""
        up: Deferred[None] = Deferred()
        ready: list[int] = []
        tree = self.tree(started=lambda: ready.append(1))
        for service in (Recorded("a", self.log), Recorded("b", self.log, up), Recorded("c", self.log)):
            service.setServiceParent(tree)
        starting = tree.startService()
        self.assertEqual(self.log, ["+a", "+b"])
        self.assertEqual(ready, [])
        up.callback(None)
        self.successResultOf(starting)
        self.assertEqual(self.log, ["+a", "+b", "+c"])
        self.assertEqual(ready, [1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_each_stop_waits_for_the_one_after(self) -> None:
        """MultiService stops all at once; here the earlier service stays up until the later one is down."""
        down: Deferred[None] = Deferred()
        tree = self.tree()
        for service in (Recorded("redis", self.log), Recorded("hub", self.log, None, down)):
            service.setServiceParent(tree)
        tree.startService()
        stopping = tree.stopService()
        self.assertEqual(self.log, ["+redis", "+hub", "-hub"])
        self.clock.advance(0.25)
        self.assertNoResult(stopping)
        down.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.log[-2:], ["-hub", "-redis"])
        self.assertEqual([line["service"] for line in self.logged("service.stopped")], ["hub", "redis"])
        self.assertEqual(self.logged("service.stopped")[0]["ms"], 250)

    def test_a_stop_that_raises_fails_or_overruns_holds_nobody_back(self) -> None:
        """Whatever one service does at its stop, all the others are stopped, and the whole ends in its budgets."""
        hung: Deferred[None] = Deferred(lambda _: None)
        tree = self.tree()
        for service in (
            Recorded("first", self.log),
            Recorded("raises", self.log, None, KeyError("x")),
            Recorded("fails", self.log, None, fail(ValueError("y"))),
            Recorded("hangs", self.log, None, hung),
        ):
            service.setServiceParent(tree)
        tree.startService()
        stopping = tree.stopService()
        self.clock.advance(4.9)
        self.assertNoResult(stopping)
        self.clock.advance(0.2)
        self.successResultOf(stopping)
        self.assertEqual(self.log[4:], ["-hangs", "-fails", "-raises", "-first"])
        self.assertEqual(len(self.logged("service.stop_overrun")), 1)
        self.expect_failures(ValueError, KeyError)

    def test_an_overrun_stop_is_cancelled(self) -> None:
        """A service is told that its time is up, so that it can do the last thing at once."""
        told: list[int] = []
        tree = self.tree()
        Recorded("a", self.log, None, Deferred(lambda _: told.append(1))).setServiceParent(tree)
        tree.startService()
        tree.stopService()
        self.clock.advance(5.0)
        self.assertEqual(told, [1])

    def test_a_failed_start_ends_the_process_with_one_line(self) -> None:
        """An expected failure is one critical line without a traceback; later services are not started."""
        reactor, left = FakeReactor(), []
        ending = Ending(reactor, lambda: None, leave=left.append, at_exit=lambda call: self.log.append("at exit"))
        tree = self.tree(ending=ending)
        Recorded("a", self.log).setServiceParent(tree)
        Recorded("b", self.log, CannotListenError("", 8001, OSError("taken"))).setServiceParent(tree)
        Recorded("c", self.log).setServiceParent(tree)
        self.successResultOf(tree.startService())
        self.assertEqual(self.log, ["+a", "+b", "at exit"])
        (line,) = self.logged("process.failed")
        self.assertIn("b did not start: Couldn't listen on any:8001: taken", line["reason"])
        self.assertNotIn("log_failure", line)
        reactor.run()
        self.assertTrue(reactor.stopped)
        self.successResultOf(tree.stopService())
        self.assertEqual(self.log[3:], ["-b", "-a"])

    def test_a_bug_in_a_start_shows_its_traceback(self) -> None:
        """What nobody expected ends the process too, with the traceback."""
        ending = Ending(FakeReactor(), lambda: None, at_exit=lambda call: None)
        tree = self.tree(ending=ending)
        Recorded("a", self.log, ZeroDivisionError()).setServiceParent(tree)
        tree.startService()
        self.expect_failures(ZeroDivisionError)
        self.assertIn("a did not start: ZeroDivisionError", self.logged("process.failed")[0]["reason"])

    def test_a_start_that_takes_too_long_fails(self) -> None:
        """The start's budget is per service; beyond it the process ends."""
        ending = Ending(FakeReactor(), lambda: None, at_exit=lambda call: None)
        tree = self.tree(ending=ending)
        Recorded("slow", self.log, Deferred()).setServiceParent(tree)
        tree.startService()
        self.clock.advance(9.9)
        self.assertIsNone(ending.status)
        self.clock.advance(0.2)
        self.assertEqual(ending.status, 1)
        self.assertEqual(self.logged("process.failed")[0]["reason"], "slow did not start: took longer than 10 s")

    def test_inside_another_order_the_start_fails_upwards(self) -> None:
        """Without an ending of its own, a group's failure is its parent's."""
        ending = Ending(FakeReactor(), lambda: None, at_exit=lambda call: None)
        outer, inner = self.tree(ending=ending), self.tree()
        inner.setServiceParent(outer)
        Recorded("a", self.log, StartFailed("no key file")).setServiceParent(inner)
        outer.startService()
        self.assertEqual(self.logged("process.failed")[0]["reason"], "OrderedServices did not start: no key file")

    def test_a_stop_while_the_start_is_under_way(self) -> None:
        """The service that is just starting is cancelled and stopped, later ones never start, nothing is an error."""
        cancelled: list[int] = []
        ending = Ending(FakeReactor(), lambda: None, at_exit=lambda call: None)
        tree = self.tree(ending=ending)
        Recorded("a", self.log).setServiceParent(tree)
        Recorded("b", self.log, Deferred(lambda _: cancelled.append(1))).setServiceParent(tree)
        Recorded("c", self.log).setServiceParent(tree)
        tree.startService()
        self.successResultOf(tree.stopService())
        self.assertEqual(self.log, ["+a", "+b", "-b", "-a"])
        self.assertEqual(cancelled, [1])
        self.assertIsNone(ending.status)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_is_what_an_application_starts_and_stops(self) -> None:
        """twistd's Application calls startService synchronously and waits for stopService's Deferred."""
        down: Deferred[None] = Deferred()
        application = Application("test")
        tree = self.tree()
        Recorded("a", self.log, None, down).setServiceParent(tree)
        tree.setServiceParent(application)
        whole = IService(application)
        whole.privilegedStartService()
        whole.startService()
        self.assertEqual(self.log, ["+a"])
        stopping = whole.stopService()
        self.assertNoResult(stopping)
        down.callback(None)
        self.successResultOf(stopping)

    def test_nothing_joins_an_order_that_runs(self) -> None:
        """A late service would have no place in the order, so it is refused."""
        tree = self.tree()
        tree.startService()
        with self.assertRaises(RuntimeError):
            tree.addService(Recorded("late", self.log))


class EndingTest(Case):
    def test_the_log_is_written_before_the_process_leaves(self) -> None:
        """At the interpreter's end: flush, then the status; the first reason decides it."""
        reactor, at_exit = FakeReactor(), []
        ending = Ending(
            reactor,
            lambda: self.log.append("flush"),
            leave=lambda n: self.log.append(f"exit {n}"),
            at_exit=at_exit.append,
        )
        ending.fail("no Redis", 70)
        ending.fail("and more", 71)
        self.assertEqual(self.log, [])
        self.assertFalse(reactor.stopped)
        reactor.run()
        self.assertTrue(reactor.stopped)
        (call,) = at_exit
        call()
        self.assertEqual(self.log, ["flush", "exit 70"])

    def test_a_failure_during_the_shutdown(self) -> None:
        """A reactor that stops already is left alone; the status still counts."""
        reactor = FakeReactor()
        reactor.run()
        reactor.stop()
        ending = Ending(reactor, lambda: None, at_exit=lambda call: None)
        ending.fail("too late", 3)
        self.assertEqual(ending.status, 3)


class TickerTest(Case):
    def ticker(self, tick: Callable[[], Any], **more: Any) -> Ticker:
        ticker = Ticker(self.clock, 1.0, tick, "lag", **more)
        ticker.startService()
        return ticker

    def test_it_goes_on_after_an_error(self) -> None:
        """Raised or failed, an error is logged and counted, and the next tick comes."""
        outcomes: list[Any] = [KeyError("a"), None, fail(KeyError("b")), None]
        counted: list[int] = []

        def tick() -> Any:
            self.log.append("tick")
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        ticker = self.ticker(tick, failed=lambda: counted.append(1))
        self.clock.pump([1.0] * 4)
        self.assertEqual(len(self.log), 4)
        self.assertEqual((ticker.errors, len(counted)), (2, 2))
        self.expect_failures(KeyError, KeyError)
        self.assertEqual(self.logged("tick.failed")[0]["repeats"], "lag")
        self.assertIsNone(ticker.stopService())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ticks_never_overlap_and_are_not_made_up_for(self) -> None:
        """While one tick is under way no other begins; afterwards the beat goes on from there."""
        under_way: list[Deferred[None]] = []

        def tick() -> Deferred[None]:
            under_way.append(Deferred())
            return under_way[-1]

        ticker = self.ticker(tick)
        self.clock.pump([1.0] * 5)
        self.assertEqual(len(under_way), 1)
        under_way[0].callback(None)
        self.clock.advance(0)
        self.assertEqual(len(under_way), 2)
        under_way[1].callback(None)
        self.clock.advance(0.9)
        self.assertEqual(len(under_way), 2)
        ticker.stopService()

    def test_it_keeps_its_beat(self) -> None:
        """A tick that takes 0.4 s of each second does not make the interval 1.4 s."""
        under_way: list[Deferred[None]] = []

        def tick() -> Deferred[None]:
            under_way.append(Deferred())
            self.clock.callLater(0.4, under_way[-1].callback, None)
            return under_way[-1]

        ticker = self.ticker(tick)
        self.clock.pump([0.1] * 100)
        self.assertEqual(len(under_way), 10)
        stopping = ticker.stopService()
        self.clock.advance(1)
        if stopping is not None:
            self.successResultOf(stopping)

    def test_the_stop_waits_for_the_tick(self) -> None:
        """A stop fires when the tick that is under way has ended, and no other follows."""
        under_way: Deferred[None] = Deferred()
        ticker = self.ticker(lambda: under_way, at_once=True)
        self.clock.advance(0)
        stopping = ticker.stopService()
        assert stopping is not None
        self.assertNoResult(stopping)
        under_way.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_whose_budget_is_over_cancels_the_tick(self) -> None:
        """Cancelling the stop cancels the tick, and that is no error of the tick."""
        ticker = self.ticker(Deferred, at_once=True)
        self.clock.advance(0)
        stopping = ticker.stopService()
        assert stopping is not None
        stopping.cancel()
        self.successResultOf(stopping)
        self.assertEqual(ticker.errors, 0)

    def test_a_tick_that_swallows_its_cancellation(self) -> None:
        """The cancelled stop ends all the same; the tick's own end later harms nobody."""
        last: Deferred[None] = Deferred()

        async def tick() -> None:
            try:
                await Deferred()
            except CancelledError:
                await last

        ticker = self.ticker(tick, at_once=True)
        self.clock.advance(0)
        stopping = ticker.stopService()
        assert stopping is not None
        stopping.cancel()
        self.failureResultOf(stopping, CancelledError)
        last.callback(None)
        self.assertEqual(ticker.errors, 0)

    def test_a_coroutine_function_ticks(self) -> None:
        """`async def` needs no wrapping."""

        async def tick() -> None:
            self.log.append("tick")

        ticker = self.ticker(tick)
        self.clock.advance(1.0)
        self.assertEqual(self.log, ["tick"])
        ticker.stopService()


class NotifierTest(Case):
    def setUp(self) -> None:
        super().setUp()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        heard = []
        while True:
            try:
                heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return heard

    def bound(self, address: str) -> Notifier:
        self.socket.bind(address.replace("@", "\0", 1))
        return Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})

    def test_each_call_is_one_datagram(self) -> None:
        """READY, STATUS, RELOADING with the monotonic time, WATCHDOG and STOPPING as sd_notify(3) words them."""
        with tempfile.TemporaryDirectory() as directory:
            notifier = self.bound(f"{directory}/notify")
            notifier.ready("202 on all\nREADY=0 sources")
            notifier.status("fine")
            notifier.reloading()
            notifier.watchdog()
            notifier.stopping()
            ready, status, reloading, alive, stopping = self.told()
        self.assertEqual(ready, "READY=1\nSTATUS=202 on all READY=0 sources")
        self.assertEqual(status, "STATUS=fine")
        self.assertRegex(reloading, r"^RELOADING=1\nMONOTONIC_USEC=\d{6,}$")
        self.assertEqual(alive, "WATCHDOG=1")
        self.assertRegex(stopping, r"^STOPPING=1\nSTATUS=stopping")

    def test_a_stop_is_the_last_word(self) -> None:
        """A reload that ends while the process stops is not reported: systemd would call it running again."""
        notifier = self.bound(f"@gatewayd-stop-{os.getpid()}")
        notifier.stopping()
        notifier.reloading()
        notifier.ready("x")
        notifier.watchdog()
        self.assertEqual([text.partition("\n")[0] for text in self.told()], ["STOPPING=1", "WATCHDOG=1"])

    def test_an_abstract_socket(self) -> None:
        """An address that begins with @ is in the abstract namespace."""
        notifier = self.bound(f"@gatewayd-test-{os.getpid()}")
        notifier.ready()
        self.assertEqual(self.told(), ["READY=1"])

    def test_without_systemd_nothing_happens(self) -> None:
        """No NOTIFY_SOCKET: no call does anything, and there is no watchdog."""
        notifier = Notifier({"WATCHDOG_USEC": "3000000"})
        notifier.ready("x")
        self.assertIsNone(watchdog(self.clock, notifier))
        self.assertEqual(self.lines, [])

    def test_a_dead_or_impossible_socket_is_no_error(self) -> None:
        """Whatever the address is, a call returns."""
        for address in ("/nonexistent/notify", "x" * 300, "@" + "y" * 300, "/with\0nul"):
            Notifier({"NOTIFY_SOCKET": address}).ready()
        self.assertEqual(len(self.logged("systemd.untold")), 4)

    def test_a_full_socket_does_not_block(self) -> None:
        """Datagrams that nobody reads are lost, not waited for."""
        notifier = self.bound(f"@gatewayd-full-{os.getpid()}")
        for _ in range(2000):
            notifier.watchdog()
        self.assertLess(len(self.told()), 2000)

    def test_the_watchdog_is_fed_at_a_third_of_its_interval(self) -> None:
        """WATCHDOG_USEC=3000000: at once, then every second."""
        ticker = watchdog(self.clock, self.bound(f"@gatewayd-dog-{os.getpid()}"))
        assert ticker is not None
        ticker.startService()
        self.clock.pump([0.0, 0.5, 0.5, 1.0])
        self.assertEqual(self.told(), ["WATCHDOG=1"] * 3)
        ticker.stopService()

    def test_a_watchdog_for_another_process_is_not_ours(self) -> None:
        """WATCHDOG_PID names who must feed it; nonsense in WATCHDOG_USEC asks for none."""
        base = {"NOTIFY_SOCKET": "@x"}
        self.assertIsNone(Notifier({**base, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s)
        self.assertEqual(
            Notifier({**base, "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": f"{os.getpid()}"}).watchdog_s, 1.5
        )
        for text in ("", "0", "-5", "1e6", "\u0661"):
            self.assertIsNone(Notifier({**base, "WATCHDOG_USEC": text}).watchdog_s)


class SignalsTest(Case):
    def setUp(self) -> None:
        super().setUp()
        self.reactor = FakeReactor()
        self.ending = Ending(
            self.reactor, lambda: self.log.append("flush"), leave=lambda n: self.log.append(f"exit {n}")
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        signal.signal(signal.SIGTERM, self.twisted)
        signal.signal(signal.SIGINT, self.twisted)
        self.signals = Signals(
            self.reactor,
            self.ending,
            {signal.SIGHUP: lambda: self.log.append("reload"), signal.SIGUSR2: lambda: self.log.append("snapshot")},
        )
        self.signals.startService()

    def twisted(self, number: int, frame: Any) -> None:
        self.log.append(f"twisted {number}")
        self.reactor.stop()

    def test_a_call_is_made_in_the_reactors_turn(self) -> None:
        """SIGHUP and SIGUSR2 do nothing in the handler itself, also before the reactor runs."""
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR2)
        self.assertEqual(self.log, [])
        self.reactor.turn()
        self.assertEqual(self.log, ["reload", "snapshot"])

    def test_the_first_goes_to_twisted_and_the_second_ends_at_once(self) -> None:
        """SIGTERM: Twisted's own handler in the reactor's turn; again: log written, 128 + 15, whatever is stuck."""
        self.reactor.run()
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(self.log, [])
        self.reactor.turn()
        self.assertEqual(self.log, ["twisted 15"])
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(self.log, ["twisted 15", "flush", "exit 143"])

    def test_ctrl_c_twice(self) -> None:
        """SIGINT behaves alike, with 128 + 2; and any two of both are two."""
        self.reactor.run()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(self.log, ["flush", "exit 130"])

    def test_a_signal_while_a_failure_ends_the_process(self) -> None:
        """Twisted's handler would log a ReactorNotRunning: it is not called again."""
        self.reactor.run()
        self.reactor.stop()
        os.kill(os.getpid(), signal.SIGTERM)
        self.reactor.turn()
        self.assertEqual(self.log, [])
        self.assertEqual(len(self.logged("process.stopping")), 1)

    def test_what_is_ignored_stays_ignored(self) -> None:
        """Started by nohup, SIGINT is ignored: no handler takes its place."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.reactor.run()
        self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

    def test_the_stop_puts_everything_back(self) -> None:
        """Afterwards the handlers are those from before."""
        self.reactor.run()
        self.signals.stopService()
        self.assertEqual(signal.getsignal(signal.SIGTERM), self.twisted)
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_DFL)
