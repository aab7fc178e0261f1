"""Publishing to a real nats-server: order, outcomes, limits, reading back."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults

from gatewayd.bus.publication import Ack, Cause, Published, Unpublished
from tests.buses import connected_bus, create_stream, message, pair, stored_ids
from tests.fakes.counts import Counts
from tests.servers import NatsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path).start()
    yield server
    server.close()


@pytest_twisted.ensureDeferred
async def test_pairs_are_stored_in_the_order_of_the_calls(server: NatsServer) -> None:
    """Publications of one process enter the stream in the order in which they were handed in, pairs together."""
    counts = Counts()
    async with connected_bus(server, counts=counts) as bus:
        await create_stream(bus)
        outcomes = await gatherResults([bus.publish(pair(str(i))) for i in range(500)])
        assert outcomes == [Published((Ack(2 * i + 1, False), Ack(2 * i + 2, False))) for i in range(500)]
        assert await stored_ids(bus) == [f"{i}:{half}" for i in range(500) for half in ("raw", "norm")]
        assert bus.unacked == 0
        assert bus.last_sequence == 1000
    assert counts.messages == {(b"signals.raw", True): 500, (b"signals.normalized", True): 500}
    assert len(counts.seconds) == 500


@pytest_twisted.ensureDeferred
async def test_thirty_thousand_headers_are_read_back_in_time(server: NatsServer) -> None:
    """The rebuild of the memory at start reads 30,000 messages in 2.5 s."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        for start in range(0, 30_000, 1_000):
            batch = [message(str(start + i), "signals.normalized", b"x" * 388, "1;abc;def") for i in range(1_000)]
            outcomes = await gatherResults([bus.publish([one]) for one in batch])
            assert all(isinstance(outcome, Published) for outcome in outcomes)
        seen: list[int] = []
        began = time.monotonic()
        done = await bus.tail("signals.normalized", lambda _, headers, sequence, __: seen.append(sequence), back_s=3600)
        taken_s = time.monotonic() - began
        assert not isinstance(done, Unpublished)
        assert seen == list(range(1, 30_001))
        assert taken_s < 2.5, taken_s
        print("tail", taken_s)


@pytest_twisted.ensureDeferred
async def test_a_message_larger_than_the_server_takes_is_refused_before_it_is_written(server: NatsServer) -> None:
    """An oversized frame would make the server close the connection; it is refused, and everything else goes on."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        head = len(message("big").headers)
        fits, too_large = b"x" * (bus.max_message - head), b"x" * (bus.max_message - head + 1)
        refused = await bus.publish([message("big", body=too_large)])
        assert isinstance(refused, Unpublished)
        assert refused.cause is Cause.REJECTED
        assert isinstance(await bus.publish([message("big", body=fits)]), Published)
        assert await stored_ids(bus) == ["big"]
