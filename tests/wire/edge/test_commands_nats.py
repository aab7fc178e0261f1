"""Commands to services on a real nats-server that is frozen, killed, or refuses them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from gatewayd.bus.publication import BusState, Published
from gatewayd.commands.composed import make_routes
from gatewayd.commands.nats import NOT_CONNECTED, NatsRoute
from gatewayd.commands.routes import RouteSpec
from gatewayd.sessions.endings import INVALID_ARGUMENT, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from gatewayd.sessions.values import Answered, Command
from tests.buses import connected_bus, create_stream, pair, pause, reactor_clock, stored_ids, until
from tests.servers import NatsServer
from tests.services import NatsService, Said

SUBJECT = "orders.place"


def command(payload: bytes = b"{}") -> Command:
    return Command(payload, "dev-1", "user-7", "orders.place", "r-1", "")


def no_http() -> Any:
    raise AssertionError("no route is one of HTTP's")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path).start()
    yield made
    made.close()


@pytest_twisted.ensureDeferred
async def test_no_responders(server: NatsServer) -> None:
    """A subject that nobody listens on is answered at once, whatever the deadline."""
    complaints: list[str] = []
    async with connected_bus(server) as bus:
        route = NatsRoute(bus, SUBJECT, random=bytes, complain=complaints.append)
        began = time.monotonic()
        assert await route.call(command(), 20.0) == UPSTREAM_FAILED
        assert time.monotonic() - began < 2.0
    assert complaints == ["nobody listens on its subject"]


@pytest_twisted.ensureDeferred
async def test_the_server_goes(server: NatsServer) -> None:
    """Commands under way end when the connection does; without one they are refused at once; with it all is well."""
    async with connected_bus(server) as bus:
        route = NatsRoute(bus, SUBJECT, random=bytes, complain=lambda _: None)
        assert await route.call(command(), 5.0) == UPSTREAM_FAILED  # nobody listens yet
        service = NatsService(server, SUBJECT, lambda asked: None)
        called = route.call(command(), 30.0)
        await until(lambda: service.asked)
        server.kill()
        service.close()
        began = time.monotonic()
        assert await called == NOT_CONNECTED
        assert await route.call(command(), 30.0) == NOT_CONNECTED
        assert time.monotonic() - began < 5.0
        server.start()
        await until(lambda: bus.state is not BusState.DISCONNECTED, within_s=10.0)
        service = NatsService(server, SUBJECT)
        assert await route.call(command(b"again"), 5.0) == Answered("ok", b"again")
        service.close()


@pytest_twisted.ensureDeferred
async def test_an_outage_is_not_the_services(server: NatsServer) -> None:
    """However many commands fail while NATS is away, the first one after it is handed over."""
    specs = (RouteSpec("orders.", subject=SUBJECT),)
    async with connected_bus(server) as bus:
        route = make_routes(specs, bus=bus, upstream=no_http, clock=reactor_clock(), random=bytes).find("orders.place")
        assert route is not None
        server.kill()
        await until(lambda: bus.state is BusState.DISCONNECTED)
        for _ in range(20):
            assert await route.call(command(), 5.0) == NOT_CONNECTED
        server.start()
        await until(lambda: bus.state is not BusState.DISCONNECTED, within_s=10.0)
        service = NatsService(server, SUBJECT)
        assert await route.call(command(b"1"), 5.0) == Answered("ok", b"1")
        service.close()


@pytest_twisted.ensureDeferred
async def test_a_frozen_server(server: NatsServer) -> None:
    """A server that hangs costs each command its deadline and no more."""
    async with connected_bus(server) as bus:
        route = NatsRoute(bus, SUBJECT, random=bytes, complain=lambda _: None)
        server.sigstop()
        began = time.monotonic()
        assert await route.call(command(), 0.3) == UPSTREAM_TIMED_OUT
        assert 0.29 < time.monotonic() - began < 3.0
        server.sigcont()


@pytest_twisted.ensureDeferred
async def test_sizes(server: NatsServer) -> None:
    """What the server would not take is refused by name and never sent; an answer of a megabyte comes whole."""
    big = bytes(1_000_000)
    async with connected_bus(server) as bus:
        service = NatsService(server, SUBJECT, lambda asked: Said(big, {"result_code": "big"}))
        route = NatsRoute(bus, SUBJECT, random=bytes, complain=lambda _: None)
        found = await route.call(command(bytes(bus.max_payload - 1000)), 5.0)
        assert isinstance(found, Ending)
        assert found.grpc_status == INVALID_ARGUMENT
        assert "payload_bytes" in found.message
        largest = command(bytes(bus.max_payload - 4096))
        assert await route.call(largest, 5.0) == Answered("big", big)
        assert len(service.asked) == 1
        service.close()


@pytest_twisted.ensureDeferred
async def test_beside_webhooks(server: NatsServer) -> None:
    """Commands and publications share the connection, and neither is taken for the other."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        service = NatsService(server, SUBJECT)
        route = NatsRoute(bus, SUBJECT, random=bytes, complain=lambda _: None)
        publications, calls = [], []
        for number in range(50):
            publications.append(bus.publish(pair(str(number))))
            calls.append(route.call(command(b"%d" % number), 10.0))
        for number in range(50):
            assert await calls[number] == Answered("ok", b"%d" % number)
            assert isinstance(await publications[number], Published)
        assert len(await stored_ids(bus)) == 100
        service.close()


@pytest_twisted.ensureDeferred
async def test_a_table_of_routes(server: NatsServer) -> None:
    """Routes of the settings, put together: found by message type, called, and refused while their service is gone."""
    specs = (RouteSpec("orders.", subject=SUBJECT), RouteSpec("orders.cancel", subject="orders.cancel"))

    async with connected_bus(server) as bus:
        service = NatsService(server, SUBJECT)
        table = make_routes(specs, bus=bus, upstream=no_http, clock=reactor_clock(), random=bytes)
        assert table.find("quotes") is None
        placed, cancelled = table.find("orders.place"), table.find("orders.cancel")
        assert placed is not None
        assert cancelled is not None
        assert await placed.call(command(b"1"), None) == Answered("ok", b"1")
        for _ in range(5):
            assert await cancelled.call(command(), 5.0) == UPSTREAM_FAILED
        began = time.monotonic()
        refused = await cancelled.call(command(), 5.0)
        assert time.monotonic() - began < 1.0
        assert isinstance(refused, Ending)
        assert refused.retry_after_ms is not None
        assert await placed.call(command(b"2"), None) == Answered("ok", b"2")
        late = NatsService(server, "orders.cancel")
        await pause(1.05)
        for _ in range(4):
            assert await cancelled.call(command(b"3"), 5.0) == Answered("ok", b"3")
        late.close()
        service.close()
