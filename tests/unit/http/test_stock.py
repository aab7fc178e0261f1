"""twisted.web Resources behind our channel: what they get, what is added to their answers, how they fail."""

import os
import tempfile
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.pages import notFound
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from gatewayd.http.message import Response
from gatewayd.http.stock import StockLeaf
from gatewayd.interfaces import ILeaf
from tests.fakes.connection import Leaf, Transport, World, chunked, get, post, read_answers, send, statuses

with warnings.catch_warnings():
    # Importing twisted.web.static calls a function that Twisted itself has deprecated; so does its own 405 page.
    warnings.simplefilter("ignore", DeprecationWarning)
    from twisted.web.static import Data, File

pytestmark = pytest.mark.filterwarnings("ignore:twisted.web.resource._Unsafe:DeprecationWarning")


class Show(Resource):
    """Shows what a Resource sees of a request, and remembers the request."""

    isLeaf = True
    request: Any = None

    def render_GET(self, request: Any) -> bytes:
        self.request = request
        return b"shown"

    def render_POST(self, request: Any) -> bytes:
        self.request = request
        return bytes(request.content.read())


class Late(Resource):
    """Answers when the test says so."""

    isLeaf = True
    request: Any = None
    finished: Deferred[None]

    def render_GET(self, request: Any) -> int:
        self.request = request
        self.finished = request.notifyFinish()
        return int(NOT_DONE_YET)


