"""
Autobahn's cases against an echo made of our WebSocket: within the product's bounds, and with bounds raised.

The second takes half a minute for what the first leaves out, megabytes and thousands of messages: GATEWAYD_TEST_FULL=1.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from gatewayd.http.exchange import HandOver
from gatewayd.http.message import Request
from gatewayd.push.connections import Connections
from gatewayd.push.frames import text_frame
from gatewayd.push.handshake import handshake_head
from gatewayd.push.inbound import Binary, FrameLimits, Received, Text
from gatewayd.push.outlet import OPEN
from gatewayd.push.websocket import Services, WebSocketStream
from gatewayd.sessions.envelope import read_json, write_json
from tests.buses import reactor_loop
from tests.fakes.connection import Leaf
from tests.fakes.subscribing import FakeHub
from tests.wire.conftest import Serving

pytest_plugins = ("tests.reporting",)

FULL = os.environ.get("GATEWAYD_TEST_FULL") == "1"
COMPRESSION = ["12.*", "13.*"]
"""Not spoken here: no case of them can be run."""

RAISED = FrameLimits(message_bytes=1 << 25, fragments=1 << 20, frames_per_s=1e6, burst=1 << 20)
RAISED_CASES = ["*"] if FULL else ["9.1.1", "9.2.1", "9.3.9", "9.5.6", "9.7.1"]


class Echo(WebSocketStream):
    """Our WebSocket, its bounds raised, with an echo in the place of envelopes."""

    def begin(self) -> None:
        super().begin()
        self._phase = OPEN

    def _take(self, received: Received) -> None:
        if isinstance(received, Text):
            self._put(text_frame(received.data))
        elif isinstance(received, Binary):
            self._put(b"\x82" + text_frame(received.data)[1:])
        else:
            super()._take(received)


def leaf(limits: FrameLimits, kind: type[WebSocketStream]) -> Leaf:
    """Opens a WebSocket for whoever asks."""
    hub = FakeHub()
    services = Services(hub.subscribe, hub.execute, read_json, write_json, limits)
    loop = reactor_loop()
    from twisted.internet import reactor

    connections = Connections(reactor, loop.call_soon)

    def hand_over(request: Request) -> HandOver:
        return HandOver(kind(connections, services, handshake_head(request, "req_1")))

    return Leaf(hand_over, methods=(b"GET",))


def run(url: str, cases: list[str]) -> Deferred[list[Any]]:
    """The results of the cases, good and bad."""
    from kosoku import FailureError, run_fuzzingclient

    async def fuzz() -> list[Any]:
        try:
            return list(await run_fuzzingclient(url, cases, COMPRESSION, 8))
        except FailureError as failed:
            return list(failed.results)

    return deferToThread(lambda: asyncio.run(fuzz()))


@pytest_twisted.ensureDeferred
async def test_within_bounds(tcp_serving: Serving, not_run: Callable[[str], None]) -> None:
    """Every case ends as the RFC wants it, but for the chapter on large and many messages, which ends 1009 or 1008."""
    if not importable():
        not_run("kosoku is not installed")
        return
    async with tcp_serving({b"/": leaf(FrameLimits(), Echo)}) as served:
        results = await run(f"ws://127.0.0.1:{served.port.getHost().port}/", ["*"])
    refused = {result.case_id: result.remote_close_code for result in results if not result.passed}
    assert set(refused.values()) == {1008, 1009}
    assert {case.split(".")[0] for case in refused} == {"9"}
    assert len(results) - len(refused) == 249
    assert not [result.case_id for result in results if result.behavior.value == "NON-STRICT"]


@pytest_twisted.ensureDeferred
async def test_bounds_raised(tcp_serving: Serving, not_run: Callable[[str], None]) -> None:
    """With bounds as high as the cases need every one of them passes."""
    if not importable():
        not_run("kosoku is not installed")
        return
    async with tcp_serving({b"/": leaf(RAISED, Echo)}) as served:
        results = await run(f"ws://127.0.0.1:{served.port.getHost().port}/", RAISED_CASES)
    assert not [(result.case_id, result.result, result.result_close) for result in results if not result.passed]
    assert Counter(result.behavior.value for result in results)["NON-STRICT"] == 0
    assert len(results) == (301 if FULL else 5)


def importable() -> bool:
    """Whether the cases are there."""
    try:
        import kosoku  # noqa: F401
    except ImportError:
        return False
    return True
