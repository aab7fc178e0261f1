"""Broken and hostile bytes: the table of tests/vectors/hostile_http.json, read by one connection at a time."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gatewayd.http.framing import Framing
from gatewayd.http.message import Response
from gatewayd.http.rules import Limits, Malformed
from tests.fakes.connection import Leaf, World, chunked, get, post
from tests.oracle import read_h11

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "hostile_http.json").read_text(encoding="utf-8")
)
SMALL = 600
"""Streams up to so many bytes are also sent byte by byte."""
ORACLE_BYTES = 20_000
"""h11 is not asked about longer streams: it takes seconds for them."""


def stream(row: dict[str, Any]) -> bytes:
    """The bytes that a row sends: texts in Latin-1, and repeated ones."""
    return b"".join(
        part.encode("latin-1", "replace") if isinstance(part, str) else part["repeat"].encode() * part["times"]
        for part in row["input"]
    )


def world() -> World:
    """A probe and a webhook, as a gateway has them."""
    return World(
        {
            b"/healthz": Leaf(lambda request: Response(200, b'{"ok":true}'), methods=(b"GET", b"HEAD"), bound=0),
            b"/webhook/tradingview": Leaf(),
        }
    )


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['id']} {row['what']}" for row in ROWS])
def test_row(row: dict[str, Any]) -> None:
    """Each row gets its answers, in order, each a framed error with its code, and the connection ends or lives on."""
    here = world()
    answers, closed = here.exchange(stream(row), heads=row.get("heads", 0))
    assert [answer.status for answer in answers] == row["answers"]
    assert closed is row["closed"]
    assert all(answer.closes is (closed and answer is answers[-1]) for answer in answers)
    if "code" in row:
        assert row["code"] in [answer.code for answer in answers if answer.status >= 400]
    assert here.site.in_flight == 0
    assert not here.failures


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_splits(step: int) -> None:
    """However a stream is cut into segments, its answers are the same bytes."""
    for row in ROWS:
        data = stream(row)
        if step < 1000 and len(data) > SMALL:
            continue
        whole = world().exchange(data, heads=row.get("heads", 0))
        pieces = world().exchange(data, step=step, heads=row.get("heads", 0))
        assert pieces == whole, row["id"]


def read_ours(data: bytes) -> tuple[list[tuple[bytes, bytes, bytes]], bool]:
    """(method, target, body) of each request that framing reads, and whether it refused what followed."""
    framing, requests = Framing(Limits()), []
    framing.push(data)
    while True:
        head = framing.read_head()
        if head is None or isinstance(head, Malformed):
            return requests, head is not None
        framing.begin_body(1 << 20, keep=True)
        body = framing.read_body()
        if body is None or isinstance(body, Malformed):
            return requests, body is not None
        requests.append((head.method, head.target, body))
        if not framing.keep_alive:
            return requests, False


def check_against_h11(data: bytes) -> None:
    """Never a request that h11 does not read at the same place: fewer only because the rest was refused."""
    ours, refused = read_ours(data)
    theirs = read_h11(data)
    assert ours == (theirs[: len(ours)] if refused else theirs), data[:2000]


def test_rows_against_h11() -> None:
    """On every row, the requests are h11's, up to where the stream is refused here."""
    for row in ROWS:
        data = stream(row)
        if len(data) <= ORACLE_BYTES:
            check_against_h11(data)


PARTS = [
    get("/a"),
    get("/b", "Connection: keep-alive", "X-A: 1"),
    get("/c", "Upgrade: websocket"),
    post(b"GET /inner HTTP/1.1\r\nHost: gw\r\n\r\n"),
    post(b""),
    chunked(b"abc", b"0\r\n\r\nGET /x HTTP/1.1\r\n"),
    chunked(b"a", trailers=b"X-T: 1\r\nHost: b\r\n"),
    chunked(),
]


def test_mutations_against_h11() -> None:
    """Pipelines of good requests, as they are and with one byte inserted, changed, dropped or doubled."""
    chance = Random(20240115)
    for _ in range(1500):
        data = bytearray(b"".join(chance.choices(PARTS, k=chance.randint(1, 4))))
        for _ in range(chance.randint(0, 2)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data.insert(place, chance.choice(b"\r\n :,;0a\t\x00\xff"))
                case 1:
                    data[place] = chance.choice(b"\r\n :,;0a\t\x00\xff")
                case 2:
                    del data[place]
                case _:
                    data[place:place] = data[place : place + chance.randint(1, 40)]
        check_against_h11(bytes(data))
