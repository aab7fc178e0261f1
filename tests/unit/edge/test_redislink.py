"""The link's deadlines, to the tick: on a clock that stands still and connections that answer when they are told to."""

from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Unavailable
from gatewayd.lifecycle import StartFailed
from gatewayd.stores.redislink import LINES, OPERATION_TIMEOUT_S, STUCK_S, RedisLink
from gatewayd.stores.redisplace import RedisPlace

TICK_S = 0.005
LATEST_S = OPERATION_TIMEOUT_S + 0.02 + TICK_S


class Counts:
    """What a link counted."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()

    def error(self, kind: str) -> None:
        self.errors[kind] += 1

    def connected(self, link: str, answers: bool) -> None:
        """Not looked at here."""


class Connection:
    """The server's end of one connection."""

    def __init__(self, factory: Any) -> None:
        self.transport = StringTransport()
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def answer(self, reply: bytes = b"+PONG\r\n") -> None:
        """Answer the oldest command."""
        self.protocol.dataReceived(reply)


class LinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.counts = Counts()
        self.link = RedisLink(RedisPlace(path="/redis.sock"), self.reactor, self.counts)
        self.starting = self.link.start()
        self.connections = self.connect()
        for connection in self.connections:
            connection.answer()
        self.successResultOf(self.starting)

    def connect(self) -> list[Connection]:
        """Accept the attempts that were made since the last time."""
        made = [Connection(attempt[1]) for attempt in self.reactor.unixClients]
        self.reactor.unixClients.clear()
        return made

    def pass_time(self, seconds: float) -> None:
        """Time passes in ticks."""
        self.reactor.pump([TICK_S] * round(seconds / TICK_S))

    def waits(self, call: Deferred[Any]) -> float:
        """How long the call waits for its failure."""
        began = self.reactor.seconds()
        failed: list[float] = []
        call.addErrback(lambda failure: failed.append(self.reactor.seconds()) or failure.trap(Unavailable))
        while not failed:
            self.pass_time(TICK_S)
            self.assertLess(self.reactor.seconds() - began, 5)
        return failed[0] - began

    def test_no_call_waits_longer(self) -> None:
        """Whenever a call is sent, and whatever the other connection is at, its deadline is its own."""
        for pause_s in (0.0, 0.1, 0.24, 0.3, 0.7):
            self.setUp()
            self.assertLessEqual(self.waits(self.link.call("PING")), LATEST_S)
            self.assertTrue(self.link.connected, "the other connection owes nothing yet")
            self.pass_time(pause_s)
            self.assertLessEqual(self.waits(self.link.call("PING")), LATEST_S)
            self.assertFalse(self.link.connected)
            self.assertEqual(self.waits(self.link.call("PING")), 0.0)

    def test_callers_that_call_again(self) -> None:
        """A caller that is told and calls again at once puts nobody's deadline off."""
        self.link.call("PING").addErrback(lambda _: self.link.call("PING")).addErrback(lambda _: None)
        self.pass_time(0.1)
        self.assertLessEqual(self.waits(self.link.call("PING")), LATEST_S)

    def test_late_replies(self) -> None:
        """A late reply reaches nobody, and once all have come the connection serves again."""
        calls = [self.link.call("ECHO", str(number)) for number in range(4 * LINES)]
        for call in calls:
            call.addErrback(lambda failure: failure.trap(Unavailable))
        self.pass_time(LATEST_S)
        for connection in self.connections:
            for number in range(4):
                self.assertEqual(self.link.connected, connection is not self.connections[0])
                connection.answer(b"+%d\r\n" % number)
        self.assertEqual([self.successResultOf(call) for call in calls], [Unavailable] * len(calls))
        call = self.link.call("ECHO", "new")
        for connection in self.connections:
            if b"new" in connection.transport.value():
                connection.answer(b"$3\r\nnew\r\n")
        self.assertEqual(self.successResultOf(call), b"new")

    def test_a_silent_connection_is_given_up(self) -> None:
        """A connection is ended when a reply is a second overdue; new attempts are made, with longer pauses."""
        calls = [self.link.call("PING") for _ in range(LINES)]
        for call in calls:
            call.addErrback(lambda failure: failure.trap(Unavailable))
        self.pass_time(OPERATION_TIMEOUT_S + STUCK_S - 0.1)
        self.assertFalse(any(connection.transport.disconnecting for connection in self.connections))
        self.pass_time(0.3)
        self.assertTrue(all(connection.transport.disconnecting for connection in self.connections))

    def test_nothing_ticks_while_idle(self) -> None:
        """Without calls there is no timer."""
        call = self.link.call("PING")
        for connection in self.connections:
            if connection.transport.value().count(b"PING") == 2:
                connection.answer()
        self.successResultOf(call)
        self.pass_time(1.0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_start_that_is_cancelled(self) -> None:
        """Cancelling a start ends the attempts."""
        link = RedisLink(RedisPlace(path="/redis.sock"), self.reactor, self.counts)
        starting = link.start()
        starting.cancel()
        self.failureResultOf(starting, StartFailed)
        self.pass_time(3.0)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_busy_ourselves(self) -> None:
        """
        After a turn of this process that took long, replies are read before anything is overdue; what has none by then
        is, also when that turn was a long one, too.
        """
        answered, silent = self.link.call("GET", "a"), self.link.call("GET", "b")
        self.reactor.advance(0.6)
        self.assertNoResult(answered)
        for connection in self.connections:
            if b"$1\r\na\r\n" in connection.transport.value():
                connection.answer(b"$1\r\n1\r\n")
        self.assertEqual(self.successResultOf(answered), b"1")
        self.assertNoResult(silent)
        self.reactor.advance(0.6)
        self.failureResultOf(silent, Unavailable)
        self.assertEqual(self.counts.errors["timeout"], 1)
