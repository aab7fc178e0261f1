"""Listening: taken ports, UNIX sockets that were left behind, permissions, TLS and its files."""

import os
import socket as sockets
import stat
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket

import pytest
import pytest_twisted
from twisted.internet.protocol import Protocol
from twisted.internet.threads import deferToThread

from gatewayd.http.addresses import Address, CannotListen, Kind, parse_address
from gatewayd.http.capacity import Capacity
from gatewayd.http.certificates import load_tls
from gatewayd.http.endpoint import listen
from gatewayd.http.exchange import HandOver
from gatewayd.http.rules import Limits
from gatewayd.http.stock import StockLeaf
from tests.fakes.connection import Leaf, get, read_answers
from tests.servers import Certificates, make_certificates
from tests.unit.http.test_stock import File
from tests.wire.conftest import Serving, in_force, secured
from tests.wire.listeners import CLIENT_TIMEOUT_S, read_to_end, read_until

CLOSE = get("/healthz", "Connection: close")


def unix_client(path: str, data: bytes) -> bytes:
    """Send on a UNIX socket, and read to the end."""
    with socket(AF_UNIX, SOCK_STREAM) as connection:
        connection.settimeout(CLIENT_TIMEOUT_S)
        connection.connect(path)
        connection.sendall(data)
        return read_to_end(connection)


@pytest_twisted.ensureDeferred
async def test_taken_port(tcp_serving: Serving) -> None:
    """A taken port is named with its error, at once."""
    async with tcp_serving() as served:
        port = served.port.getHost().port
        with pytest.raises(CannotListen) as caught:
            listen(served.reactor, Address(Kind.TCP, "127.0.0.1", port), served.site, None, served.loop)
        assert str(caught.value) == f"127.0.0.1:{port} is taken (EADDRINUSE)"


@pytest_twisted.ensureDeferred
async def test_wrong_addresses(tcp_serving: Serving) -> None:
    """An address of another machine and an unknown name are named with what is wrong with them."""
    async with tcp_serving() as served:
        for text, what in (
            ("192.0.2.1:8001", "192.0.2.1:8001 is not an address of this machine (EADDRNOTAVAIL)"),
            (
                "no-such-host.invalid:8001",
                "no-such-host.invalid:8001 cannot be listened on: the host name is not known",
            ),
        ):
            with pytest.raises(CannotListen) as caught:
                listen(served.reactor, parse_address(text), served.site, None, served.loop)
            assert str(caught.value) == what


@pytest_twisted.ensureDeferred
async def test_no_delay(tcp_serving: Serving) -> None:
    """Accepted connections have TCP_NODELAY: an answer never waits for an acknowledgement of the one before."""
    seen: list[int] = []

    class Seeing(Protocol):
        def connectionMade(self) -> None:
            seen.append(self.transport.getTcpNoDelay())  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]

    leaf = Leaf(lambda request: HandOver(Seeing()), methods=(b"GET",))
    async with tcp_serving({b"/see": leaf}) as served:
        await served.run(lambda connection: (connection.sendall(get("/see")), read_to_end(connection)))
    assert seen == [True]


@pytest_twisted.ensureDeferred
async def test_ipv6(tcp_serving: Serving) -> None:
    """An IPv6 address is listened on, and its peers are known by theirs."""
    if not sockets.has_ipv6:
        raise AssertionError("this machine has no IPv6")
    leaf = Leaf(methods=(b"GET",))
    async with tcp_serving({b"/healthz": leaf}, address=parse_address("[::1]:0")) as served:

        def client() -> bytes:
            with sockets.create_connection(("::1", served.port.getHost().port), timeout=CLIENT_TIMEOUT_S) as connection:
                connection.sendall(CLOSE)
                return read_to_end(connection)

        (answer,) = read_answers(await deferToThread(client))
    assert answer.status == 202
    assert leaf.requests[0].peer == "::1"


@pytest_twisted.ensureDeferred
async def test_bounds(tcp_serving: Serving) -> None:
    """A connection beyond the bound is closed at once, with or without TLS in front, and counted."""
    async with tcp_serving(capacity=Capacity(1, 1)) as served:

        def client(connection: socket) -> bytes:
            connection.sendall(get("/healthz"))
            read_until(connection, b'{"ok":true}')
            return served._run(read_to_end)

        assert await served.run(client) == b""
        assert served.site.capacity.refused == 1


