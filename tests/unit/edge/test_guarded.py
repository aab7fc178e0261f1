"""A route's bounds: deadlines, places, and what its breaker is told."""

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.commands.breaker import FAILURES, PAUSE_S, SUCCESSES
from gatewayd.commands.guarded import FULL, ROUTE_COMMANDS, Complaints, GuardedRoute, Room
from gatewayd.sessions.endings import UNAVAILABLE, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending, malformed
from gatewayd.sessions.values import Answered, Command


class Silent:
    """A route whose answers come when a test gives them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Command, float, Deferred[Answered | Ending]]] = []
        self.cancelled = 0

    def call(self, command: Command, deadline_s: float) -> Deferred[Answered | Ending]:
        called: Deferred[Answered | Ending] = Deferred(self._cancel)
        self.calls.append((command, deadline_s, called))
        return called

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def say(self, answer: Answered | Ending) -> None:
        self.calls[-1][2].callback(answer)


def command(payload: bytes = b"{}") -> Command:
    return Command(payload, "d", "u", "orders.place", "r", "")


class GuardedTest(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.inner = Silent()
        self.room = Room(300, 1000)
        self.route = GuardedRoute("orders.", self.inner, 2.0, room=self.room, clock=self.clock)
        self.lines: list[LogEvent] = []
        globalLogPublisher.addObserver(self.lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines.append)

    def fail(self, count: int = FAILURES, ending: Ending = UPSTREAM_FAILED) -> None:  # type: ignore[override]
        for _ in range(count):
            called = self.route.call(command())
            self.inner.say(ending)
            self.successResultOf(called)

    def asked(self) -> bool:
        """Whether another command is handed over now; it goes well."""
        before = len(self.inner.calls)
        called = self.route.call(command())
        if len(self.inner.calls) == before:
            found = self.successResultOf(called)
            assert isinstance(found, Ending)
            self.assertEqual(found.grpc_status, UNAVAILABLE)
            assert found.retry_after_ms is not None
            return False
        self.inner.say(Answered("ok", b""))
        return True

    def test_the_shorter_deadline_counts(self) -> None:
        """A caller may have less time than the route, never more; none at all is not even begun."""
        for own, wanted in ((None, 2.0), (0.5, 0.5), (60.0, 2.0)):
            self.route.call(command(), own)
            self.assertEqual(self.inner.calls[-1][1], wanted)
        before = len(self.inner.calls)
        self.assertEqual(self.successResultOf(self.route.call(command(), 0.0)), UPSTREAM_TIMED_OUT)
        self.assertEqual(len(self.inner.calls), before)

    def test_failures_open_the_breaker(self) -> None:
        """Five failures in a row: the service is left alone, who comes is told when to come back, one line says so."""
        self.fail()
        self.assertFalse(self.asked())
        found = self.successResultOf(self.route.call(command()))
        assert isinstance(found, Ending)
        self.assertEqual((found.reason, found.message), (UPSTREAM_FAILED.reason, UPSTREAM_FAILED.message))
        self.assertEqual(found.retry_after_ms, int(PAUSE_S * 1000) + 1)
        self.assertEqual([line["event"] for line in self.lines], ["command.breaker_open"])

    def test_the_breaker_closes(self) -> None:
        """After the pause probes pass, and close it; one line says so."""
        self.fail()
        self.clock.advance(PAUSE_S)
        for _ in range(SUCCESSES):
            self.assertTrue(self.asked())
        self.route.call(command())
        self.route.call(command())
        self.assertEqual(self.lines[-1]["event"], "command.breaker_closed")
        self.assertEqual(len(self.lines), 2)

    def test_a_silent_service_opens_it(self) -> None:
        """Timeouts at the route's own deadline count as failures."""
        self.fail(ending=UPSTREAM_TIMED_OUT)
        self.assertFalse(self.asked())

    def test_clients_cannot_open_it(self) -> None:
        """Deadlines too short, payloads too large and calls given up say nothing about the service."""
        for _ in range(3 * FAILURES):
            called = self.route.call(command(), 0.001)
            self.inner.say(UPSTREAM_TIMED_OUT)
            self.assertEqual(self.successResultOf(called), UPSTREAM_TIMED_OUT)
            called = self.route.call(command())
            self.inner.say(malformed("payload_bytes", "has more bytes than its route takes"))
            self.successResultOf(called)
            called = self.route.call(command())
            called.cancel()
            self.failureResultOf(called, CancelledError)
        self.assertTrue(self.asked())
        self.assertEqual(self.inner.cancelled, 3 * FAILURES)

    def test_places_of_a_route(self) -> None:
        """One route has so many places; beyond, it is refused at once, and a place comes back with every outcome."""
        called = [self.route.call(command(b"")) for _ in range(ROUTE_COMMANDS)]
        self.assertEqual(self.successResultOf(self.route.call(command(b""))), FULL)
        called[0].cancel()
        self.failureResultOf(called[0], CancelledError)
        self.inner.calls[1][2].callback(Answered("ok", b""))
        self.inner.calls[2][2].errback(ZeroDivisionError())
        self.failureResultOf(called[2], ZeroDivisionError)
        for _ in range(3):
            self.assertNoResult(self.route.call(command(b"")))
        self.assertEqual(self.successResultOf(self.route.call(command(b""))), FULL)

    def test_bytes_of_all_routes(self) -> None:
        """Payloads of all routes together have a bound; what a breaker refuses takes nothing of it."""
        other = GuardedRoute("quotes.", Silent(), 2.0, room=self.room, clock=self.clock)
        called = self.route.call(command(bytes(900)))
        self.assertEqual(self.successResultOf(other.call(command(bytes(101)))), FULL)
        self.assertNoResult(other.call(command(bytes(100))))
        self.inner.say(Answered("ok", b""))
        self.successResultOf(called)
        self.fail()
        for _ in range(300):
            self.successResultOf(self.route.call(command(bytes(900))))
        self.assertNoResult(other.call(command(bytes(900))))

    def test_room(self) -> None:
        """Places and bytes are taken together and given back; what does not fit takes neither."""
        room = Room(2, 10)
        self.assertTrue(room.enter(10))
        self.assertFalse(room.enter(1))
        self.assertTrue(room.enter(0))
        self.assertFalse(room.enter(0))
        room.leave(10)
        self.assertTrue(room.enter(9))

    def test_complaints(self) -> None:
        """One line a second for each route; the next one says how many were left out."""
        complaints = Complaints(self.clock)
        one, other = complaints.about("a"), complaints.about("b")
        for _ in range(5):
            one("refused")
        other("refused")
        self.clock.advance(1)
        one("refused")
        self.assertEqual([(line["route"], line["left_out"]) for line in self.lines], [("a", 0), ("b", 0), ("a", 4)])
