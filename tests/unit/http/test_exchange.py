"""Answers that are more than one message: hand-over to another protocol, and answers that write themselves."""

from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.channel import Channel
from gatewayd.http.exchange import HandOver, Streamed
from gatewayd.http.message import Request, Response
from tests.fakes.connection import Leaf, Waiting, World, get, post, read_answers, send, statuses


class Echo(Protocol):
    """A toy protocol that takes a connection over."""

    def __init__(self) -> None:
        self.received = b""
        self.reason: Failure | None = None

    def connectionMade(self) -> None:
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.transport.write(data.upper())  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason


class HandOverCase(SynchronousTestCase):
    """A leaf that hands its connection to a toy protocol, where the client asks for an upgrade."""

    def setUp(self) -> None:
        self.echo = Echo()
        self.world = World(
            {b"/echo": Leaf(self.reply, methods=(b"GET", b"POST")), b"/healthz": Leaf(methods=(b"GET",))}
        )

    def reply(self, request: Request) -> Response:
        """Upgrade when the channel lets the header through."""
        return HandOver(self.echo) if request.headers.get(b"upgrade") == b"echo" else Response(200, b"plain")

    UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: echo")

    def test_hand_over(self) -> None:
        """The protocol gets the transport, every byte that was not read, and everything from then on."""
        transport = self.world.connect()
        send(transport, get() + get("/echo", *self.UPGRADE) + b"early")
        transport.clear()
        send(transport, b"late")
        self.assertEqual(self.echo.received, b"earlylate")
        self.assertEqual(transport.value(), b"LATE")
        self.assertIsNone(transport.producer)
        self.assertEqual([response.status for _, response, _ in self.world.finished], [202, 101])
        self.assertEqual(self.world.site.in_flight, 0)

    def test_accounted(self) -> None:
        """A connection that was handed over has no deadline, is counted until it is gone, and closed with the site."""
        transport = self.world.connect()
        send(transport, get("/echo", *self.UPGRADE))
        self.world.advance(200)
        self.assertEqual(self.world.site.open, 1)
        done = self.world.site.close()
        self.successResultOf(done)
        self.assertTrue(transport.lost)
        self.assertIsNotNone(self.echo.reason)
        self.assertEqual(self.world.site.open, 0)

    def test_half_close_is_off(self) -> None:
        """A client's FIN is the end for a protocol that was handed a connection."""
        transport = self.world.connect()
        send(transport, get("/echo", *self.UPGRADE))
        transport.client_closes()
        self.assertIsNotNone(self.echo.reason)

    def test_not_followed(self) -> None:
        """Upgrade counts only for GET in 1.1 without a body, named in Connection; elsewhere it is as if absent."""
        for data in (
            get("/echo", "Upgrade: echo"),
            get("/echo", "Connection: upgrade"),
            get("/echo", "Connection: keep-alive, upgrade", "Upgrade: echo", version="1.0"),
            get("/echo", "Proxy-Connection: upgrade", "Upgrade: echo"),
            get("/echo", *self.UPGRADE, "Content-Length: 3") + b"abc",
            get("/echo", *self.UPGRADE, method="POST"),
            post(b"abc", *self.UPGRADE, path="/echo"),
            get("/echo", *self.UPGRADE, "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n",
        ):
            transport = self.world.connect()
            send(transport, data + get())
            bodies = [answer.body for answer in read_answers(transport.value())]
            self.assertEqual(bodies, [b"plain", b'{"length":0}'], data)

    def test_reading_goes_on(self) -> None:
        """A connection that was paused when it changed hands is read again."""
        waiting = Waiting()
        self.world.leaves[b"/later"] = Leaf(waiting, methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/later", *self.UPGRADE))
        send(transport, b"x" * 20000)
        self.assertEqual(transport.producerState, "paused")
        waiting.deferreds[0].callback(HandOver(self.echo))
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual(len(self.echo.received), 20000)

    def test_broken_protocol(self) -> None:
        """A protocol that raises as it takes over is a bug: reported, and the connection is cut."""

        def explode() -> None:
            raise ZeroDivisionError

        self.echo.connectionMade = explode  # type: ignore[method-assign]
        transport = self.world.connect()
        send(transport, get("/echo", *self.UPGRADE))
        self.assertEqual([failure.type for failure in self.world.failures], [ZeroDivisionError])
        self.assertTrue(transport.disconnected)
        self.assertEqual(self.world.site.open, 0)


class Pieces(Streamed):
    """An answer in pieces, told by the test."""

    __slots__ = ("channel", "told")

    def __init__(self) -> None:
        super().__init__(200)
        self.told: list[str] = []

    def begin(self, channel: Channel) -> None:
        self.channel = channel
        channel.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def lost(self, reason: Failure) -> None:
        self.told.append("lost")


class StreamedCase(SynchronousTestCase):
    """Answers that write themselves."""

    def setUp(self) -> None:
        self.pieces = Pieces()
        self.world = World(
            {b"/pieces": Leaf(lambda request: self.pieces, methods=(b"GET",)), b"/healthz": Leaf(methods=(b"GET",))}
        )

    def test_pieces(self) -> None:
        """What is pipelined behind a streamed answer waits for its end."""
        transport = self.world.connect()
        send(transport, get("/pieces") + get())
        self.assertEqual(len(self.world.finished), 0)
        self.pieces.channel.write(b"def")
        self.pieces.channel.end(persist=True)
        self.assertEqual([answer.body for answer in read_answers(transport.value())], [b"abcdef", b'{"length":0}'])
        self.assertEqual(len(self.world.finished), 2)

    def test_back_pressure(self) -> None:
        """It is told when the client stops reading and when it goes on; a client stuck for 10 s is cut off."""
        transport = self.world.connect()
        transport.stuck = True
        send(transport, get("/pieces"))
        self.pieces.channel.write(b"x" * 70000)
        self.assertEqual(self.pieces.told, ["pause"])
        self.world.advance(9)
        transport.read_all()
        self.assertEqual(self.pieces.told, ["pause", "resume"])
        self.world.advance(60)
        transport.stuck = True
        self.pieces.channel.write(b"x" * 70000)
        self.world.advance(11)
        self.assertTrue(transport.disconnected)
        self.assertEqual(self.pieces.told, ["pause", "resume", "pause", "lost"])
        self.assertEqual(self.world.site.in_flight, 0)

    def test_broken_before(self) -> None:
        """One that raises before it wrote anything is a 500."""

        class Broken(Pieces):
            def begin(self, channel: Channel) -> None:
                raise ZeroDivisionError

        self.world.leaves[b"/broken"] = Leaf(lambda request: Broken(), methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/broken"))
        self.assertEqual(statuses(transport), [500])
        self.assertEqual([failure.type for failure in self.world.failures], [ZeroDivisionError])

    def test_broken_after(self) -> None:
        """One that breaks after it wrote something is cut off, so that nobody takes the half for the whole."""
        transport = self.world.connect()
        send(transport, get("/pieces"))
        self.pieces.channel.broke(self.pieces, Failure(ZeroDivisionError()))  # type: ignore[no-untyped-call]
        self.assertTrue(transport.disconnected)
        self.assertEqual(len(self.world.failures), 1)
        self.assertEqual(self.world.site.in_flight, 0)
