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
        self.assertEqual((world.site.open, world.site.capacity.refused), (3, 2))
        first.client_resets()
        world.connect("192.0.2.1")
        self.assertEqual(world.site.open, 3)
        self.successResultOf(world.site.close())
        self.assertEqual((world.site.open, world.site.capacity.clients), (0, 0))

    def test_an_ipv6_client_has_its_64(self) -> None:
        """Of an IPv6 address the first 64 bits count: its owner has all addresses behind them."""
        world = World({}, max_connections=10, max_per_address=2)
        first = world.connect("2001:db8:0:1::1")
        world.connect("2001:db8:0:1:ffff::2%eth0")

        class Peer:
            host = "2001:db8:0:1::3"

        self.assertIsNone(world.site.buildProtocol(Peer()))  # type: ignore[arg-type]
        world.connect("2001:db8:0:2::1")
        first.client_resets()
        world.connect("2001:db8:0:1::3")
        self.assertEqual((world.site.open, world.site.capacity.refused), (3, 1))
        self.successResultOf(world.site.close())
        self.assertEqual(world.site.capacity.clients, 0)

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

    def test_retire(self) -> None:
        """retire() gives every idle connection its last answer, and fires once none waits for a request any more."""
        waiting = Waiting()
        world = World({b"/later": Leaf(waiting, methods=(b"GET",)), b"/healthz": Leaf(methods=(b"GET",))})
        used, fresh, busy = world.connect(), world.connect(), world.connect()
        send(used, get())
        send(busy, get("/later"))
        used.clear()
        done = world.site.retire(1.5)
        self.assertFalse(used.lost)
        send(used, get())
        world.advance(0.25)
        self.assertNoResult(done)
        (answer,) = read_answers(used.value())
        self.assertTrue(answer.closes)
        send(fresh, get())
        world.advance(0.25)
        self.successResultOf(done)  # a request in flight is drain's business
        self.assertEqual((fresh.fin, busy.lost), (True, False))

    def test_retire_takes_its_time_and_no_more(self) -> None:
        """Connections that ask nothing are left alone, and waited for no longer than said; no timer is left."""
        world = World({})
        silent, slow = world.connect(), world.connect()
        send(slow, b"GET /")
        done = world.site.retire(1.5)
        world.advance(1.25)
        self.assertNoResult(done)
        world.advance(0.5)
        self.successResultOf(done)
        self.assertFalse(silent.lost or slow.lost)
        self.assertEqual(len(world.clock.getDelayedCalls()), 1)  # the sweep
        empty = World({})
        done = empty.site.retire(1.5)
        empty.advance(0.25)
        self.successResultOf(done)

    def test_close_does_not_wait_for_a_client_that_keeps_its_side_open(self) -> None:
        """A connection whose answer and FIN are sent is closed at once: it must not hold up the next process."""
        world = World({b"/healthz": Leaf(methods=(b"GET",))})
        transport = world.connect()
        send(transport, get("/healthz", "Connection: close"))
        self.assertEqual((transport.fin, transport.lost), (True, False))
        self.successResultOf(world.site.close())
        self.assertTrue(transport.lost)

    def test_mapped_addresses(self) -> None:
        """An IPv4 client of a socket that takes both is known by its IPv4 address, and counted under it."""
        world = World({b"/healthz": Leaf(methods=(b"GET",))}, max_per_address=2)

        class Peer:
            host = "::ffff:192.0.2.1"

        channel = world.site.buildProtocol(Peer())  # type: ignore[arg-type]
        assert channel is not None
        self.assertEqual(channel.peer, "192.0.2.1")
        world.connect("192.0.2.1")
        world.connect("192.0.2.1")
        self.assertIsNone(world.site.buildProtocol(Peer()))  # type: ignore[arg-type]
        Peer.host = "::ffff:1:2"
        channel = world.site.buildProtocol(Peer())  # type: ignore[arg-type]
        assert channel is not None
        self.assertEqual(channel.peer, "::ffff:1:2")

    def test_close(self) -> None:
        """close() ends what is left and fires when it is gone; a client that never reads is cut off soon."""
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
        world.advance(0.75)
        self.successResultOf(done)
        self.assertEqual(world.site.open, 0)
        world.advance(1)
        self.assertEqual(world.clock.getDelayedCalls(), [])

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
