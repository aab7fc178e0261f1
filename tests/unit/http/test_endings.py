"""How a connection's time runs out, what a client that does not read costs, and how the end comes from either side."""

from collections.abc import Callable

from twisted.internet.defer import Deferred

from gatewayd.http.message import Request, Response
from gatewayd.http.rules import Limits
from tests.fakes.connection import (
    Leaf,
    Transport,
    WorldCase,
    chunked,
    get,
    post,
    read_answers,
    send,
    statuses,
)


class EndingCase(WorldCase):
    """The end of a connection."""

    # -- deadlines

    def test_silent(self) -> None:
        """A connection that sends nothing is closed after 5 s, without an answer."""
        transport = self.world.connect()
        self.world.advance(4.75)
        self.assertFalse(transport.lost)
        self.world.advance(1.5)
        self.assertTrue(transport.lost)
        self.assertEqual(transport.value(), b"")

    def test_slow_head(self) -> None:
        """A head that is not complete 5 s after accept is 408 GW-015, however steadily it comes."""
        transport = self.world.connect()
        for byte in get("/healthz", "X-Long: " + "x" * 100)[:24]:
            send(transport, bytes([byte]))
            self.world.advance(0.25)
        answer = self.only(transport)
        self.assertEqual((answer.status, answer.code, answer.details), (408, "GW-015", {"reason": "timeout"}))
        self.assertTrue(transport.fin)

    def test_slow_next_head(self) -> None:
        """A next head has 5 s from its first byte, not from the answer before it."""
        transport = self.world.connect()
        send(transport, get())
        self.world.advance(60)
        transport.clear()
        send(transport, b"GET /")
        self.world.advance(4)
        send(transport, b"healthz HTTP")
        self.assertEqual(transport.value(), b"")
        self.world.advance(2)
        self.assertEqual(statuses(transport), [408])

    def test_slow_body(self) -> None:
        """A body that is not complete 10 s after its head is 408 GW-015, with its request in the account."""
        transport = self.world.connect()
        data = post(b"x" * 100)
        send(transport, data[:-50])
        for byte in data[-50:-5]:
            send(transport, bytes([byte]))
            self.world.advance(0.25)
        self.assertEqual(statuses(transport), [408])
        ((request, response, written),) = self.world.finished
        assert request is not None
        self.assertEqual((request.path, response.status, written), (b"/webhook/tradingview", 408, True))
        self.assertEqual(self.world.site.in_flight, 0)

    def test_slow_chunks(self) -> None:
        """Neither chunks nor their extensions nor trailers buy a body more than its 10 s; nor does waiting for 100."""
        head = get("/webhook/tradingview", "Transfer-Encoding: chunked", method="POST")
        for pieces in ([b"1\r\na\r\n"] * 50, [b"5;a", *[b"b"] * 50], [b"0\r\n", *[b"A: b\r\n"] * 50]):
            transport = self.world.connect()
            send(transport, head)
            for piece in pieces[:39]:
                send(transport, piece)
                self.world.advance(0.25)
            self.assertEqual(transport.value(), b"")
            for piece in pieces[39:45]:
                send(transport, piece)
                self.world.advance(0.25)
            self.assertEqual(statuses(transport), [408])
        transport = self.world.connect()
        send(transport, post(b"abc", "Expect: 100-continue")[:-3])
        self.world.advance(11)
        self.assertEqual(statuses(transport), [100, 408])

    def test_slow_unwanted_body(self) -> None:
        """A body that nobody wants has the same 10 s."""
        transport = self.world.connect()
        send(transport, get("/healthz", "Content-Length: 100"))
        for _ in range(45):
            send(transport, b"x")
            self.world.advance(0.25)
        self.assertEqual(statuses(transport), [408])

    def test_slow_first_head_after_blank_lines(self) -> None:
        """Empty lines buy a first head no time."""
        transport = self.world.connect()
        for _ in range(19):
            send(transport, b"\r\n")
            self.world.advance(0.25)
        self.assertFalse(transport.lost)
        send(transport, b"GET /")
        self.world.advance(1.5)
        self.assertEqual(statuses(transport), [408])

    def test_idle(self) -> None:
        """A kept connection is closed after 75 s without a request, silently; empty lines begin none."""
        transport = self.world.connect()
        send(transport, get())
        self.world.advance(10)
        send(transport, b"\r\n")
        self.world.advance(64)
        self.assertFalse(transport.lost)
        self.world.advance(2)
        self.assertTrue(transport.lost)
        self.assertEqual(statuses(transport), [200])

    def test_answering_has_no_deadline(self) -> None:
        """A leaf takes the time it needs: its own deadlines are its own business."""
        transport = self.world.connect()
        send(transport, get("/later"))
        self.world.advance(300)
        self.waiting.deferreds[0].callback(Response(200))
        self.assertEqual(statuses(transport), [200])

    def test_one_sweep(self) -> None:
        """Deadlines cost one timer for all connections, and none when there is none."""
        transports = [self.world.connect() for _ in range(50)]
        for transport in transports:
            send(transport, get() * 3 + get("/later") + b"GET")
        self.assertEqual(len(self.world.clock.getDelayedCalls()), 1)
        for transport in transports:
            transport.client_resets()
        self.world.advance(1)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    # -- clients that do not read

    def test_stuck_client(self) -> None:
        """A client that does not read is neither read nor answered any further, and cut off after 10 s."""
        self.world.leaves[b"/big"] = Leaf(lambda request: Response(200, b"x" * 40000), methods=(b"GET",))
        transport = self.world.connect()
        transport.stuck = True
        for _ in range(10):
            send(transport, get("/big"))
        self.assertEqual(transport.producerState, "paused")
        self.assertEqual(transport.writes, 2)
        self.world.advance(9)
        self.assertFalse(transport.lost)
        self.world.advance(2)
        self.assertTrue(transport.disconnected)

    def test_slow_client(self) -> None:
        """A client that reads in the end gets everything, in order, and its connection is as before."""
        self.world.leaves[b"/big"] = Leaf(lambda request: Response(200, b"x" * 70000), methods=(b"GET",))
        transport = self.world.connect()
        transport.stuck = True
        send(transport, get("/big"))
        self.assertEqual(transport.producerState, "paused")
        send(transport, get("/later") + get())
        self.assertEqual(statuses(transport), [200])
        self.assertEqual(transport.producerState, "paused")
        self.world.advance(8)
        transport.read_all()
        self.world.advance(8)
        self.waiting.deferreds[0].callback(Response(202))
        self.assertEqual(statuses(transport), [200, 202, 200])
        self.assertEqual(transport.producerState, "producing")
        self.world.advance(70)
        self.assertFalse(transport.lost)

    def test_stuck_while_closing(self) -> None:
        """A client that does not read its last answer is cut off after 10 s."""
        transport = self.world.connect()
        transport.stuck = True
        send(transport, b"BAD\r\n\r\n")
        self.assertEqual(statuses(transport), [400])
        self.world.advance(9)
        self.assertFalse(transport.lost)
        self.world.advance(2)
        self.assertTrue(transport.disconnected)

    # -- bodies of all connections together

    def test_kept_bodies(self) -> None:
        """Over the bound the next body that is not complete is 503 GW-010; one that comes in one read never is."""
        self.world.limits = self.world.site.limits = Limits(bodies=1000)
        first, second, third = (self.world.connect() for _ in range(3))
        send(first, post(b"x" * 900)[:-1])
        send(second, post(b"y" * 102)[:-1])
        self.assertEqual((second.value(), self.world.site.kept.bytes), (b"", 1000))
        send(third, post(b"z" * 3)[:-1])
        answer = self.only(third)
        self.assertEqual((answer.status, answer.code, answer.details), (503, "GW-010", {"reason": "buffer"}))
        self.assertEqual((answer.headers["retry-after"], answer.closes), ("1", True))
        whole = self.world.connect()
        send(whole, post(b"w" * 5000))
        self.assertEqual(statuses(whole), [202])
        send(first, b"x")
        send(second, b"y")
        self.assertEqual((statuses(first), statuses(second), self.world.site.kept.bytes), ([202], [202], 0))

    def test_kept_chunks(self) -> None:
        """The bound holds for chunks too, wherever among them a client stops."""
        self.world.limits = self.world.site.limits = Limits(bodies=1000)
        head = get("/webhook/tradingview", "Transfer-Encoding: chunked", method="POST")
        data = b"3e8\r\n" + b"x" * 1000 + b"\r\n2\r\nyy\r\n0\r\n\r\n"
        for at in range(1000, len(data)):
            transport = self.world.connect()
            send(transport, head + data[:at])
            complete = len(data) - at > len(b"y\r\n0\r\n\r\n")
            self.assertEqual(statuses(transport), [] if complete else [503], at)
            transport.client_resets()
            self.assertEqual(self.world.site.kept.bytes, 0)

    def test_kept_is_given_back(self) -> None:
        """However a body ends before its end, what was kept of it counts no more."""
        endings: list[Callable[[Transport], object]] = [
            lambda transport: transport.client_closes(),
            lambda transport: transport.client_resets(),
            lambda transport: self.world.advance(11),
            lambda transport: send(transport, b"no chunk"),
            lambda transport: self.world.site.close(),
        ]
        for end in endings:
            transport = self.world.connect()
            send(transport, chunked(b"abc")[:-5])
            self.assertEqual(self.world.site.kept.bytes, 3)
            end(transport)
            self.assertEqual(self.world.site.kept.bytes, 0)
        transport = self.world.connect()
        send(transport, post(b"abc", path="/busy")[:-1])
        self.assertEqual(self.world.site.kept.bytes, 0)

    # -- the end

    def test_lingering(self) -> None:
        """After a last answer: FIN at once, what still comes is read and dropped for 2 s, then the socket is closed."""
        transport = self.world.connect()
        send(transport, b"BAD\r\n\r\n")
        self.assertTrue(transport.fin)
        self.assertFalse(transport.lost)
        for _ in range(4):
            send(transport, get())
            self.world.advance(0.25)
        self.assertEqual(statuses(transport), [400])
        self.assertFalse(transport.lost)
        self.world.advance(2.25)
        self.assertTrue(transport.lost)
        self.assertFalse(transport.disconnected)

    def test_lingering_is_bounded(self) -> None:
        """What a client sends after the last answer is dropped up to 4 MiB, then the connection is cut."""
        transport = self.world.connect()
        send(transport, b"BAD\r\n\r\n")
        for _ in range(64):
            send(transport, b"x" * 65536)
        self.assertFalse(transport.lost)
        send(transport, b"x")
        self.assertTrue(transport.disconnected)

    def test_client_ends_lingering(self) -> None:
        """A client that has read the last answer and closes ends it."""
        transport = self.world.connect()
        send(transport, b"BAD\r\n\r\n")
        transport.client_closes()
        self.assertTrue(transport.lost)

    def test_half_close(self) -> None:
        """A client that has sent all it wants still gets every answer, then the connection closes."""
        transport = self.world.connect()
        send(transport, get("/later") + post(b"abc") + get("/later"))
        transport.client_closes()
        self.waiting.deferreds[0].callback(Response(200))
        self.assertEqual(statuses(transport), [200, 202])
        self.assertFalse(transport.lost)
        self.waiting.deferreds[1].callback(Response(200))
        answers = read_answers(transport.value())
        self.assertEqual([answer.closes for answer in answers], [False, False, True])
        self.assertTrue(transport.lost)

    def test_half_close_idle(self) -> None:
        """A client that closes between requests, in a head or in a body is closed without an answer or an account."""
        for data in (b"", b"GET /hea", post(b"abc")[:-1], post(b"abc", path="/busy")[:-1]):
            transport = self.world.connect()
            send(transport, data)
            transport.client_closes()
            self.assertTrue(transport.lost)
            self.assertEqual(transport.value(), b"")
        self.assertEqual((self.world.finished, self.world.site.in_flight, self.world.site.open), ([], 0, 0))
        self.assertEqual(self.webhook.requests, [])

    def test_lost(self) -> None:
        """A client that is gone has its request cancelled; what comes of it is accounted for as not written."""
        transport = self.world.connect()
        send(transport, get("/later"))
        transport.client_resets()
        self.assertEqual(self.waiting.cancelled, 1)
        self.assertEqual((self.world.finished, self.world.failures), ([], []))
        self.assertEqual(self.world.site.in_flight, 0)

    def test_lost_but_done(self) -> None:
        """A request that goes on after its client is gone stays in flight until it is done, and is accounted for."""
        kept: list[Deferred[Response]] = []

        def stubborn(request: Request) -> Deferred[Response]:
            kept.append(Deferred(lambda deferred: deferred.callback(Response(202))))
            return kept[-1]

        self.world.leaves[b"/stubborn"] = Leaf(stubborn, methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/stubborn"))
        transport.client_resets()
        ((request, response, written),) = self.world.finished
        assert request is not None
        self.assertEqual((request.path, response.status, written), (b"/stubborn", 202, False))

    def test_lost_bug(self) -> None:
        """A request that breaks after its client is gone is a bug all the same."""

        def broken(request: Request) -> Deferred[Response]:
            return Deferred(lambda deferred: deferred.errback(ZeroDivisionError()))

        self.world.leaves[b"/broken"] = Leaf(broken, methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/broken"))
        transport.client_resets()
        self.assertEqual([failure.type for failure in self.world.failures], [ZeroDivisionError])
        self.assertEqual([written for _, _, written in self.world.finished], [False])
        self.assertEqual(self.world.site.in_flight, 0)

    def test_account(self) -> None:
        """Every answer is accounted for once, also one to bytes that are no request."""
        transport = self.world.connect()
        send(transport, get() + get("/nothing") + b"BAD\r\n\r\n")
        seen = [
            (request and request.path, response.status, written) for request, response, written in self.world.finished
        ]
        self.assertEqual(seen, [(b"/healthz", 200, True), (b"/nothing", 404, True), (None, 400, True)])
