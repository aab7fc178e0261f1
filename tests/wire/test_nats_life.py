"""The bus through what happens to servers: killed, frozen, deleted streams, full streams, no server at all."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.bus.publication import BusState, Cause, Published, Unpublished
from tests.buses import (
    STREAM,
    call,
    connected_bus,
    create_stream,
    message,
    pair,
    pause,
    stored_ids,
    until,
)
from tests.fakes.counts import Counts
from tests.servers import NatsServer

Ledger = dict[str, Published | Unpublished]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path).start()
    yield server
    server.close()


class Publisher:
    """Publishes pairs under growing ids, a few at a time, and keeps what became of each."""

    def __init__(self, bus: Any, body: bytes = b"{}") -> None:
        self.bus = bus
        self.body = body
        self.ledger: Ledger = {}
        self.longest_s = 0.0
        self.number = 0

    def burst(self, count: int) -> Deferred[list[None]]:
        """Publish `count` pairs now."""
        return gatherResults([Deferred.fromCoroutine(self._one()) for _ in range(count)])

    async def _one(self) -> None:
        self.number += 1
        msg_id, began = str(self.number), time.monotonic()
        self.ledger[msg_id] = await self.bus.publish(pair(msg_id, self.body))
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def settle(self) -> None:
        """Send every pair that is not known to be stored again until it is."""
        for msg_id in self.ledger:
            while not isinstance(self.ledger[msg_id], Published):
                self.ledger[msg_id] = await self.bus.publish(pair(msg_id, self.body))
                if not isinstance(self.ledger[msg_id], Published):
                    await pause(0.05)


def check(stored: list[str], ledger: Ledger) -> None:
    """Everything acknowledged is there, nothing is there twice."""
    counted = Counter(stored)
    acked = [f"{key}:{half}" for key, out in ledger.items() if isinstance(out, Published) for half in ("raw", "norm")]
    assert [msg_id for msg_id in acked if msg_id not in counted] == []
    assert [msg_id for msg_id, count in counted.items() if count > 1] == []


@pytest_twisted.ensureDeferred
async def test_kill_and_restart_loses_and_doubles_nothing(server: NatsServer) -> None:
    """kill -9 under load, three times: acknowledged and missing 0, twice 0, and publishing goes on by itself."""
    counts = Counts()
    async with connected_bus(server, counts=counts) as bus:
        await create_stream(bus)
        publisher = Publisher(bus)
        for _ in range(3):
            for _ in range(10):
                await publisher.burst(20)
            last = publisher.burst(900)
            await pause(0.001)
            server.kill()
            await last
            await until(lambda: bus.state is BusState.DISCONNECTED)
            refused = await bus.publish(pair("while-down"))
            assert isinstance(refused, Unpublished)
            assert refused.cause is Cause.DISCONNECTED
            server.start()
            taken_s = await until(lambda: bus.state is not BusState.DISCONNECTED)
            assert taken_s < 2.0
        check(await stored_ids(bus), publisher.ledger)
        await publisher.settle()
        ids = await stored_ids(bus)
        check(ids, publisher.ledger)
        assert len(ids) == 2 * publisher.number
        assert publisher.longest_s < 2.5
        assert counts.errors["connection"] >= 3


@pytest_twisted.ensureDeferred
async def test_a_frozen_server_is_answered_for_in_time_and_left(server: NatsServer) -> None:
    """SIGSTOP for 3 s: every publish has an outcome within 2.5 s, what was stored after all is a duplicate on retry."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        publisher = Publisher(bus, b"x" * 20_000)
        await publisher.burst(20)
        server.sigstop()
        frozen_at = time.monotonic()
        bursts = [publisher.burst(200)]  # 8 MB: more than the socket takes
        while time.monotonic() - frozen_at < 3.0:
            await pause(0.25)
            bursts.append(publisher.burst(2))
        server.sigcont()
        await gatherResults(bursts)
        assert publisher.longest_s <= 2.5
        assert bus.unacked == 0
        await until(lambda: bus.state is not BusState.DISCONNECTED)
        await publisher.settle()
        ids = await stored_ids(bus)
        check(ids, publisher.ledger)
        assert len(ids) == 2 * publisher.number


@pytest_twisted.ensureDeferred
async def test_after_a_freeze_the_next_server_is_tried(tmp_path: Path) -> None:
    """With two servers, one that hangs (its socket still open) is left for the other one."""
    first, second = NatsServer(tmp_path / "a").start(), NatsServer(tmp_path / "b").start()
    try:
        async with connected_bus(second) as elsewhere:
            await create_stream(elsewhere)
        counts = Counts()
        async with connected_bus(first, second, counts=counts) as bus:
            first.sigstop()
            began = time.monotonic()
            await gatherResults([bus.publish(pair(f"lost{i}", b"x" * 900_000)) for i in range(10)])
            await until(lambda: counts.errors["connection"] == 1)
            await until(lambda: bus.state is not BusState.DISCONNECTED)
            assert isinstance(await bus.publish(pair("kept")), Published)
            assert time.monotonic() - began < 4.5
    finally:
        first.close()
        second.close()


