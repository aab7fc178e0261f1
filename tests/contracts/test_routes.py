"""The contract of IRoute, run against a real service on a real nats-server and against a real HTTP server."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from zope.interface.verify import verifyObject

from gatewayd.commands.api import IRoute
from gatewayd.commands.http import HttpRoute
from gatewayd.commands.nats import NatsRoute
from gatewayd.commands.upstream import Upstream
from gatewayd.sessions.endings import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT
from gatewayd.sessions.values import Answered, Command
from tests.buses import connected_bus, pause, reactor_clock
from tests.servers import NatsServer
from tests.services import Act, Asked, HttpService, NatsService, Said, echo

SUBJECT = "orders.place"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"\x00\xf0\x67\xaa\x0b\xa9\x02\xb7"
LONGEST = 100_000
SLACK_S = 3.0
"""What a noisy machine may add to a deadline."""


def command(payload: bytes = b"{}", trace_id: str = "") -> Command:
    """A command with ids as clients make them."""
    return Command(payload, "dev:1/x", "user-7", "orders.place", "r~1", trace_id)


class Bench:
    """A route and the service behind it; `word` is how the service names one of the command's words."""

    def __init__(self, route: Any, service: Any, word: Callable[[str], str], close: Callable[[], Any]) -> None:
        self.route = route
        self.service = service
        self.word = word
        self.close = close
        self.complaints: list[str] = []

    def context(self, asked: Asked) -> dict[str, str]:
        """What came beside the payload, under the names of the command's members."""
        names = ("device_session_id", "user_id", "message_type", "request_id", "trace_id")
        found = {name: asked.headers[self.word(name)] for name in names if self.word(name) in asked.headers}
        return {**found, **({"traceparent": asked.headers["traceparent"]} if "traceparent" in asked.headers else {})}

    def said(self, code: str, body: bytes = b"") -> Said:
        """An answer with a result code."""
        return Said(body, {"result_code" if self.word("x") == "x" else "X-Result-Code": code})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield made
    made.close()


@pytest.fixture(params=["nats", "http"])
def make(request: pytest.FixtureRequest, server: NatsServer) -> Any:
    """A bench of either kind, with a service that acts like this."""

    @asynccontextmanager
    async def benches(act: Act = echo) -> AsyncIterator[Bench]:
        bench: Bench
        complaints: list[str] = []
        how: dict[str, Any] = {"random": lambda _: SPAN, "complain": complaints.append}
        if request.param == "nats":
            async with connected_bus(server) as bus:
                service = NatsService(server, SUBJECT, act)
                bench = Bench(NatsRoute(bus, SUBJECT, **how), service, str, service.close)
                bench.complaints = complaints
                try:
                    yield bench
                finally:
                    service.close()
            return
        upstream = Upstream(reactor_clock(), LONGEST)
        web = HttpService(act)
        route = HttpRoute(upstream, f"{web.url}/commands?v=1", **how)
        bench = Bench(route, web, lambda name: f"x-{name.replace('_', '-')}", web.close)
        bench.complaints = complaints
        try:
            yield bench
        finally:
            web.close()
            await upstream.stop()
            await pause(0.01)

    return benches


@pytest_twisted.ensureDeferred
async def test_the_service_gets_everything(make: Any) -> None:
    """The very payload, and session, user, message type and request id; no trace where the client sent none."""
    payload = bytes(range(256)) * 4
    async with make() as bench:
        assert verifyObject(IRoute, bench.route)
        called = bench.route.call(command(payload), 5.0)
        assert isinstance(called, Deferred)
        assert await called == Answered("ok", payload)
        (asked,) = bench.service.asked
        assert asked.body == payload
        sent = command()
        assert bench.context(asked) == {
            "device_session_id": sent.device_session_id,
            "user_id": sent.user_id,
            "message_type": sent.message_type,
            "request_id": sent.request_id,
        }


@pytest_twisted.ensureDeferred
async def test_the_trace_goes_on(make: Any) -> None:
    """A trace id goes on as it is and as a traceparent with a span of ours; a traceparent goes on unchanged."""
    async with make() as bench:
        whole = f"00-{TRACE}-b7ad6b7169203331-01"
        for trace_id, wanted in ((TRACE, f"00-{TRACE}-{SPAN.hex()}-00"), (whole, whole), ("my-trace", None)):
            assert await bench.route.call(command(trace_id=trace_id), 5.0) == Answered("ok", b"{}")
            found = bench.context(bench.service.asked[-1])
            assert (found["trace_id"], found.get("traceparent")) == (trace_id, wanted)


