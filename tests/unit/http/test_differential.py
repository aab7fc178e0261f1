"""
Smuggling: whatever the bytes and however they are cut, the channel serves the requests that h11 reads, or refuses.

Every stream goes through a whole channel: a leaf notes what it was asked, the answers are counted, and a request that
follows what was refused must not be served.
"""

import os
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gatewayd.http.message import Response
from gatewayd.http.rules import METHODS, Limits
from tests.fakes.connection import Answer, Leaf, World, get, read_answers, send
from tests.oracle import Seen, read_h11
from tests.unit.http.test_hostile import ROWS, stream

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
NEXT = get("/next")
CHUNKS = "5\r\nhello\r\n0\r\n\r\n"
INNER = "0\r\n\r\nGET /inner HTTP/1.1\r\nHost: gw\r\n\r\n"


class Echoing(World):
    """A world whose every path is one leaf, of every method."""

    def __init__(self) -> None:
        super().__init__(limits=Limits(turn=1000), max_connections=10, max_per_address=10)
        self.leaf = Leaf(lambda request: Response(200, request.body), methods=tuple(sorted(METHODS)))
        self.site.route = lambda path: self.leaf

    def serve(self, *pieces: bytes) -> tuple[Seen, list[int], bool]:
        """What the leaf was asked by a stream in these pieces, the statuses, and whether the server closed."""
        self.leaf.requests.clear()
        self.finished.clear()
        transport = self.connect()
        for piece in pieces:
            send(transport, piece)
        closed = transport.fin or transport.disconnecting or transport.lost
        if not transport.lost:
            transport.client_closes()
        self.advance(3)
        asked = [(request.method, request.target, request.body) for request in self.leaf.requests]
        heads = sum(method == b"HEAD" for method, _, _ in asked)
        answers: list[Answer] = [] if heads else read_answers(transport.value())
        statuses = [response.status for _, response, _ in self.finished]
        assert heads or [answer.status for answer in answers if answer.status != 100] == statuses
        assert not self.failures
        assert (self.site.open, self.site.in_flight) == (0, 0)
        return asked, statuses, closed


@cache
def world() -> Echoing:
    """One for all: connections leave nothing behind, which serve() checks."""
    return Echoing()


def check(data: bytes, *cuts: int) -> tuple[Seen, list[int], bool]:
    """Serve `data`, cut at these places: h11's requests, or as many of them as stand before what was refused."""
    places = sorted({0, len(data), *cuts})
    served = world().serve(*(data[a:b] for a, b in pairwise(places)))
    asked, statuses, closed = served
    theirs = read_h11(data)
    refused = bool(statuses) and statuses[-1] >= 400
    assert asked == (theirs[: len(asked)] if refused else theirs), data
    assert statuses[: len(asked)] == [200] * len(asked), data
    assert len(statuses) - len(asked) == refused, data
    assert closed or not refused, data
    return served


def request(*lines: str, body: str = "", version: str = "1.1", method: str = "POST") -> bytes:
    """A request of these header lines."""
    head = "\r\n".join([f"{method} /first HTTP/{version}", "Host: gw", *lines, "", ""])
    return (head + body).encode("latin-1")


