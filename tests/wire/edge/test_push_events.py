"""Client events in a real Valkey, through the poller and the hub, to outlets: two gateways on one stream."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest_twisted

from gatewayd.push.feeding import events_reader, feed_events
from gatewayd.push.position import EVENTS
from gatewayd.streams.entries import parse_client_event
from gatewayd.streams.poller import Feed, StreamPoller
from gatewayd.streams.redis_stream import RedisStream
from gatewayd.times import Wall
from tests.buses import reactor_clock, until
from tests.fakes.outlets import Desk, SlowOutlet, Turns
from tests.valkey import ValkeyServer
from tests.wire.edge.followed import KEY, Counted, make_link

FIELDS = ("user_id", "ann", "event_type", "trade.filled", "event_id", "ev", "payload_bytes", "2")


class Soon(Turns):
    """The reactor's turns."""

    def __call__(self, function: object) -> None:
        reactor_clock().callLater(0, function)


@asynccontextmanager
async def gateway(server: ValkeyServer, seed: int = 1) -> AsyncIterator[Desk]:
    """Everything between the stream and the outlets, begun."""
    link = make_link(server, Counted())
    await link.start()
    random = Random(seed)
    stream = RedisStream(KEY, link, lambda: f"{random.getrandbits(64):x}")
    desk = Desk(readers={EVENTS: events_reader(stream)}, turns=Soon())
    feeding = feed_events(desk.delivery, stream, reactor_clock())
    poller = StreamPoller(
        "events",
        stream,
        link.reader(),
        Feed(parse_client_event, feeding.deliver, feeding.placed, feeding.gap, lambda at: None),
        from_beginning=False,
        counts=Counted(),
        clock=reactor_clock(),
        wall=lambda: Wall(time.time()),
        jitter=random.random,
    )
    poller.startService()
    await feeding.begun()
    try:
        yield desk
    finally:
        await poller.stopService()
        await link.stop()


def write(server: ValkeyServer, *numbers: int, user: str = "ann", session: str = "") -> None:
    """One event for each number, its payload."""
    with server.client() as client:
        for number in numbers:
            narrow = ["device_session_id", session] if session else []
            fields = ["user_id", user, *narrow, "event_type", "trade.filled", "event_id", f"ev-{number}"]
            client.call("XADD", KEY, "*", *fields, "payload_bytes", b"%d" % number)


def numbers(outlet: SlowOutlet) -> list[int]:
    """What came."""
    return [int(payload) for payload in outlet.payloads]


async def got(outlet: SlowOutlet, *expected: int) -> None:
    """Wait until as many came, and these they must be."""
    await until(lambda: len(outlet.payloads) >= len(expected))
    assert numbers(outlet) == list(expected)


@pytest_twisted.ensureDeferred
async def test_pushed(valkey: ValkeyServer) -> None:
    """What is added goes to the user's streams, or to the session's, and to nobody else."""
    write(valkey, 1)
    async with gateway(valkey) as desk:
        one, two, bob = desk.open("ann/1"), desk.open("ann/2"), desk.open("bob/1")
        write(valkey, 2, 3)
        write(valkey, 4, session="ann/2")
        write(valkey, 5, user="bob")
        write(valkey, 6)
        await got(two, 2, 3, 4, 6)
        await got(one, 2, 3, 6)
        await got(bob, 5)


@pytest_twisted.ensureDeferred
async def test_restart_and_another_gateway(valkey: ValkeyServer) -> None:
    """A client goes on at another gateway, or at the same one after its restart, with nothing missing or twice."""
    async with gateway(valkey, 1) as first, gateway(valkey, 2) as second:
        outlet = first.open("ann/1")
        write(valkey, 1, 2)
        await got(outlet, 1, 2)
        position = outlet.events[-2].position
        moved = second.open("ann/1", resume=position)
        write(valkey, 3)
        await got(moved, 2, 3)
    async with gateway(valkey, 3) as restarted:
        back = restarted.open("ann/1", resume=position)
        assert numbers(back) == [2, 3]  # in memory: it was read back at the start
        write(valkey, 4)
        await got(back, 2, 3, 4)


def forget(desk: Desk) -> None:
    """Have nothing in memory any more."""
    mark = desk.hub.position.marks[EVENTS]
    assert mark is not None
    desk.delivery.reset(EVENTS, mark)


@pytest_twisted.ensureDeferred
async def test_read_again(valkey: ValkeyServer) -> None:
    """What memory has not the stream has, as long as it has it."""
    async with gateway(valkey) as desk:
        outlet = desk.open("ann/1")
        write(valkey, 1, 2, 3)
        await got(outlet, 1, 2, 3)
        position = outlet.events[1].position
        forget(desk)
        back = desk.open("ann/2", resume=position)
        write(valkey, 4)
        await got(back, 2, 3, 4)
        with valkey.client() as client:
            client.call("XTRIM", KEY, "MAXLEN", 1)
        forget(desk)
        late = desk.open("ann/3", resume=position)
        await until(lambda: len(late.events) > 1)
        assert late.types == ["gateway.server_time", "gateway.resume_failed"]


@pytest_twisted.ensureDeferred
async def test_made_anew(valkey: ValkeyServer) -> None:
    """A stream that is deleted and written again is told to who is there and to who comes back."""
    async with gateway(valkey) as desk:
        outlet = desk.open("ann/1")
        write(valkey, 1)
        await got(outlet, 1)
        position = outlet.events[-1].position
        with valkey.client() as client:
            client.call("DEL", KEY)
            client.call("XADD", KEY, "5-0", *FIELDS)
        await until(lambda: outlet.payloads == [b"1", b"2"], 10.0)
        assert "gateway.resume_failed" in outlet.types
        back = desk.open("ann/2", resume=position)
        assert back.types == ["gateway.server_time", "gateway.resume_failed"]


@pytest_twisted.ensureDeferred
async def test_latency(valkey: ValkeyServer) -> None:
    """From XADD to the outlet takes no time that anybody would notice, however many streams the others have."""
    async with gateway(valkey) as desk:
        for number in range(500):
            desk.open(f"user-{number}/1")
        outlet = desk.open("ann/1")
        taken = []
        for number in range(40):
            began = time.monotonic()
            write(valkey, number)
            await until(lambda number=number: len(outlet.payloads) > number)
            taken.append(time.monotonic() - began)
        assert sorted(taken)[30] < 0.25
