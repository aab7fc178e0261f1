"""NatsBus between lane and client: when it writes, when it leaves a server, whom it tells."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.client import Ear, NatsSettings
from gatewayd.bus.inlet import Delivery
from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import BusState, Cause, Message, Published, Unpublished
from gatewayd.bus.requests import Reply
from gatewayd.bus.servers import Server
from gatewayd.times import Wall
from tests.fakes.counts import Counts

RAW = Message(b"signals.raw", b"Nats-Msg-Id: a\r\n", b"{}")


class Turns:
    """The part of aio.Loop that a bus uses between connections: calls for the next turn."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def soon(self, function: Callable[[], object]) -> None:
        self.due.append(function)

    def turn(self) -> None:
        due, self.due = self.due, []
        for function in due:
            function()

    def from_asyncio(self, coroutine: Any) -> Deferred[None]:
        coroutine.close()
        return Deferred()


class Connection:
    """A client that is connected and does what a test says."""

    def __init__(self, bus: NatsBus) -> None:
        self.bus = bus
        self.server = Server("nats://h:4222", "h:4222", False)
        self.inbox = b"_INBOX.x"
        self.max_payload = 1_000_000
        self.version = "2.15.1"
        self.alive = True
        self.silent = False
        self.unsent_bytes = 0
        self.written: list[bytes] = []

    def write(self, frames: bytes) -> None:
        self.written.append(frames)

    def lose(self, error: str) -> None:
        self.bus.lost(error)

    async def listen(self, heard: Callable[[Any], object]) -> Ear:
        self.heard = heard
        connection: Any = self
        return Ear("_INBOX.y", connection, connection)

    async def silence(self, _: object) -> None:
        self.written.append(b"UNSUB")


def delivery(status: int = 0) -> Delivery:
    """A message of a slice, or the status line that ends it."""
    return Delivery(1, "a", "", {} if status else {"Nats-Msg-Id": "a"}, status)


class BusTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.turns = Turns()
        self.counts = Counts()
        self.wall = 5000.0
        self.bus = self.make("nats://h")
        self.connection = Connection(self.bus)

    def make(self, *servers: str) -> NatsBus:
        loop: Any = self.turns
        return NatsBus(NatsSettings(servers, "s"), loop, self.clock, lambda: Wall(self.wall), self.counts)

    def start(self) -> None:
        self.bus.start()
        self.bus.connected(self.connection)  # type: ignore[arg-type]

    def pump(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def test_publications_of_one_turn_leave_in_one_write(self) -> None:
        """Nothing is written within the call; at the next turn everything is, in one piece and in order."""
        self.start()
        for _ in range(3):
            self.bus.publish([RAW])
        self.assertEqual((self.connection.written, len(self.turns.due)), ([], 1))
        self.turns.turn()
        (frames,) = self.connection.written
        self.assertEqual(frames.count(b"HPUB "), 3)
        self.bus.publish([RAW])
        self.assertEqual(len(self.turns.due), 1)

    def test_what_was_not_written_when_the_connection_went_is_never_written(self) -> None:
        """A publication of the turn in which the connection is lost fails and leaves nothing for the next one."""
        self.start()
        publishing = self.bus.publish([RAW])
        self.connection.lose("reset")
        self.assertEqual(self.successResultOf(publishing), Unpublished(Cause.DISCONNECTED, "reset"))
        self.bus.connected(self.connection)  # type: ignore[arg-type]
        self.turns.turn()
        self.pump(1)
        self.assertEqual(self.connection.written, [])

    def test_a_server_is_left_when_it_hangs_and_owes_acknowledgements(self) -> None:
        """Overdue and no pings answered: left at the deadline, not when the driver finds out. Silence alone is not."""
        self.start()
        self.connection.silent = True
        self.pump(10)
        self.assertIs(self.bus.state, BusState.CONNECTED)
        publishing = self.bus.publish([RAW])
        self.pump(2.1)
        self.assertEqual(self.successResultOf(publishing), Unpublished(Cause.TIMEOUT, "no acknowledgement within 2 s"))
        self.assertEqual((self.bus.state, self.counts.errors["connection"]), (BusState.DISCONNECTED, 1))

    def test_a_server_that_answers_pings_is_not_left(self) -> None:
        """A timeout at a server that is alive is degraded, no reason to leave."""
        self.start()
        self.bus.publish([RAW])
        self.pump(2.1)
        self.assertEqual((self.bus.state, self.counts.errors["connection"]), (BusState.DEGRADED, 0))

    def test_a_process_that_stood_still_reads_before_it_judges(self) -> None:
        """After SIGCONT the acknowledgements that lay in the socket count; what is still missing then is overdue."""
        self.start()
        acknowledged, lost = self.bus.publish([RAW]), self.bus.publish([RAW])
        self.turns.turn()
        self.connection.silent = True
        self.clock.advance(3.0)
        self.assertNoResult(acknowledged)
        self.bus.answered("4", None, b'{"stream":"s","seq":1}')
        self.assertIsInstance(self.successResultOf(acknowledged), Published)
        self.pump(0.05)
        self.assertEqual(self.successResultOf(lost), Unpublished(Cause.TIMEOUT, "no acknowledgement within 2 s"))
        self.assertIs(self.bus.state, BusState.DISCONNECTED)

    def test_a_connection_that_the_driver_gave_up_silently_is_lost(self) -> None:
        """The driver does not always call back; within a tick it is noticed."""
        self.start()
        self.connection.alive = False
        publishing = self.bus.publish([RAW])
        self.pump(0.05)
        self.assertIsInstance(self.successResultOf(publishing), Unpublished)

    def test_a_server_that_does_not_read_is_left(self) -> None:
        """Bytes that the socket does not take are bounded."""
        self.start()
        self.connection.unsent_bytes = 64 * 1024 * 1024 + 1
        self.pump(0.05)
        self.assertIs(self.bus.state, BusState.DISCONNECTED)

    def test_requests_end_with_the_connection_and_with_their_deadline(self) -> None:
        """A request is told at once when the connection goes, and at its deadline otherwise."""
        self.start()
        first = self.bus.ask("$JS.API.INFO", b"", 1.0)
        self.assertEqual(self.connection.written, [b"PUB $JS.API.INFO _INBOX.x.r1 0\r\n\r\n"])
        self.bus.answered("r1", None, b"{}")
        self.assertEqual(self.successResultOf(first), Reply(b"{}"))
        second = self.bus.request("a", b"", 1.0)
        self.pump(1.05)
        self.assertEqual(self.successResultOf(second), Unpublished(Cause.TIMEOUT, "no answer in time"))
        third = self.bus.request("a", b"", 1.0)
        self.connection.lose("reset")
        self.assertEqual(self.successResultOf(third), Unpublished(Cause.DISCONNECTED, "reset"))
        self.assertIsInstance(self.successResultOf(self.bus.ask("a", b"", 1.0)), Unpublished)

    def test_a_request_with_headers_that_is_given_up(self) -> None:
        """Headers go before the payload; who cancels is told so, makes room, and an answer finds nobody."""
        self.start()
        asked = self.bus.ask("orders.place", b"{}", 1.0, b"request_id: r-1\r\n")
        frame = b"HPUB orders.place _INBOX.x.r1 29 31\r\nNATS/1.0\r\nrequest_id: r-1\r\n\r\n{}\r\n"
        self.assertEqual(self.connection.written, [frame])
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(len(self.bus._requests), 0)
        self.bus.answered("r1", None, b"late")

    def test_a_read_asks_the_leader_when_the_direct_get_does_not_answer(self) -> None:
        """A replica that is silent costs half the time; the leader is asked in the other half."""
        self.start()
        reading = self.bus.read(7, b"id")
        self.pump(1.05)
        self.assertIn(b"$JS.API.DIRECT.GET.s ", self.connection.written[0])
        self.assertIn(b"$JS.API.STREAM.MSG.GET.s ", self.connection.written[1])
        self.assertIn(b'{"seq": 7}', self.connection.written[1])
        self.bus.answered("r2", None, b'{"error":{"code":404,"err_code":10037}}')
        self.assertIsNone(self.successResultOf(reading))
        reading = self.bus.read(7, b"id")
        self.pump(2.1)
        self.assertIsInstance(self.successResultOf(reading), Unpublished)

    def test_a_slice_ends_with_its_number_its_status_its_deadline_or_the_connection(self) -> None:
        """Whatever comes first; the subscription goes in each case."""
        self.start()
        self.turns.from_asyncio = Deferred.fromCoroutine  # type: ignore[assignment]
        heard: list[object] = []

        def ask() -> Deferred[Unpublished | None]:
            self.connection.written.clear()
            slice_ = self.bus.slice("next", b"{}", 2, 5.0, heard.append)
            self.assertEqual(self.connection.written, [b"PUB next _INBOX.y 2\r\n{}\r\n"])
            self.connection.heard(delivery())
            self.assertNoResult(slice_)
            return slice_

        slice_ = ask()
        self.connection.heard(delivery())
        self.assertIsNone(self.successResultOf(slice_))
        self.connection.heard(delivery())
        slice_ = ask()
        self.connection.heard(delivery(408))
        self.assertIsNone(self.successResultOf(slice_))
        slice_ = ask()
        self.pump(5.1)
        self.assertEqual(self.successResultOf(slice_), Unpublished(Cause.TIMEOUT, "no answer within 5 s"))
        slice_ = ask()
        self.connection.lose("reset")
        self.assertEqual(self.successResultOf(slice_), Unpublished(Cause.DISCONNECTED, "reset"))
        self.assertEqual(len(heard), 6)
        self.assertIn(b"UNSUB", self.connection.written)

    def test_an_answer_that_nobody_can_read_harms_nobody(self) -> None:
        """Rubbish at the inbox is dropped and the next acknowledgement counts."""
        self.start()
        publishing = self.bus.publish([RAW])
        self.bus.answered("²", None, b"")
        self.bus.answered("", None, b"")
        self.bus.answered("4", None, b'{"stream":"s","seq":1}')
        self.assertIsInstance(self.successResultOf(publishing), Published)

    def test_last_success_is_the_last_acknowledgement_else_the_connect(self) -> None:
        """Wall time, also when the publication is long past."""
        self.assertIsNone(self.bus.last_success)
        self.start()
        self.assertEqual(self.bus.last_success, 5000.0)
        self.bus.publish([RAW])
        self.bus.answered("4", None, b'{"stream":"s","seq":1}')
        self.pump(3)
        self.wall = 5003.0
        assert self.bus.last_success is not None
        self.assertAlmostEqual(self.bus.last_success, 5000.0)
        self.assertEqual(self.bus.last_sequence, 1)

    def test_start_fires_once_whatever_comes_first(self) -> None:
        """A failed attempt is as good as a connection: the daemon runs without NATS."""
        first = self.bus.start()
        self.bus.failed(self.connection.server, "refused")
        self.assertIsNone(self.successResultOf(first))
        self.assertEqual((self.bus.attempts, self.bus.last_error, self.counts.errors["connection"]), (1, "refused", 1))
        self.bus.connected(self.connection)  # type: ignore[arg-type]
        self.assertEqual(self.bus.attempts, 0)

    def test_a_hook_of_a_connection_that_is_lost_is_cancelled(self) -> None:
        """What on_connected began for one connection does not go on on the next."""
        hooks: list[Deferred[None]] = []
        cancelled: list[object] = []

        def hook() -> Deferred[None]:
            hooks.append(Deferred(cancelled.append))
            return hooks[-1]

        self.bus.on_connected = hook
        self.start()
        self.connection.lose("reset")
        self.assertEqual((len(hooks), len(cancelled)), (1, 1))
        self.bus.connected(self.connection)  # type: ignore[arg-type]
        hooks[1].callback(None)
        self.connection.lose("reset")
        self.assertEqual((len(hooks), len(cancelled)), (2, 1))

    def test_settings_that_name_no_server(self) -> None:
        """No server, or one that is none, is a ValueError at the start; servers may be named as late as that."""
        self.assertRaises(ValueError, self.make().start)
        self.assertRaises(ValueError, self.make("http://h").start)
        self.assertIsInstance(self.make().start(["nats://h"]), Deferred)