CODINGS = [
    *("chunked", "Chunked", "CHUNKED", "\tchunked", "chunked\t", "\x0bchunked", "chunked\x0b", "chunked\x00", "chunk"),
    *("identity", "gzip", "", "x", "chunked, identity", "identity, chunked", "gzip, chunked", "chunked, chunked"),
    *(
        "chunked,",
        ",chunked",
        "chunked;a=b",
        "'chunked'",
        '"chunked"',
        "xchunked",
        "chunkedx",
        "chun ked",
        "\xa0chunked",
    ),
    *("chunked\x85", "chunked\r", "chunked\n", "chunked\r\n X: y", "chunked\x0c", "cow", "trailers", "deflate;chunked"),
]
CODING_NAMES = [
    *("Transfer-Encoding ", "Transfer-Encoding\t", " Transfer-Encoding", "Transfer_Encoding", "TRANSFER-ENCODING"),
    *("\x00Transfer-Encoding", "Transfer-\x00Encoding", "X: y\nTransfer-Encoding", "X: y\rTransfer-Encoding"),
    *("Transfer-Encoding:", "Transfer Encoding", "Transfer-Encodin\xe7", "X: y\r\n\tTransfer-Encoding", "TE", "X-TE"),
]
LENGTHS = [
    *("6", " 6", "6 ", "6\t", "+6", "-6", "06", "0000000006", "0x6", "6.0", "6e0", "6_0", "6,6", "6, 6", "6, 7", "6;6"),
    *(
        "",
        " ",
        "\xb2",
        "6\x00",
        "6\x0b",
        "\x0b6",
        "6\r\nContent-Length: 6",
        "6\r\nContent-Length: 0",
        "6\n",
        "6\r",
        "six",
    ),
    *(
        "6\r\ncontent-length: 5",
        "0\r\nContent-Length: 6",
        "99999999999999999999",
        "6 6",
        "6\r\n 6",
        "6\r\nContent_Length: 0",
    ),
]
SIZES = [
    *("5", "05", "0000000005", "0x5", "5 ", " 5", "\t5", "5\t", "+5", "-5", "5;", "5;a", "5;a=b", "5;a=", '5;a="b"'),
    *(
        '5;a="b',
        '5;"',
        "5;a\nb",
        "5;a\rb",
        "5\x00",
        "5\x0b",
        "5,",
        "5.",
        "5_",
        "5h",
        "",
        ";",
        "00",
        "fffffffffffffffff5",
    ),
    *("10000000000000005", "5\r", "5;\r", "5;a\x00", "5;\xff", "5 ;a", "5; a", "5;a =b", "5;a;b;c", "five", "\xb5"),
]
ENDS = [
    *(
        "\n0\r\n\r\n",
        "0\r\n\r\n",
        "\r0\r\n\r\n",
        "\r\n0\n\r\n",
        "\r\n0\r\n\n",
        "\r\n0\r\n\r",
        "\r\n00\r\n\r\n",
        "\r\n0;a\r\n\r\n",
    ),
    *(
        "\r\n0\r\nA: b\r\n\r\n",
        "\r\n0\r\nA: b\n\r\n",
        "\r\n0\r\nA : b\r\n\r\n",
        "\r\n0\r\n A: b\r\n\r\n",
        "\r\n0\r\nA\r\n\r\n",
    ),
    *(
        "\r\n0\r\nContent-Length: 9\r\n\r\n",
        "\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
        "\r\n0\r\nHost: evil\r\n\r\n",
        "X\r\n0\r\n\r\n",
    ),
    *(
        "\r\n 0\r\n\r\n",
        "\r\n-0\r\n\r\n",
        "\r\n+0\r\n\r\n",
        "\r\n0x0\r\n\r\n",
        "\r\n0\r\n\x00\r\n",
        "\r\n0 \r\n\r\n",
        "\r\n\r\n0\r\n\r\n",
    ),
]
OPTIONS = [
    *("Connection: close", "Connection: Content-Length", "Connection: Transfer-Encoding", "Connection: upgrade"),
    *("Connection: upgrade\r\nUpgrade: h2c", "Upgrade: websocket", "Proxy-Connection: upgrade\r\nUpgrade: x"),
    *("Expect: 100-continue", "Expect: x", "Connection: close, keep-alive", "Connection: keep-alive", "Connection: x"),
    *(
        "Content-Length\r\n: 3",
        "X: y\r\n\r\n",
        "Connection: clos\xe9",
        "Connection:\x0bclose",
        "Host: gw",
        "X-HTTP-Method: GET",
    ),
]


def payloads() -> Iterator[bytes]:
    """Attempts at making two readers of one stream disagree, each followed by one more request."""
    for coding in CODINGS:
        line = f"Transfer-Encoding: {coding}"
        for body in (CHUNKS, INNER):
            yield request(line, body=body)
            yield request(line, f"Content-Length: {len(body)}", body=body)
        yield request("Content-Length: 5", line, body=CHUNKS)
        yield request(line, body=CHUNKS, version="1.0")
        yield request("Transfer-Encoding: chunked", line, body=CHUNKS)
    for name in CODING_NAMES:
        yield request(f"{name}: chunked", body=CHUNKS)
        yield request(f"{name}: chunked", f"Content-Length: {len(CHUNKS)}", body=CHUNKS)
        yield request("Content-Length: 5", f"{name}: chunked", body=INNER)
    for length in LENGTHS:
        yield request(f"Content-Length: {length}", body="GET /i")
        yield request(f"Content-Length: {length}", method="GET", body="GET /inner HTTP/1.1\r\n\r\n")
        yield request(f"Content-Length: {length}", "Connection: keep-alive", body="123456", version="1.0")
    for size in SIZES:
        yield request("Transfer-Encoding: chunked", body=f"{size}\r\nhello\r\n0\r\n\r\n")
        yield request("Transfer-Encoding: chunked", body=f"1\r\na\r\n{size}\r\nhello\r\n0\r\n\r\n")
    for end in ENDS:
        yield request("Transfer-Encoding: chunked", body=f"5\r\nhello{end}")
    for option in OPTIONS:
        yield request(option, "Content-Length: 5", body="hello")
        yield request(option, "Transfer-Encoding: chunked", body=CHUNKS)
        yield request(option, method="GET")
        yield request(option, "Transfer-Encoding: chunked", "Content-Length: 5", body=CHUNKS)


