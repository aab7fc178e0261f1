"""
The event loop's transports as Twisted's: every promise on asyncio's own loop and on uvloop.

A loop of their own in a thread, since the session's reactor runs on one kind only.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import uvloop
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IListeningPort,
    IPushProducer,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gatewayd.aio import Loop
from gatewayd.http.loopport import LoopPort, LoopTransport
from tests.sockets import listening_tcp, listening_unix

LIMIT_S = 10.0
BIG = bytes(range(256)) * 65536
"""16 MiB: more than the buffers of a loopback connection grow to."""


class Side(Protocol):
    """The server's side of a connection, and what it was told."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.events: list[str] = []
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.events.append("lost")
        self.reason = reason

    @property
    def error(self) -> BaseException | None:
        """Why the connection was lost."""
        return None if self.reason is None else self.reason.value


@implementer(IHalfCloseableProtocol)
class HalfClosing(Side):
    """A side that is told of either direction's end."""

    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


class World(Factory):
    """A LoopPort on a running loop, the sides it made, and clients of it."""

    noisy = False

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: str = "127.0.0.1", listening: socket.socket | None = None
    ) -> None:
        self.loop = loop
        self.make: Callable[[], Any] = Side
        self.sides: list[Any] = []
        self.port = LoopPort(loop, host, 0, self, 64, listening=listening)
        self.port.startListening()

    def buildProtocol(self, addr: Any) -> Any:
        side = self.make()
        self.sides.append(side)
        return side

    async def connect(self) -> tuple[socket.socket, Any]:
        """A client's socket, and the side that it talks to."""
        known = len(self.sides)
        host = self.port.getHost()
        client = socket.socket(socket.AF_INET6 if ":" in host.host else socket.AF_INET)
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await self.loop.sock_connect(client, (host.host, host.port))
        await until(lambda: len(self.sides) > known)
        return client, self.sides[known]

    async def send(self, client: socket.socket, data: bytes) -> None:
        await self.loop.sock_sendall(client, data)

    async def read(self, client: socket.socket, size: int) -> bytes:
        """Exactly so many bytes."""
        received = bytearray()
        while len(received) < size:
            piece = await self.loop.sock_recv(client, size - len(received))
            assert piece, "the connection ended"
            received += piece
        return bytes(received)

    async def read_to_end(self, client: socket.socket) -> bytes:
        """Everything until FIN."""
        received = []
        while piece := await self.loop.sock_recv(client, 65536):
            received.append(piece)
        client.close()
        return b"".join(received)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, at most five seconds."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition did not come true")


def reset(client: socket.socket) -> None:
    """Close with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


Scenario: TypeAlias = Callable[[World], Awaitable[None]]
Run: TypeAlias = Callable[..., None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    make: Callable[[], asyncio.AbstractEventLoop] = request.param
    return make


@pytest.fixture
def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    """Run a scenario on a new loop; what the loop itself complains of is logged as the gateway does it."""

    def on_loop(scenario: Scenario, host: str = "127.0.0.1", listening: socket.socket | None = None) -> None:
        loop = new_loop()
        guarded, world = Loop(loop), World(loop, host, listening)
        try:
            loop.run_until_complete(asyncio.wait_for(scenario(world), LIMIT_S))
        finally:
            world.port.stopListening()
            for side in world.sides:
                if side is not None and side.transport is not None:
                    side.transport.abortConnection()
            loop.run_until_complete(asyncio.sleep(0.02))
            loop.run_until_complete(guarded.stop().asFuture(loop))
            loop.close()

    def start(scenario: Scenario, *where: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(on_loop, scenario, *where).result(2 * LIMIT_S)

    return start


def test_interfaces(run: Run) -> None:
    """The objects have what Twisted's interfaces ask for."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        for interface in (ITCPTransport, IConsumer, IPushProducer):
            assert verifyObject(interface, side.transport)
        assert verifyObject(IListeningPort, world.port)
        assert isinstance(side.transport, LoopTransport)
        assert (side.transport.connected, side.transport.disconnected) == (True, False)
        client.close()

    run(scenario)


