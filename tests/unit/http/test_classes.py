"""Whole classes of bytes, where the table has examples: every byte in every place, and what hostile bodies cost."""

from typing import ClassVar

import httptools
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.http.framing import Framing
from gatewayd.http.message import Request
from gatewayd.http.rules import Limits, Malformed
from tests.fakes.connection import chunked, get, split

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
"""RFC 9110 5.6.2."""


def read(data: bytes) -> Request | Malformed | None:
    """The head of one request on a connection of its own."""
    framing = Framing(Limits())
    framing.push(data)
    return framing.read_head()


class ByteCase(SynchronousTestCase):
    """One byte of a good request replaced by every other."""

    def test_names(self) -> None:
        """A header's name is made of token characters only, wherever in it another byte stands."""
        for byte in range(256):
            for before, after in ((b"X", b"Y"), (b"", b"Y"), (b"X", b"")):
                name = before + bytes([byte]) + after
                found = read(b"GET / HTTP/1.1\r\nHost: gw\r\n" + name + b": a\r\n\r\n")
                if byte == 58 and before:  # the colon ends a name early: a value of another one
                    continue
                self.assertEqual(isinstance(found, Request), byte in TOKEN, name)

    def test_values(self) -> None:
        """A value has visible bytes, blanks and bytes above ASCII; every other control byte is refused."""
        for byte in range(256):
            found = read(b"GET / HTTP/1.1\r\nHost: gw\r\nX-A: a" + bytes([byte]) + b"b\r\n\r\n")
            self.assertEqual(isinstance(found, Request), byte == 9 or (byte >= 32 and byte != 127), byte)
            if isinstance(found, Request):
                self.assertEqual(found.headers[b"x-a"], b"a" + bytes([byte]) + b"b")

    def test_targets(self) -> None:
        """A target has visible ASCII only, and no fragment."""
        for byte in range(256):
            found = read(b"GET /a" + bytes([byte]) + b"b HTTP/1.1\r\nHost: gw\r\n\r\n")
            self.assertEqual(isinstance(found, Request), 32 < byte < 127 and byte != 35, byte)

    def test_methods(self) -> None:
        """No byte in, before or behind a method makes another one of it."""
        for byte in range(256):
            for method in (b"G" + bytes([byte]) + b"T", bytes([byte]) + b"GET", b"GET" + bytes([byte])):
                if method not in (b"GET", b"\rGET", b"\nGET"):
                    self.assertIsInstance(read(method + b" / HTTP/1.1\r\nHost: gw\r\n\r\n"), Malformed, method)

    def test_versions(self) -> None:
        """Of all versions of one digit each, 1.1 and 1.0 are spoken."""
        for major in range(10):
            for minor in range(10):
                found = read(b"GET / HTTP/%d.%d\r\nHost: gw\r\n\r\n" % (major, minor))
                self.assertEqual(isinstance(found, Request), major == 1 and minor < 2, (major, minor))

    def test_chunk_sizes(self) -> None:
        """A chunk's size is hexadecimal digits, and a byte behind it begins an extension or is refused."""
        for byte in range(256):
            framing = Framing(Limits())
            framing.push(chunked(b"x" * 16).replace(b"10\r\n", b"10" + bytes([byte]) + b"\r\n", 1))
            self.assertIsInstance(framing.read_head(), Request)
            framing.begin_body(100, keep=True)
            self.assertIsInstance(framing.read_body(), Malformed, byte)

    def test_first_bytes(self) -> None:
        """What cannot begin a request is refused at its first byte; nobody waits for the end of its line."""
        for byte in range(256):
            found = read(bytes([byte]))
            begins = byte in b"\r\n" or byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
            self.assertTrue(begins or isinstance(found, Malformed), byte)


class Counting:
    """llhttp, counting what it is given."""

    calls: ClassVar[list[int]] = []

    def __init__(self, parser: httptools.HttpRequestParser) -> None:
        self._parser = parser
        self.should_keep_alive = parser.should_keep_alive

    def feed_data(self, data: bytes) -> None:
        """Count, and pass on."""
        self.calls.append(len(data))
        self._parser.feed_data(data)


class CostCase(SynchronousTestCase):
    """What a hostile body costs, counted in steps, so that no clock decides."""

    def cost(self, data: bytes, step: int = 65536) -> tuple[Malformed | bytes | None, int, int]:
        """The verdict, how often llhttp was called for it, and with how many bytes."""
        Counting.calls.clear()
        framing = Framing(Limits())
        framing._parser = Counting(framing._parser)
        verdict: Malformed | bytes | None = None
        head = None
        for piece in split(data, step):
            framing.push(piece)
            if head is None:
                head = framing.read_head()
                if head is None:
                    continue
                self.assertIsInstance(head, Request)
                framing.begin_body(1 << 20, keep=True)
            verdict = framing.read_body()
            if verdict is not None:
                break
        return verdict, len(Counting.calls), sum(Counting.calls)

    def test_one_byte_chunks(self) -> None:
        """1 MiB in chunks of one byte is refused after 8 KiB of framing: four thousand steps, not two million."""
        verdict, calls, fed = self.cost(chunked(*[b"x"] * (1 << 20)))
        self.assertEqual(verdict, Malformed(400, "chunk_overhead"))
        self.assertLess(calls, 4000)
        self.assertLess(fed, 12_000)

    def test_smallest_chunks_that_pass(self) -> None:
        """The most steps that a body may cost, with a quarter of it as framing, are a hundred thousand."""
        verdict, calls, _ = self.cost(chunked(*[b"x" * 24] * ((1 << 20) // 24)))
        self.assertEqual(len(verdict) if isinstance(verdict, bytes) else verdict, (1 << 20) // 24 * 24)
        self.assertLess(calls, 100_000)

    def test_extensions_and_trailers(self) -> None:
        """Extensions and trailers are refused at their bounds, having been read once."""
        long = chunked(b"x").replace(b"\r\n1\r\nx", b"\r\n1;" + b"a" * 16384 + b"\r\nx", 1)
        many = chunked(b"x", trailers=b"A: b\r\n" * 11_000)
        for data, reason, most in ((long, "chunk_line_too_long", 1400), (many, "trailers_too_large", 12_300)):
            for step in (65536, 7):
                verdict, _, fed = self.cost(data, step)
                self.assertEqual(verdict, Malformed(400, reason))
                self.assertLess(fed, most + 200)

    def test_every_byte_is_fed_once(self) -> None:
        """However a good body is cut, llhttp sees each of its bytes once."""
        for data in (chunked(b"abc" * 50, b"d" * 99), get("/", "Content-Length: 500", method="POST") + b"x" * 500):
            for step in (1, 3, 65536):
                verdict, _, fed = self.cost(data, step)
                self.assertIsInstance(verdict, bytes)
                self.assertEqual(fed, len(data))
