"""Connections that are written to for hours: what is kept for them, on every kind of transport."""

import socket
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet.protocol import Protocol
from twisted.internet.threads import deferToThread

from gatewayd.http.addresses import Address, Kind
from gatewayd.http.exchange import HandOver
from gatewayd.http.narrow import narrow
from tests.fakes.connection import Leaf, get
from tests.servers import Certificates
from tests.wire.conftest import Serving, in_force, secured
from tests.wire.listeners import Served, read_until, serving


class Guest(Protocol):
    """Says what its socket is set to, once it was narrowed."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        narrow(transport)
        below = getattr(transport, "below", transport)
        opened = below.bound_unsent(32768) if hasattr(below, "bound_unsent") else below.getHandle()
        self.sent_bytes = opened.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.silence_ms = 0
        if opened.family != socket.AF_UNIX:
            self.silence_ms = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        self.room = getattr(below, "bufferSize", None)
        transport.write(b"hello")


def hosting(guest: Guest) -> dict[bytes, Any]:
    """A leaf that hands its connection over."""
    return {b"/guest": Leaf(lambda request: HandOver(guest), methods=(b"GET",))}


REQUEST = get("/guest", "Connection: Upgrade", "Upgrade: guest")


def ask(connection: socket.socket) -> bytes:
    """Until the guest has spoken."""
    connection.sendall(REQUEST)
    return read_until(connection, b"hello")


def assert_narrow(guest: Guest, served: Served) -> None:
    """The kernel keeps twice what it is told, and gives a dead peer up."""
    assert guest.sent_bytes == 65536
    assert guest.silence_ms == 30_000
    assert guest.room == (None if served.loop is not None else 32768)


@pytest_twisted.ensureDeferred
async def test_plain(tcp_serving: Serving) -> None:
    """A TCP connection."""
    guest = Guest()
    async with tcp_serving(hosting(guest)) as served:
        await served.run(ask)
        assert_narrow(guest, served)


@pytest_twisted.ensureDeferred
async def test_tls(tcp_serving: Serving, certificates: Certificates) -> None:
    """A connection through TLS: what carries it is narrowed."""

    def client(connection: socket.socket) -> bytes:
        with secured(certificates, connection) as stream:
            return ask(stream)

    guest = Guest()
    async with tcp_serving(hosting(guest), tls=in_force(certificates)) as served:
        await served.run(client)
        assert_narrow(guest, served)
        await served.until(lambda: served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_unix(tmp_path: Path) -> None:
    """A UNIX socket, which knows nothing of TCP, is narrowed as far as it goes."""
    for on_loop in (True, False):
        guest, path = Guest(), str(tmp_path / f"socket-{on_loop}")
        async with serving(hosting(guest), address=Address(Kind.UNIX, path=path), on_loop=on_loop) as served:

            def client(_: socket.socket, path: str = path) -> bytes:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(5)
                    connection.connect(path)
                    return ask(connection)

            assert await deferToThread(client, None) == b"hello"
            assert guest.sent_bytes == 65536
            await served.until(lambda: served.site.open == 0)
