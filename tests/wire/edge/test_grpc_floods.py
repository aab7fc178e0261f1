"""Peers that ask for too much, or that speak something else: told why and closed, and nobody else waits for them."""

import ssl
import time
from socket import socket

import grpc
import pytest
import pytest_twisted
from hpack import Encoder

from tests.buses import pause, until
from tests.fakes.hub import make_event
from tests.h2peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    GRPC,
    HEADERS,
    PING,
    PRIORITY,
    RESET,
    SETTINGS,
    Frame,
    Peer,
    block,
    frame,
    head,
    message,
    settings,
    update,
)
from tests.servers import Certificates
from tests.wire.edge.grpc_serving import Served, execute, request, serving, subscription

CALM = 0xB
MOST = (1 << 31) - 1
COMMAND = message(request().SerializeToString())
NEVER = message(request("never").SerializeToString())
GIVEN_UP = bytes(3) + b"\x08"


def streams(count: int) -> range:
    """The numbers of so many streams of a client."""
    return range(1, 2 * count, 2)


FLOODS: dict[str, tuple[str, bytes]] = {
    "rapid reset": ("too_many_resets", b"".join(head(n) + frame(RESET, 0, n, GIVEN_UP) for n in streams(3000))),
    "a reset again": ("too_many_resets", head() + frame(RESET, 0, 1, GIVEN_UP) * 3000),
    # A reset that we are made to send gives a stream up as well as one of the client's own.
    "resets of ours": (
        "too_many_errors",
        b"".join(head(n) + frame(DATA, END_STREAM, n, NEVER) + update(n, MOST) for n in streams(1000)),
    ),
    "late data": ("too_many_errors", head() + frame(RESET, 0, 1, GIVEN_UP) + frame(DATA, 0, 1, b"x" * 300) * 200),
    "refused calls": ("too_many_refusals", b"".join(head(n, path="/no", ended=True) for n in streams(3000))),
    "refused calls with bodies": (
        "too_many_refusals",
        b"".join(head(n, path="/no") + frame(DATA, END_STREAM, n, COMMAND) for n in streams(3000)),
    ),
    "pings": ("too_many_pings", frame(PING, 0, 0, bytes(8)) * 20_000),
    "answers to no ping": ("too_many_pings", frame(PING, ACK, 0, bytes(8)) * 20_000),
    "settings": ("too_many_settings", settings((3, 100)) * 20_000),
    "acknowledged settings": ("too_many_settings", frame(SETTINGS, ACK) * 20_000),
    "kinds of settings": ("too_many_settings", settings(*((n, 1) for n in range(100, 2500)))),
    "kinds of settings, in turn": (
        "too_many_settings",
        b"".join(settings(*((n, 1) for n in range(begin, begin + 20))) for begin in range(100, 500, 20)),
    ),
    "priorities": ("too_many_priorities", frame(PRIORITY, 0, 1, b"\0\0\0\0\x0f") * 20_000),
    "unknown frames": ("too_many_unknown_frames", frame(0x16) * 20_000),
    "updates": ("too_many_window_updates", update(0, 1) * 20_000),
    "updates of no stream": ("too_many_window_updates", head() + frame(RESET, 0, 1, GIVEN_UP) + update(1, 1) * 20_000),
    "empty data": ("too_many_empty_frames", head() + frame(DATA, 0, 1) * 20_000),
    "small data": (
        "too_many_small_frames",
        head() + frame(DATA, 0, 1, message(bytes(10**6))[:500]) + frame(DATA, 0, 1, b"\0") * 20_000,
    ),
    "continuations": ("too_many_continuations", frame(HEADERS, 0, 1, block(GRPC)) + frame(CONTINUATION, 0, 1) * 65),
    "a long block": (
        "header_block_too_long",
        frame(HEADERS, 0, 1, block(GRPC)) + frame(CONTINUATION, 0, 1, b"\0\x01x\x7f\x80\x7d" + b"y" * 16_000) * 5,
    ),
    # 16 KiB that are decoded to a thousand times as much.
    "a bomb of headers": (
        "protocol",
        frame(HEADERS, 5, 1, Encoder().encode(GRPC) + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 12_000),
    ),
}


@pytest.mark.parametrize("name", FLOODS)
@pytest_twisted.ensureDeferred
async def test_flood(name: str) -> None:
    """The flood's connection is told to be calm and closed; a client beside it goes on as before."""
    reason, sent = FLOODS[name]
    done: list[bool] = []

    def flood(connection: socket) -> list[Frame]:
        peer = Peer(connection)
        peer.send(sent)
        seen = peer.read_to_end()
        done.append(True)
        return seen

    def other(channel: grpc.Channel) -> float:
        call, slowest = execute(channel), 0.0
        call(request(), timeout=5)
        ready.append(True)
        while not done:
            began = time.monotonic()
            call(request(), timeout=5)
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    ready: list[bool] = []
    async with serving() as served:
        beside = served.run(other)
        await until(lambda: ready)
        began = time.monotonic()
        seen = await served.talk(flood)
        taken_s = time.monotonic() - began
        slowest_s = await beside
        print(f"{name}: closed after {taken_s * 1000:.0f} ms, the slowest other call {slowest_s * 1000:.0f} ms")
        ends = [one.code for one in seen if one.kind == GOAWAY]
        assert ends == [CALM], seen[-5:]
        assert served.server.closed_for == {reason: 1}
        assert taken_s < 3
        assert slowest_s < 1
        await until(lambda: not served.server.calls)


