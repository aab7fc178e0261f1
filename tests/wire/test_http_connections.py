"""Connections on real loopback sockets: half-close, lingering, resets, slow and stuck clients, hand-over, the table."""

import struct
import time
from contextlib import suppress
from socket import SHUT_WR, SO_LINGER, SO_RCVBUF, SOL_SOCKET, socket
from threading import Event
from typing import Any

import pytest_twisted
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from gatewayd.http.exchange import HandOver
from gatewayd.http.message import Request, Response
from gatewayd.http.rules import Limits
from tests.fakes.connection import Leaf, Waiting, get, post, read_answers
from tests.unit.http.test_hostile import ROWS, stream
from tests.wire.conftest import Serving
from tests.wire.listeners import read_to_end, read_until


@pytest_twisted.ensureDeferred
async def test_table(tcp_serving: Serving) -> None:
    """Every row of the table gets its answers on a real socket too, and the client can read them to the end."""

    def client(row: dict[str, Any], connection: socket) -> tuple[bytes, float]:
        began = time.monotonic()
        try:
            connection.sendall(stream(row))
            if not row["closed"]:
                connection.shutdown(SHUT_WR)
        except ConnectionError:
            # The stream was cut off in the middle, as it may be after the answer; what was received is still there.
            pass
        return read_to_end(connection), time.monotonic() - began

    async with tcp_serving() as served:
        for row in ROWS:
            data, took_s = await served.run(lambda connection, row=row: client(row, connection))  # type: ignore[misc]
            statuses = [answer.status for answer in read_answers(data, heads=row.get("heads", 0))]
            assert statuses == row["answers"], row["id"]
            assert took_s < 1.0, row["id"]
        assert not served.failures


@pytest_twisted.ensureDeferred
async def test_half_close(tcp_serving: Serving) -> None:
    """A client that has shut down its sending side gets every answer, also a late one, and then the end."""
    waiting = Waiting()

    def client(connection: socket) -> bytes:
        connection.sendall(get("/later") + get("/healthz"))
        connection.shutdown(SHUT_WR)
        return read_to_end(connection)

    leaves = {b"/later": Leaf(waiting, methods=(b"GET",)), b"/healthz": Leaf(methods=(b"GET",))}
    async with tcp_serving(leaves) as served:
        talking = served.run(client)
        await served.until(lambda: waiting.deferreds)
        await served.pause(0.2)
        waiting.deferreds[0].callback(Response(200, b"late"))
        first, second = read_answers(await talking)
    assert (first.body, second.status) == (b"late", 202)
    assert (first.closes, second.closes) == (False, True)
    assert waiting.cancelled == 0


@pytest_twisted.ensureDeferred
async def test_lingering(tcp_serving: Serving) -> None:
    """A client that goes on sending after its request was refused still reads the refusal: no reset destroys it."""

    def client(connection: socket) -> bytes:
        connection.sendall(get("/webhook/tradingview", "Content-Length: 3000000", method="POST"))
        for _ in range(30):
            connection.sendall(b"x" * 100_000)
        answered.wait(5)
        return read_to_end(connection)

    answered = Event()

    async with tcp_serving() as served:
        talking = served.run(client)
        await served.until(lambda: served.finished)
        await served.pause(0.2)
        answered.set()
        (answer,) = read_answers(await talking)
        assert (answer.status, answer.closes) == (413, True)
        await served.until(lambda: served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_lingering_ends(tcp_serving: Serving) -> None:
    """A client that never closes is closed on: with FIN at once, for good 2 s later."""

    def client(connection: socket) -> float:
        connection.sendall(b"BAD\r\n\r\n")
        began = time.monotonic()
        read_to_end(connection)
        took_s = time.monotonic() - began
        gone.wait(5)
        return took_s

    gone = Event()
    async with tcp_serving() as served:
        talking = served.run(client)
        await served.until(lambda: served.finished)
        began = time.monotonic()
        await served.until(lambda: served.site.open == 0)
        assert 1.5 < time.monotonic() - began < 3.5
        gone.set()
        assert await talking < 0.5


@pytest_twisted.ensureDeferred
async def test_reset(tcp_serving: Serving) -> None:
    """A client that resets in a head, in a body or while it waits leaves nothing behind, and nothing is logged."""
    waiting = Waiting()

    def client(data: bytes, connection: socket) -> None:
        connection.sendall(data)
        connection.settimeout(0.1)
        with suppress(TimeoutError):
            connection.recv(1)
        connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))

    leaves = {b"/later": Leaf(waiting, methods=(b"GET",)), b"/webhook/tradingview": Leaf()}
    async with tcp_serving(leaves) as served:
        for data in (b"GET /he", post(b"x" * 100)[:-1], get("/later"), get("/later") + get("/later"), b""):
            await served.run(lambda connection, data=data: client(data, connection))  # type: ignore[misc]
        await served.until(lambda: served.site.open == 0)
        assert served.site.in_flight == 0
        assert waiting.cancelled == 2
        assert not served.failures


