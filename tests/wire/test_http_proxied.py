"""The PROXY header on real connections: whose they are, what is refused, and that nobody else's is believed."""

import json
import ssl
import time
from collections.abc import Callable, Sequence
from socket import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.http.capacity import Capacity
from gatewayd.http.message import Response
from gatewayd.http.proxied import Proxies
from gatewayd.http.rules import Limits
from tests.fakes.connection import Leaf, get, read_answers
from tests.servers import Certificates
from tests.unit.http.test_proxyheader import v2, v2_tcp
from tests.wire.conftest import Serving, in_force
from tests.wire.listeners import Served, read_to_end, read_until

CLOSE = get("/who", "Connection: close")
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"


def who() -> dict[bytes, Any]:
    """A leaf that says whose request it is."""
    say = lambda request: Response(200, json.dumps([request.peer, request.client_ip]).encode())  # noqa: E731
    return {b"/who": Leaf(say, methods=(b"GET",))}


def announced(peer: str) -> bool:
    """Everybody on this machine is a proxy."""
    return peer == "127.0.0.1"


class Around:
    """The Proxies of a site that is made later, as serving() makes it."""

    proxies: Proxies

    def __init__(self, announces: Callable[[str], bool] = announced) -> None:
        self._announces = announces

    def __call__(self, factory: Any) -> Any:
        site = getattr(factory, "above", factory)
        self.proxies = Proxies(site.capacity, site.clock, self._announces, site.limits)
        return self.proxies.around(factory)


def sending(*pieces: bytes) -> Callable[[socket], bytes]:
    """A client that sends these, each for itself, and reads to the end; a reset is an end."""

    def client(connection: socket) -> bytes:
        try:
            for piece in pieces:
                connection.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0.003)
            return read_to_end(connection)
        except ConnectionResetError:
            return b"reset"

    return client


async def ask(served: Served, *pieces: bytes) -> tuple[int, Any]:
    """The status of one answer and what it says."""
    (answer,) = read_answers(await served.run(sending(*pieces)))
    return answer.status, json.loads(answer.body)


