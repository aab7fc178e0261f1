"""The stream and its consumer on a real nats-server: made, raised, checked, read back; reading single messages."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.bus.ensure import Checked, check_consumer, check_stream, ensure_consumer, ensure_stream
from gatewayd.bus.publication import BusState, Cause, Published, Stored, Unpublished
from gatewayd.bus.stream import ConsumerWanted, Lag, StreamWanted, Surroundings, lag
from gatewayd.bus.tail import ReadBack
from tests.buses import STREAM, call, connected_bus, create_stream, message, pair, pause, stored_ids, until
from tests.fakes.counts import Counts
from tests.servers import NatsServer

WANTED = StreamWanted(STREAM, 86_400.0, 100_000_000, 4_200.0)
AROUND = Surroundings()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path).start()
    yield server
    server.close()


@pytest_twisted.ensureDeferred
async def test_a_missing_stream_is_made_and_is_as_wanted(server: NatsServer) -> None:
    """Created with every field; the second time it is only looked at; two at once make one."""
    async with connected_bus(server) as bus:
        assert await check_stream(bus, WANTED, AROUND) is None
        two = [Deferred.fromCoroutine(ensure_stream(bus, WANTED, AROUND)) for _ in range(2)]
        made = [one for one in await gatherResults(two) if not isinstance(one, Unpublished)]
        assert [one.findings for one in made] == [(), ()]
        assert made[0].created == made[1].created
        again = await ensure_stream(bus, WANTED, AROUND)
        assert not isinstance(again, Unpublished)
        assert (again.made, again.raised, again.findings, again.last_sequence) == (False, False, (), 0)
        config = again.info["config"]
        assert config["duplicate_window"] == 4_200 * 10**9
        assert (config["discard"], config["storage"], config["max_bytes"]) == ("new", "file", 100_000_000)
        assert (config["allow_direct"], config["allow_msg_ttl"]) == (True, True)
        assert config["metadata"]["created-by"] == "gatewayd"


@pytest_twisted.ensureDeferred
async def test_ours_is_raised_and_a_foreign_one_is_left_alone(server: NatsServer) -> None:
    """A longer window is applied to a stream of ours; on a foreign one it is a finding and nothing changes."""
    async with connected_bus(server) as bus:
        await ensure_stream(bus, StreamWanted(STREAM, 600.0, 100_000_000, 600.0), AROUND)
        raised = await ensure_stream(bus, WANTED, AROUND)
        assert not isinstance(raised, Unpublished)
        assert (raised.raised, raised.findings) == (True, ())
        assert raised.info["config"]["duplicate_window"] == 4_200 * 10**9
        assert raised.info["config"]["max_age"] == 86_400 * 10**9
        await call(bus, f"$JS.API.STREAM.DELETE.{STREAM}", {})
        await create_stream(bus, discard="old", duplicate_window=120 * 10**9)
        foreign = await ensure_stream(bus, WANTED, Surroundings(bus.server_version, bus.max_payload))
        assert not isinstance(foreign, Unpublished)
        assert foreign.raised is False
        assert [one.kind for one in foreign.findings] == ["duplicate_window", "no_message_ttl", "discard_old"]
        assert foreign.info["config"]["duplicate_window"] == 120 * 10**9


@pytest_twisted.ensureDeferred
async def test_a_server_without_jetstream_is_said(tmp_path: Path) -> None:
    """Without JetStream every answer is an Unpublished that says so, at once; the connection is up."""
    server = NatsServer(tmp_path, jetstream=False).start()
    try:
        async with connected_bus(server) as bus:
            refused = await ensure_stream(bus, WANTED, AROUND)
            assert isinstance(refused, Unpublished)
            assert "nobody answers" in refused.error
            assert isinstance(await bus.publish(pair("1")), Unpublished)
            assert isinstance(await bus.read(1, b"1"), Unpublished)
            assert isinstance(await bus.tail(">", lambda *_: None), Unpublished)
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_the_consumer_and_its_lag(server: NatsServer) -> None:
    """Made when it is missing, never changed; the lag counts what it was not sent and what it did not acknowledge."""
    wanted = ConsumerWanted(STREAM, "gateway-consumer")
    async with connected_bus(server) as bus:
        await create_stream(bus)
        assert await check_consumer(bus, wanted) is None
        made = await ensure_consumer(bus, wanted)
        assert not isinstance(made, Unpublished)
        assert (made.made, made.findings) == (True, ())
        again = await ensure_consumer(bus, ConsumerWanted(STREAM, "gateway-consumer", max_ack_pending=99))
        assert not isinstance(again, Unpublished)
        assert (again.made, again.info["config"]["max_ack_pending"]) == (False, 10)
        for i in range(5):
            await bus.publish(pair(str(i)))
        ends_at = time.monotonic() + 5.0
        behind = await check_consumer(bus, wanted)
        while isinstance(behind, Checked) and lag(behind.info).pending < 5 and time.monotonic() < ends_at:
            behind = await check_consumer(bus, wanted)  # the server counts a moment behind its acknowledgement
        assert isinstance(behind, Checked)
        assert lag(behind.info) == Lag(5, 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_message_is_asked_of_the_leader_when_there_is_no_direct_get(server: NatsServer) -> None:
    """A foreign stream without direct get is read all the same, headers with the first of a repeated name."""
    async with connected_bus(server) as bus:
        await create_stream(bus, allow_direct=False)
        await bus.publish([message("a", body=b"\x00\xff", facts="1")])
        stored = await bus.read(1, b"a")
        assert isinstance(stored, Stored)
        assert (stored.body, stored.headers["Gw-Facts"], stored.subject) == (b"\x00\xff", "1", "signals.raw")
        assert abs(stored.time - time.time()) < 60
        assert await bus.read(2, b"a") is None
        assert await bus.read(1, b"b") is None


@pytest_twisted.ensureDeferred
async def test_reading_back_a_stretch(server: NatsServer) -> None:
    """By subject, from a sequence, from a time before the last message; across deleted messages and slices."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        for i in range(600):
            await bus.publish([message(f"{i}:raw", facts="f"), message(f"{i}:norm", "signals.normalized")])
        await call(bus, f"$JS.API.STREAM.MSG.DELETE.{STREAM}", {"seq": 11})
        seen: list[tuple[str, str, int]] = []

        def see(subject: str, headers: object, sequence: int, at: float) -> None:
            assert abs(at - time.time()) < 60
            assert isinstance(headers, dict)
            seen.append((subject, headers["Nats-Msg-Id"], sequence))

        assert await bus.tail("signals.raw", see, from_sequence=9) == ReadBack(595, 1200)
        assert seen[:2] == [("signals.raw", "4:raw", 9), ("signals.raw", "6:raw", 13)]
        assert seen[-1] == ("signals.raw", "599:raw", 1199)
        seen.clear()
        assert await bus.tail("signals.>", see) == ReadBack(1199, 1200)
        await pause(0.3)
        await bus.publish([message("last", "signals.normalized")])
        seen.clear()
        assert await bus.tail("signals.>", see, back_s=0.2) == ReadBack(1, 1201)
        assert seen == [("signals.normalized", "last", 1201)]
        assert await bus.tail("signals.>", see, from_sequence=1202) == ReadBack(0, 1201)
        assert await bus.tail("dlq.>", see) == ReadBack(0, 1201)
        info = await call(bus, f"$JS.API.STREAM.INFO.{STREAM}", {})
        assert info["state"]["consumer_count"] == 0


