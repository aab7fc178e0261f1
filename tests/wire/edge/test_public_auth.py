"""The public authentication paths on real sockets: our channel in front, a real HTTP service behind."""

import http.client
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from socket import socket

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from gatewayd.address_gate import AddressGate
from gatewayd.answers import Answers
from gatewayd.commands.auth_requests import MAX_ANSWER_BYTES
from gatewayd.commands.public_auth import AuthService, PublicAuth, in_this_shape
from gatewayd.commands.upstream import Upstream
from gatewayd.ingress.sources import make_rules
from gatewayd.times import Monotonic, Wall
from tests.buses import pause, reactor_clock
from tests.services import HttpService, Said
from tests.unit.settings_case import HOME, load_from
from tests.wire.listeners import Served, serving

SEND = "/api/v1/public/auth/send-email-code"
BODY = b'{"email":"ann@example.com"}'


@pytest.fixture
def service() -> Iterator[HttpService]:
    made = HttpService(lambda asked: Said(b'{"challenge_id":"c-1"}', {"Content-Type": "application/json"}))
    yield made
    made.close()


@asynccontextmanager
async def gateway(base_url: str) -> AsyncIterator[Served]:
    """A site with the paths, whose service has 300 ms."""
    clock = reactor_clock()

    def now() -> Monotonic:
        return Monotonic(clock.seconds())

    loaded = load_from({**HOME, "RATE_LIMIT_EXEMPT_CIDRS": "loopback"})
    assert loaded.settings is not None
    rules = make_rules(loaded.settings)
    upstream = Upstream(clock, MAX_ANSWER_BYTES)
    asked = AuthService(base_url, upstream, now=now, complain=lambda _: None, deadline_s=0.3)
    leaf = PublicAuth(asked, AddressGate(lambda: rules, now), closed=lambda: None, now=now)
    async with serving({SEND.encode(): leaf}) as served:
        served.site.refuse = in_this_shape(Answers(lambda: Wall(1.7e9)).refuse)
        yield served
    await upstream.stop()
    await pause(0.01)


async def post(served: Served, body: bytes = BODY, **how: object) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One request by the standard library's client."""
    port = served.port.getHost().port

    def run() -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            pieces = iter([body]) if how.get("chunked") else body
            chunked = bool(how.get("chunked"))
            connection.request("POST", SEND, pieces, {"Content-Type": "application/json"}, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    return await deferToThread(run)


@pytest_twisted.ensureDeferred
async def test_there_and_back(service: HttpService) -> None:
    """What the client sends is what the service reads, and what it says is what the client reads."""
    async with gateway(service.url) as served:
        status, body, headers = await post(served)
        assert (status, body, headers["Content-Type"]) == (200, b'{"challenge_id":"c-1"}', "application/json")
        assert headers["Cache-Control"] == "no-store"
        (asked,) = service.asked
        assert (asked.target, asked.body) == (SEND, BODY)
        assert asked.headers["x-forwarded-for"] == "127.0.0.1"
        assert asked.headers["x-request-id"] == headers["X-Correlation-ID"]
        service.act = lambda _: Said(b"", {}, 204)
        status, body, headers = await post(served)
        assert (status, body, headers["Content-Length"]) == (204, b"", None)


@pytest_twisted.ensureDeferred
async def test_a_body_that_turns_out_too_long(service: HttpService) -> None:
    """A chunked body beyond the bound is refused in the same shape as one that says so, and goes nowhere."""
    async with gateway(service.url) as served:
        for chunked in (False, True):
            status, body, _ = await post(served, b'{"email":"' + b"a" * 10_000 + b'"}', chunked=chunked)
            assert status == 413
            assert json.loads(body)["error"]["code"] == "payload_too_large"
        assert not service.asked


@pytest_twisted.ensureDeferred
async def test_bad_services(service: HttpService) -> None:
    """A service that is silent, cut off, or endless costs a clear answer each time, in time."""

    def endless(connection: socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    def silent(_: socket) -> None:
        service.release.wait(10)

    def cut(connection: socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")

    async with gateway(service.url) as served:
        for raw, wanted in ((silent, 504), (cut, 502), (endless, 502)):
            service.raw = raw
            status, body, _ = await post(served, b'{"email":"%d@x"}' % wanted)
            assert status == wanted, raw
            assert set(json.loads(body)["error"]) == {"code", "message"}
        service.close()
        status, body, headers = await post(served, b'{"email":"last@x"}')
        assert (status, headers["Retry-After"]) == (503, "1")
        assert json.loads(body)["error"]["code"] == "service_unavailable"