@pytest_twisted.ensureDeferred
async def test_the_carried_address(tcp_serving: Serving) -> None:
    """A request behind a header is its client's, in either version and family; a header may come in pieces."""
    around = Around()
    async with tcp_serving(who(), around=around) as served:
        for header, client in (
            (V1, "192.0.2.7"),
            (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", "2001:db8::7"),
            (v2_tcp("192.0.2.8", more=b"\x04\0\1\0"), "192.0.2.8"),
            (v2_tcp("2001:db8::8"), "2001:db8::8"),
            (v2_tcp("::ffff:192.0.2.9"), "192.0.2.9"),
            (v2(0x20, 0, b""), "127.0.0.1"),
            (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        ):
            assert await ask(served, header + CLOSE) == (200, [client, client])
        assert await ask(served, V1[:9], V1[9:], CLOSE[:7], CLOSE[7:]) == (200, ["192.0.2.7"] * 2)
        pieces = [bytes([byte]) for byte in v2_tcp("192.0.2.8")]
        assert await ask(served, *pieces, CLOSE) == (200, ["192.0.2.8"] * 2)
        assert (served.site.capacity.arriving, around.proxies.refused) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_a_connection_goes_on(tcp_serving: Serving) -> None:
    """One header serves a whole connection, whose later requests are the same client's."""
    async with tcp_serving(who(), around=Around()) as served:

        def client(connection: socket) -> list[bytes]:
            found = []
            for data in (V1 + get("/who"), get("/who"), get("/who")):
                connection.sendall(data)
                found.append(read_until(connection, b'"]'))
            return found

        assert [read_answers(data)[0].body for data in await served.run(client)] == [b'["192.0.2.7", "192.0.2.7"]'] * 3


@pytest_twisted.ensureDeferred
async def test_what_is_refused(tcp_serving: Serving, logged: list[LogEvent]) -> None:
    """A proxy's connection without a header, or with a broken one, is cut unanswered, counted, and said once."""
    around = Around()
    async with tcp_serving(who(), around=around) as served:
        broken: Sequence[bytes] = (CLOSE, V1[:-2] + b" \r\n" + CLOSE, b"PROXY UNKNOWN" + b"f" * 100, v2(0x22, 0, b""))
        for data in broken:
            assert await served.run(sending(data)) == b"reset"
        assert around.proxies.refused == len(broken)
        assert (served.site.open, served.site.capacity.arriving, served.finished) == (0, 0, [])
        assert await served.run(lambda connection: None) is None  # a check that somebody listens
        assert await ask(served, V1 + CLOSE) == (200, ["192.0.2.7"] * 2)
        assert around.proxies.refused == len(broken)
    lines = [event for event in logged if event.get("event") == "listener.proxy_header"]
    assert [(line["peer"], line["reason"]) for line in lines] == [("127.0.0.1", "missing")]


@pytest_twisted.ensureDeferred
async def test_nobody_else_is_believed(tcp_serving: Serving) -> None:
    """A header of a peer that is no proxy is rubbish like any other, and says nothing about its sender."""
    around = Around(lambda peer: False)
    leaves = who()
    async with tcp_serving(leaves, around=around) as served:
        (answer,) = read_answers(await served.run(sending(V1 + CLOSE)))
        assert answer.status == 400
        assert await ask(served, CLOSE) == (200, ["127.0.0.1"] * 2)
    assert [request.peer for request in leaves[b"/who"].requests] == ["127.0.0.1"]


@pytest_twisted.ensureDeferred
async def test_late(tcp_serving: Serving) -> None:
    """A header has as long as a head; begun or not, its connection is then cut."""
    around = Around()
    async with tcp_serving(who(), around=around, limits=Limits(head_s=0.2)) as served:
        for data in (b"", b"PROX", v2_tcp("192.0.2.7")[:-1]):
            assert await served.run(sending(data)) == b"reset"
        assert (around.proxies.refused, served.site.capacity.arriving) == (3, 0)


@pytest_twisted.ensureDeferred
async def test_bounds(tcp_serving: Serving) -> None:
    """
    Each client has its own bound of connections, whoever carries them; all together, with those whose header is still
    awaited, have the site's.
    """
    async with tcp_serving(who(), around=Around(), capacity=Capacity(3, 1)) as served:

        def client(connection: socket) -> list[Any]:
            connection.sendall(V1 + get("/who"))
            read_until(connection, b'"]')
            found: list[Any] = [served._run(sending(V1 + CLOSE))]  # its second
            found.append(served._run(sending(v2_tcp("192.0.2.8") + CLOSE)))  # somebody else's first

            def silent(second: socket) -> None:
                second.sendall(b"PROXY ")

                def third(_: socket) -> None:
                    found.append(served._run(read_to_end))  # a fourth

                served._run(third)

            served._run(silent)
            return found

        own, other, beyond = await served.run(client)
        assert own in (b"", b"reset")
        assert read_answers(other)[0].status == 200
        assert beyond == b""
        assert served.site.capacity.refused == 2


@pytest_twisted.ensureDeferred
async def test_before_tls(tcp_serving: Serving, certificates: Certificates) -> None:
    """The header stands in front of the handshake, also in one piece with its first bytes."""
    context = ssl.create_default_context(cafile=str(certificates.ca))

    def client(connection: socket) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        header = V1
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(header + outgoing.read())
                header = b""
                incoming.write(connection.recv(65536))
        session.write(CLOSE)
        connection.sendall(outgoing.read())
        received = b""
        while piece := connection.recv(65536):
            incoming.write(piece)
            try:
                while data := session.read(65536):
                    received += data
            except ssl.SSLWantReadError:
                pass
        return received

    leaves = who()
    async with tcp_serving(leaves, around=Around(), tls=in_force(certificates)) as served:
        (answer,) = read_answers(await served.run(client))
        assert (answer.status, json.loads(answer.body)) == (200, ["192.0.2.7"] * 2)
    assert leaves[b"/who"].requests[0].secure


@pytest_twisted.ensureDeferred
async def test_the_end(tcp_serving: Serving) -> None:
    """Who waits with half a header when the listener closes is cut."""
    around = Around()
    async with tcp_serving(who(), around=around) as served:
        waiting = served.run(sending(b"PROXY TC"))
        await served.until(lambda: served.site.capacity.arriving == 1)
        around.proxies.close()
        assert await waiting == b"reset"
        assert (served.site.capacity.arriving, around.proxies.refused, around.proxies.arriving) == (0, 0, set())


@pytest.fixture
def logged() -> Any:
    """Everything that is logged meanwhile."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)
