"""WebSocket and SSE on real connections: both kinds of transports, plain and with TLS, and clients that misbehave."""

import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Event as Flag
from typing import Any, TypeAlias

import pytest_twisted

from gatewayd.push.connections import Connections
from gatewayd.push.opening import PATH, Opening
from gatewayd.push.websocket import Services
from gatewayd.sessions.endings import OVERFLOWED, REPLAYED, REVOKED, SHUTTING_DOWN, Ending
from gatewayd.sessions.envelope import read_json, write_json
from tests.buses import reactor_loop
from tests.fakes.subscribing import FakeHub, envelope_members, reply
from tests.servers import Certificates
from tests.websockets import CLOSE, PING, PONG, Client, close, frame, text, upgrade
from tests.wire.conftest import Serving, in_force, secured
from tests.wire.listeners import Served, read_to_end, read_until, serving

Connect: TypeAlias = Callable[[socket.socket], Any]


class Edge:
    """A hub behind a listener."""

    def __init__(self, served: Served, hub: FakeHub, connections: Connections) -> None:
        self.served = served
        self.hub = hub
        self.connections = connections


@asynccontextmanager
async def edge(listening: Serving, **options: Any) -> AsyncIterator[Edge]:
    """The leaf at its path, and a hub that opens a stream for everybody."""
    from twisted.internet import reactor

    hub, connections = FakeHub(), Connections(reactor, reactor_loop().call_soon)  # type: ignore[arg-type]
    services = Services(hub.subscribe, hub.execute, read_json, write_json)
    leaf = Opening(services=services, connections=connections, origins=frozenset, gate=lambda request: None)
    async with listening({PATH: leaf}, **options) as served:
        yield Edge(served, hub, connections)
        await connections.stop(2.0)
    assert connections.open == 0


def envelope(session: str = "session-1", request_id: str = "request-1") -> bytes:
    """An envelope's JSON."""
    return json.dumps(envelope_members(session, request_id)).encode()