def test_nothing_stands_between(run: Run) -> None:
    """What comes in goes straight to the protocol, what goes out straight to the loop: the reason for all of it."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        assert side.transport.data_received == side.dataReceived
        assert side.transport.write == side.transport._transport.write
        await world.send(client, b"in")
        await until(lambda: side.data == b"in")
        side.transport.writeSequence([b"o", b"ut"])
        assert await world.read(client, 3) == b"out"
        client.close()

    run(scenario)


def test_what_comes_at_once(run: Run) -> None:
    """A piece of what comes in is small enough for the allocator to keep its memory; uvloop has its own buffer."""
    sizes: list[int] = []

    class Measuring(Side):
        def dataReceived(self, data: bytes) -> None:
            sizes.append(len(data))

    async def scenario(world: World) -> None:
        world.make = Measuring
        client, side = await world.connect()
        side.transport.pauseProducing()
        sending = asyncio.ensure_future(world.send(client, BIG))
        await asyncio.sleep(0.05)
        side.transport.resumeProducing()
        await sending
        await until(lambda: sum(sizes) == len(BIG))
        assert max(sizes) <= (65536 if isinstance(world.loop, asyncio.SelectorEventLoop) else 262144)
        client.close()

    run(scenario)


def test_writes_after_the_end_are_dropped(run: Run) -> None:
    """After any of the three ends and after the loss a write is nothing, also one whose method was kept by a guest."""

    async def scenario(world: World) -> None:
        for end in ("loseConnection", "loseWriteConnection", "abortConnection"):
            client, first = await world.connect()
            transport, guest = first.transport, Side()
            transport.protocol = guest
            kept = transport.write
            kept(b"before")
            assert await world.read(client, 6) == b"before"
            getattr(transport, end)()
            for write in (kept, transport.write):
                write(b"after")
            transport.writeSequence([b"after"])
            if end != "abortConnection":
                assert await world.read_to_end(client) == b""
            await until(lambda transport=transport: transport.disconnected)
            for write in (kept, transport.write):
                write(b"late")
            for late in ("loseConnection", "loseWriteConnection", "abortConnection", "pauseProducing"):
                getattr(transport, late)()
            transport.resumeProducing()
            assert guest.events == ["lost"]
            assert first.events == []
            client.close()

    run(scenario)


def test_lose_connection_sends_what_was_written(run: Run) -> None:
    """loseConnection() closes once everything is sent, also with a push producer registered that never finishes."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        side.transport.registerProducer(Producer(side.transport), True)
        side.transport.write(BIG)
        side.transport.loseConnection()
        side.transport.write(b"late")
        assert side.transport.disconnecting
        assert await world.read_to_end(client) == BIG
        await until(lambda: side.events)
        assert isinstance(side.error, ConnectionDone)
        assert side.transport.producer is None

    run(scenario)


def test_abort_resets(run: Run) -> None:
    """abortConnection() throws away what was not sent and resets; nothing comes in any more."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        side.transport.write(BIG)
        side.transport.abortConnection()
        await until(lambda: side.events)
        assert isinstance(side.error, ConnectionAborted)
        with pytest.raises(ConnectionResetError):
            await world.read_to_end(client)
        client.close()

    run(scenario)


def test_a_stuck_close_can_be_aborted(run: Run) -> None:
    """A peer that never reads holds a close for ever; an abort after it ends the connection."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        side.transport.write(BIG)
        side.transport.loseConnection()
        await asyncio.sleep(0.1)
        assert side.events == []
        side.transport.abortConnection()
        await until(lambda: side.events)
        assert isinstance(side.error, ConnectionAborted)
        reset(client)

    run(scenario)


