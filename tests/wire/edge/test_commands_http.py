"""The HTTP client of commands among services that are down, slow, broken, hostile, or not who they say they are."""

import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.ssl import Certificate, trustRootFromCertificates

from gatewayd.commands.http import HttpRoute
from gatewayd.commands.received import Cause, Received, Unanswered
from gatewayd.commands.upstream import Upstream
from gatewayd.sessions.endings import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT
from gatewayd.sessions.values import Answered, Command
from tests.buses import pause, reactor_clock, until
from tests.servers import Certificates, free_port, make_certificates
from tests.services import HttpService, Said, echo

LONGEST = 100_000
COMMAND = Command(b"{}", "dev-1", "user-7", "orders.place", "r-1", "")


@pytest.fixture
def service() -> Iterator[HttpService]:
    made = HttpService()
    yield made
    made.close()


@asynccontextmanager
async def client(**how: Any) -> AsyncIterator[Upstream]:
    """A client whose connections are gone at the end."""
    made = Upstream(reactor_clock(), LONGEST, **how)
    try:
        yield made
    finally:
        await made.stop()
        await pause(0.02)


async def post(upstream: Upstream, url: str, deadline_s: float = 5.0, body: bytes = b"x") -> Received | Unanswered:
    found = await upstream.post(url, {"Content-Type": "text/plain"}, body, deadline_s)
    assert isinstance(found, Received | Unanswered)
    return found


def sends(data: bytes) -> Callable[[socket], None]:
    """Answers every request with these bytes, and closes."""

    def raw(connection: socket) -> None:
        connection.sendall(data)

    return raw


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "closed at once": b"",
    "half a head": HEAD + b"Content-Le",
    "shorter than it says": HEAD + b"Content-Length: 10\r\n\r\nabc",
    "no length, and the end of the connection": HEAD + b"\r\nabc",
    "half a chunk": CHUNKED + b"a\r\nabc",
    "no last chunk": CHUNKED + b"3\r\nabc\r\n",
    "no chunk size": CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "no number": HEAD + b"Content-Length: x\r\n\r\nabc",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "no status": b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "compressed": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "says it is too long": HEAD + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 1000,
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", BROKEN)
async def test_broken_answers(service: HttpService, name: str) -> None:
    """What is no whole answer is none, and known as soon as the connection tells; the next call is not harmed by it."""
    service.raw = sends(BROKEN[name])
    async with client() as upstream:
        began = time.monotonic()
        found = await post(upstream, service.url)
        assert isinstance(found, Unanswered), found
        assert found.cause is Cause.BROKEN
        assert time.monotonic() - began < 4.0
        service.raw = None
        assert await post(upstream, service.url) == Received(200, {}, b"x")
        assert len(service.asked) == 2  # nothing is asked twice


def flood(first: bytes, again: bytes, sent: list[int]) -> Callable[[socket], None]:
    """Begins like this and goes on like that, until nobody takes it any more."""

    def raw(connection: socket) -> None:
        connection.sendall(first)
        while sent[0] < 200_000_000:
            connection.sendall(again)
            sent[0] += len(again)

    return raw


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    ("first", "again"),
    [
        (HEAD, b"X-A: 1\r\n" * 1000),
        (HEAD + b"X-A: ", b"a" * 10_000),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
        (CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        (CHUNKED, b"1\r\nx\r\n" * 1000),
        (CHUNKED + b"0\r\n", b"X-Trailer: 1\r\n" * 1000),
        (HEAD + b"\r\n", b"x" * 100_000),
    ],
    ids=["headers", "one header", "early hints", "chunks", "tiny chunks", "trailers", "no end"],
)
async def test_endless_answers(service: HttpService, first: bytes, again: bytes) -> None:
    """What has no end is cut after a bounded number of bytes, whatever it consists of."""
    sent = [0]
    service.raw = flood(first, again, sent)
    async with client() as upstream:
        found = await post(upstream, service.url)
        assert isinstance(found, Unanswered), found
        assert found.cause is Cause.BROKEN, found
        # The rest is what fits between two sockets.
        assert sent[0] < 20_000_000


@pytest_twisted.ensureDeferred
async def test_the_longest_answer(service: HttpService) -> None:
    """A body may have exactly as many bytes as are taken."""
    async with client() as upstream:
        service.act = lambda asked: Said(bytes(LONGEST))
        assert await post(upstream, service.url) == Received(200, {}, bytes(LONGEST))
        service.act = lambda asked: Said(bytes(LONGEST + 1))
        assert isinstance(await post(upstream, service.url), Unanswered)