def post(body: bytes) -> bytes:
    """A request for a stream of server-sent events."""
    return (
        b"POST /edge/v1/events HTTP/1.1\r\nHost: gateway.example\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


@pytest_twisted.ensureDeferred
async def test_websocket(tcp_serving: Serving) -> None:
    """Handshake, envelope, events, a command and the close, the envelope sent together with the handshake."""

    def client(connection: socket.socket) -> list[Any]:
        client = Client(connection)
        assert client.open(upgrade(), text(envelope())) == "HTTP/1.1 101 Switching Protocols"
        told = [json.loads(client.receive().payload)["event_type"]]
        opened.set()
        told += [json.loads(client.receive().payload)["position"] for _ in range(100)]
        client.send(text(envelope(request_id="r-2")) + frame(PING, b"there?"))
        pong = client.receive()
        told += [pong.payload, json.loads(client.receive().payload)["request_id"]]
        client.send(close(1000))
        last = client.receive_to_end()
        return [*told, *[(each.opcode, each.code) for each in last]]

    opened = Flag()
    async with edge(tcp_serving) as it:
        talking = it.served.run(client)
        await it.served.until(opened.is_set)
        for i in range(100):
            it.hub.publish(it.hub.event("trade", b"x" * i, f"{i}-0"))
        await it.served.until(lambda: it.hub.executing)
        it.hub.executing[0].callback(reply("r-2"))
        told = await talking
        assert told == ["gateway.server_time", *[f"{i}-0" for i in range(100)], b"there?", "r-2", (CLOSE, 1000)]
        await it.served.until(lambda: it.served.site.open == 0)
        assert it.hub.ever[0].reasons == ["client"]


@pytest_twisted.ensureDeferred
async def test_tls(tcp_serving: Serving, certificates: Certificates) -> None:
    """The same through TLS: WebSocket and SSE open, carry events and end with their reasons."""

    def websocket(connection: socket.socket) -> Any:
        with secured(certificates, connection) as stream:
            client = Client(stream)
            client.open(upgrade(), text(envelope()))
            client.receive()
            return [client.receive().opcode, *[each.code for each in client.receive_to_end()]]

    def sse(connection: socket.socket) -> Any:
        with secured(certificates, connection) as stream:
            stream.sendall(post(envelope("session-2")))
            return read_until(stream, b"event: close").decode() + read_to_end(stream).decode()

    async with edge(tcp_serving, tls=in_force(certificates)) as it:
        talking = [it.served.run(websocket), it.served.run(sse)]
        await it.served.until(lambda: len(it.hub.streams) == 2)
        await it.served.pause(0.05)
        it.hub.publish(it.hub.event("trade", b"x" * 200_000, "1-0"))
        await it.served.pause(0.05)
        for stream in tuple(it.hub.streams):
            stream.close(REVOKED)
        assert await talking[0] == [1, 4003]
        body = await talking[1]
        assert "id: 1-0\ndata: " in body
        assert '"code":"revoked"' in body


@pytest_twisted.ensureDeferred
async def test_sse(tcp_serving: Serving) -> None:
    """A stream over HTTP: its head at once, events as they come, the reason of its end, and the end."""

    def client(connection: socket.socket) -> str:
        connection.sendall(post(envelope()))
        head = read_until(connection, b"gateway.server_time")
        opened.set()
        return (head + read_to_end(connection)).decode()

    opened = Flag()
    async with edge(tcp_serving) as it:
        talking = it.served.run(client)
        await it.served.until(opened.is_set)
        it.hub.publish(it.hub.event("trade", b"one", "1-0"))
        await it.served.pause(0.05)
        (stream,) = it.hub.streams
        stream.close(Ending("shutdown", 14, 1012, "gateway is shutting down", 1500))
        received = await talking
        assert received.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        assert [line for line in received.split("\n") if line.startswith("id: ")] == ["id: ea.0-0", "id: 1-0"]
        assert received.endswith(
            'retry: 1500\nevent: close\ndata: {"code":"shutdown","message":"gateway is shutting down",'
            '"retry_after_ms":1500}\n\n'
        )
        await it.served.until(lambda: it.served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_refused(tcp_serving: Serving) -> None:
    """A refused POST is a plain answer on a connection that lives on; a refused WebSocket has its close code."""

    def sse(connection: socket.socket) -> list[bytes]:
        answers = []
        for _ in range(2):
            connection.sendall(post(envelope()))
            answers.append(read_until(connection, b'"}}'))
        return answers

    def websocket(connection: socket.socket) -> Any:
        client = Client(connection)
        client.open(upgrade(), text(envelope()))
        (last,) = client.receive_to_end()
        return last.code, last.reason

    async with edge(tcp_serving) as it:
        it.hub.endings["session-1"] = REPLAYED
        for answer in await it.served.run(sse):
            assert answer.startswith(b"HTTP/1.1 409 Conflict\r\n")
            assert answer.endswith(b'{"error":{"code":"replay","message":"request replay detected"}}')
        assert await it.served.run(websocket) == (1008, "request replay detected")
        assert not it.served.failures


@pytest_twisted.ensureDeferred
async def test_slow_reader(tcp_serving: Serving) -> None:
    """A client that stops reading stops its own stream after little, and is reset soon after its close."""

    def stalled(connection: socket.socket) -> bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        connection.sendall(post(envelope("slow")))
        released.wait(10)
        try:
            return read_to_end(connection)
        except ConnectionResetError:
            return b"reset"

    def reader(connection: socket.socket) -> int:
        client = Client(connection)
        client.open(upgrade(), text(envelope("good")))
        return len([each for each in client.receive_to_end() if each.opcode == 1])

    released = Flag()
    async with edge(tcp_serving) as it:
        slow, good = it.served.run(stalled), it.served.run(reader)
        await it.served.until(lambda: len(it.hub.streams) == 2)
        (stream,) = [each for each in it.hub.streams if each.envelope.device_session_id == "slow"]
        await it.served.until(lambda: all(each.ready for each in it.hub.streams))
        for i in range(2000):
            it.hub.publish(it.hub.event("trade", b"x" * 150, f"{i}-0"))
            if i % 20 == 0:
                await it.served.pause(0)
        assert not stream.ready
        taken_bytes = (2000 - len(stream.waiting)) * 420
        assert taken_bytes < 400_000, taken_bytes
        stream.close(OVERFLOWED)
        began = time.monotonic()
        await it.served.until(lambda: it.connections.open == 1)
        assert time.monotonic() - began < 4.5
        released.set()
        for each in tuple(it.hub.streams):
            each.close(SHUTTING_DOWN)
        assert await good == 2001
        received = await slow
        assert received == b"reset" or b"event: close" not in received


@pytest_twisted.ensureDeferred
async def test_silent_websocket() -> None:
    """Whoever says nothing is closed in time."""

    def client(connection: socket.socket) -> Any:
        client = Client(connection)
        client.open(upgrade())
        began = time.monotonic()
        (last,) = client.receive_to_end()
        return last.code, time.monotonic() - began

    async with edge(partial(serving, on_loop=True)) as it:
        code, took_s = await it.served.run(client)
        assert code == 1008
        assert 4.0 < took_s < 9.0


@pytest_twisted.ensureDeferred
async def test_breach_is_read(tcp_serving: Serving) -> None:
    """A client in the middle of sending still reads why it was closed: no reset destroys it."""

    def client(connection: socket.socket) -> Any:
        client = Client(connection)
        client.open(upgrade(), text(envelope()))
        client.receive()
        client.send(frame(2, b"x" * 60_000) * 10)
        answered.wait(5)
        return [(each.opcode, each.code) for each in client.receive_to_end()]

    answered = Flag()
    async with edge(tcp_serving) as it:
        talking = it.served.run(client)
        await it.served.until(lambda: it.hub.ever and it.hub.ever[0].reasons)
        await it.served.pause(0.1)
        answered.set()
        assert await talking == [(CLOSE, 1003)]
        assert it.hub.ever[0].reasons == ["protocol"]


@pytest_twisted.ensureDeferred
async def test_floods(tcp_serving: Serving) -> None:
    """A thousand pings, or a message without an end, are closed early and cost no memory."""

    def flood(first: bytes, data: bytes) -> Connect:
        def client(connection: socket.socket) -> Any:
            client = Client(connection)
            client.open(upgrade(), text(envelope()))
            client.receive()
            client.send(first)
            with suppress(OSError):
                for _ in range(20):
                    client.send(data)
            answers = client.receive_to_end()
            return len([each for each in answers if each.opcode == PONG]), answers[-1].code

        return client

    async with edge(tcp_serving) as it:
        pongs, code = await it.served.run(flood(b"", frame(PING) * 50))
        assert (pongs < 130, code) == (True, 1008)
        endless = b"\x81\xff" + (52_000_000).to_bytes(8, "big") + bytes(4)
        assert await it.served.run(flood(endless, b"x" * 60_000)) == (0, 1009)


@pytest_twisted.ensureDeferred
async def test_client_leaves(tcp_serving: Serving) -> None:
    """A client that goes in any phase leaves nothing behind."""

    def websocket(data: bytes) -> Connect:
        def client(connection: socket.socket) -> None:
            client = Client(connection)
            client.open(upgrade(), data)

        return client

    def sse(connection: socket.socket) -> None:
        connection.sendall(post(envelope()))
        connection.settimeout(0.2)
        with suppress(TimeoutError):
            connection.recv(1)

    async with edge(tcp_serving) as it:
        for data in (b"", text(envelope())[:9], text(envelope()), text(envelope()) + frame(PING)[:2]):
            await it.served.run(websocket(data))
        await it.served.run(sse)
        await it.served.until(lambda: it.served.site.open == 0)
        it.hub.holds = True
        await it.served.run(websocket(text(envelope())))
        await it.served.until(lambda: it.hub.cancelled == 1)
        # A client may have sent its FIN and wait: it is found out when the stream begins.
        await it.served.run(sse)
        it.hub.release()
        await it.served.until(lambda: it.served.site.open == 0)
        await it.served.until(lambda: it.connections.open == 0)
        assert not it.hub.streams
        assert {reason for stream in it.hub.ever for reason in stream.reasons} <= {"client", "lost"}


@pytest_twisted.ensureDeferred
async def test_stop(tcp_serving: Serving) -> None:
    """At a stop the waiting are told, the open are the hub's, and what comes then is refused."""

    def waiting(connection: socket.socket) -> Any:
        client = Client(connection)
        client.open(upgrade())
        (last,) = client.receive_to_end()
        return last.code, last.reason

    def late(connection: socket.socket) -> bytes:
        connection.sendall(upgrade())
        return read_until(connection, b"}}")

    async with edge(tcp_serving) as it:
        talking = it.served.run(waiting)
        await it.served.until(lambda: it.connections.open == 1)
        await it.connections.stop(2.0)
        assert await talking == (1012, "gateway is shutting down")
        assert (await it.served.run(late)).startswith(b"HTTP/1.1 503 ")