def test_the_peers_fin(run: Run) -> None:
    """FIN is the end for a plain protocol; one that knows half-close goes on writing, and is told once."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        client.shutdown(socket.SHUT_WR)
        assert await world.read_to_end(client) == b""
        await until(lambda: side.events)
        assert isinstance(side.error, ConnectionDone)

        world.make = HalfClosing
        client, side = await world.connect()
        await world.send(client, b"last")
        client.shutdown(socket.SHUT_WR)
        await until(lambda: side.events)
        side.transport.pauseProducing()
        side.transport.resumeProducing()
        await asyncio.sleep(0.05)
        assert (side.data, side.events) == (b"last", ["read lost"])
        side.transport.write(b"answer")
        assert await world.read(client, 6) == b"answer"
        side.transport.loseConnection()
        assert await world.read_to_end(client) == b""

    run(scenario)


def test_our_fin(run: Run) -> None:
    """writeConnectionLost() comes when everything is sent, not before; the peer may go on sending."""

    async def scenario(world: World) -> None:
        world.make = HalfClosing
        for stuck, piece in ((False, b""), (False, b"small"), (True, b"x" * 10_000), (True, BIG)):
            client, side = await world.connect()
            side.transport.write(piece)
            size = len(piece)
            while stuck and not side.transport._transport.get_write_buffer_size():
                side.transport.write(piece)
                size += len(piece)
            side.transport.loseWriteConnection()
            side.transport.loseWriteConnection()
            assert side.events == []
            if stuck:
                await asyncio.sleep(0.1)
                assert side.events == []
            await world.read(client, size)
            assert await world.loop.sock_recv(client, 1) == b""
            await until(lambda side=side: side.events)
            await world.send(client, b"still")
            await until(lambda side=side: side.data == b"still")
            assert side.events == ["write lost"]
            side.transport.loseConnection()
            await until(lambda side=side: side.reason)
            client.close()

    run(scenario)


def test_resets(run: Run, no_logged_failures: list[LogEvent]) -> None:
    """A peer that resets is a lost connection for everybody, says nothing in the log, whatever is written meanwhile."""
    lines: list[LogEvent] = []

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        reset(client)
        await until(lambda: side.events)
        assert isinstance(side.error, ConnectionLost)

        world.make = HalfClosing
        for writes, end in (
            (20, "loseConnection"),
            (20, "loseWriteConnection"),
            (20, "abortConnection"),
            (0, "loseWriteConnection"),
        ):
            client, side = await world.connect()
            side.transport.pauseProducing()
            reset(client)
            await asyncio.sleep(0.02)
            for _ in range(writes):
                side.transport.write(b"x" * 100)
            getattr(side.transport, end)()
            await until(lambda side=side: side.reason)
            # uvloop notices the reset after its attempt to send FIN, and so after "write lost".
            assert [event for event in side.events if event != "write lost"] == ["lost"]

    globalLogPublisher.addObserver(lines.append)
    try:
        run(scenario)
    finally:
        globalLogPublisher.removeObserver(lines.append)
    assert lines == []


def test_reset_before_it_is_accepted(run: Run) -> None:
    """A connection that is gone when it is accepted leaves nothing behind, and the next one is served."""

    async def scenario(world: World) -> None:
        host = world.port.getHost()
        with socket.socket() as gone:
            gone.connect((host.host, host.port))
            reset(gone)
        client, _ = await world.connect()
        client.close()
        await until(lambda: all(side.events == ["lost"] for side in world.sides))

    run(scenario)


class Broken(Side):
    """A side with a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def dataReceived(self, data: bytes) -> None:
        raise self._error


def test_a_bug_in_dataReceived(run: Run, no_logged_failures: list[LogEvent]) -> None:
    """An exception of a protocol, or of its guest, is logged and ends its connection with it as the reason."""
    errors = [ZeroDivisionError("a bug"), BrokenPipeError("of another socket")]

    async def scenario(world: World) -> None:
        other, healthy = await world.connect()
        for error in errors:
            for as_guest in (False, True):
                broken = Broken(error)
                world.make = Side if as_guest else lambda broken=broken: broken  # type: ignore[misc]
                client, side = await world.connect()
                if as_guest:
                    side.transport.protocol = broken
                await world.send(client, b"x")
                await until(lambda broken=broken: broken.reason)
                assert (broken.error, broken.events) == (error, ["lost"])
                client.close()
        await world.send(other, b"on")
        await until(lambda: healthy.data == b"on")
        other.close()

    run(scenario)
    assert [event["log_failure"].value for event in no_logged_failures] == [errors[0], errors[0], errors[1], errors[1]]
    no_logged_failures.clear()