@pytest_twisted.ensureDeferred
async def test_result_codes(make: Any) -> None:
    """The service's own word is the answer's; without one it is "ok", also for an empty answer."""
    async with make() as bench:
        bench.service.act = lambda asked: bench.said("insufficient_margin", b"\x00why")
        assert await bench.route.call(command(), 5.0) == Answered("insufficient_margin", b"\x00why")
        bench.service.act = lambda asked: Said()
        assert await bench.route.call(command(b""), 5.0) == Answered("ok", b"")
        assert bench.complaints == []


@pytest_twisted.ensureDeferred
async def test_an_error_without_a_word_is_not_ok(make: Any) -> None:
    """What says that it is an error, and no code, is an answer with a code that says so."""
    async with make() as bench:
        bench.service.act = lambda asked: Said(b"no", {"Nats-Service-Error-Code": "422"}, 422)
        found = await bench.route.call(command(), 5.0)
        assert found in (Answered("service_error", b"no"), Answered("http_422", b"no"))


@pytest_twisted.ensureDeferred
async def test_no_answer_in_time(make: Any) -> None:
    """A service that never answers costs the deadline and no more; what comes afterwards is its own affair."""
    async with make(lambda asked: None) as bench:
        began = time.monotonic()
        assert await bench.route.call(command(), 0.2) == UPSTREAM_TIMED_OUT
        assert 0.19 <= time.monotonic() - began < 0.2 + SLACK_S
        assert len(bench.service.asked) == 1
        assert len(bench.complaints) == 1
        bench.service.act = echo
        if isinstance(bench.service, HttpService):
            bench.service.release.set()
        assert await bench.route.call(command(b"again"), 5.0) == Answered("ok", b"again")


@pytest_twisted.ensureDeferred
async def test_a_late_answer_is_nobodys(make: Any) -> None:
    """An answer that comes too late is not taken for that of the next command."""
    go_on = Event()

    def late(asked: Asked) -> Said:
        if asked.body == b"first":
            go_on.wait(10.0)
        return echo(asked)

    async with make(late) as bench:
        try:
            assert await bench.route.call(command(b"first"), 0.2) == UPSTREAM_TIMED_OUT
            second = bench.route.call(command(b"second"), 5.0)
            go_on.set()
            assert await second == Answered("ok", b"second")
        finally:
            go_on.set()


@pytest_twisted.ensureDeferred
async def test_nobody_there(make: Any) -> None:
    """A service that is not there is known at once, and named in one complaint that holds nothing of the command."""
    async with make() as bench:
        bench.close()
        await pause(0.05)
        began = time.monotonic()
        assert await bench.route.call(command(b"secret-payload"), 20.0) == UPSTREAM_FAILED
        assert time.monotonic() - began < SLACK_S
        (complaint,) = bench.complaints
        assert "secret" not in complaint
        assert "user-7" not in complaint


@pytest_twisted.ensureDeferred
async def test_giving_up(make: Any) -> None:
    """A call that is cancelled fails with that alone, and the route works on."""
    async with make(lambda asked: None) as bench:
        called = bench.route.call(command(), 20.0)
        await pause(0.1)
        called.cancel()
        with pytest.raises(CancelledError):
            await called
        bench.service.act = echo
        if isinstance(bench.service, HttpService):
            bench.service.release.set()
        assert await bench.route.call(command(b"again"), 5.0) == Answered("ok", b"again")
        never_begun = bench.route.call(command(), 20.0)
        never_begun.cancel()
        with pytest.raises(CancelledError):
            await never_begun


@pytest_twisted.ensureDeferred
async def test_many_at_once(make: Any) -> None:
    """Each of many commands gets its own answer."""
    async with make() as bench:
        payloads = [b"%d" % number for number in range(64)]
        found = await gatherResults([bench.route.call(command(payload), 10.0) for payload in payloads])
        assert found == [Answered("ok", payload) for payload in payloads]


def test_paths() -> None:
    """This suite is for everything that implements IRoute."""
    root = Path(__file__).parents[2] / "gatewayd/commands"
    named = {path.name for path in root.glob("*.py") if "@implementer(IRoute)" in path.read_text()}
    assert named == {"http.py", "nats.py"}
