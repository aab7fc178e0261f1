"""A subscription whose confirmation comes late, or never: what is left of it, and what becomes of the connection."""

import asyncio
import contextlib
import gc
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from gatewayd.aio import Loop
from gatewayd.bus.client import Link, NatsSettings
from gatewayd.bus.publication import BusState, Published, Unpublished
from tests.buses import connected_bus, create_stream, pair, pause, reactor_clock, reactor_loop, until
from tests.fakes.counts import Counts
from tests.servers import NatsServer


@pytest_twisted.ensureDeferred
async def test_a_confirmation_that_comes_too_late_leaves_the_connection_alone(tmp_path: Path) -> None:
    """Frozen for longer than a subscription waits, then awake: what was asked failed, the connection is as before."""
    server, counts = NatsServer(tmp_path).start(), Counts()
    try:
        async with connected_bus(server, counts=counts) as bus:
            await create_stream(bus)
            before = len(asyncio.all_tasks(reactor_loop()))
            server.sigstop()
            read = bus.slice("$JS.API.CONSUMER.MSG.NEXT.none.none", b"", 1, 5.0, lambda _: None)
            await pause(2.2)
            server.sigcont()
            assert isinstance(await read, Unpublished)
            for i in range(20):
                assert isinstance(await bus.publish(pair(str(i))), Published)
                await pause(0.05)
            assert (bus.state, counts.errors["connection"]) == (BusState.CONNECTED, 0)
            await until(lambda: len(asyncio.all_tasks(reactor_loop())) <= before, 1.0, "no task is left")
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_a_subscription_that_is_given_up_leaves_no_task_and_no_error(tmp_path: Path) -> None:
    """Whoever waits gives up in the middle: the answer comes later and harms nothing, and nothing is left or said."""
    server, counts = NatsServer(tmp_path).start(), Counts()
    try:
        async with connected_bus(server, counts=counts) as bus:
            await create_stream(bus)
            before = len(asyncio.all_tasks(reactor_loop()))
            server.sigstop()
            reads = [bus.slice("$JS.API.CONSUMER.MSG.NEXT.none.none", b"", 1, 0.2, lambda _: None) for _ in range(3)]
            ended: list[Unpublished | None] = [await read for read in reads]
            assert all(isinstance(one, Unpublished) for one in ended)
            server.sigcont()
            waited: Deferred[None] = pause(2.2)
            assert isinstance(await bus.publish(pair("after")), Published)
            await waited
            assert (bus.state, counts.errors["connection"]) == (BusState.CONNECTED, 0)
            await until(lambda: len(asyncio.all_tasks(reactor_loop())) <= before, 1.0, "no task is left")
            assert bus._loop.errors == 0
            assert reactor_clock().running
    finally:
        server.close()


@pytest_twisted.ensureDeferred
async def test_an_attempt_that_swallows_its_end_and_fails_later_is_not_reported() -> None:
    """asyncio's wait_for may lose a cancellation: what comes of such an attempt afterwards is nobody's error."""

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10.0)
        await asyncio.sleep(0.2)
        raise ConnectionError("late")

    listener: Any = None
    link, loop = Link(NatsSettings((), "s"), listener), Loop(reactor_loop())
    try:
        with pytest.raises(TimeoutError):
            await loop.from_asyncio(link._within(stubborn(), 0.01))
        await pause(0.4)
        gc.collect()
        assert loop.errors == 0
    finally:
        await loop.stop(generators=False)