def test_a_bug_at_accept(run: Run, no_logged_failures: list[LogEvent]) -> None:
    """A factory or a protocol that fails at the start is logged, its connection is cut, the next one is served."""

    class Stillborn(Side):
        def connectionMade(self) -> None:
            raise ZeroDivisionError

    async def scenario(world: World) -> None:
        host = world.port.getHost()
        for make in (lambda: 1 // 0, Stillborn):
            world.make = make
            with socket.socket() as client:
                client.setblocking(False)
                await world.loop.sock_connect(client, (host.host, host.port))
                with pytest.raises(ConnectionResetError):
                    await world.loop.sock_recv(client, 1)
        (stillborn,) = world.sides
        assert isinstance(stillborn.error, ZeroDivisionError)
        world.make = Side
        client, _ = await world.connect()
        client.close()

    run(scenario)
    assert [event["log_failure"].type for event in no_logged_failures] == [ZeroDivisionError, ZeroDivisionError]
    no_logged_failures.clear()


def test_refused(run: Run) -> None:
    """A factory that builds no protocol has the connection closed, not reset."""

    async def scenario(world: World) -> None:
        world.make = lambda: None
        client, side = await world.connect()
        assert side is None
        assert await world.read_to_end(client) == b""

    run(scenario)


@implementer(IPushProducer)
class Producer:
    """A producer that counts what it is told, and writes a piece when it is resumed."""

    def __init__(self, transport: Any, pieces: int = 0) -> None:
        self.events: list[str] = []
        self._transport = transport
        self._pieces = pieces

    def pauseProducing(self) -> None:
        self.events.append("pause")

    def resumeProducing(self) -> None:
        self.events.append("resume")
        if self._pieces:
            self._pieces -= 1
            self._transport.write(b"x" * 100_000)
            if not self._pieces:
                self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        self.events.append("stop")


def test_push_producer(run: Run) -> None:
    """A push producer is paused while the peer does not read, resumed when it has read, stopped at the loss."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        producer = Producer(side.transport)
        side.transport.registerProducer(producer, True)
        with pytest.raises(RuntimeError):
            side.transport.registerProducer(Producer(side.transport), True)
        side.transport.write(BIG)
        assert producer.events == ["pause"]
        await world.read(client, len(BIG))
        await until(lambda: producer.events == ["pause", "resume"])
        side.transport.write(BIG)
        side.transport.unregisterProducer()
        late = Producer(side.transport)
        side.transport.registerProducer(late, True)
        assert late.events == ["pause"]
        reset(client)
        await until(lambda: side.events)
        assert producer.events == ["pause", "resume", "pause"]
        assert late.events == ["pause", "stop"]
        after = Producer(side.transport)
        side.transport.registerProducer(after, True)
        assert after.events == ["stop"]

    run(scenario)


def test_pull_producer(run: Run) -> None:
    """A pull producer is asked piece by piece, and not while the peer does not read."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        producer = Producer(side.transport, pieces=200)
        side.transport.write(BIG)
        side.transport.registerProducer(producer, False)
        await asyncio.sleep(0.05)
        assert producer.events == []
        assert await world.read(client, len(BIG)) == BIG
        await asyncio.sleep(0.2)
        assert 1 < len(producer.events) < 200
        assert await world.read(client, 20_000_000) == b"x" * 20_000_000
        assert producer.events == ["resume"] * 200
        assert side.transport.producer is None
        client.close()

    run(scenario)


def test_reading_is_paused(run: Run) -> None:
    """Nothing comes in between pauseProducing() and resumeProducing(), not even the peer's FIN."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        side.transport.pauseProducing()
        side.transport.pauseProducing()
        await world.send(client, b"held")
        client.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        assert (side.data, side.events) == (b"", [])
        side.transport.resumeProducing()
        await until(lambda: side.events)
        assert side.data == b"held"
        client.close()

    run(scenario)


def test_hand_over(run: Run) -> None:
    """Setting `protocol` sends everything to the new one, from the very next byte, also out of dataReceived."""

    class Switching(Side):
        guest = Side()

        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.protocol = self.guest

    async def scenario(world: World) -> None:
        guest = Side()
        world.make = Switching
        client, side = await world.connect()
        side.guest = guest
        await world.send(client, b"first")
        await until(lambda: side.data)
        await world.send(client, b"second")
        await until(lambda: guest.data)
        assert (side.data, guest.data) == (b"first", b"second")
        assert side.transport.protocol is guest
        client.close()
        await until(lambda: guest.events)
        assert side.transport.protocol is None
        assert side.events == []
        side.transport.protocol = side  # too late: nothing happens
        assert side.transport.protocol is None

    run(scenario)


def test_addresses(run: Run) -> None:
    """Both sides' addresses are known, IPv4 and IPv6, also when the connection is gone."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        here, there = client.getsockname(), client.getpeername()
        client.close()
        await until(lambda: side.events)
        host, peer = side.transport.getHost(), side.transport.getPeer()
        assert ((peer.host, peer.port), (host.host, host.port)) == (here[:2], there[:2])
        assert host == world.port.getHost()
        assert (peer.type, type(peer)) == ("TCP", type(host))

    run(scenario)
    run(scenario, "::1")


def test_options(run: Run) -> None:
    """Accepted connections have TCP_NODELAY; it and keep-alive can be changed."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        transport = side.transport
        assert (transport.getTcpNoDelay(), transport.getTcpKeepAlive()) == (True, False)
        transport.setTcpNoDelay(False)
        transport.setTcpKeepAlive(True)
        assert (transport.getTcpNoDelay(), transport.getTcpKeepAlive()) == (False, True)
        client.close()

    run(scenario)


def test_stop_listening(run: Run) -> None:
    """A port that stopped takes no connection, its address is free at once, and what was accepted lives on."""

    async def scenario(world: World) -> None:
        client, side = await world.connect()
        host = world.port.getHost()
        world.port.stopListening()
        world.port.stopListening()
        assert world.port.getHost() == host
        await asyncio.sleep(0)
        with socket.socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect((host.host, host.port))
        again = LoopPort(world.loop, host.host, host.port, world, 64)
        again.startListening()
        again.stopListening()
        side.transport.write(b"alive")
        assert await world.read(client, 5) == b"alive"
        client.close()

    run(scenario)


@pytest.mark.parametrize("kind", ["INET", "INET6", "UNIX"])
def test_inherited_socket(run: Run, kind: str, tmp_path: Path) -> None:
    """
    A socket that listens already is served; after the stop what connects waits in its queue for whoever else holds it.
    """
    path = tmp_path / "gw.sock"
    inherited = listening_unix(path) if kind == "UNIX" else listening_tcp("::1" if kind == "INET6" else "127.0.0.1")
    name = inherited.getsockname()

    async def connect(world: World) -> socket.socket:
        client = socket.socket(inherited.family)
        client.setblocking(False)
        await world.loop.sock_connect(client, name)
        return client

    async def scenario(world: World) -> None:
        first = await connect(world)
        await until(lambda: world.sides)
        stopped = world.port.stopListening()
        waiting = await connect(world)
        await asyncio.sleep(0.05)
        assert len(world.sides) == 1
        assert stopped is None or stopped.called
        world.sides[0].transport.write(b"alive")
        assert await world.read(first, 5) == b"alive"
        successor = World(world.loop, listening=inherited.dup())
        await until(lambda: successor.sides)
        await world.send(waiting, b"?")
        await until(lambda: successor.sides[0].data)
        transport = successor.sides[0].transport
        transport.write(b"served")
        assert await world.read(waiting, 6) == b"served"
        assert type(transport.getPeer()) is type(transport.getHost()) is type(successor.port.getHost())
        successor.port.stopListening()
        transport.abortConnection()
        first.close()
        waiting.close()

    with inherited:
        run(scenario, "", inherited.dup())
    assert path.exists() is (kind == "UNIX")


def test_stop_in_the_turn_of_an_accept(run: Run) -> None:
    """A connection that the loop has taken out of the queue when the port stops is served all the same."""
    inherited = listening_tcp()

    async def scenario(world: World) -> None:
        stopped: list[Any] = []

        def make_task(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Future[Any]:
            # asyncio makes the first task of a connection when it has accepted it and has no transport for it yet.
            made: asyncio.Future[Any] = asyncio.Task(work, loop=loop, **more)
            if not stopped and "accept" in repr(work):
                stopped.append(world.port.stopListening())
            return made

        world.loop.set_task_factory(make_task)
        client, side = await world.connect()
        if not stopped:  # uvloop needs no task for it
            stopped.append(world.port.stopListening())
        side.transport.write(b"served")
        assert await world.read(client, 6) == b"served"
        assert stopped[0] is None or stopped[0].called
        world.loop.set_task_factory(None)
        client.close()

    with inherited:
        run(scenario, "", inherited.dup())


def test_listening_before_the_loop_runs(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """startListening() binds at once or says why not; who connects before the loop runs is served when it does."""

    def scenario() -> None:
        loop = new_loop()
        world = World(loop)
        host = world.port.getHost()
        with socket.socket() as client:
            client.connect((host.host, host.port))
            taken = LoopPort(loop, host.host, host.port, world, 64)
            with pytest.raises(CannotListenError):
                taken.startListening()
            with pytest.raises(RuntimeError):
                taken.getHost()
            taken.stopListening()
            loop.run_until_complete(until(lambda: world.sides))
        loop.run_until_complete(until(lambda: world.sides[0].events))
        unused = World(loop)
        unused.port.stopListening()
        host = unused.port.getHost()
        with socket.socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect((host.host, host.port))
        world.port.stopListening()
        loop.run_until_complete(asyncio.sleep(0.02))
        loop.close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(scenario).result(LIMIT_S)
