"""TLS at its edges: handshakes that fail, ends of every kind, clients that do not read or do not stop."""

import socket
import ssl
import struct
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from gatewayd.http.exchange import HandOver
from gatewayd.http.rules import Limits
from tests.fakes.connection import Leaf, get, read_answers
from tests.servers import Certificates
from tests.wire.conftest import Serving, in_force, secured
from tests.wire.listeners import read_to_end, read_until

UPGRADE = get("/guest", "Connection: Upgrade", "Upgrade: guest")
BIG = bytes(range(256)) * 32768
"""8 MiB: more than the buffers of a loopback connection grow to."""


@implementer(IPushProducer)
class Guest(Protocol):
    """Another protocol inside TLS, and what it was told; it says hello when it is there."""

    transport: Any

    def __init__(self) -> None:
        self.data = bytearray()
        self.events: list[str] = []
        self.error: BaseException | None = None

    def connectionMade(self) -> None:
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.error = reason.value

    def pauseProducing(self) -> None:
        self.events.append("pause")

    def resumeProducing(self) -> None:
        self.events.append("resume")

    def stopProducing(self) -> None:
        self.events.append("stop")


def hosting(guest: Guest) -> dict[bytes, Any]:
    """A leaf that hands its connection over to the guest."""
    return {b"/guest": Leaf(lambda request: HandOver(guest), methods=(b"GET",))}


def reset(connection: socket.socket) -> None:
    """Close with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def logged() -> Any:
    """Everything that is logged meanwhile."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest_twisted.ensureDeferred