PAYLOADS = [payload + NEXT for payload in payloads()]


def test_payloads() -> None:
    """Each of hundreds of attempts is read as h11 reads it, or refused; what follows a refusal is not served."""
    refused = 0
    for data in PAYLOADS:
        asked, statuses, _ = check(data)
        refused += statuses[-1:] != [200]
        assert statuses[-1] == 200 or (b"GET", b"/next", b"") not in asked
    assert len(PAYLOADS) > 400
    assert 200 < refused < len(PAYLOADS) - 50


def cuts(data: bytes) -> range:
    """Where a stream is cut in two: everywhere; in the short form everywhere but in every third stream's middle."""
    return range(1, len(data)) if FULL else range(1 + len(data) % 3, len(data), 3)


def test_cut_in_two() -> None:
    """Cut in two at any byte, an attempt is served and refused exactly as in one piece."""
    for data in PAYLOADS:
        whole = world().serve(data)
        for at in cuts(data):
            assert world().serve(data[:at], data[at:]) == whole, (data, at)


def test_byte_by_byte() -> None:
    """So it is when every byte comes on its own."""
    for data in PAYLOADS:
        assert world().serve(*(data[at : at + 1] for at in range(len(data)))) == world().serve(data), data


@pytest.mark.parametrize("largest", [5000 if FULL else 300])
def test_rows_cut_in_two(largest: int) -> None:
    """The rows of the table too, cut in two at any byte."""
    for data in map(stream, ROWS):
        if len(data) <= largest:
            whole = world().serve(data)
            for at in cuts(data):
                assert world().serve(data[:at], data[at:]) == whole, (data, at)


# Streams that nobody thought of: requests of good and bad parts, one behind the other, some of them damaged.

LINES = st.one_of(
    st.sampled_from(CODINGS).map(lambda value: f"Transfer-Encoding: {value}"),
    st.sampled_from(CODING_NAMES).map(lambda name: f"{name}: chunked"),
    st.sampled_from(LENGTHS).map(lambda value: f"Content-Length: {value}"),
    st.integers(0, 30).map(lambda value: f"Content-Length: {value}"),
    st.sampled_from(OPTIONS),
    st.just("Transfer-Encoding: chunked"),
    st.text(st.characters(max_codepoint=255), max_size=12),
)
CHUNK = st.builds(
    lambda data: f"{len(data):x}\r\n{data}\r\n", st.text(st.sampled_from("ab\r\n05"), min_size=1, max_size=20)
)
BODIES = st.one_of(
    st.text(st.sampled_from("0123456789abcdef\r\n;GET /HP1.: "), max_size=30),
    st.builds(lambda chunks, end: "".join(chunks) + f"0{end}", st.lists(CHUNK, max_size=3), st.just("\r\n\r\n")),
    st.builds(lambda size, end: f"{size}\r\nhello{end}", st.sampled_from(SIZES), st.sampled_from(ENDS)),
)
REQUESTS = st.builds(
    lambda lines, body, version, method: request(*lines, body=body, version=version, method=method),
    st.lists(LINES, max_size=3),
    BODIES,
    st.sampled_from(["1.1", "1.1", "1.1", "1.0"]),
    st.sampled_from(["POST", "GET", "PUT", "DELETE"]),
)
DAMAGE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.binary(max_size=3))


@settings(
    max_examples=30_000 if FULL else 400,
    deadline=None,
    derandomize=not FULL,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(REQUESTS, min_size=1, max_size=4), st.lists(DAMAGE, max_size=2), st.lists(st.integers(1, 500), max_size=4)
)
@example([request("Transfer-Encoding: chunked", body=CHUNKS)] * 4, [], [1, 2, 3])
def test_generated(parts: list[bytes], damage: list[tuple[float, int, bytes]], at: list[int]) -> None:
    """Streams of good, bad and damaged requests, cut anywhere, are read as h11 reads them, or refused."""
    data = bytearray(b"".join(parts))
    for place, drop, put in damage:
        start = int(place * len(data))
        data[start : start + drop] = put
    served = check(bytes(data))
    assert check(bytes(data), *(place for place in at if place < len(data))) == served