@pytest_twisted.ensureDeferred
async def test_reading_back_ends_with_the_connection(server: NatsServer) -> None:
    """A server that goes while it is read from ends the reading at once; a reader that raises ends it too."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        for i in range(20):
            await gatherResults([bus.publish([message(f"{i}.{j}")]) for j in range(500)])
        count = 0

        def see(*_: object) -> None:
            nonlocal count
            count += 1
            if count == 1500:
                server.sigstop()

        reading = bus.tail("signals.>", see)
        await until(lambda: count >= 1500)
        server.kill()
        began = time.monotonic()
        ended = await reading
        assert time.monotonic() - began < 1.0
        assert isinstance(ended, Unpublished)
        assert count < 10_000
        server.start()
        await until(lambda: bus.state is not BusState.DISCONNECTED)

        def break_(*_: object) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await bus.tail("signals.>", break_)
        assert isinstance(await bus.publish(pair("after")), Published)


@pytest_twisted.ensureDeferred
async def test_publishing_while_reading_back_is_not_held_up(server: NatsServer) -> None:
    """Acknowledgements come through while a long stretch is read."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        for i in range(10):
            await gatherResults([bus.publish([message(f"{i}.{j}")]) for j in range(1000)])
        await gatherResults([bus.publish([message(f"last.{j}")]) for j in range(500)])
        reading = bus.tail("signals.>", lambda *_: None)
        slowest_s, count = 0.0, 0
        while not reading.called:
            began = time.monotonic()
            assert isinstance(await bus.publish(pair(f"live{count}")), Published)
            slowest_s = max(slowest_s, time.monotonic() - began)
            count += 1
        done = await reading
        assert not isinstance(done, Unpublished)
        assert done.count == done.last_sequence  # and nothing of what was published while it was read
        assert 10_500 <= done.last_sequence < 10_500 + 2 * count
        assert count > 3
        assert slowest_s < 0.5


