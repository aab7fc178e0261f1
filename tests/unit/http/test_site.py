"""All connections together: their bounds, the sweep, drain and close."""

from twisted.logger import LogEvent
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.message import Response
from gatewayd.http.rules import Limits
from tests.fakes.connection import Leaf, Waiting, World, get, read_answers, send, statuses


class SiteCase(SynchronousTestCase):
    """All connections together."""

    def test_bounds(self) -> None:
        """Connections beyond either bound are refused and counted; one that closes makes room."""
        world = World({}, max_connections=3, max_per_address=2)
        first = world.connect("192.0.2.1")
        world.connect("192.0.2.1")

        class Peer:
            host = "192.0.2.1"

        self.assertIsNone(world.site.buildProtocol(Peer()))  # type: ignore[arg-type]
        world.connect("192.0.2.2")
        Peer.host = "192.0.2.3"
        self.assertIsNone(world.site.buildProtocol(Peer()))  # type: ignore[arg-type]
        self.assertEqual((world.site.open, world.site.refused_connections), (3, 2))
        first.client_resets()
        world.connect("192.0.2.1")
        self.assertEqual(world.site.open, 3)
        self.successResultOf(world.site.close())
        self.assertEqual((world.site.open, world.site._by_address), (0, {}))

    def test_unix_peers_are_not_an_address(self) -> None:
        """Connections of a UNIX socket share no address, so only the total bounds them."""
        world = World({}, max_connections=10, max_per_address=2)
        for _ in range(10):
            world.connect("")
        self.assertEqual(world.site.open, 10)

    def test_drain(self) -> None:
        """drain() closes idle connections, makes each later answer the last one, and fires when all is answered."""
        waiting = Waiting()
        world = World({b"/later": Leaf(waiting, methods=(b"GET",)), b"/healthz": Leaf(methods=(b"GET",))})
        idle, busy, reading = world.connect(), world.connect(), world.connect()
        send(idle, get())
        send(busy, get("/later") + get())
        send(reading, b"GET /healthz HTTP/1.1\r\n")
        done = world.site.drain()
        self.assertNoResult(done)
        self.assertTrue(idle.lost)
        waiting.deferreds[0].callback(Response(200))
        self.successResultOf(done)
        (answer,) = read_answers(busy.value())
        self.assertTrue(answer.closes)
        send(reading, b"Host: gw\r\n\r\n")
        (answer,) = read_answers(reading.value())
        self.assertTrue(answer.closes)
        late = world.connect()
        send(late, get())
        (answer,) = read_answers(late.value())
        self.assertEqual((answer.status, answer.closes), (202, True))
        self.successResultOf(world.site.drain())

    def test_close(self) -> None:
        """close() ends what is left and fires when it is gone; a client that never reads is cut off."""
        waiting = Waiting()
        world = World({b"/later": Leaf(waiting, methods=(b"GET",))})
        busy, stuck = world.connect(), world.connect()
        stuck.stuck = True
        send(stuck, b"BAD\r\n\r\n")
        send(busy, get("/later"))
        done = world.site.close()
        self.assertTrue(busy.lost)
        self.assertEqual(waiting.cancelled, 1)
        self.assertNoResult(done)
        world.advance(11)
        self.successResultOf(done)
        self.assertEqual(world.site.open, 0)

    def test_close_with_answer_under_way(self) -> None:
        """An answer that comes between close() and the end of its connection is not written."""
        waiting = Waiting()
        world = World({b"/later": Leaf(waiting, methods=(b"GET",))})
        transport = world.connect()
        transport.stuck = True
        transport.unread = 1
        send(transport, get("/later"))
        world.site.close()
        waiting.deferreds[0].callback(Response(200))
        self.assertEqual(transport.value(), b"")
        self.assertEqual([written for _, _, written in world.finished], [False])
        self.assertEqual(world.site.in_flight, 0)
        world.advance(11)
        self.assertTrue(transport.lost)

    def test_limits_are_settings(self) -> None:
        """Deadlines and sizes are the limits' of the site."""
        world = World({}, limits=Limits(head_s=1.0, request_line=20, headers=1))
        transport = world.connect()
        send(transport, b"GET /" + b"a" * 20 + b" HTTP/1.1\r\n\r\n")
        self.assertEqual(statuses(transport), [414])
        transport = world.connect()
        send(transport, get("/a", "A: b"))
        self.assertEqual(statuses(transport), [431])
        transport = world.connect()
        world.advance(2)
        self.assertTrue(transport.lost)


def test_sweep_survives(no_logged_failures: list[LogEvent]) -> None:
    """A connection that cannot be ended at its deadline is logged; the others end, and the sweep goes on."""
    world = World({})
    broken, good = world.connect(), world.connect()

    def explode() -> None:
        raise ZeroDivisionError

    broken.loseConnection = explode  # type: ignore[method-assign]
    world.advance(7)
    assert good.lost
    assert no_logged_failures[0]["event"] == "http_sweep_failed"
    no_logged_failures.clear()
    world.advance(11)
    assert broken.lost
