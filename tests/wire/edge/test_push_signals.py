"""Signals in a real JetStream, followed and read again."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry
from twisted.internet.defer import gatherResults

from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import Message, Published
from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.push.position import EVENTS, SIGNALS, Mark
from gatewayd.push.signals import SignalFollower, SignalStream, feed_signals
from gatewayd.times import Wall
from tests.buses import STREAM, call, connected_bus, create_stream, pause, reactor_clock, until
from tests.fakes.outlets import Desk, SlowOutlet, Turns
from tests.servers import NatsServer

SUBJECT = "signals.normalized"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path).start()
    yield server
    server.close()


def pair(number: int, instrument: str = "EURUSD") -> list[Message]:
    """The raw and the normalised message of one signal."""
    common = f"Source: tv\r\nInstrument: {instrument}\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"
    return [
        Message(f"signals.{kind}".encode(), f"{common}Nats-Msg-Id: gw:{number}:{kind[:4]}\r\n".encode(), body(number))
        for kind in ("raw", "normalized")
    ]


def body(number: int) -> bytes:
    """A stored body; its bytes are what the client must get."""
    return b'{"instrument": "EURUSD",\r\n "price":%d.50}' % number


async def store(bus: NatsBus, *numbers: int, instrument: str = "EURUSD") -> None:
    """Store these signals, in order."""
    for number in numbers:
        assert isinstance(await bus.publish(pair(number, instrument)), Published)


class Soon(Turns):
    """The reactor's turns."""

    def __call__(self, function: Callable[[], object]) -> None:
        reactor_clock().callLater(0, function)


class Rig:
    """A follower on a bus, and the desk it feeds."""

    def __init__(self, bus: NatsBus) -> None:
        self.stream = SignalStream(bus, STREAM, SUBJECT)
        self.desk = Desk(grants="ann: *\nbob: tv/XAUUSD", readers={SIGNALS: self.stream.read}, turns=Soon())
        self.delivery = self.desk.delivery
        self.delivery.begin(EVENTS, Mark("a", (1, 0)), (1, 0), ())
        self.registry = CollectorRegistry()
        self.feeding = feed_signals(self.delivery, self.stream, reactor_clock())
        self.follower = SignalFollower(
            self.stream,
            self.feeding,
            metrics=EdgeMetrics(self.registry),
            clock=reactor_clock(),
            wall=lambda: Wall(time.time()),
            soon=Soon(),
            chance=lambda: 0.5,
        )

    def open(self, session: str = "ann/1", resume: str = "", message_type: str = "signals.subscribe") -> SlowOutlet:
        return self.desk.open(session, None, resume, message_type)

    def count(self, outcome: str) -> float:
        labels = {"stream": "signals", "outcome": outcome}
        return self.registry.get_sample_value("edge_stream_entries_total", labels) or 0.0


@asynccontextmanager
async def following(bus: NatsBus) -> AsyncIterator[Rig]:
    """A rig whose follower has begun; nothing of it is left on the server afterwards for long."""
    rig = Rig(bus)
    rig.follower.start()
    try:
        await rig.feeding.begun()
        yield rig
    finally:
        await rig.follower.stop()


def numbers(outlet: SlowOutlet) -> list[int]:
    """Which signals came."""
    return [int(json.loads(payload)["price"]) for payload in outlet.payloads]


async def consumers(bus: NatsBus) -> int:
    """How many consumers the server has."""
    names: dict[str, Any] = await call(bus, f"$JS.API.CONSUMER.NAMES.{STREAM}", {})
    return int(names["total"])