async def test_what_is_agreed_on(tcp_serving: Serving, certificates: Certificates) -> None:
    """TLS 1.3 where a client can, never less than 1.2; HTTP/1.1 of what ALPN offers; no second handshake."""
    certificate = in_force(certificates)
    assert certificate.context().minimum_version is ssl.TLSVersion.TLSv1_2
    assert certificate.context().options & ssl.OP_NO_RENEGOTIATION

    def client(connection: socket.socket) -> tuple[Any, ...]:
        with secured(certificates, connection) as stream:
            return stream.version(), stream.selected_alpn_protocol()

    async with tcp_serving(tls=certificate) as served:
        assert await served.run(client) == ("TLSv1.3", "http/1.1")
        await served.until(lambda: served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_interfaces(tcp_serving: Serving, certificates: Certificates) -> None:
    """A guest's transport has what Twisted's interfaces ask for, and knows both addresses."""
    guest, looked = Guest(), Event()
    async with tcp_serving(hosting(guest), tls=in_force(certificates)) as served:

        def client(connection: socket.socket) -> Any:
            with secured(certificates, connection) as stream:
                stream.sendall(UPGRADE)
                read_until(stream, b"hello")
                assert looked.wait(5)
                return stream.getsockname()

        talking = served.run(client)
        await served.until(lambda: guest.transport)
        transport = guest.transport
        for interface in (ISSLTransport, IConsumer, IPushProducer):
            assert verifyObject(interface, transport)
        peer = transport.getPeer()
        assert transport.getHost() == served.port.getHost()
        assert (transport.negotiatedProtocol, transport.getPeerCertificate()) == (b"http/1.1", None)
        assert (transport.connected, transport.disconnecting, transport.disconnected) == (True, False, False)
        transport.setTcpKeepAlive(True)
        assert (transport.getTcpNoDelay(), transport.getTcpKeepAlive()) == (True, True)
        looked.set()
        assert (peer.host, peer.port) == await talking
        await served.until(lambda: guest.error)
        assert (transport.connected, transport.disconnected) == (False, True)
        for late in (transport.loseConnection, transport.loseWriteConnection, transport.abortConnection):
            late()
        transport.writeSequence([b"la", b"te"])


@pytest_twisted.ensureDeferred
async def test_no_hello(tcp_serving: Serving, certificates: Certificates, logged: list[LogEvent]) -> None:
    """What is no handshake, or ends in the middle of one, is closed, and nobody can fill the log with it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    hello = outgoing.read()
    cases = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100_000,
        b"\x16\x03\x01\xff\xff" + b"x" * 100,
        b"\x80\x2e\x01\0\2\0\x15\0\0\0\x10",  # SSL 2
        hello[:100] + b"\xff" * 500,
        hello + b"\x14\x03\x03\0\1\2" * 50,
        hello + b"GET / HTTP/1.1\r\n\r\n",
    ]

    def client(data: bytes, connection: socket.socket) -> bytes:
        try:
            connection.sendall(data)
            return read_to_end(connection)
        except ConnectionResetError:
            return b""

    async with tcp_serving(tls=in_force(certificates), limits=Limits(head_s=0.5)) as served:
        for data in cases:
            assert b"HTTP" not in await served.run(lambda connection, data=data: client(data, connection))  # type: ignore[misc]
        await served.run(lambda connection: (connection.sendall(hello), reset(connection)))
        await served.until(lambda: served.site.open == 0)
        assert not served.finished
    assert [event for event in logged if event["log_level"] > LogLevel.info] == []


@pytest_twisted.ensureDeferred
async def test_the_servers_end(tcp_serving: Serving, certificates: Certificates) -> None:
    """
    The last answer ends in close_notify and FIN, and is read whole by a client that goes on sending; one that never
    closes is closed soon, one that never stops is reset.
    """

    gone = Event()

    def polite(connection: socket.socket) -> bytes:
        with secured(certificates, connection, suppress_ragged_eofs=False) as stream:
            stream.sendall(b"BAD\r\n\r\n" + b"x" * 300_000)
            return read_to_end(stream)

    def endless(connection: socket.socket) -> int:
        with secured(certificates, connection) as stream:
            stream.sendall(b"BAD\r\n\r\n")
            for sent in range(10_000):
                try:
                    stream.sendall(b"x" * 16384)
                except OSError:
                    return sent * 16384
        raise AssertionError("it was never stopped")

    def staying(connection: socket.socket) -> bytes:
        with secured(certificates, connection) as stream:
            stream.sendall(get("/healthz", "Connection: close"))
            answer = read_to_end(stream)
            gone.wait(5)
            return answer

    async with tcp_serving(tls=in_force(certificates), limits=Limits(lingering_s=0.2)) as served:
        (answer,) = read_answers(await served.run(polite))
        assert answer.status == 400
        assert await served.run(endless) < 100 << 20
        talking = served.run(staying)
        await served.until(lambda: len(served.finished) == 3)
        await served.until(lambda: served.site.open == 0)
        gone.set()
        (answer,) = read_answers(await talking)
        assert answer.status == 200


@pytest_twisted.ensureDeferred
async def test_the_clients_end(tcp_serving: Serving, certificates: Certificates) -> None:
    """close_notify is an end; FIN without it, and a reset, are losses; either is told at once."""

    def end(how: str, connection: socket.socket) -> None:
        stream = secured(certificates, connection)
        stream.sendall(UPGRADE)
        read_until(stream, b"hello")
        if how == "close_notify":
            stream.unwrap().close()
        elif how == "FIN":
            stream.close()
        else:
            reset(stream)

    for how, error in (("close_notify", ConnectionDone), ("FIN", ConnectionLost), ("reset", ConnectionLost)):
        guest = Guest()
        async with tcp_serving(hosting(guest), tls=in_force(certificates)) as served:
            await served.run(lambda connection, how=how: end(how, connection))  # type: ignore[misc]
            await served.until(lambda guest=guest: guest.error)
            assert isinstance(guest.error, error), how


@pytest_twisted.ensureDeferred
async def test_abort(tcp_serving: Serving, certificates: Certificates) -> None:
    """abortConnection() throws away what was not sent, and resets."""
    guest = Guest()

    def client(connection: socket.socket) -> str:
        below = connection.dup()
        with below, secured(certificates, connection) as stream:
            stream.sendall(UPGRADE)
            try:
                while below.recv(65536):
                    pass
            except ConnectionResetError:
                return "reset"
            return "end"

    async with tcp_serving(hosting(guest), tls=in_force(certificates)) as served:
        talking = served.run(client)
        await served.until(lambda: guest.transport)
        guest.transport.write(BIG)
        guest.transport.abortConnection()
        guest.transport.write(b"late")
        assert await talking == "reset"
        assert isinstance(guest.error, ConnectionAborted)


@pytest_twisted.ensureDeferred
async def test_back_pressure(tcp_serving: Serving, certificates: Certificates) -> None:
    """A producer is paused while the client does not read and resumed when it has; all of it arrives, in order."""
    guest, paused = Guest(), Event()
    async with tcp_serving(hosting(guest), tls=in_force(certificates)) as served:

        def begin(connection: socket.socket) -> bytes:
            with secured(certificates, connection) as stream:
                stream.sendall(UPGRADE)
                read_until(stream, b"hello")
                served.reactor.callFromThread(write)
                assert paused.wait(5)
                received = bytearray()
                while len(received) < len(BIG):
                    received += stream.recv(1 << 20)
                return bytes(received)

        def write() -> None:
            guest.transport.registerProducer(guest, True)
            guest.transport.write(BIG)
            paused.set()

        assert await served.run(begin) == BIG
        await served.until(lambda: guest.events[-1] == "stop")
        assert guest.events == ["pause", "resume", "stop"]


@pytest_twisted.ensureDeferred
async def test_reading_is_paused(tcp_serving: Serving, certificates: Certificates) -> None:
    """Nothing that a client sends while reading is paused comes in before it goes on; then all of it does."""
    guest, stopped = Guest(), Event()
    async with tcp_serving(hosting(guest), tls=in_force(certificates)) as served:

        def paused(connection: socket.socket) -> None:
            with secured(certificates, connection) as stream:
                stream.sendall(UPGRADE)
                read_until(stream, b"hello")
                served.reactor.callFromThread(guest.transport.pauseProducing)
                served.reactor.callFromThread(stopped.set)
                assert stopped.wait(5)
                stream.sendall(BIG)

        talking = served.run(paused)
        await served.until(stopped.is_set)
        await served.pause(0.1)
        assert not guest.data
        guest.transport.resumeProducing()
        await talking
        await served.until(lambda: len(guest.data) == len(BIG))
        assert guest.data == BIG