@pytest_twisted.ensureDeferred
async def test_one_of_two_servers_killed(tmp_path: Path) -> None:
    """When its server is killed the bus is on the other one within half a second."""
    first, second = NatsServer(tmp_path / "a").start(), NatsServer(tmp_path / "b").start()
    try:
        async with connected_bus(second) as elsewhere:
            await create_stream(elsewhere)
        counts = Counts()
        async with connected_bus(first, second, counts=counts) as bus:
            first.kill()
            await until(lambda: counts.errors["connection"] == 1, 1.0)
            assert await until(lambda: bus.state is not BusState.DISCONNECTED, 1.0) < 0.5
            assert isinstance(await bus.publish(pair("1")), Published)
    finally:
        first.close()
        second.close()


@pytest_twisted.ensureDeferred
async def test_lame_duck_moves_to_the_other_server(tmp_path: Path) -> None:
    """A server that announces its stop is left for another one before it stops; with no other one it is kept."""
    first, second = NatsServer(tmp_path / "a").start(), NatsServer(tmp_path / "b").start()
    try:
        async with connected_bus(second) as elsewhere:
            await create_stream(elsewhere)
        counts = Counts()
        async with connected_bus(first, second, counts=counts) as bus, connected_bus(first, alone=False) as loyal:
            first.lame_duck()
            await until(lambda: counts.errors["connection"] == 1, 1.0)
            await until(lambda: bus.state is BusState.CONNECTED, 1.0)
            assert isinstance(await bus.publish(pair("1")), Published)
            assert loyal.state is BusState.CONNECTED
    finally:
        first.close()
        second.close()


@pytest_twisted.ensureDeferred
async def test_nothing_published_while_there_is_no_server_is_stored_later(tmp_path: Path) -> None:
    """start() fires when the first attempt has failed; publishing then is refused at once and leaves no ghost."""
    server = NatsServer(tmp_path)
    async with connected_bus(server, wait=False) as bus:
        assert bus.state is BusState.DISCONNECTED
        assert bus.attempts >= 1
        assert bus.last_success is None
        assert "Refused" in bus.last_error
        publishing = [bus.publish(pair(f"early{i}")) for i in range(10)]
        assert all(one.called for one in publishing)
        outcomes = await gatherResults(publishing)
        assert {outcome.cause for outcome in outcomes if isinstance(outcome, Unpublished)} == {Cause.DISCONNECTED}
        server.start()
        try:
            await until(lambda: bus.state is BusState.CONNECTED)
            assert bus.attempts == 0
            assert bus.last_success is not None
            await create_stream(bus)
            assert isinstance(await bus.publish(pair("1")), Published)
            assert await stored_ids(bus) == ["1:raw", "1:norm"]
        finally:
            server.close()


@pytest_twisted.ensureDeferred
async def test_a_stream_deleted_and_made_again(server: NatsServer) -> None:
    """Without its stream a publish is refused at once and says so; once it is back publishing works, unasked."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        assert isinstance(await bus.publish(pair("1")), Published)
        await call(bus, f"$JS.API.STREAM.DELETE.{STREAM}", {})
        began = time.monotonic()
        refused = await bus.publish(pair("2"))
        assert isinstance(refused, Unpublished)
        assert refused.cause is Cause.REJECTED
        assert "no stream" in refused.error
        assert time.monotonic() - began < 0.5
        assert bus.state is BusState.DEGRADED
        await create_stream(bus)
        assert isinstance(await bus.publish(pair("2")), Published)


@pytest_twisted.ensureDeferred
async def test_another_stream_on_the_subject_is_refused(server: NatsServer) -> None:
    """Every publish names the stream it expects: a foreign stream on our subjects never takes an event."""
    async with connected_bus(server) as bus:
        await call(bus, "$JS.API.STREAM.CREATE.foreign", {"name": "foreign", "subjects": ["signals.>"]})
        refused = await bus.publish([message("1")])
        assert isinstance(refused, Unpublished)
        assert refused.cause is Cause.REJECTED
        info = await call(bus, "$JS.API.STREAM.INFO.foreign", {})
        assert info["state"]["messages"] == 0


@pytest_twisted.ensureDeferred
async def test_a_full_stream_is_called_full(server: NatsServer) -> None:
    """A stream at its limit that discards new messages: STREAM_FULL, not a timeout and not a rejection."""
    async with connected_bus(server) as bus:
        await create_stream(bus, max_msgs=2)
        assert isinstance(await bus.publish(pair("1")), Published)
        refused = await bus.publish(pair("2"))
        assert isinstance(refused, Unpublished)
        assert refused.cause is Cause.STREAM_FULL
        assert "maximum messages exceeded" in refused.error


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_acknowledgements(server: NatsServer) -> None:
    """stop() lets what is under way end within its budget."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        under_way = gatherResults([bus.publish(pair(str(i))) for i in range(50)])
        await bus.stop(2.0)
        assert all(isinstance(outcome, Published) for outcome in await under_way)
        refused = await bus.publish(pair("late"))
        assert isinstance(refused, Unpublished)