@pytest_twisted.ensureDeferred
async def test_busy_reader_is_no_flood() -> None:
    """A client that opens its windows twice for every event, and measures the path with pings, may do so for long."""
    count = 4000

    def client(connection: socket) -> int:
        peer, got = Peer(connection), 0
        peer.send(head(1, path="/gatewayd.edge.v1.EdgeGateway/SubscribeEvents"))
        peer.send(frame(DATA, END_STREAM, 1, message(subscription().SerializeToString())))
        while got < count:
            one = peer.read()
            assert one is not None
            assert one.kind != GOAWAY, one
            if one.kind == DATA:
                got += 1
                size = len(one.payload)
                peer.send(update(0, size), update(1, size), frame(PING, 0, 0, bytes(8)) if got % 5 == 0 else b"")
        return got

    async with serving() as served:
        got = served.talk(client)
        await until(lambda: served.hub.streams)
        (stream,) = served.hub.streams
        for number in range(1, count):
            while len(stream.queue) > 200:
                await pause(0.002)
            stream.publish(make_event(number))
        assert await got == count


@pytest_twisted.ensureDeferred
async def test_settled_streams_may_be_given_up() -> None:
    """100 streams that have lived for a while are given up again and again without that being a flood."""

    def client(connection: socket) -> bool:
        peer = Peer(connection)
        for turn in range(4):
            numbers = range(1 + 200 * turn, 200 * (turn + 1), 2)
            peer.send(*(head(n) + frame(DATA, END_STREAM, n, NEVER) for n in numbers))
            time.sleep(0.7)
            peer.send(*(frame(RESET, 0, n, GIVEN_UP) for n in numbers))
        return peer.is_alive()

    async with serving() as served:
        assert await served.talk(client)
        await until(lambda: served.hub.cancelled == 400)


def to_end(connection: socket) -> bytes:
    """Everything until the server's FIN."""
    received = []
    try:
        while piece := connection.recv(65536):
            received.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(received)


SPOKEN: dict[str, tuple[str, bytes, bytes]] = {
    "HTTP/1.1": ("http1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 505 HTTP Version Not Supported\r\n"),
    "TLS": ("no_http2", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b""),
    "a preface that goes astray": ("no_http2", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", SPOKEN)
@pytest_twisted.ensureDeferred
async def test_something_else(name: str) -> None:
    """What is no HTTP/2 is closed at once; HTTP/1 is told so in its own words."""
    reason, sent, wanted = SPOKEN[name]

    def client(connection: socket) -> bytes:
        for at in range(0, len(sent), 10):
            connection.sendall(sent[at : at + 10])
        return to_end(connection)

    async with serving() as served:
        began = time.monotonic()
        got = await served.talk(client)
        assert got.startswith(wanted)
        assert bool(got) == bool(wanted)
        assert time.monotonic() - began < 1
        assert served.server.closed_for == {reason: 1}


async def _over_tls(served: Served, certificates: Certificates, offered: list[str], sent: bytes) -> bytes:
    def client(connection: socket) -> bytes:
        context = ssl.create_default_context(cafile=str(certificates.ca))
        if offered:
            context.set_alpn_protocols(offered)
        with context.wrap_socket(connection, server_hostname="localhost") as secured:
            secured.sendall(sent)
            return to_end(secured)

    return await served.talk(client)


@pytest_twisted.ensureDeferred
async def test_tls_without_alpn(certificates: Certificates) -> None:
    """HTTP/2 over TLS that was not agreed on is refused: GOAWAY with INADEQUATE_SECURITY. HTTP/1.1 is told its line."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings()
    async with serving(tls=certificates) as served:
        got = await _over_tls(served, certificates, [], preface)
        assert got.endswith(b"\0\0\0\x0cno_alpn")
        got = await _over_tls(served, certificates, ["http/1.1"], b"GET / HTTP/1.1\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 505 ")
        assert served.server.closed_for == {"no_alpn": 1, "http1": 1}


@pytest_twisted.ensureDeferred
async def test_refusal_before_the_request_ends() -> None:
    """A request that goes on after its answer is told to stop: RST_STREAM with NO_ERROR, and the slot is free."""

    def client(connection: socket) -> tuple[list[int], dict[int, dict[str, str]], bool]:
        peer = Peer(connection)
        peer.send(head(path="/no"))
        frames = peer.read_to_end(RESET)
        resets = [one.code for one in frames if one.kind == RESET]
        return resets, peer.headers_of(frames), peer.is_alive()

    async with serving() as served:
        resets, answers, alive = await served.talk(client)
        assert (resets, alive, served.server.calls) == ([0], True, 0)
        assert answers[1]["grpc-status"] == "12"
        assert answers[1]["grpc-message"] == "unknown service or method"
