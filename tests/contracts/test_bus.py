"""
The contract of IEventBus, run against nats-server, against the model of one, and against the double.

A bench makes its bus do what the world does: freeze, be away, lose a message, be full. What only a server can do, real
or model, stands at the end.
"""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from zope.interface.verify import verifyObject

from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import Ack, BusState, Cause, Message, Published, Stored, Unpublished
from gatewayd.interfaces import IEventBus
from tests.buses import (
    STREAM,
    call,
    connected_bus,
    create_stream,
    message,
    pair,
    pause,
    reactor_clock,
    stored_ids,
    until,
)
from tests.fakes.bus import DoubleBus
from tests.servers import NatsServer
from tests.simulation.serving import ModelServer

DEADLINE_S = 2.5
LIMIT = 5


class Bench:
    """A bus with a bound of LIMIT publications on a stream that holds 200 messages."""

    bus: Any

    async def freeze(self) -> None:
        raise NotImplementedError

    async def thaw(self) -> None:
        raise NotImplementedError

    async def leave(self) -> None:
        raise NotImplementedError

    async def come_back(self) -> None:
        raise NotImplementedError

    async def delete(self, sequence: int) -> None:
        raise NotImplementedError

    async def ids(self) -> list[str]:
        raise NotImplementedError


class ServerBench(Bench):
    def __init__(self, bus: NatsBus, server: NatsServer | ModelServer) -> None:
        self.bus = bus
        self.server = server

    async def freeze(self) -> None:
        self.server.sigstop()

    async def thaw(self) -> None:
        self.server.sigcont()
        await until(lambda: self.bus.state is not BusState.DISCONNECTED)

    async def leave(self) -> None:
        self.server.kill()
        await until(lambda: self.bus.state is BusState.DISCONNECTED)

    async def come_back(self) -> None:
        self.server.start()
        await until(lambda: self.bus.state is not BusState.DISCONNECTED)

    async def delete(self, sequence: int) -> None:
        await call(self.bus, f"$JS.API.STREAM.MSG.DELETE.{STREAM}", {"seq": sequence})

    async def ids(self) -> list[str]:
        return await stored_ids(self.bus)


class DoubleBench(Bench):
    def __init__(self) -> None:
        self.bus = DoubleBus(reactor_clock(), delay_s=0.001, limit=LIMIT, max_messages=200)

    async def freeze(self) -> None:
        self.bus.hold()

    async def thaw(self) -> None:
        self.bus.release()

    async def leave(self) -> None:
        self.bus.go_down()

    async def come_back(self) -> None:
        self.bus.come_up()

    async def delete(self, sequence: int) -> None:
        self.bus.drop(sequence)

    async def ids(self) -> list[str]:
        return list(self.bus.ids())


@asynccontextmanager
async def on_server(root: Path) -> AsyncIterator[Bench]:
    server = NatsServer(root).start()
    try:
        async with connected_bus(server, pending_limit=LIMIT) as bus:
            await create_stream(bus, max_msgs=200)
            yield ServerBench(bus, server)
    finally:
        server.close()


@asynccontextmanager
async def on_model(_: Path) -> AsyncIterator[Bench]:
    server = ModelServer(reactor_clock()).start()
    try:
        async with connected_bus(server, pending_limit=LIMIT) as bus:
            await create_stream(bus, max_msgs=200)
            yield ServerBench(bus, server)
    finally:
        server.close()


@asynccontextmanager
async def on_double(_: Path) -> AsyncIterator[Bench]:
    yield DoubleBench()


Open: TypeAlias = Callable[[], AbstractAsyncContextManager[Bench]]