@pytest_twisted.ensureDeferred
async def test_a_server_that_acknowledges_nothing_is_known_to_be_down(server: NatsServer) -> None:
    """Connected, pings answered, no acknowledgement (as with a full disk): refused at once after a few timeouts."""
    counts = Counts()
    async with connected_bus(server, counts=counts, publish_timeout_s=0.2) as bus:
        await create_stream(bus, no_ack=True)
        for i in range(3):
            outcome = await bus.publish(pair(str(i)))
            assert isinstance(outcome, Unpublished)
            assert outcome.cause is Cause.TIMEOUT
        assert bus.state is BusState.DISCONNECTED
        refused = bus.publish(pair("4"))
        assert refused.called
        assert isinstance(await refused, Unpublished)
        await call(bus, f"$JS.API.STREAM.DELETE.{STREAM}", {})
        await create_stream(bus)
        await until(lambda: bus.state is not BusState.DISCONNECTED)
        assert isinstance(await bus.publish(pair("4")), Published)
        assert isinstance(await bus.publish(pair("5")), Published)
        assert await stored_ids(bus) == ["4:raw", "4:norm", "5:raw", "5:norm"]
    assert counts.errors == {"timeout": 3}


@pytest_twisted.ensureDeferred
async def test_a_listener_that_never_speaks(tmp_path: Path) -> None:
    """Something that accepts connections and says nothing: start() fires in time, attempts go on, stop() is quick."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        async with connected_bus(f"nats://127.0.0.1:{mute.getsockname()[1]}", wait=False) as bus:
            assert time.monotonic() - began < 2.0
            assert bus.state is BusState.DISCONNECTED
            assert "TimeoutError" in bus.last_error
            began = time.monotonic()
        assert time.monotonic() - began < 1.0


@pytest_twisted.ensureDeferred
async def test_permissions_are_an_outcome_and_no_flood(tmp_path: Path) -> None:
    """A user who may not publish: the publication ends with its deadline, the text is known, the connection stays."""
    config = """authorization { users = [ { user: gw, password: pw, permissions: {
        publish: { allow: ["$JS.API.>"] }, subscribe: ["_INBOX.>"] } } ] }"""
    server = NatsServer(tmp_path, config).start()
    lines: list[LogEvent] = []
    globalLogPublisher.addObserver(lines.append)
    try:
        async with connected_bus(server, user="gw", password="pw", publish_timeout_s=0.3) as bus:
            await create_stream(bus)
            outcome = await bus.publish(pair("1"))
            assert isinstance(outcome, Unpublished)
            assert outcome.cause is Cause.TIMEOUT
            assert bus.attempts == 0
            said = [str(event["error"]) for event in lines if event.get("event") == "nats_error"]
            assert len(said) == 1
            assert "permissions violation for publish to" in said[0]
    finally:
        globalLogPublisher.removeObserver(lines.append)
        server.close()