@pytest_twisted.ensureDeferred
async def test_pushed(server: NatsServer) -> None:
    """What is stored is pushed as it is stored, once and in order, to those who may have it; raw messages are not."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        await store(bus, 1)
        async with following(bus) as rig:
            ann, bob, filtered = rig.open(), rig.open("bob/1"), rig.open("ann/2", message_type="all.subscribe:GBPUSD")
            await store(bus, *range(2, 5))
            await store(bus, 5, instrument="XAUUSD")
            await until(lambda: len(ann.payloads) == 4)
            assert numbers(ann) == [2, 3, 4, 5]
            assert (numbers(bob), numbers(filtered)) == ([5], [])
            event = ann.events[1]
            assert (event.event_type, event.event_id, event.payload) == ("signal.normalized", "gw:2:norm", body(2))
            assert event.trace_id == TRACE
            assert abs(event.timestamp_ms / 1000 - time.time()) < 60
            assert rig.count("ok") == 4


@pytest_twisted.ensureDeferred
async def test_resumed(server: NatsServer) -> None:
    """From memory, from before this process began, and, once that is trimmed, not any more."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        await store(bus, *range(1, 301))
        async with following(bus) as rig:
            live = rig.open()
            await store(bus, 301)
            await until(lambda: live.payloads)
            epoch = live.events[-1].position.partition(",s")[2].partition(".")[0]
            memory = rig.open("ann/2", f"s{epoch}.600-0")
            assert numbers(memory) == [301]
            everything = rig.open("ann/3", f"s{epoch}.0-0")
            await until(lambda: len(everything.payloads) == 301)
            assert numbers(everything) == list(range(1, 302))
        async with following(bus) as rig:
            # What the follower read back at its start is in memory: the first message is read from the stream.
            rig.delivery.reset(SIGNALS, Mark(epoch, (602, 0)))
            again = rig.open("ann/4", f"s{epoch}.590-0")
            await until(lambda: again.payloads)
            assert numbers(again) == list(range(296, 302))
            await call(bus, f"$JS.API.STREAM.PURGE.{STREAM}", {"seq": 595})
            for after, last in ((590, "gateway.resume_failed"), (594, "signal.normalized")):
                outlet = rig.open("ann/5", f"s{epoch}.{after}-0")
                await until(lambda outlet=outlet: len(outlet.events) > 1)
                assert outlet.events[-1].event_type == last


@pytest_twisted.ensureDeferred
async def test_server_restarts(server: NatsServer) -> None:
    """Whatever is stored while and after the server was away comes, once and in order."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        async with following(bus) as rig:
            outlet = rig.open()
            await store(bus, 1)
            await until(lambda: outlet.payloads)
            for number in (2, 3):
                server.kill()
                server.start()
                while not isinstance(await bus.publish(pair(number)), Published):
                    await pause(0.05)
            await until(lambda: len(outlet.payloads) == 3, 20.0)
            assert numbers(outlet) == [1, 2, 3]


@pytest_twisted.ensureDeferred
async def test_made_anew(server: NatsServer) -> None:
    """A stream that was deleted and made again is another one: clients are told, and its signals come."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        async with following(bus) as rig:
            outlet = rig.open()
            await store(bus, *range(1, 4))
            await until(lambda: len(outlet.payloads) == 3)
            position = outlet.events[-1].position
            await call(bus, f"$JS.API.STREAM.DELETE.{STREAM}", {})
            await create_stream(bus)
            await until(lambda: outlet.types[-1] == "gateway.resume_failed", 20.0)
            await store(bus, 5)
            await until(lambda: len(outlet.payloads) == 4)
            again = rig.open("ann/2", position)
            assert again.types == ["gateway.server_time", "gateway.resume_failed"]


@pytest_twisted.ensureDeferred
async def test_foreign_messages(server: NatsServer) -> None:
    """A message that is no signal of ours, with headers or without any, is passed over, and what follows comes."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        async with following(bus) as rig:
            outlet = rig.open()
            await bus.request(SUBJECT, b"bare", 2.0)
            await bus.publish([Message(SUBJECT.encode(), b"Nats-Msg-Id: x\r\n", b"no source")])
            await store(bus, 3)
            await until(lambda: outlet.payloads, 10.0)
            assert numbers(outlet) == [3]
            assert rig.count("malformed") == 1


@pytest_twisted.ensureDeferred
async def test_many(server: NatsServer) -> None:
    """A burst is delivered whole; a stream that is stopped leaves no consumer that somebody must remove."""
    async with connected_bus(server) as bus:
        await create_stream(bus)
        async with following(bus) as rig:
            outlet = rig.open()
            for first in range(0, 2000, 200):
                await gatherResults([bus.publish(pair(number)) for number in range(first, first + 200)])
            await until(lambda: len(outlet.payloads) == 2000, 20.0)
            assert numbers(outlet) == list(range(2000))
            listed = await call(bus, f"$JS.API.CONSUMER.LIST.{STREAM}", {})
            assert {one["config"]["inactive_threshold"] for one in listed["consumers"]} == {30_000_000_000}
        assert await consumers(bus) <= 1
