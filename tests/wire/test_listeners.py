"""The public listeners with real sockets: inherited ones, certificates that are renewed, and the end."""

import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from gatewayd.http.addresses import Address, CannotListen
from gatewayd.http.inherited import Inherited
from gatewayd.http.proxied import Proxies
from gatewayd.http.rules import Limits
from gatewayd.lifecycle import StartFailed
from gatewayd.listeners import Listeners
from tests.buses import reactor_loop
from tests.fakes.connection import get, read_answers
from tests.servers import make_certificates
from tests.sockets import listening_tcp, listening_unix
from tests.unit.settings_case import HOME, load_from
from tests.wire.listeners import CLIENT_TIMEOUT_S, Served, default_leaves, read_to_end, read_until

T = TypeVar("T")
CLOSE = get("/healthz", "Connection: close")
NONE = Inherited()
INET = "systemd:domain=INET:name=public"


class Given:
    """Inherited sockets, copies of these: their descriptors are not those that systemd would choose."""

    names = ()

    def __init__(self, **given: list[Any]) -> None:
        self._descriptors = {name: tuple(os.dup(one.fileno()) for one in ones) for name, ones in given.items()}

    def descriptors(self, address: Address) -> tuple[int, ...]:
        """Those of a name, or of all for an index."""
        return self._descriptors[address.name or "public"]


def nobody(peer: str) -> bool:
    """No peer sends a PROXY header."""
    return False


def made(
    served: Served,
    addresses: str,
    inherited: Any = NONE,
    announces: Callable[[str], bool] = nobody,
    **settings: str,
) -> Listeners:
    """Listeners of a site."""
    loaded = load_from({**HOME, "GATEWAY_PUBLIC_HTTP_ADDR": addresses, **settings})
    assert loaded.settings is not None, loaded.problems
    proxies = Proxies(served.site.capacity, served.reactor, announces)
    return Listeners(served.reactor, reactor_loop(), loaded.settings, served.site, proxies=proxies, inherited=inherited)


@asynccontextmanager
async def listening(
    addresses: str, inherited: Any = NONE, announces: Callable[[str], bool] = nobody, **settings: str
) -> AsyncIterator[tuple[Served, Listeners]]:
    """Open listeners and what they serve; nothing is left at the end."""
    served = Served(default_leaves(), Limits())
    listeners = made(served, addresses, inherited, announces, **settings)
    listeners.open()
    try:
        yield served, listeners
    finally:
        await listeners.close()
    assert (served.site.open, served.site.in_flight) == (0, 0)


async def in_thread(client: Callable[[], T]) -> T:
    """Have a blocking client run beside the reactor."""
    return await deferToThread(client)


def connected(name: Any, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A client's socket."""
    client = socket.socket(family)
    client.settimeout(CLIENT_TIMEOUT_S)
    client.connect(name)
    return client


def ask(client: socket.socket, request: bytes = CLOSE) -> bytes:
    """One request, and everything until the end."""
    with client:
        client.sendall(request)
        return read_to_end(client)


@pytest_twisted.ensureDeferred
async def test_inherited_of_every_kind(tmp_path: Path) -> None:
    """One name means the sockets of its domain; none is accepted from before it is said; a UNIX path stays."""
    four, six, local = listening_tcp(), listening_tcp("::1"), listening_unix(tmp_path / "gw.sock")
    given = Given(public=[four, six], local=[local])
    addresses = f"{INET},systemd:domain=INET6:name=public,systemd:domain=UNIX:name=local"
    async with listening(addresses, given) as (served, listeners):
        clients = [connected(one.getsockname(), one.family) for one in (four, six, local)]
        await served.pause(0.05)
        assert served.site.open == 0
        listeners.accept()
        listeners.accept()
        for client in clients:
            (answer,) = read_answers(await in_thread(lambda client=client: ask(client)))
            assert answer.status == 200
        peers = {request.peer for request in served.leaves[b"/healthz"].requests}
        assert peers == {"127.0.0.1", "::1", ""}
    assert (tmp_path / "gw.sock").exists()
    for one in (four, six, local):
        one.close()


@pytest_twisted.ensureDeferred
async def test_probes_are_answered_in_a_long_start() -> None:
    """After a second an inherited socket is accepted from, ready or not."""
    with listening_tcp() as inherited:
        async with listening(INET, Given(public=[inherited])) as (_, listeners):
            client = connected(inherited.getsockname())
            (answer,) = read_answers(await in_thread(lambda: ask(client)))
            assert answer.status == 200
            assert not listeners.ports.waiting


@pytest_twisted.ensureDeferred
async def test_the_successor_serves_what_waits() -> None:
    """At the end every idle connection gets a last answer, and nothing that comes after it is lost."""
    with listening_tcp() as inherited:
        name = inherited.getsockname()
        async with listening(INET, Given(public=[inherited])) as (served, listeners):
            listeners.accept()
            kept = connected(name)
            await in_thread(lambda: (kept.sendall(get("/healthz")), read_until(kept, b'{"ok":true}')))
            drained = Deferred.fromCoroutine(listeners.drain())
            await served.pause(0.1)
            (late,) = read_answers(await in_thread(lambda: ask(connected(name), get("/healthz"))))
            assert (late.status, late.closes) == (200, True)  # it came while another connection was idle
            (last,) = read_answers(await in_thread(lambda: ask(kept, get("/healthz"))))
            assert (last.status, last.closes) == (200, True)
            await drained
            waiting = connected(name)
            waiting.sendall(CLOSE)
        async with listening(INET, Given(public=[inherited])) as (_, listeners):
            listeners.accept()
            (answer,) = read_answers(await in_thread(lambda: read_to_end(waiting)))
            assert answer.status == 200
        waiting.close()


@pytest_twisted.ensureDeferred
async def test_what_is_no_such_socket() -> None:
    """A descriptor that cannot be served is named with what is wrong with it, at the start."""
    served = Served(default_leaves(), Limits())
    unbound, datagram, six = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), listening_tcp("::1")
    read_end, write_end = socket.socketpair()
    for given, why in (
        (unbound, "is no stream socket that listens"),
        (datagram, "is no stream socket that listens"),
        (six, "the socket is not of this domain but AF_INET6"),
        (read_end, "the socket is not of this domain but AF_UNIX"),
    ):
        with pytest.raises(StartFailed, match=why) as caught:
            made(served, INET, Given(public=[given])).open()
        assert str(caught.value).startswith(INET)
    with pytest.raises(StartFailed, match="LISTEN_FDS is not set"):
        made(served, INET, Inherited(problem="LISTEN_FDS is not set")).open()
    with tempfile.TemporaryFile() as file, pytest.raises(StartFailed, match="is no socket: Socket operation on non-so"):
        made(served, INET, Given(public=[file])).open()
    with listening_tcp() as twice:
        listeners = made(served, f"{INET},systemd:domain=INET:index=0", Given(public=[twice]))
        with pytest.raises(StartFailed, match="another address means the same socket"):
            listeners.open()
        await listeners.close()
    for one in (six, read_end, write_end, unbound, datagram):
        one.close()