@pytest_twisted.ensureDeferred
async def test_stopping_while_the_server_is_frozen(server: NatsServer) -> None:
    """stop() ends within its budget and a little more at a frozen server with unsent bytes; nobody is left waiting."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        server.sigstop()
        under_way = gatherResults([bus.publish(pair(str(i), b"x" * 200_000)) for i in range(50)])
        await pause(0.1)
        began = time.monotonic()
        await bus.stop(0.3)
        assert time.monotonic() - began < 1.5
        assert {type(outcome) for outcome in await under_way} == {Unpublished}
        server.sigcont()


@pytest_twisted.ensureDeferred
async def test_a_new_client_follows_an_error_that_closes_the_old_one(tmp_path: Path) -> None:
    """Credentials revoked while connected (-ERR): publishes are refused, the log keeps calm, and they work again."""
    users = 'authorization {{ users = [ {{ user: "gw", password: "{0}" }} ] }}'
    server = NatsServer(tmp_path, users.format("canary-one")).start()
    lines: list[LogEvent] = []
    try:
        url = server.url_with("gw:canary-one")
        globalLogPublisher.addObserver(lines.append)
        async with connected_bus(url) as bus:
            await create_stream(bus)
            server.reload(users.format("another"))
            await until(lambda: bus.state is BusState.DISCONNECTED)
            await pause(1.5)
            assert isinstance(await bus.publish(pair("1")), Unpublished)
            assert "uthoriz" in bus.last_error
            server.reload(users.format("canary-one"))
            await until(lambda: bus.state is not BusState.DISCONNECTED)
            assert isinstance(await bus.publish(pair("1")), Published)
        events = [line for line in lines if str(line.get("event", "")).startswith("nats_")]
        assert 1 <= len(events) <= 8
        assert "canary" not in repr(lines)
    finally:
        globalLogPublisher.removeObserver(lines.append)
        server.close()


@pytest_twisted.ensureDeferred
async def test_a_waiter_that_raises_harms_nobody_else(server: NatsServer, no_logged_failures: list[LogEvent]) -> None:
    """An exception in what waits for one publication leaves the others, and the connection, alone."""

    def raise_(_: object) -> None:
        raise ZeroDivisionError

    async with connected_bus(server) as bus:
        await create_stream(bus)
        first = bus.publish(pair("1"))
        first.addCallback(raise_)
        failed: list[object] = []
        first.addErrback(failed.append)
        later = await gatherResults([bus.publish(pair(str(i))) for i in range(2, 50)])
        assert all(isinstance(outcome, Published) for outcome in later)
        assert len(failed) == 1
        assert bus.attempts == 0
    assert no_logged_failures == []


@pytest_twisted.ensureDeferred
async def test_the_hook_runs_after_every_connect(server: NatsServer, no_logged_failures: list[LogEvent]) -> None:
    """on_connected is called after each connect, may use the bus at once, and its failure is only logged."""
    states: list[object] = []

    async def hook() -> None:
        states.append(bus.state)
        await call(bus, "$JS.API.INFO", {})
        if len(states) == 2:
            raise ZeroDivisionError

    async with connected_bus(server) as bus:
        bus.on_connected = lambda: Deferred.fromCoroutine(hook())
        for count in (1, 2, 3):
            server.restart()
            await until(lambda: len(states) == count)  # noqa: B023
            await pause(0.1)
        assert states == [BusState.CONNECTED] * 3
    assert len(no_logged_failures) == 1
    no_logged_failures.clear()


@pytest_twisted.ensureDeferred
async def test_a_buffer_that_is_full_refuses_at_once(server: NatsServer) -> None:
    """Beyond the bound of unacknowledged publications: BUFFER at once, nothing written."""
    async with connected_bus(server, pending_limit=5, publish_timeout_s=0.5) as bus:
        await create_stream(bus)
        server.sigstop()
        under_way = [bus.publish(pair(str(i))) for i in range(5)]
        refused = bus.publish(pair("6"))
        assert refused.called
        outcome = await refused
        assert isinstance(outcome, Unpublished)
        assert outcome.cause is Cause.BUFFER
        server.sigcont()
        assert all(isinstance(outcome, Published) for outcome in await gatherResults(under_way))
        assert "6:raw" not in await stored_ids(bus)
