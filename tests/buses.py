"""A NatsBus on a real server, its stream, and what is in it: what wire tests of the bus begin with."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from gatewayd.aio import Loop
from gatewayd.bus.client import NatsSettings
from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import BusState, Message, Unpublished
from gatewayd.times import Wall
from tests.fakes.counts import Counts
from tests.servers import NatsServer
from tests.simulation.serving import ModelServer

STREAM = "trading-events"


def reactor_clock() -> Any:
    """The running reactor; imported late, so that collecting tests installs none."""
    from twisted.internet import reactor

    return reactor


def reactor_loop() -> asyncio.AbstractEventLoop:
    """The event loop that the running reactor was installed with."""
    loop: asyncio.AbstractEventLoop = reactor_clock()._asyncioEventloop
    return loop


def pause(seconds: float) -> Deferred[None]:
    """Let the reactor run for a while."""
    return task.deferLater(reactor_clock(), seconds, lambda: None)


async def until(condition: Callable[[], object], within_s: float = 5.0, what: str = "") -> float:
    """Wait until the condition holds and say how long it took; AssertionError when it does not in time."""
    began = time.monotonic()
    while not condition():
        taken_s = time.monotonic() - began
        assert taken_s < within_s, f"not within {within_s} s: {what or condition}"
        await pause(0.01)
    return time.monotonic() - began


def message(msg_id: str, subject: str = "signals.raw", body: bytes = b"{}", facts: str = "") -> Message:
    """One message with an id, and `Gw-Facts` when they are given."""
    lines = f"Nats-Msg-Id: {msg_id}\r\n" + (f"Gw-Facts: {facts}\r\n" if facts else "")
    return Message(subject.encode(), lines.encode(), body)


def pair(msg_id: str, body: bytes = b"{}") -> list[Message]:
    """A raw and a normalised message with ids of their own."""
    return [message(f"{msg_id}:raw", body=body), message(f"{msg_id}:norm", "signals.normalized", body)]


async def create_stream(bus: NatsBus, **members: object) -> dict[str, Any]:
    """Create the stream as gatewayd would, but for `members`."""
    config = {
        "name": STREAM,
        "subjects": ["signals.>", "dlq.>"],
        "discard": "new",
        "duplicate_window": 600 * 10**9,
        "allow_direct": True,
        "storage": "file",
        **members,
    }
    return await call(bus, f"$JS.API.STREAM.CREATE.{STREAM}", config)


async def call(bus: NatsBus, subject: str, members: dict[str, Any]) -> dict[str, Any]:
    """One call of the JetStream API that must succeed."""
    answer = await bus.request(subject, json.dumps(members).encode() if members else b"", 5.0)
    assert not isinstance(answer, Unpublished), answer
    read: dict[str, Any] = json.loads(answer)
    assert "error" not in read, read
    return read


async def stored_ids(bus: NatsBus) -> list[str]:
    """The Nats-Msg-Id of every message in the stream, in order."""
    ids: list[str] = []
    done = await bus.tail(">", lambda _, headers, __, ___: ids.append(headers.get("Nats-Msg-Id", "")))
    assert not isinstance(done, Unpublished), done
    assert done.count == len(ids)
    return ids


@asynccontextmanager
async def connected_bus(
    *servers: NatsServer | ModelServer | str,
    counts: Counts | None = None,
    wait: bool = True,
    alone: bool = True,
    **settings: Any,
) -> AsyncIterator[NatsBus]:
    """
    A started NatsBus, stopped at the end; with `wait` it is connected.

    Nothing of it may be left afterwards; `alone` is False for one inside another, whose tasks come and go.
    """
    loop = Loop(reactor_loop())
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    bus = NatsBus(
        NatsSettings(urls, STREAM, **settings), loop, reactor_clock(), lambda: Wall(time.time()), counts or Counts()
    )
    before = asyncio.all_tasks(reactor_loop())
    await bus.start()
    try:
        if wait:
            await until(lambda: bus.state is not BusState.DISCONNECTED, what="the bus connects")
        yield bus
    finally:
        await bus.stop(0.0)
        await loop.stop(generators=False)
        if alone:
            await until(lambda: not asyncio.all_tasks(reactor_loop()) - before, 1.0, "no task is left")
        assert loop.errors == 0
