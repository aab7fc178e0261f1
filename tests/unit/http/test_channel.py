"""The channel between a head and its answer: order, bodies, refusals, 100 (Continue), bugs of leaves."""

from twisted.internet.defer import fail, succeed
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IPushProducer
from twisted.logger import LogEvent
from zope.interface.verify import verifyObject

from gatewayd.http.channel import Channel
from gatewayd.http.message import Request, Response
from tests.fakes.connection import (
    WALL,
    Leaf,
    World,
    WorldCase,
    chunked,
    get,
    post,
    read_answers,
    send,
    statuses,
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ChannelCase(WorldCase):
    """Between a head and its answer."""

    def test_interfaces(self) -> None:
        """A channel is what Twisted's transports take for a protocol with half-close and a push producer."""
        channel = Channel(self.world.site, "")
        for interface in (IProtocol, IHalfCloseableProtocol, IPushProducer):
            self.assertTrue(verifyObject(interface, channel))
        with self.assertRaises(AttributeError):
            channel.anything = 1  # type: ignore[attr-defined]

    def test_request(self) -> None:
        """A leaf gets the request as it was sent: bytes, names in lower case, peer, both clocks at its completion."""
        transport = self.world.connect("192.0.2.7")
        data = post(b'{"a":1}', "X-Nonce:  \t abc \t", "X-Twice: 1", "x-twice: 2", path="/webhook/tradingview?a=b&c")
        send(transport, data[:-3])
        self.world.advance(2)
        send(transport, data[-3:])
        (request,) = self.webhook.requests
        self.assertEqual((request.method, request.target), (b"POST", b"/webhook/tradingview?a=b&c"))
        self.assertEqual((request.path, request.query), (b"/webhook/tradingview", b"a=b&c"))
        self.assertEqual(request.body, b'{"a":1}')
        self.assertIs(type(request.body), bytes)
        self.assertEqual(request.headers[b"x-nonce"], b"abc")
        self.assertEqual(request.values(b"x-twice"), [b"1", b"2"])
        self.assertEqual((request.peer, request.client_ip, request.secure), ("192.0.2.7", "192.0.2.7", False))
        self.assertEqual((request.received_at, request.received_wall), (1002.0, WALL + 2))
        self.assertEqual(self.only(transport).body, b'{"length":7}')
        self.assertEqual(transport.writes, 1)

    def test_trailers(self) -> None:
        """Trailers are read and dropped: they are never headers, nor those of the next request."""
        transport = self.world.connect()
        send(transport, chunked(b"abc", trailers=b"X-Signature: v1=0\r\nHost: evil\r\nHost: evil\r\n") + post())
        self.assertEqual(statuses(transport), [202, 202])
        names = {b"host", b"transfer-encoding"}
        self.assertEqual(set(self.webhook.requests[0].headers), names)
        self.assertEqual(self.webhook.requests[0].values(b"host"), [b"gw"])
        self.assertEqual(set(self.webhook.requests[1].headers), {b"host", b"content-length"})

    def test_underscores(self) -> None:
        """A header name with an underscore does not exist, however often it comes."""
        transport = self.world.connect()
        send(transport, post(b"{}", "X_Nonce: 1", "x_nonce: 2", "X-Nonce: 3"))
        (request,) = self.webhook.requests
        self.assertEqual((request.values(b"x_nonce"), request.values(b"x-nonce")), ([], [b"3"]))
        self.assertNotIn(b"x_nonce", request.headers)
        self.assertFalse(request.repeated)

    def test_order(self) -> None:
        """Pipelined requests are answered in their order, one in flight at a time, however late the first one is."""
        transport = self.world.connect()
        send(transport, get("/later") + get("/later") + post(b"abc") + get("/healthz"))
        self.assertEqual(len(self.waiting.deferreds), 1)
        self.assertEqual(transport.value(), b"")
        self.waiting.deferreds[0].callback(Response(200, b"one"))
        self.assertEqual(len(self.waiting.deferreds), 2)
        self.waiting.deferreds[1].callback(Response(200, b"two"))
        bodies = [answer.body for answer in read_answers(transport.value())]
        self.assertEqual(bodies, [b"one", b"two", b'{"length":3}', b'{"ok":true}'])

    def test_fired_deferreds(self) -> None:
        """A thousand pipelined requests with answers that are there already need no deeper stack than one."""
        self.world.leaves[b"/now"] = Leaf(lambda request: succeed(Response(200, b"x")), methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/now") * 1000)
        for _ in range(20):
            self.world.clock.advance(0)
        self.assertEqual(statuses(transport), [200] * 1000)

    def test_turns(self) -> None:
        """One connection answers at most 64 pipelined requests before the reactor has its turn, then goes on."""
        transport = self.world.connect()
        send(transport, get() * 100)
        self.assertEqual(len(statuses(transport)), 64)
        self.world.clock.advance(0)
        self.assertEqual(len(statuses(transport)), 100)

    def test_held(self) -> None:
        """While a request is in flight later bytes are held unparsed, and reading stops above 16 KiB of them."""
        transport = self.world.connect()
        send(transport, get("/later"))
        send(transport, post(b"x" * 16000))
        self.assertEqual(transport.producerState, "producing")
        send(transport, post(b"y" * 1000))
        self.assertEqual(transport.producerState, "paused")
        self.assertEqual(self.webhook.requests, [])
        self.waiting.deferreds[0].callback(Response(200))
        self.assertEqual(transport.producerState, "producing")
        self.assertEqual([len(request.body) for request in self.webhook.requests], [16000, 1000])

    def test_head(self) -> None:
        """HEAD is answered with the head of the answer, its length included, and without its body."""
        transport = self.world.connect()
        send(transport, get(method="HEAD") + get())
        first, second = read_answers(transport.value(), heads=1)
        self.assertEqual((first.headers["content-length"], first.body), ("11", b""))
        self.assertEqual(second.body, b'{"ok":true}')

    def test_http_1_0(self) -> None:
        """HTTP/1.0 is answered and closed, unless it asks for keep-alive: then the answer says keep-alive too."""
        transport = self.world.connect()
        send(transport, get("/healthz", "Connection: keep-alive", version="1.0"))
        self.assertEqual(self.only(transport).headers["connection"], "keep-alive")
        transport.clear()
        send(transport, get("/healthz", version="1.0"))
        self.assertTrue(self.only(transport).closes)
        self.assertTrue(transport.lost or transport.fin)

    def test_answer_that_closes(self) -> None:
        """An answer that asks for it closes the connection after it; what was pipelined behind it is not answered."""
        self.world.leaves[b"/last"] = Leaf(lambda request: Response(200, close=True), methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/last") + get())
        self.assertTrue(self.only(transport).closes)
        self.assertTrue(transport.fin)

    # -- bugs of leaves

    def test_leaf_raises(self) -> None:
        """A leaf that raises in begin() or answer() is a 500, and the connection lives on."""

        def broken(request: Request) -> Response:
            raise ZeroDivisionError

        leaf = self.world.leaves[b"/broken"] = Leaf(broken, methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/broken"))
        leaf.methods = None  # type: ignore[assignment]
        send(transport, get("/broken") + get())
        self.assertEqual(statuses(transport), [500, 500, 200])
        self.assertEqual([failure.type for failure in self.world.failures], [ZeroDivisionError, TypeError])
        self.assertEqual(self.world.site.in_flight, 0)

    def test_leaf_fails(self) -> None:
        """A Deferred that fails is a 500, now or later; so is one that fires with anything but a Response."""
        self.world.leaves[b"/failed"] = Leaf(lambda request: fail(KeyError("x")), methods=(b"GET",))
        self.world.leaves[b"/none"] = Leaf(lambda request: None, methods=(b"GET",))  # type: ignore[arg-type,return-value]
        transport = self.world.connect()
        send(transport, get("/failed") + get("/none") + get("/later") + get("/later") + get())
        self.waiting.deferreds[0].errback(ValueError())
        self.waiting.deferreds[1].callback(7)  # type: ignore[arg-type]
        self.assertEqual(statuses(transport), [500, 500, 500, 500, 200])
        kinds = [failure.type for failure in self.world.failures]
        self.assertEqual(kinds, [KeyError, TypeError, ValueError, TypeError])

    def test_answer_that_cannot_be_written(self) -> None:
        """A Response that cannot be rendered is a 500 too, not silence."""
        self.world.leaves[b"/bad"] = Leaf(lambda request: Response(999), methods=(b"GET",))
        transport = self.world.connect()
        send(transport, get("/bad"))
        self.assertEqual(statuses(transport), [500])
        self.assertEqual(len(self.world.failures), 1)

    # -- bodies

    def test_too_large(self) -> None:
        """A body over the leaf's bound is 413 GW-008 with the bound: told before a byte of it, chunked when passed."""
        self.webhook.bound = 1000
        transport = self.world.connect()
        send(transport, get("/webhook/tradingview", "Content-Length: 1001", method="POST"))
        answer = self.only(transport)
        self.assertEqual((answer.status, answer.code, answer.details), (413, "GW-008", {"max_size": 1000}))
        self.assertTrue(answer.closes)
        transport = self.world.connect()
        send(transport, chunked(b"x" * 600, b"x" * 400))
        self.assertEqual(statuses(transport), [202])
        transport.clear()
        data = chunked(b"x" * 600, b"x" * 401)
        size = data.index(b"191\r\n")
        send(transport, data[:size])
        self.assertEqual(transport.value(), b"")
        send(transport, data[size:])
        self.assertEqual(self.only(transport).code, "GW-008")
        self.assertEqual(len(self.webhook.requests), 1)

    def test_largest_body(self) -> None:
        """A body of exactly 1 MiB arrives whole, told or chunked, in whatever pieces; one byte more does not."""
        body = bytes(range(256)) * 4096
        for data in (post(body), chunked(*[body[i : i + 5000] for i in range(0, len(body), 5000)])):
            transport = self.world.connect()
            for start in range(0, len(data), 65536):
                send(transport, data[start : start + 65536])
            self.assertEqual(statuses(transport), [202])
            self.assertEqual(self.webhook.requests.pop().body, body)
        transport = self.world.connect()
        send(transport, post(body + b"x"))
        self.assertEqual(statuses(transport), [413])

    def test_unwanted_body(self) -> None:
        """A leaf with a bound of 0 is asked once the body is read and dropped; over 1 MiB of it is refused."""
        transport = self.world.connect()
        send(transport, get("/healthz", "Content-Length: 5") + b"hello" + get())
        self.assertEqual(statuses(transport), [200, 200])
        self.assertEqual([request.body for request in self.probe.requests], [b"", b""])
        send(transport, get("/healthz", "Content-Length: 1048577"))
        self.assertEqual(statuses(transport), [200, 200, 413])

    def test_refused_body(self) -> None:
        """A request refused at begin() has its body dropped; the refusal stands in its place and the next is served."""
        transport = self.world.connect()
        send(transport, post(b"x" * 100, path="/busy")[:-1])
        self.assertEqual(transport.value(), b"")
        send(transport, b"x" + chunked(b"abc").replace(b"/webhook/tradingview", b"/busy") + post())
        self.assertEqual(statuses(transport), [503, 503, 202])
        self.assertFalse(transport.fin)
        self.assertEqual(self.refusing.requests, [])

    def test_refused_large_body(self) -> None:
        """A refused request that would send over 1 MiB is answered at once and closed; chunked, once it has."""
        transport = self.world.connect()
        send(transport, get("/busy", "Content-Length: 1048577", method="POST"))
        self.assertEqual(statuses(transport), [503])
        self.assertTrue(transport.fin)
        transport = self.world.connect()
        send(transport, chunked(*[b"x" * 65536] * 17).replace(b"/webhook/tradingview", b"/busy"))
        self.assertEqual(statuses(transport), [503])
        self.assertTrue(transport.fin)

    def test_refused_slow_body(self) -> None:
        """A refused request whose body does not end in 10 s is told its refusal, not a timeout, and closed."""
        transport = self.world.connect()
        send(transport, post(b"x" * 100, path="/busy")[:-1])
        self.world.advance(11)
        self.assertEqual(statuses(transport), [503])

    def test_continue(self) -> None:
        """100 (Continue) is sent once begin() has taken the request, and only when the body is not there already."""
        head = post(b"hello", "Expect: 100-continue")
        transport = self.world.connect()
        send(transport, head[:-5])
        self.assertEqual(transport.value(), CONTINUE)
        send(transport, head[-5:])
        self.assertEqual(statuses(transport), [100, 202])
        transport.clear()
        send(transport, head)
        self.assertEqual(statuses(transport), [202])

    def test_continue_refused(self) -> None:
        """A refused request gets no 100 but its refusal, and the connection closes: its body may come or not."""
        for path, status in (("/busy", 503), ("/nothing", 404)):
            transport = self.world.connect()
            send(transport, post(b"hello", "Expect: 100-continue", path=path)[:-5])
            self.assertEqual(statuses(transport), [status])
            self.assertTrue(self.only(transport).closes)
            self.assertTrue(transport.fin)
        transport = self.world.connect()
        send(transport, get("/webhook/tradingview", "Expect: 100-continue", "Content-Length: 2000000", method="POST"))
        self.assertEqual(statuses(transport), [413])

    def test_continue_in_order(self) -> None:
        """100 (Continue) waits for the answer of the request before."""
        transport = self.world.connect()
        send(transport, get("/later") + post(b"hello", "Expect: 100-continue")[:-5])
        self.assertEqual(transport.value(), b"")
        self.waiting.deferreds[0].callback(Response(200))
        self.assertEqual(statuses(transport), [200, 100])


def test_account_raises(no_logged_failures: list[LogEvent]) -> None:
    """When the account of an answer fails it is logged, and the next request is answered all the same."""
    world = World({b"/healthz": Leaf(methods=(b"GET",))})
    world.finished = None  # type: ignore[assignment]
    transport = world.connect()
    send(transport, get() + get())
    assert statuses(transport) == [202, 202]
    assert [event["event"] for event in no_logged_failures] == ["http_account_failed"] * 2
    no_logged_failures.clear()