@pytest_twisted.ensureDeferred
async def test_deadlines(service: HttpService) -> None:
    """Whatever is awaited (the handshake, the head, the rest of a body that trickles), the deadline holds."""

    def trickles(connection: socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        while not service.release.wait(0.02):
            connection.sendall(b"x")

    def silent(_: socket) -> None:
        service.release.wait(10.0)

    tls_url = service.url.replace("http:", "https:")
    async with client() as upstream:
        for raw, at_once, url in (
            (silent, False, service.url),
            (trickles, False, service.url),
            (silent, True, tls_url),
        ):
            service.raw, service.at_once = raw, at_once
            began = time.monotonic()
            found = await post(upstream, url, 0.25)
            assert isinstance(found, Unanswered)
            assert found.cause is Cause.TIMED_OUT
            assert 0.24 < time.monotonic() - began < 3.0


@pytest_twisted.ensureDeferred
async def test_down(service: HttpService) -> None:
    """A closed port and a name that does not exist are known at once, and are no fault of an answer."""
    async with client() as upstream:
        for url in (f"http://127.0.0.1:{free_port()}/", "http://no-such-host.invalid/"):
            began = time.monotonic()
            found = await post(upstream, url)
            assert isinstance(found, Unanswered)
            assert found.cause is Cause.DOWN, found
            assert time.monotonic() - began < 2.0


@pytest_twisted.ensureDeferred
async def test_connections(service: HttpService) -> None:
    """A connection is used again, but not after its server closed it, and not for long when nobody needs it."""
    async with client() as upstream:
        for _ in range(5):
            await post(upstream, service.url)
        assert {asked.connection for asked in service.asked} == {1}
        service.act = lambda asked: Said(b"", {"Connection": "close"})
        await post(upstream, service.url)
        service.act = echo
        await post(upstream, service.url)
        assert service.asked[-1].connection == 2
        await pause(1.2)
        await post(upstream, service.url)
        assert service.asked[-1].connection == 3


@pytest_twisted.ensureDeferred
async def test_where_a_url_leads() -> None:
    """An IPv6 address is a host like any other, and a path and a query are sent as they were written."""
    service = HttpService(host="::1")
    try:
        async with client() as upstream:
            for target in ("", "/a//b|c?d=%2F+e", "/%7Euser;v=1"):
                assert isinstance(await post(upstream, service.url + target), Received)
        assert [asked.target for asked in service.asked] == ["/", "/a//b|c?d=%2F+e", "/%7Euser;v=1"]
    finally:
        service.close()


@pytest_twisted.ensureDeferred
async def test_nothing_is_remembered(service: HttpService) -> None:
    """Cookies of one answer are not sent with the next request; no coding is offered, and nobody says who we are."""
    async with client() as upstream:
        service.act = lambda asked: Said(b"", {"Set-Cookie": "session=1; Path=/"})
        await post(upstream, service.url)
        await post(upstream, service.url)
        assert all(asked.headers == {"content-type": "text/plain"} for asked in service.asked), service.asked


@pytest_twisted.ensureDeferred
async def test_the_environment_names_no_proxy(service: HttpService, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says about proxies is for others."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with client() as upstream:
        assert isinstance(await post(upstream, service.url), Received)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def trusting(files: Certificates) -> Any:
    return trustRootFromCertificates([Certificate.loadPEM(files.ca.read_bytes())])


@pytest_twisted.ensureDeferred
async def test_tls(certificates: Certificates, tmp_path: Path) -> None:
    """https is spoken with who has the host's certificate, by an authority that is trusted, and with nobody else."""
    others = make_certificates(tmp_path, "elsewhere.example")
    for files, root, good in (
        (certificates, trusting(certificates), True),
        (certificates, None, False),
        (certificates, trusting(others), False),
        (others, trusting(others), False),
    ):
        service = HttpService(tls=files)
        try:
            async with client(trust_root=root) as upstream:
                found = await post(upstream, service.url)
                if good:
                    assert found == Received(200, {}, b"x")
                    await post(upstream, service.url)
                    assert {asked.connection for asked in service.asked} == {1}
                else:
                    assert isinstance(found, Unanswered)
                    assert found.cause is Cause.DOWN, found
                    assert not service.asked
        finally:
            service.close()


@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_end_tls(certificates: Certificates) -> None:
    """A connection whose peer does not answer the end of TLS is gone all the same."""
    service = HttpService(tls=certificates)
    gone: list[float] = []

    def stubborn(connection: ssl.SSLSocket) -> None:
        connection.sendall(HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        with socket(fileno=connection.detach()) as raw, contextlib.suppress(ConnectionResetError):
            while raw.recv(65536):
                pass
        gone.append(time.monotonic())

    service.raw = stubborn
    try:
        async with client(trust_root=trusting(certificates)) as upstream:
            assert await post(upstream, service.url) == Received(200, {}, b"")
            await until(lambda: gone, within_s=5.0)
    finally:
        service.close()


@pytest_twisted.ensureDeferred
async def test_statuses(service: HttpService) -> None:
    """2xx and 4xx are answers, with a word of theirs or one made of the status; redirects and 5xx are none."""
    complaints: list[str] = []
    async with client() as upstream:
        route = HttpRoute(upstream, f"{service.url}/c", random=bytes, complain=complaints.append)
        for status, headers, wanted in (
            (200, {}, Answered("ok", b"b")),
            (201, {"x-result-code": "created"}, Answered("created", b"b")),
            (400, {}, Answered("http_400", b"b")),
            (409, {"X-Result-Code": "conflict"}, Answered("conflict", b"b")),
            (302, {"Location": f"{service.url}/elsewhere"}, UPSTREAM_FAILED),
            (408, {}, UPSTREAM_FAILED),
            (429, {}, UPSTREAM_FAILED),
            (500, {"X-Result-Code": "ok"}, UPSTREAM_FAILED),
            (503, {}, UPSTREAM_FAILED),
        ):
            service.act = lambda asked, said=Said(b"b", headers, status): said  # type: ignore[misc]
            assert await route.call(COMMAND, 5.0) == wanted, status
        service.act = lambda asked: None
        assert await route.call(COMMAND, 0.1) == UPSTREAM_TIMED_OUT
    assert [asked.target for asked in service.asked] == ["/c"] * 10
    assert complaints == [*(f"status {status}" for status in (302, 408, 429, 500, 503)), "no answer within 0.1 s"]
