"""The hub with its delivery behind WebSocket and SSE on real connections: overflow, resume, revocation, shutdown."""

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Event as Flag
from typing import Any

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred

from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.push.connections import Connections
from gatewayd.push.delivery import Delivery
from gatewayd.push.frames import EventSigner
from gatewayd.push.hub import Bounds, Hub, Item
from gatewayd.push.opening import PATH, Opening
from gatewayd.push.position import EVENTS, Mark
from gatewayd.push.websocket import Services
from gatewayd.push.wishes import parse_grants
from gatewayd.sessions.encodings import write_base64url
from gatewayd.sessions.envelope import read_json, write_json
from gatewayd.sessions.signing import event_input
from gatewayd.sessions.values import Envelope, Session
from gatewayd.times import Wall
from tests.buses import reactor_clock, reactor_loop
from tests.fakes.subscribing import envelope_members, unsigned
from tests.websockets import Client, text, upgrade
from tests.wire.conftest import Serving
from tests.wire.listeners import Served

NOW = Wall(1_700_000_000.0)


class Desk:
    """A hub, its delivery and the public paths."""

    def __init__(self, served: Served, delivery: Delivery, metrics: EdgeMetrics) -> None:
        self.served = served
        self.delivery = delivery
        self.metrics = metrics
        self.published = 0

    def publish(self, count: int, size: int = 10) -> Deferred[None] | None:
        """So many events for user `ann`."""
        items = []
        for _ in range(count):
            self.published += 1
            items.append(Item((self.published, 0), "trade", f"id-{self.published}", 1, b"x" * size, user_id="ann"))
        return self.delivery.publish(EVENTS, items)

    def open(self) -> int:
        """Streams now."""
        return len(self.delivery.hub)


@asynccontextmanager
async def desk(serving: Serving) -> AsyncIterator[Desk]:
    """A session `s-1` of user `ann` for whoever asks; commands are refused by their absence."""
    clock, loop = reactor_clock(), reactor_loop()
    metrics = EdgeMetrics(CollectorRegistry())

    async def verify(envelope: Envelope) -> Session:
        return Session(envelope.device_session_id, "ann", bytes(32))

    delivery = Delivery(
        Hub(Bounds(), EventSigner(unsigned, event_input)),
        verify=verify,
        grants=parse_grants(""),
        readers={},
        metrics=metrics,
        clock=clock,
        wall=lambda: NOW,
        soon=loop.call_soon,  # type: ignore[arg-type]
        chance=lambda: 0.5,
    )
    delivery.begin(EVENTS, Mark("a", (0, 0)), (0, 0), ())
    connections = Connections(clock, loop.call_soon)  # type: ignore[arg-type]
    services = Services(delivery.subscribe, lambda envelope, deadline_s: Deferred(), read_json, write_json)
    leaf = Opening(services=services, connections=connections, origins=frozenset, gate=lambda request: None)
    delivery.start()
    async with serving({PATH: leaf}) as served:
        yield Desk(served, delivery, metrics)
        await delivery.stop(2.0)
        await connections.stop(2.0)
    assert connections.open == 0
    assert [cell.value for cell in metrics.streams.values()] == [0, 0, 0]


def opening(transport: str, position: str = "") -> bytes:
    """What a client sends first."""
    payload = write_base64url(position.encode())
    envelope = json.dumps(envelope_members("s-1", payload_bytes=payload)).encode()
    if transport == "websocket":
        return upgrade() + text(envelope)
    head = "POST /edge/v1/events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(envelope)}\r\n\r\n".encode() + envelope


def follow(transport: str, sent: bytes, seen: Callable[[dict[str, Any]], None]) -> Callable[[socket.socket], str]:
    """A client that reads to the end; gives what it is told there."""

    def websocket(connection: socket.socket) -> str:
        client = Client(connection)
        client.open(sent)
        while (found := client.receive()).opcode == 1:
            seen(json.loads(found.payload))
        client.send(bytes([0x88, 0x82]) + bytes(4) + found.payload[:2])
        return f"{found.code} {found.reason}"

    def sse(connection: socket.socket) -> str:
        connection.sendall(sent)
        with connection.makefile("rb") as lines:
            name = ""
            for line in lines:
                key, _, value = line.decode().rstrip("\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data" and name == "close":
                    return value
                elif key == "data":
                    seen(json.loads(value))
        return "nothing"

    return websocket if transport == "websocket" else sse


@pytest.mark.parametrize("transport", ["websocket", "sse"])
@pytest_twisted.ensureDeferred
async def test_life(tcp_serving: Serving, transport: str) -> None:
    """Live events, a resume that misses and doubles nothing, and a shutdown that says when to come back."""
    async with desk(tcp_serving) as it:
        first: list[dict[str, Any]] = []
        leaving = it.served.run(follow(transport, opening(transport), first.append))
        await it.served.until(lambda: len(first) == 1)
        it.publish(300)
        await it.served.until(lambda: len(first) == 301)
        it.delivery.revoke("s-1")
        assert "device session is revoked" in await leaving
        it.publish(200)
        again: list[dict[str, Any]] = []
        staying = it.served.run(follow(transport, opening(transport, first[-1]["position"]), again.append))
        await it.served.until(lambda: len(again) == 201)
        it.publish(5)
        await it.served.until(lambda: len(again) == 206)
        shown = [event["event_id"] for event in [*first, *again] if event["event_type"] == "trade"]
        assert shown == [f"id-{number}" for number in range(1, 506)]
        await it.delivery.stop(2.0)
        said = await staying
        assert "gateway is shutting down" in said
        assert "retry_after_ms" in said


@pytest_twisted.ensureDeferred
async def test_slow_client(tcp_serving: Serving) -> None:
    """A client that stops reading overflows alone: its stream ends soon, and a reader beside it gets everything."""

    def stalled(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        connection.sendall(opening("websocket"))
        released.wait(10)

    released, seen = Flag(), list[dict[str, Any]]()
    async with desk(tcp_serving) as it:
        stuck = it.served.run(stalled)
        reading = it.served.run(follow("websocket", opening("websocket"), seen.append))
        await it.served.until(lambda: it.open() == 2 and len(seen) == 1)
        for _ in range(150):
            drained = it.publish(10, 500)
            if drained is not None:
                await drained
            # No faster than this machine lets the other one read, or that one overflows too.
            await it.served.until(lambda: len(seen) > it.published - 150)
        await it.served.until(lambda: it.open() == 1)
        await it.served.until(lambda: len(seen) == 1501)
        await it.served.until(lambda: it.served.site.open == 1)
        released.set()
        await stuck
        await it.delivery.stop(2.0)
        assert "gateway is shutting down" in await reading