@pytest_twisted.ensureDeferred
async def test_unix(tcp_serving: Serving, tmp_path: Path) -> None:
    """A UNIX socket serves, has its mode from the first moment, is refused while taken, and goes with its port."""
    path = tmp_path / "gw.sock"
    address = parse_address(f"unix:{path}:mode=600")
    leaf = Leaf(methods=(b"GET",))
    async with tcp_serving({b"/healthz": leaf}, address=address) as served:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (answer,) = read_answers(await deferToThread(unix_client, str(path), CLOSE))
        assert answer.status == 202
        assert (leaf.requests[0].peer, leaf.requests[0].secure) == ("", False)
        with pytest.raises(CannotListen) as caught:
            listen(served.reactor, address, served.site, None, served.loop)
        assert str(caught.value) == f"unix:{path} is taken (EADDRINUSE)"
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_unix_left_behind(tcp_serving: Serving, tmp_path: Path) -> None:
    """The socket of a dead process is replaced; any other file is left alone and named."""
    path = tmp_path / "gw.sock"
    with socket(AF_UNIX, SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert path.exists()
    async with tcp_serving(address=parse_address(f"unix:{path}")):
        (answer,) = read_answers(await deferToThread(unix_client, str(path), CLOSE))
        assert answer.status == 200
    path.write_text("precious")
    async with tcp_serving() as served:
        with pytest.raises(CannotListen) as caught:
            listen(served.reactor, parse_address(f"unix:{path}"), served.site, None, served.loop)
        assert str(caught.value) == f"unix:{path} exists and is not a socket"
        missing = tmp_path / "nowhere" / "gw.sock"
        with pytest.raises(CannotListen, match="its directory does not exist"):
            listen(served.reactor, parse_address(f"unix:{missing}"), served.site, None, served.loop)
    assert path.read_text() == "precious"


@pytest_twisted.ensureDeferred
async def test_umask_is_kept(tcp_serving: Serving, tmp_path: Path) -> None:
    """Without a mode the umask decides, and it is the same afterwards, also after a failure."""
    path = tmp_path / "gw.sock"
    before = os.umask(0o027)
    try:
        async with tcp_serving(address=parse_address(f"unix:{path}")) as served:
            assert stat.S_IMODE(path.stat().st_mode) == 0o750
            with pytest.raises(CannotListen):
                listen(served.reactor, parse_address(f"unix:{path}"), served.site, None, served.loop)
    finally:
        assert os.umask(before) == 0o027


@pytest_twisted.ensureDeferred
async def test_tls(tcp_serving: Serving, certificates: Certificates) -> None:
    """TLS from the settings or from the address: requests say that they are secure, refusals can be read."""
    leaf = Leaf(methods=(b"GET",))
    own = Address(Kind.TLS, "127.0.0.1", private_key=str(certificates.key), certificate=str(certificates.cert))
    from_settings = in_force(certificates)

    def client(connection: socket) -> tuple[bytes, bytes]:
        with secured(certificates, connection) as stream:
            stream.sendall(get("/healthz") + get("/healthz"))
            first = read_until(stream, b'{"length":0}')
            stream.sendall(b"BAD\r\n\r\n" + b"x" * 100_000)
            return first, read_to_end(stream)

    for address, tls in ((own, None), (Address(Kind.TCP, "127.0.0.1"), from_settings)):
        async with tcp_serving({b"/healthz": leaf}, address=address, tls=tls) as served:
            first, rest = await served.run(client)
            answers = read_answers(first + rest)
            assert [answer.status for answer in answers] == [202, 202, 400]
            await served.until(lambda served=served: served.site.open == 0)
    assert all(request.secure for request in leaf.requests)


@pytest_twisted.ensureDeferred
async def test_tls_bounds_and_garbage(tcp_serving: Serving, certificates: Certificates) -> None:
    """Plain HTTP on a TLS port is closed; a connection beyond the bound is closed before any handshake."""
    tls = in_force(certificates)

    def plain(connection: socket) -> bytes:
        connection.sendall(get("/healthz"))
        return read_to_end(connection)

    def second(connection: socket) -> bytes:
        with secured(certificates, connection) as stream:
            stream.sendall(get("/healthz"))
            read_until(stream, b'{"ok":true}')
            return served._run(read_to_end)

    async with tcp_serving(tls=tls, capacity=Capacity(1, 1)) as served:
        assert b"HTTP" not in await served.run(plain)
        await served.until(lambda: served.site.open == 0)
        assert await served.run(second) == b""
        assert served.site.capacity.refused == 1


@pytest_twisted.ensureDeferred
async def test_tls_hand_over(tcp_serving: Serving, certificates: Certificates) -> None:
    """A connection changes hands inside TLS too."""

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(data.upper())  # type: ignore[union-attr]

    def client(connection: socket) -> bytes:
        with secured(certificates, connection) as stream:
            stream.sendall(get("/echo", "Connection: Upgrade", "Upgrade: echo") + b"early ")
            received = read_until(stream, b"EARLY ")
            stream.sendall(b"late")
            return received + read_until(stream, b"LATE")

    leaf = Leaf(lambda request: HandOver(Echo()), methods=(b"GET",))
    tls = in_force(certificates)
    async with tcp_serving({b"/echo": leaf}, tls=tls) as served:
        assert await served.run(client) == b"EARLY LATE"
        await served.until(lambda: served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_files(tcp_serving: Serving, certificates: Certificates, tmp_path: Path) -> None:
    """A Resource's file of 5 MB comes whole, to a client that reads in small pieces, plain and inside TLS."""
    content = os.urandom(5_000_000)
    (tmp_path / "big.bin").write_bytes(content)

    def read_slowly(stream: socket) -> bytes:
        stream.sendall(get("/big.bin", "Connection: close"))
        received = []
        while piece := stream.recv(8192):
            received.append(piece)
        return b"".join(received)

    def client(connection: socket) -> bytes:
        with secured(certificates, connection) as stream:
            return read_slowly(stream)

    for tls in (None, in_force(certificates)):
        async with tcp_serving({}, tls=tls) as served:
            served.leaves[b"/big.bin"] = StockLeaf(File(str(tmp_path)), served.reactor, corr_id=lambda: "req_file")
            (answer,) = read_answers(await served.run(read_slowly if tls is None else client))
            assert answer.body == content
            await served.until(lambda served=served: served.site.open == 0)


@pytest_twisted.ensureDeferred
async def test_silent_tls_client(tcp_serving: Serving, certificates: Certificates) -> None:
    """A client that never finishes its handshake is closed at the deadline of the first head."""
    tls = in_force(certificates)
    async with tcp_serving(tls=tls, limits=Limits(head_s=0.5)) as served:
        with pytest.raises(ConnectionResetError):
            await served.run(read_to_end)
        await served.until(lambda: served.site.open == 0)


def test_tls_files(certificates: Certificates, tmp_path: Path) -> None:
    """A file that cannot be used is named; nothing of a key is in the text, nor in what the error hangs on."""
    other = make_certificates(tmp_path / "other")
    junk = tmp_path / "junk.pem"
    junk.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0LW1hdGVyaWFs\n-----END PRIVATE KEY-----\n")
    half = tmp_path / "half.pem"
    half.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    cert, key = str(certificates.cert), str(certificates.key)
    cases: list[tuple[tuple[str, ...], str]] = [
        ((str(tmp_path / "none.pem"), key), f"{tmp_path / 'none.pem'} cannot be read: No such file or directory"),
        ((cert, str(tmp_path / "none.pem")), f"{tmp_path / 'none.pem'} cannot be read: No such file or directory"),
        ((key, key), f"{key} has no PEM certificate"),
        ((str(half), key), f"{half} has no usable PEM certificate"),
        ((cert, str(junk)), f"{junk} is not the unencrypted PEM key of {cert}"),
        ((cert, str(other.key)), f"{other.key} is not the unencrypted PEM key of {cert}"),
    ]
    for files, text in cases:
        with pytest.raises(CannotListen) as caught:
            load_tls(*files)
        assert str(caught.value) == text
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_tls_chain(certificates: Certificates, tmp_path: Path) -> None:
    """A chain may follow the certificate in its file, or stand in one of its own; one file may hold key and all."""
    whole = tmp_path / "whole.pem"
    whole.write_bytes(certificates.cert.read_bytes() + certificates.ca.read_bytes() + certificates.key.read_bytes())
    assert len(load_tls(str(whole), str(whole)).chain) == 1
    assert len(load_tls(str(certificates.cert), str(certificates.key), str(certificates.ca)).chain) == 1
