"""Framing on its own: what it says of a message, what it holds, what it gives back. The rules are in the table."""

import tracemalloc

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.framing import Framing
from gatewayd.http.message import Request
from gatewayd.http.rules import CHUNKED, OVERLONG, Limits, Malformed
from tests.fakes.connection import chunked, get, post, split


class FramingCase(SynchronousTestCase):
    """One connection's bytes."""

    def setUp(self) -> None:
        self.framing = Framing(Limits())

    def head(self, data: bytes) -> Request:
        """The head of a request that is all right."""
        self.framing.push(data)
        request = self.framing.read_head()
        assert isinstance(request, Request), request
        return request

    def test_declared(self) -> None:
        """`declared` says what is known of a body before it is read; a length of many digits is no number."""
        for data, declared in (
            (get(), 0),
            (post(b"abc"), 3),
            (chunked(b"abc"), CHUNKED),
            (get("/", "Content-Length: 9999999999"), 9999999999),
            (get("/", "Content-Length: 10000000000"), OVERLONG),
            (get("/", "Content-Length: " + "0" * 5000), OVERLONG),
        ):
            self.framing = Framing(Limits())
            self.head(data)
            self.assertEqual(self.framing.declared, declared)

    def test_flags(self) -> None:
        """keep_alive, http_1_0 and expects_continue are the current message's."""
        flags = []
        for data in (
            get(),
            get("/", "Connection: close"),
            get(version="1.0"),
            get("/", "Connection: x, Keep-Alive", version="1.0"),
            get("/", "Proxy-Connection: keep-alive", version="1.0"),
            get("/", "Connection: keep-alive, close", version="1.0"),
            post(b"abc", "Expect: 100-Continue"),
            post(b"abc", "Expect: 100-continue", version="1.0"),
        ):
            self.framing = Framing(Limits())
            self.head(data)
            flags.append((self.framing.keep_alive, self.framing.http_1_0, self.framing.expects_continue))
        self.assertEqual(
            flags,
            [
                (True, False, False),
                (False, False, False),
                (False, True, False),
                (True, True, False),
                (False, True, False),
                (False, True, False),
                (True, False, True),
                (False, True, False),
            ],
        )

    def test_targets(self) -> None:
        """path and query are what the target says, undecoded; an absolute target loses its scheme and host."""
        for target, path, query in (
            ("/a/b%20c?d=e?f", b"/a/b%20c", b"d=e?f"),
            ("/", b"/", b""),
            ("//a", b"//a", b""),
            ("http://gw/a?b", b"/a", b"b"),
            ("HTTPS://GW?b", b"/", b"b"),
            ("http://gw", b"/", b""),
        ):
            self.framing = Framing(Limits())
            request = self.head(get(target))
            self.assertEqual((request.target, request.path, request.query), (target.encode(), path, query))

    def test_one_at_a_time(self) -> None:
        """What follows a message is held unparsed until the next head is asked for, and can be taken out."""
        self.head(post(b"abc") + get("/next") + b"rest")
        self.assertEqual(self.framing.held, len(b"abc" + get("/next") + b"rest"))
        self.framing.begin_body(10, keep=True)
        self.assertEqual(self.framing.read_body(), b"abc")
        self.assertEqual(self.framing.held, len(get("/next") + b"rest"))
        self.assertFalse(self.framing.begun)
        request = self.framing.read_head()
        assert isinstance(request, Request)
        self.assertEqual(request.path, b"/next")
        self.assertEqual(self.framing.rest(), b"rest")
        self.assertEqual(self.framing.held, 0)

    def test_begun(self) -> None:
        """A head has begun with its first byte, not with the empty lines before it."""
        self.framing.push(b"\r\n")
        self.assertIsNone(self.framing.read_head())
        self.assertFalse(self.framing.begun)
        self.framing.push(b"G")
        self.assertIsNone(self.framing.read_head())
        self.assertTrue(self.framing.begun)

    def test_bound(self) -> None:
        """A body over its bound is 413: by its told length at once, by its chunks when they pass it."""
        self.head(post(b"abc"))
        self.framing.begin_body(2, keep=True)
        self.assertEqual(self.framing.read_body(), Malformed(413, "too_large"))
        self.framing = Framing(Limits())
        self.head(chunked(b"ab", b"c"))
        self.framing.begin_body(2, keep=True)
        self.assertEqual(self.framing.read_body(), Malformed(413, "too_large"))

    def test_dropped(self) -> None:
        """A body that is not kept is counted only, and costs no memory."""
        for data in (post(b"x" * 900_000), chunked(*[b"x" * 10_000] * 90)):
            self.framing = Framing(Limits())
            pieces = list(split(data, 10_000))
            self.head(pieces.pop(0))
            self.framing.begin_body(1 << 20, keep=False)
            tracemalloc.start()
            for piece in pieces:
                self.assertIsNone(self.framing.read_body())
                self.framing.push(piece)
            self.assertEqual(self.framing.read_body(), b"")
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            self.assertLess(peak, 100_000)

    def test_trickled_body(self) -> None:
        """A body that arrives two bytes at a time costs its own size, not twenty times that."""
        data = post(b"x" * 200_000)
        pieces = list(split(data, 2))
        tracemalloc.start()
        request = None
        for piece in pieces:
            self.framing.push(piece)
            if request is None:
                request = self.framing.read_head()
                self.framing.begin_body(1 << 20, keep=True)
            body = None if request is None else self.framing.read_body()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.assertEqual(body, b"x" * 200_000)
        self.assertLess(peak, 600_000)

    def test_limits_at_once_and_in_pieces(self) -> None:
        """Bounds smaller than the usual ones hold however a head arrives."""
        limits = Limits(request_line=40, header_line=30, head=100)
        for data, status in (
            (b"GET /" + b"a" * 26 + b" HTTP/1.1\r\nHost: gw\r\n\r\n", 0),
            (b"GET /" + b"a" * 27 + b" HTTP/1.1\r\nHost: gw\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nHost: gw\r\nX: " + b"b" * 27 + b"\r\n\r\n", 0),
            (b"GET / HTTP/1.1\r\nHost: gw\r\nX: " + b"b" * 28 + b"\r\n\r\n", 431),
            (get("/", "A: " + "b" * 25, "B: " + "b" * 25, "C: ddddddd"), 0),
            (get("/", "A: " + "b" * 25, "B: " + "b" * 25, "C: dddddddd"), 431),
        ):
            for step in (0, 1, 13):
                framing = Framing(limits)
                found: Request | Malformed | None = None
                for piece in split(data, step):
                    framing.push(piece)
                    found = framing.read_head() if found is None else found
                self.assertEqual(found.status if isinstance(found, Malformed) else 0, status, (data, step, found))