@pytest.fixture(params=[on_server, on_model, on_double], ids=["nats", "model", "double"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the bench of one implementation."""
    return lambda: request.param(tmp_path)


async def cause_of(publishing: Deferred[Published | Unpublished]) -> Cause:
    outcome = await publishing
    assert isinstance(outcome, Unpublished), outcome
    return outcome.cause


@pytest_twisted.ensureDeferred
async def test_the_interface(opened: Open) -> None:
    """Every member is there, and what should be a Deferred is one."""
    async with opened() as bench:
        assert verifyObject(IEventBus, bench.bus)
        assert bench.bus.state is BusState.CONNECTED
        assert bench.bus.attempts == 0
        publishing, reading = bench.bus.publish(pair("1")), bench.bus.read(1, b"1:raw")
        assert isinstance(publishing, Deferred)
        assert isinstance(reading, Deferred)
        await gatherResults([publishing, reading])
        assert isinstance(bench.bus.last_success, float)


@pytest_twisted.ensureDeferred
async def test_one_outcome_for_a_publication_in_the_order_of_the_calls(opened: Open) -> None:
    """One to three messages, one outcome with an ack for each; several under way keep their order."""
    async with opened() as bench:
        outcomes = await gatherResults(
            [
                bench.bus.publish([message("a")]),
                bench.bus.publish(pair("b")),
                bench.bus.publish([message("c"), message("d"), message("e")]),
            ]
        )
        assert outcomes == [
            Published((Ack(1, False),)),
            Published((Ack(2, False), Ack(3, False))),
            Published((Ack(4, False), Ack(5, False), Ack(6, False))),
        ]
        assert await bench.ids() == ["a", "b:raw", "b:norm", "c", "d", "e"]


@pytest_twisted.ensureDeferred
async def test_a_known_id_is_a_duplicate_of_the_stored_message_whatever_its_body(opened: Open) -> None:
    """The ack of a duplicate has the stored message's sequence, also for another body; read() gives the stored one."""
    async with opened() as bench:
        await bench.bus.publish([message("first", body=b"one", facts="1;abc")])
        again = await bench.bus.publish([message("first", "signals.normalized", b"two")])
        assert again == Published((Ack(1, True),))
        stored = await bench.bus.read(1, b"first")
        assert isinstance(stored, Stored)
        assert (stored.sequence, stored.subject, stored.body) == (1, "signals.raw", b"one")
        assert (stored.headers["Nats-Msg-Id"], stored.headers["Gw-Facts"]) == ("first", "1;abc")
        assert abs(stored.time - time.time()) < 60 or stored.time == 1_700_000_000.0
        assert await bench.ids() == ["first"]


@pytest_twisted.ensureDeferred
async def test_any_bytes_are_stored_as_they_are(opened: Open) -> None:
    """Bodies are bytes: line ends, NUL, what is no UTF-8, nothing at all."""
    async with opened() as bench:
        for i, body in enumerate((b"", b"\r\nPUB a 1\r\n", b"\x00\xff\xfe", bytes(range(256)) * 10), 1):
            await bench.bus.publish([message(str(i), body=body)])
            stored = await bench.bus.read(i, str(i).encode())
            assert isinstance(stored, Stored)
            assert stored.body == body


@pytest_twisted.ensureDeferred
async def test_a_message_that_is_gone_or_another_is_none(opened: Open) -> None:
    """read() is None for a deleted message, a sequence that never was, and a message with another id."""
    async with opened() as bench:
        await bench.bus.publish(pair("1"))
        await bench.delete(1)
        assert await bench.bus.read(1, b"1:raw") is None
        assert await bench.bus.read(99, b"1:raw") is None
        assert await bench.bus.read(2, b"1:raw") is None
        assert isinstance(await bench.bus.read(2, b"1:norm"), Stored)


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_is_answered_for_within_the_deadline(opened: Open) -> None:
    """Frozen: publish and read end within the deadline; beyond the bound BUFFER at once; a retry doubles nothing."""
    async with opened() as bench:
        await bench.bus.publish(pair("before"))
        await bench.freeze()
        began = time.monotonic()
        under_way = [bench.bus.publish(pair(str(i))) for i in range(LIMIT)]
        reading = bench.bus.read(1, b"before:raw")
        refused = bench.bus.publish(pair("beyond"))
        assert refused.called
        assert await cause_of(refused) is Cause.BUFFER
        causes = [await cause_of(publishing) for publishing in under_way]
        assert set(causes) <= {Cause.TIMEOUT, Cause.DISCONNECTED}
        assert isinstance(await reading, Unpublished)
        assert time.monotonic() - began < DEADLINE_S
        await bench.thaw()
        for i in range(LIMIT):
            while not isinstance(await bench.bus.publish(pair(str(i))), Published):
                pass
        ids = await bench.ids()
        assert sorted(ids) == sorted([f"{i}:{half}" for i in ["before", *range(LIMIT)] for half in ("raw", "norm")])


@pytest_twisted.ensureDeferred
async def test_without_a_server_everything_is_refused_at_once_and_nothing_comes_later(opened: Open) -> None:
    """Away: DISCONNECTED at once for publish and read, nothing of it is stored when the server is back."""
    async with opened() as bench:
        await bench.bus.publish(pair("before"))
        await bench.leave()
        assert bench.bus.state is BusState.DISCONNECTED
        publishing = bench.bus.publish(pair("away"))
        assert publishing.called
        assert await cause_of(publishing) is Cause.DISCONNECTED
        assert isinstance(await bench.bus.read(1, b"before:raw"), Unpublished)
        await bench.come_back()
        assert isinstance(await bench.bus.publish(pair("after")), Published)
        assert await bench.ids() == ["before:raw", "before:norm", "after:raw", "after:norm"]


@pytest_twisted.ensureDeferred
async def test_what_is_under_way_when_the_server_goes_ends_at_once(opened: Open) -> None:
    """A lost connection ends what waits for it, before the deadline."""
    async with opened() as bench:
        await bench.freeze()
        under_way = [bench.bus.publish(pair(str(i))) for i in range(LIMIT)]
        began = time.monotonic()
        await bench.leave()
        assert [await cause_of(publishing) for publishing in under_way] == [Cause.DISCONNECTED] * LIMIT
        assert time.monotonic() - began < 1.0


@pytest_twisted.ensureDeferred
async def test_cancelling_does_nothing(opened: Open) -> None:
    """What was handed over cannot be called back: whoever cancels hears the outcome all the same."""
    async with opened() as bench:
        publishing = bench.bus.publish(pair("1"))
        publishing.cancel()
        assert not publishing.called
        assert await publishing == Published((Ack(1, False), Ack(2, False)))
        await bench.bus.publish(pair("2"))
        assert await bench.ids() == ["1:raw", "1:norm", "2:raw", "2:norm"]


@pytest_twisted.ensureDeferred
async def test_the_largest_message(opened: Open) -> None:
    """Headers and body of max_message bytes are stored; one byte more is refused at once, and nothing of the pair."""
    async with opened() as bench:
        small = message("small")
        head = len(message("large").headers)
        large = message("large", body=b"x" * (bench.bus.max_message - head))
        too_large = Message(large.subject, large.headers, large.body + b"x")
        refused = bench.bus.publish([small, too_large])
        assert refused.called
        assert await cause_of(refused) is Cause.REJECTED
        assert isinstance(await bench.bus.publish([large]), Published)
        assert await bench.ids() == ["large"]


@pytest_twisted.ensureDeferred
async def test_a_full_stream(opened: Open) -> None:
    """At its limit the stream refuses new messages as STREAM_FULL; duplicates are still recognised."""
    async with opened() as bench:
        for i in range(100):
            await bench.bus.publish(pair(str(i)))
        assert await cause_of(bench.bus.publish(pair("new"))) is Cause.STREAM_FULL
        assert await bench.bus.publish([message("0:raw")]) == Published((Ack(1, True),))
        assert len(await bench.ids()) == 200


# What only a server can do, real or model.


@pytest.fixture(params=[on_server, on_model], ids=["nats", "model"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the bench of a server, real or model."""
    return lambda: request.param(tmp_path)


async def publish_raw(bus: NatsBus, subject: str, body: bytes, *headers: str) -> dict[str, Any]:
    """One message with these header lines; the members of JetStream's answer."""
    head = ("NATS/1.0\r\n" + "".join(f"{line}\r\n" for line in headers) + "\r\n").encode()
    inbox: list[Any] = []
    token = bus._requests.add(bus._clock.seconds() + 5.0, inbox.append)
    size = f"{len(head)} {len(head) + len(body)}"
    reply = f"{bus._inbox.decode()}.{token}"
    bus._client.write(f"HPUB {subject} {reply} {size}\r\n".encode() + head + body + b"\r\n")  # type: ignore[union-attr]
    await until(lambda: inbox)
    read: dict[str, Any] = json.loads(inbox[0].body)
    return read


@pytest_twisted.ensureDeferred
async def test_the_answers_to_publications(served: Open) -> None:
    """Another stream and another last sequence are refused, duplicate or not; else a known id is a duplicate."""
    async with served() as bench:
        first = await publish_raw(bench.bus, "signals.raw", b"one", "Nats-Msg-Id: a")
        assert first == {"stream": STREAM, "seq": 1}
        again = await publish_raw(bench.bus, "signals.other", b"two", "Nats-Msg-Id: a")
        assert again == {"stream": STREAM, "seq": 1, "duplicate": True}
        wrong = "Nats-Expected-Last-Subject-Sequence: 7"
        known = await publish_raw(bench.bus, "signals.raw", b"one", "Nats-Msg-Id: a", wrong)
        assert known["error"]["err_code"] == 10071
        refused = await publish_raw(bench.bus, "signals.raw", b"two", "Nats-Msg-Id: b", wrong)
        assert refused["error"]["err_code"] == 10071
        fits = "Nats-Expected-Last-Subject-Sequence: 1"
        assert (await publish_raw(bench.bus, "signals.raw", b"two", "Nats-Msg-Id: b", fits))["seq"] == 2
        none = "Nats-Expected-Last-Subject-Sequence: 0"
        assert (await publish_raw(bench.bus, "dlq.replayed.1", b"", none))["seq"] == 3
        assert (await publish_raw(bench.bus, "dlq.replayed.1", b"", none))["error"]["err_code"] == 10071
        other = await publish_raw(bench.bus, "signals.raw", b"", "Nats-Expected-Stream: another", "Nats-Msg-Id: a")
        assert other["error"]["err_code"] == 10060
        assert await bench.ids() == ["a", "b", ""]


@pytest_twisted.ensureDeferred
async def test_an_id_is_forgotten_after_the_window(served: Open) -> None:
    """Inside the window a duplicate, afterwards a message like any other."""
    async with served() as bench:
        await update(bench.bus, duplicate_window=10**9)
        assert await bench.bus.publish([message("a")]) == Published((Ack(1, False),))
        assert await bench.bus.publish([message("a")]) == Published((Ack(1, True),))
        await pause(1.6)
        assert await bench.bus.publish([message("a")]) == Published((Ack(2, False),))


@pytest_twisted.ensureDeferred
async def test_what_a_direct_get_does_not_have(served: Open) -> None:
    """404 for a sequence that never was or is deleted; the leader says 10037; without a stream nobody answers."""
    async with served() as bench:
        await bench.bus.publish(pair("1"))
        await bench.delete(1)
        for sequence in (1, 99):
            ask = json.dumps({"seq": sequence}).encode()
            assert (await bench.bus.ask(f"$JS.API.DIRECT.GET.{STREAM}", ask, 2.0)).status == 404
            leader = await bench.bus.ask(f"$JS.API.STREAM.MSG.GET.{STREAM}", ask, 2.0)
            assert json.loads(leader.body)["error"]["err_code"] == 10037
        last = await bench.bus.ask(f"$JS.API.DIRECT.GET.{STREAM}", b'{"last_by_subj":"signals.normalized"}', 2.0)
        assert (last.headers["Nats-Sequence"], last.headers["Nats-Msg-Id"]) == ("2", "1:norm")
        await call(bench.bus, f"$JS.API.STREAM.DELETE.{STREAM}", {})
        assert (await bench.bus.ask(f"$JS.API.DIRECT.GET.{STREAM}", b'{"seq":2}', 2.0)).status == 503


@pytest_twisted.ensureDeferred
async def test_a_purge_forgets_messages_and_a_restart_their_ids(served: Open) -> None:
    """Purged: no message, the sequence goes on, ids are known; after a restart they are not, those of messages are."""
    async with served() as bench:
        await bench.bus.publish(pair("1"))
        purged = await call(bench.bus, f"$JS.API.STREAM.PURGE.{STREAM}", {})
        assert purged["purged"] == 2
        info = await call(bench.bus, f"$JS.API.STREAM.INFO.{STREAM}", {})
        state = info["state"]
        assert (state["messages"], state["bytes"], state["first_seq"], state["last_seq"]) == (0, 0, 3, 2)
        assert await bench.bus.publish(pair("1")) == Published((Ack(1, True), Ack(2, True)))
        assert await bench.bus.publish([message("2")]) == Published((Ack(3, False),))
        await bench.leave()
        await bench.come_back()
        assert await bench.bus.publish([message("2")]) == Published((Ack(3, True),))
        assert await bench.bus.publish(pair("1")) == Published((Ack(4, False), Ack(5, False)))


@pytest_twisted.ensureDeferred
async def test_a_stream_that_drops_its_oldest(served: Open) -> None:
    """discard old: the limit holds, the oldest go, what was dropped is still a duplicate."""
    async with served() as bench:
        await update(bench.bus, discard="old", max_msgs=3)
        for i in range(5):
            await bench.bus.publish([message(str(i))])
        assert await bench.ids() == ["2", "3", "4"]
        assert await bench.bus.publish([message("0")]) == Published((Ack(1, True),))
        state = (await call(bench.bus, f"$JS.API.STREAM.INFO.{STREAM}", {}))["state"]
        assert (state["first_seq"], state["last_seq"], state["messages"]) == (3, 5, 3)


@pytest_twisted.ensureDeferred
async def test_a_stream_full_of_bytes(served: Open) -> None:
    """max_bytes counts what a message takes in the file: the same number of messages fits, the next is refused."""
    async with served() as bench:
        await update(bench.bus, max_msgs=-1, max_bytes=20_000)
        fitted = 0
        while isinstance(await bench.bus.publish([message(f"{fitted:04}", body=b"x" * 300)]), Published):
            fitted += 1
        state = (await call(bench.bus, f"$JS.API.STREAM.INFO.{STREAM}", {}))["state"]
        assert (fitted, state["bytes"]) == (48, 48 * 414)


@pytest_twisted.ensureDeferred
async def test_reading_back(served: Open) -> None:
    """By sequence, by time and by subject, in slices; what comes meanwhile is left for the next time."""
    async with served() as bench:
        for i in range(20):
            await bench.bus.publish(pair(str(i)))
        seen: list[tuple[int, str]] = []

        def see(_: str, headers: Any, sequence: int, __: float) -> None:
            seen.append((sequence, headers["Nats-Msg-Id"]))

        read = await bench.bus.tail("signals.normalized", see, from_sequence=36)
        assert not isinstance(read, Unpublished)
        assert (read.count, read.last_sequence) == (3, 40)
        assert seen == [(36, "17:norm"), (38, "18:norm"), (40, "19:norm")]
        seen.clear()
        read = await bench.bus.tail(">", see, back_s=600.0)
        assert not isinstance(read, Unpublished)
        assert (read.count, [sequence for sequence, _ in seen]) == (40, list(range(1, 41)))


async def update(bus: NatsBus, **members: object) -> None:
    """Change the stream's configuration."""
    info = await call(bus, f"$JS.API.STREAM.INFO.{STREAM}", {})
    await call(bus, f"$JS.API.STREAM.UPDATE.{STREAM}", {**info["config"], **members})
