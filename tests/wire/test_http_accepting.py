"""How fast connections are taken, on asyncio's own loop and on uvloop."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop
from twisted.internet.protocol import Factory, Protocol

from gatewayd.http.loopport import LoopPort

CONNECTIONS = 96
TURNS = 30


class Connected(Protocol):
    """Counts itself."""

    def connectionMade(self) -> None:
        assert isinstance(self.factory, Counting)
        self.factory.made.append(self)


class Counting(Factory):
    """Whoever is connected."""

    protocol = Connected
    noisy = False

    def __init__(self) -> None:
        self.made: list[Connected] = []


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_crowd_is_taken_in_a_few_turns(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """
    Connections that wait together are taken several in a turn of the loop: one a turn is seconds for the last of them
    while turns are long.
    """

    async def crowd(loop: asyncio.AbstractEventLoop) -> tuple[int, int]:
        factory = Counting()
        port = LoopPort(loop, "127.0.0.1", 0, factory, CONNECTIONS)
        port.startListening()
        await asyncio.sleep(0.05)
        clients = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(CONNECTIONS)]
        turns = 0
        while len(factory.made) < CONNECTIONS and turns < 10 * CONNECTIONS:
            turns += 1
            await asyncio.sleep(0)
        for client in clients:
            client.close()
        port.stopListening()
        for made in factory.made:
            made.transport.loseConnection()
        await asyncio.sleep(0.05)
        return turns, len(factory.made)

    loop = new_loop()
    try:
        with ThreadPoolExecutor(1) as pool:
            turns, made = pool.submit(loop.run_until_complete, crowd(loop)).result(20)
    finally:
        loop.close()
    assert (made, turns <= TURNS) == (CONNECTIONS, True), turns
