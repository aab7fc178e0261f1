"""The addresses of the gRPC server: what cannot be opened is named, what was passed is served, certificates change."""

import os
import shutil
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any

import grpc
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from gatewayd.http.addresses import Address, Kind
from gatewayd.http.capacity import Capacity
from gatewayd.http.inherited import FIRST, Inherited
from gatewayd.http.proxied import Proxies
from gatewayd.lifecycle import StartFailed
from gatewayd.push.grpc_listener import GrpcListener
from tests.buses import reactor_clock, reactor_loop
from tests.h2peer import Peer
from tests.servers import Certificates, make_certificates
from tests.wire.edge.grpc_serving import Served, execute, request, serving


def listener(served: Served, *addresses: Address, inherited: Inherited | None = None, **files: Any) -> GrpcListener:
    """A further listener of a server that is served already."""
    proxies = Proxies(served.server.capacity, reactor_clock(), lambda _: False)
    given = {"inherited": inherited or Inherited(), "proxies": proxies, **files}
    return GrpcListener(reactor_clock(), reactor_loop(), served.server, addresses, close_s=1.0, **given)


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_opened_is_named(tmp_path: Path, certificates: Certificates) -> None:
    """A taken port, a missing certificate, a socket that was not passed: one line, which names it."""
    async with serving() as served:
        taken = Address(Kind.TCP, "127.0.0.1", served.port)
        with pytest.raises(StartFailed, match=rf"127\.0\.0\.1:{served.port} is taken"):
            listener(served, taken).open()
        missing = {"certificate": str(tmp_path / "no.pem"), "private_key": str(certificates.key)}
        with pytest.raises(StartFailed, match=r"no\.pem cannot be read"):
            listener(served, Address(Kind.TCP, "127.0.0.1"), **missing).open()
        with pytest.raises(StartFailed, match="no such socket was passed"):
            listener(served, Address(Kind.INHERITED, domain="INET", name="grpc")).open()


@pytest_twisted.ensureDeferred
async def test_an_inherited_socket() -> None:
    """A socket that somebody else has opened is served, and is still theirs afterwards."""
    opened = socket()
    opened.bind(("127.0.0.1", 0))
    opened.listen()
    port = opened.getsockname()[1]
    # The name of the descriptor that it is in this process.
    names = (*[""] * (opened.fileno() - FIRST), "grpc")
    kept = os.dup(opened.fileno())
    address = Address(Kind.INHERITED, domain="INET", name="grpc")
    async with serving() as served:
        further = listener(served, address, inherited=Inherited(names))
        further.open()
        further.serve()
        opened.detach()
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
        call = execute(channel)
        assert (await deferToThread(call, request(), timeout=5)).result_code == "ok"
        channel.close()
        await further.leave()
    with socket(fileno=kept) as still, socket() as client:
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        still.accept()[0].close()


@pytest_twisted.ensureDeferred
async def test_two_addresses_that_mean_one_socket() -> None:
    """The second one is refused at the start, as at the public listener."""
    opened = socket()
    opened.bind(("127.0.0.1", 0))
    opened.listen()
    names = (*[""] * (opened.fileno() - FIRST), "grpc")
    address = Address(Kind.INHERITED, domain="INET", name="grpc")
    async with serving() as served:
        further = listener(served, address, address, inherited=Inherited(names))
        with pytest.raises(StartFailed, match="another address means the same socket"):
            further.open()
        opened.detach()
        await further.leave()


@pytest_twisted.ensureDeferred
async def test_a_unix_socket(tmp_path: Path) -> None:
    """A path is served; it is gone at the end."""
    path = tmp_path / "grpc.sock"

    def client() -> bool:
        with socket(AF_UNIX, SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(str(path))
            return Peer(connection).is_alive()

    async with serving() as served:
        further = listener(served, Address(Kind.UNIX, path=str(path)))
        further.open()
        further.serve()
        assert await deferToThread(client)
        await further.leave()
        assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_certificates_change(tmp_path: Path, certificates: Certificates) -> None:
    """New connections get a certificate that was loaded anew; one that cannot be used changes nothing."""
    here = make_certificates(tmp_path / "first")
    async with serving(tls=here) as served:
        port = served.port

        def ask(ca: Path) -> Any:
            trusted = grpc.ssl_channel_credentials(ca.read_bytes())
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(f"localhost:{port}", trusted, options) as channel:
                try:
                    return execute(channel)(request(), timeout=3).result_code
                except grpc.RpcError as error:
                    return error.code().name  # type: ignore[attr-defined] # a call, too

        assert await deferToThread(ask, here.ca) == "ok"
        before = served.listener.load_certificates()
        for mine, new in ((here.cert, certificates.cert), (here.key, certificates.key)):
            shutil.copy(new, mine)
        served.listener.load_certificates()()
        assert await deferToThread(ask, certificates.ca) == "ok"
        before()
        assert await deferToThread(ask, certificates.ca) == "UNAVAILABLE"


@pytest_twisted.ensureDeferred
async def test_whose_connection_a_proxy_makes() -> None:
    """A connection that begins with a PROXY header is its client's, for the bounds too; without one it is closed."""

    def client(connection: socket, header: bytes) -> bool:
        try:
            connection.sendall(header)
            return Peer(connection).is_alive()
        except ConnectionError:
            return False

    header = b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 9090\r\n"
    async with serving(capacity=Capacity(10, 1), announces=lambda peer: peer == "127.0.0.1") as served:
        with socket() as first:
            first.settimeout(5)
            first.connect(("127.0.0.1", served.port))
            assert await deferToThread(client, first, header)
            assert not await served.talk(lambda second: client(second, header))
            assert await served.talk(lambda third: client(third, header.replace(b".7", b".8")))
            assert not await served.talk(lambda fourth: client(fourth, b""))
        assert served.server.capacity.refused == 1


@pytest_twisted.ensureDeferred
async def test_opened_before_it_is_served() -> None:
    """A socket of our own is held, and nobody else can have it, before calls are taken: health says so."""
    async with serving() as served:
        further = listener(served, Address(Kind.TCP, "127.0.0.1"))
        served.server.health.set(False)
        further.open()
        (port,) = further.ports
        with pytest.raises(StartFailed, match="is taken"):
            listener(served, Address(Kind.TCP, "127.0.0.1", port)).open()
        assert not served.server.health.serving
        further.serve()
        assert served.server.health.serving
        await further.leave()