class Broken(Resource):
    """Raises, before or after it has written something."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        if request.args:
            request.write(b"half")
        raise ZeroDivisionError


class Producer:
    """Produces as often as it is asked; what it was told is in `told`."""

    def __init__(self, request: Any, pieces: int = 0) -> None:
        self.request = request
        self.left = pieces
        self.told: list[str] = []

    def resumeProducing(self) -> None:
        self.told.append("resume")
        if self.left:
            self.left -= 1
            self.request.write(b"x" * 1000)
            if not self.left:
                self.request.unregisterProducer()
                self.request.finish()

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def stopProducing(self) -> None:
        self.told.append("stop")


class StockCase(SynchronousTestCase):
    """A tree of Resources at every path, and a leaf of ours beside it."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        directory = Path(temporary.name)
        self.big = os.urandom(300_000)
        (directory / "big.bin").write_bytes(self.big)
        (directory / "page.html").write_text("<p>page</p>")
        self.show, self.late = Show(), Late()
        root = Resource()
        for name, child in (
            (b"show", self.show),
            (b"late", self.late),
            (b"broken", Broken()),
            (b"data", Data(b"data", "text/plain")),
            (b"files", File(str(directory))),
            (b"none", notFound()),
        ):
            root.putChild(name, child)
        self.world = World()
        self.leaf = StockLeaf(root, self.world.clock, corr_id=lambda: "req_stock", bound=10_000)
        self.world.site.route = lambda path: (
            Leaf(lambda request: Response(200, b"ours"), methods=(b"GET",)) if path == b"/ours" else self.leaf
        )

    def ask(self, data: bytes) -> Transport:
        """Send on a new connection."""
        transport = self.world.connect()
        send(transport, data)
        return transport

    def test_interface(self) -> None:
        """It is a leaf."""
        self.assertTrue(ILeaf.providedBy(self.leaf))

    def test_request(self) -> None:
        """A Resource sees method, target, arguments, headers, cookies, peer and body as with twisted.web's channel."""
        data = post(b"a=1&b=2", "Content-Type: application/x-www-form-urlencoded", "Cookie: k=v", path="/show?c=3")
        transport = self.ask(data)
        (answer,) = read_answers(transport.value())
        self.assertEqual((answer.status, answer.body), (200, b"a=1&b=2"))
        request = self.show.request
        self.assertEqual((request.method, request.uri, request.path), (b"POST", b"/show?c=3", b"/show"))
        self.assertEqual(request.args, {b"a": [b"1"], b"b": [b"2"], b"c": [b"3"]})
        self.assertEqual(request.getCookie(b"k"), b"v")
        self.assertEqual(request.getHeader(b"host"), b"gw")
        self.assertEqual(request.getClientAddress().host, "192.0.2.1")
        self.assertFalse(request.isSecure())
        self.assertEqual((request.prepath, request.postpath), ([b"show"], []))

    def test_repeated_headers(self) -> None:
        """Every value of a repeated header reaches the Resource."""
        self.ask(get("/show", "X-A: 1", "X-A: 2"))
        self.assertEqual(self.show.request.requestHeaders.getRawHeaders("x-a"), ["1", "2"])

    def test_common_headers(self) -> None:
        """Answers carry the common headers, a correlation id and no server version; a Resource's own ones stand."""
        (answer,) = read_answers(self.ask(get("/show")).value())
        self.assertEqual(answer.headers["cache-control"], "no-store")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertEqual(answer.headers["x-correlation-id"], "req_stock")
        self.assertNotIn("server", answer.headers)
        self.assertNotIn("connection", answer.headers)
        ((_, response, written),) = self.world.finished
        self.assertEqual((response.status, response.corr_id, written), (200, "req_stock", True))

        def own(request: Any) -> bytes:
            request.setHeader("Cache-Control", "max-age=60")
            request.setHeader("Connection", "close")
            return b""

        self.show.render_GET = own  # type: ignore[method-assign]
        transport = self.ask(get("/show"))
        (answer,) = read_answers(transport.value())
        self.assertEqual(answer.headers["cache-control"], "max-age=60")
        self.assertTrue(answer.closes)
        self.assertTrue(transport.fin)

    def test_absolute_form(self) -> None:
        """A target in absolute form reaches the tree as its path."""
        self.ask(b"GET http://gw/show?x=1 HTTP/1.1\r\nHost: gw\r\n\r\n")
        self.assertEqual(self.show.request.uri, b"/show?x=1")

    def test_statuses(self) -> None:
        """404, 405 and the status of the account are the tree's."""
        self.ask(get("/none") + get("/missing") + post(b"x", path="/data"))
        self.assertEqual([response.status for _, response, _ in self.world.finished], [404, 404, 405])

    def test_order(self) -> None:
        """Stock, deferred and our own answers go out in the order of their requests."""
        transport = self.ask(get("/ours") + get("/late") + get("/show") + get("/ours"))
        self.assertEqual(statuses(transport), [200])
        self.late.request.setHeader("content-length", "4")
        self.late.request.write(b"late")
        self.late.request.finish()
        self.successResultOf(self.late.finished)
        self.assertEqual([a.body for a in read_answers(transport.value())], [b"ours", b"late", b"shown", b"ours"])

    def test_chunked_answer(self) -> None:
        """An answer without a length is chunked in 1.1, and ended by the connection in 1.0."""
        transport = self.ask(get("/late"))
        self.late.request.write(b"abc")
        self.late.request.write(b"defg")
        self.late.request.finish()
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertIn(b"Transfer-Encoding: chunked", head)
        self.assertEqual(body, b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        self.assertFalse(transport.fin)
        transport = self.ask(get("/late", "Connection: keep-alive", version="1.0"))
        self.late.request.write(b"abc")
        self.late.request.finish()
        head, _, body = transport.value().partition(b"\r\n\r\n")
        self.assertIn(b"Connection: close", head)
        self.assertEqual(body, b"abc")
        self.assertTrue(transport.fin)

    def test_http_1_0_keep_alive(self) -> None:
        """A 1.0 client that asks for it keeps its connection when the answer has a length."""
        transport = self.ask(get("/data", "Connection: keep-alive", version="1.0") + get("/data", version="1.0"))
        first, second = read_answers(transport.value())
        self.assertEqual((first.headers["connection"], second.headers["connection"]), ("keep-alive", "close"))

    def test_head(self) -> None:
        """HEAD gets the head of the answer and its length, also where a Resource knows only GET."""
        transport = self.ask(get("/data", method="HEAD") + get("/show", method="HEAD") + get("/files/page.html"))
        for _ in range(5):  # the file's producer reads to the end, and closes it
            self.world.clock.advance(0)
        answers = read_answers(transport.value(), heads=2)
        self.assertEqual([answer.headers["content-length"] for answer in answers], ["4", "5", "11"])
        self.assertEqual([answer.body for answer in answers], [b"", b"", b"<p>page</p>"])

    def test_file(self) -> None:
        """A file comes whole, in ranges and not at all when it is unchanged."""
        transport = self.ask(get("/files/big.bin") + get("/files/big.bin", "Range: bytes=10-19") + get("/ours"))
        for _ in range(100):
            self.world.clock.advance(0)
        whole, part, ours = read_answers(transport.value())
        self.assertEqual((whole.status, whole.body), (200, self.big))
        self.assertEqual((part.status, part.body), (206, self.big[10:20]))
        self.assertEqual(ours.body, b"ours")
        transport = self.ask(get("/files/big.bin", f"If-Modified-Since: {whole.headers['last-modified']}"))
        self.assertTrue(transport.value().startswith(b"HTTP/1.1 304 "))
        self.assertTrue(transport.value().endswith(b"\r\n\r\n"))

    def test_file_and_stuck_client(self) -> None:
        """A file is read no faster than the client reads it, and not at all for one that is gone."""
        transport = self.world.connect()
        transport.stuck = True
        send(transport, get("/files/big.bin"))
        for _ in range(100):
            self.world.clock.advance(0)
        self.assertLess(len(transport.value()), 200_000)
        transport.read_all()
        for _ in range(100):
            self.world.clock.advance(0)
        (answer,) = read_answers(transport.value())
        self.assertEqual(answer.body, self.big)
        transport.client_resets()
        transport = self.world.connect()
        transport.stuck = True
        send(transport, get("/files/big.bin"))
        transport.client_resets()
        self.world.advance(2)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])
        self.assertEqual(self.world.site.in_flight, 0)

    def test_push_producer(self) -> None:
        """A push producer is paused and resumed with the client, and stopped when it is gone."""
        transport = self.world.connect()
        transport.stuck = True
        send(transport, get("/late"))
        producer = Producer(self.late.request)
        self.late.request.registerProducer(producer, True)
        self.late.request.write(b"x" * 70000)
        self.assertEqual(producer.told, ["pause"])
        transport.read_all()
        self.assertEqual(producer.told, ["pause", "resume"])
        transport.client_resets()
        self.assertEqual(producer.told, ["pause", "resume", "stop"])
        self.failureResultOf(self.late.finished, ConnectionAborted)

    def test_pull_producer(self) -> None:
        """A pull producer is asked once a turn."""
        transport = self.ask(get("/late"))
        self.late.request.setHeader("content-length", "3000")
        producer = Producer(self.late.request, 3)
        self.late.request.registerProducer(producer, False)
        self.assertEqual(producer.told, ["resume"])
        for _ in range(3):
            self.world.clock.advance(0)
        self.assertEqual(producer.told, ["resume"] * 3)
        self.assertEqual([len(answer.body) for answer in read_answers(transport.value())], [3000])

    def test_broken_producer(self) -> None:
        """A pull producer that raises is reported, and the connection is cut: what was sent is not the whole."""
        transport = self.ask(get("/late"))
        producer = Producer(self.late.request, 5)
        self.late.request.registerProducer(producer, False)
        producer.request = None
        self.world.clock.advance(0)
        self.assertEqual([failure.type for failure in self.world.failures], [AttributeError])
        self.assertTrue(transport.disconnected)
        self.failureResultOf(self.late.finished, AttributeError)

    def test_broken(self) -> None:
        """A Resource that raises is our 500 and closed; one that has written before is cut off."""
        transport = self.ask(get("/broken") + get("/show"))
        (answer,) = read_answers(transport.value())
        self.assertEqual((answer.status, answer.code), (500, "GW-016"))
        transport = self.ask(get("/broken?half=1"))
        self.assertTrue(transport.disconnected)
        self.assertEqual([failure.type for failure in self.world.failures], [ZeroDivisionError] * 2)
        self.assertEqual(self.world.site.in_flight, 0)

    def test_lost(self) -> None:
        """A client that goes away is told to the Resource, which may write on without harm."""
        transport = self.ask(get("/late"))
        transport.client_resets()
        self.failureResultOf(self.late.finished, ConnectionAborted)
        self.late.request.write(b"too late")
        self.assertEqual(transport.value(), b"")
        self.assertEqual((self.world.site.in_flight, self.world.site.open), (0, 0))
        self.assertEqual([written for _, _, written in self.world.finished], [False])

    def test_resource_closes(self) -> None:
        """A Resource may close its connection in the middle of its answer."""
        transport = self.ask(get("/late"))
        self.late.request.write(b"abc")
        self.late.request.loseConnection()
        self.assertTrue(transport.lost)
        self.assertEqual(self.world.site.in_flight, 0)
        self.assertIsNotNone(self.failureResultOf(self.late.finished))

    def test_framing_is_ours(self) -> None:
        """Limits and framing rules are the channel's: bodies over the bound, bad chunks, two Hosts."""
        self.assertEqual(statuses(self.ask(post(b"x" * 10_001, path="/show"))), [413])
        self.assertEqual(statuses(self.ask(get("/show", "Host: other"))), [400])
        data = chunked(b"abc", b"def").replace(b"/webhook/tradingview", b"/show")
        (answer,) = read_answers(self.ask(data).value())
        self.assertEqual(answer.body, b"abcdef")

    def test_bad_multipart(self) -> None:
        """A multipart body that cannot be read is 400 GW-015, closed."""
        transport = self.ask(post(b"x", "Content-Type: multipart/form-data", path="/show"))
        (answer,) = read_answers(transport.value())
        self.assertEqual((answer.status, answer.code, answer.details), (400, "GW-015", {"reason": "form"}))
        self.assertTrue(transport.fin)
        self.assertEqual(self.world.site.in_flight, 0)

    def test_content_is_a_file(self) -> None:
        """request.content is a binary file at its start, empty without a body."""
        self.ask(get("/late"))
        self.assertIsInstance(self.late.request.content, BytesIO)
        self.assertEqual(self.late.request.content.read(), b"")