def shown(name: Any, authority: Path) -> tuple[ssl.SSLSocket, int]:
    """A TLS connection, and the serial number of the certificate that it was shown."""
    context = ssl.create_default_context(cafile=str(authority))
    stream = context.wrap_socket(connected(name), server_hostname="localhost")
    certificate = stream.getpeercert(binary_form=True)
    assert certificate is not None
    return stream, x509.load_der_x509_certificate(certificate).serial_number


@pytest_twisted.ensureDeferred
async def test_certificates_are_renewed(tmp_path: Path) -> None:
    """
    New connections get the new certificate, of the settings and of an ssl: address, on own and inherited sockets;
    running ones go on; one file that cannot be used keeps them all.
    """
    first, second = make_certificates(tmp_path / "one"), make_certificates(tmp_path / "two")
    files = make_certificates(tmp_path / "used")
    own = make_certificates(tmp_path / "own")

    def put(source: Any, place: Any) -> None:
        for name in ("cert", "key"):
            getattr(place, name).write_bytes(getattr(source, name).read_bytes())

    def serial(source: Any) -> int:
        return x509.load_pem_x509_certificate(source.cert.read_bytes()).serial_number

    put(first, files)
    put(first, own)
    inherited = listening_tcp()
    addresses = f"127.0.0.1:0,ssl:0:privateKey={own.key}:certKey={own.cert},{INET}"
    tls = {"GATEWAY_TLS_CERT": str(files.cert), "GATEWAY_TLS_KEY": str(files.key)}
    async with listening(addresses, Given(public=[inherited]), **tls) as (_, listeners):
        listeners.accept()
        ports = [listeners.port_of(address) for address in listeners.addresses[:2]]
        names = [*(("127.0.0.1", port) for port in ports), inherited.getsockname()]
        running = [await in_thread(lambda name=name: shown(name, first.ca)) for name in names]
        assert [number for _, number in running] == [serial(first)] * 3

        put(second, files)
        own.key.write_bytes(first.key.read_bytes())
        own.cert.write_bytes(second.cert.read_bytes())
        with pytest.raises(CannotListen) as caught:
            listeners.load_certificates()
        assert str(caught.value) == f"{own.key} is not the unencrypted PEM key of {own.cert}"
        put(first, own)
        use = listeners.load_certificates()
        for name in names:
            stream, number = await in_thread(lambda name=name: shown(name, first.ca))
            assert number == serial(first)  # read, and not in force yet
            stream.close()
        use()
        for name, now in zip(names, (second, first, second), strict=True):
            stream, number = await in_thread(lambda name=name, now=now: shown(name, now.ca))
            assert number == serial(now)
            stream.close()
        for stream, _ in running:
            (answer,) = read_answers(await in_thread(lambda stream=stream: ask(stream)))
            assert answer.status == 200
    inherited.close()


@pytest_twisted.ensureDeferred
async def test_a_queue_is_emptied_before_the_socket_closes() -> None:
    """Connections that the kernel has made already are answered, not reset; what comes after them is dropped."""
    async with listening("127.0.0.1:0") as (served, listeners):
        name = ("127.0.0.1", listeners.port_of(listeners.addresses[0]))
        # Nothing else runs meanwhile: all of them are in the queue when the end begins.
        clients = [connected(name) for _ in range(50)]
        for client in clients:
            client.sendall(get("/healthz"))
        served.site.draining = True
        await listeners.close()
        answers = [read_answers(read_to_end(client)) for client in clients]
        assert [(answer.status, answer.closes) for (answer,) in answers] == [(200, True)] * 50
        with socket.socket() as late, pytest.raises(ConnectionRefusedError):
            late.connect(name)
        for client in clients:
            client.close()
        assert served.site.open == 0