@pytest_twisted.ensureDeferred
async def test_slow_head(tcp_serving: Serving) -> None:
    """A head that trickles in is 408 at its deadline, not later."""

    def client(connection: socket) -> tuple[bytes, float]:
        began = time.monotonic()
        connection.settimeout(0.02)
        for byte in get("/healthz", "X-Slow: " + "x" * 200):
            connection.sendall(bytes([byte]))
            with suppress(TimeoutError):
                return connection.recv(65536) + read_to_end(connection), time.monotonic() - began
        raise AssertionError("the head was read to its end")

    async with tcp_serving(limits=Limits(head_s=1.0)) as served:
        data, took_s = await served.run(client)
    assert [answer.status for answer in read_answers(data)] == [408]
    assert took_s < 3.0


@pytest_twisted.ensureDeferred
async def test_stuck_client(tcp_serving: Serving) -> None:
    """A client that asks and asks and never reads is cut off, and costs no more than a socket's buffers."""

    def client(connection: socket) -> int:
        connection.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        connection.settimeout(4.0)
        sent = 0
        try:
            while sent < 50_000_000:
                sent += connection.send(get("/big") * 100)
        except (TimeoutError, ConnectionError):
            return sent
        return sent

    leaf = Leaf(lambda request: Response(200, b"x" * 200_000), methods=(b"GET",))
    async with tcp_serving({b"/big": leaf}, limits=Limits(write_s=1.0)) as served:
        sent = await served.run(client)
        assert sent < 10_000_000
        assert len(leaf.requests) < 50
        await served.until(lambda: served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_large_answer(tcp_serving: Serving) -> None:
    """A client that reads slowly, but reads, gets an answer of 8 MiB whole, and the one behind it."""
    body = bytes(range(256)) * 32768

    def client(connection: socket) -> bytes:
        connection.setsockopt(SOL_SOCKET, SO_RCVBUF, 65536)
        connection.sendall(get("/big") + get("/healthz", "Connection: close"))
        received = []
        while piece := connection.recv(4096):
            received.append(piece)
        return b"".join(received)

    leaves = {
        b"/big": Leaf(lambda request: Response(200, body), methods=(b"GET",)),
        b"/healthz": Leaf(methods=(b"GET",)),
    }
    async with tcp_serving(leaves) as served:
        first, second = read_answers(await served.run(client))
    assert first.body == body
    assert second.status == 202


@pytest_twisted.ensureDeferred
async def test_pipelining(tcp_serving: Serving) -> None:
    """Thousands of requests in one go are answered in their order, while others are served too."""
    count = 5000

    def flood(connection: socket) -> bytes:
        connection.sendall(b"".join(get(f"/echo?{number}") for number in range(count)))
        connection.shutdown(SHUT_WR)
        return read_to_end(connection)

    def other(connection: socket) -> float:
        began = time.monotonic()
        connection.sendall(get("/echo?other", "Connection: close"))
        read_to_end(connection)
        return time.monotonic() - began

    leaf = Leaf(lambda request: Response(200, request.query), methods=(b"GET",))
    async with tcp_serving({b"/echo": leaf}) as served:
        flooding = served.run(flood)
        assert await served.run(other) < 1.0
        answers = read_answers(await flooding)
    assert [answer.body for answer in answers] == [b"%d" % number for number in range(count)]


class Echo(Protocol):
    """A toy protocol that takes connections over."""

    lost = False

    def connectionMade(self) -> None:
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = True


@pytest_twisted.ensureDeferred
async def test_hand_over(tcp_serving: Serving) -> None:
    """A connection that changes hands goes on with the bytes that were there, and ends with the client's FIN."""
    echo = Echo()

    def reply(request: Request) -> Response:
        return HandOver(echo)

    def client(connection: socket) -> bytes:
        connection.sendall(get("/echo", "Connection: Upgrade", "Upgrade: echo") + b"early ")
        received = read_until(connection, b"EARLY ")
        connection.sendall(b"late")
        received += read_until(connection, b"LATE")
        connection.shutdown(SHUT_WR)
        return received + read_to_end(connection)

    async with tcp_serving({b"/echo": Leaf(reply, methods=(b"GET",))}) as served:
        received = await served.run(client)
        await served.until(lambda: served.site.open == 0)
    assert received.endswith(b"\r\n\r\nEARLY LATE")
    assert echo.lost


@pytest_twisted.ensureDeferred
async def test_drain_and_close(tcp_serving: Serving) -> None:
    """drain() ends idle connections and waits for the request in flight; close() then leaves nothing."""
    waiting = Waiting()

    def idle(connection: socket) -> bytes:
        connection.sendall(get("/healthz"))
        return read_to_end(connection)

    def busy(connection: socket) -> bytes:
        connection.sendall(get("/later"))
        return read_to_end(connection)

    leaves = {b"/later": Leaf(waiting, methods=(b"GET",)), b"/healthz": Leaf(methods=(b"GET",))}
    async with tcp_serving(leaves) as served:
        idling, working = served.run(idle), served.run(busy)
        await served.until(lambda: served.finished and waiting.deferreds)
        drained = served.site.drain()
        (answer,) = read_answers(await idling)
        assert not answer.closes
        assert not drained.called
        waiting.deferreds[0].callback(Response(200, b"done"))
        await drained
        (answer,) = read_answers(await working)
        assert (answer.body, answer.closes) == (b"done", True)
