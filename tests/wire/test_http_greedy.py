"""
Clients that take what they can get: time, memory, descriptors. What they get is bounded, and good clients are served.

The slow ones meet a site with short deadlines here; with GATEWAYD_TEST_FULL=1 a whole gatewayd with its own.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from gatewayd.http.capacity import Capacity
from gatewayd.http.message import Response
from gatewayd.http.rules import Limits
from tests.clients import SECRET, raw_request, stamped, tradingview_body
from tests.fakes.connection import Leaf, get, read_answers
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.wire.conftest import Serving
from tests.wire.listeners import default_leaves, read_to_end
from tests.wire.slow import Client, Crowd, ask_until, percentile

pytest_plugins = ("tests.reporting",)
FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
SLACK_S = 2.5
"""A deadline is noticed up to 1 s late; the rest is for a machine that is busy."""

ASYNCIO, UVLOOP = "asyncio", "uvloop"


def check_endings(clients: list[Client], limits: Limits) -> None:
    """Every client was told what it should be and was cut off at its deadline: not before it, not long after it."""
    expected: dict[str, tuple[list[int], float]] = {
        "silent": ([], limits.head_s),
        "blank": ([], limits.head_s),
        "head": ([408], limits.head_s),
        "body": ([408], limits.body_s),
        "chunks": ([408], limits.body_s),
        "idle": ([200], limits.idle_s),
        "unread": ([], limits.write_s),
    }
    for client in clients:
        statuses, deadline_s = expected[client.kind]
        assert client.took_s is not None, client.kind
        assert client.statuses() == statuses, client.kind
        # A client that never reads has its time from when all buffers between here and there are full.
        slack_s = SLACK_S if client.kind != "unread" else 4 * SLACK_S
        assert deadline_s - 0.2 < client.took_s < deadline_s + slack_s, (client.kind, client.took_s)


def report(what: str, took: list[float]) -> None:
    """Say what good clients saw; shown by `pytest -s`."""
    print(
        f"{what}: {len(took)} requests, p50 {percentile(took, 0.5) * 1e3:.1f} p99 {percentile(took, 0.99) * 1e3:.1f} ms"
    )


@pytest_twisted.ensureDeferred
async def test_slow_clients(tcp_serving: Serving) -> None:
    """Three hundred slow clients of every kind are cut off in their time, and a good one among them does not wait."""
    limits = Limits(head_s=1.0, body_s=2.0, idle_s=2.0, write_s=1.5)
    plan = {"silent": 50, "blank": 50, "head": 80, "body": 60, "chunks": 30, "idle": 25, "unread": 5}
    leaves: dict[bytes, Any] = default_leaves()
    leaves[b"/big"] = Leaf(lambda request: Response(200, b"x" * 50_000), methods=(b"GET",))
    done = Event()
    async with tcp_serving(leaves, limits=limits, capacity=Capacity(2000, 1000)) as served:
        port = served.port.getHost().port
        asking = deferToThread(ask_until, port, done)
        try:
            clients = await deferToThread(Crowd(port, plan).run, 10.0)
        finally:
            done.set()
        took = await asking
        assert len(clients) == 300
        check_endings(clients, limits)
        assert percentile(took, 0.99) < 0.25, percentile(took, 0.99)
        assert served.site.kept.bytes == 0
        assert not served.failures
    report("good client among 300 slow ones", took)


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., tuple[Gateway, NatsServer]]]:
    """Start a gatewayd with a server; `reactor` names its event loop, `descriptors` bounds what it may open."""
    made: list[tuple[Gateway, NatsServer]] = []

    def make(reactor: str = UVLOOP, descriptors: int = 0, **settings: str) -> tuple[Gateway, NatsServer]:
        server = NatsServer(tmp_path / "nats").start()
        environ = {
            "NATS_URL": server.url,
            "API_KEY_HMAC_SECRET": SECRET.decode(),
            "RATE_LIMIT_RPS": "100000",
            **settings,
        }
        prefix = ["prlimit", f"--nofile={descriptors}"] if descriptors else []
        gateway = (OnAsyncio if reactor == ASYNCIO else Gateway)(tmp_path / "gateway", environ, prefix=prefix)
        made.append((gateway, server))
        gateway.start(wait="/readyz")
        return gateway, server

    yield make
    for gateway, server in made:
        gateway.close()
        server.close()


class OnAsyncio(Gateway):
    """A gatewayd that does without uvloop."""

    def command(self, *arguments: str) -> list[str]:
        """The command line, naming the reactor."""
        command = super().command(*arguments)
        command.insert(command.index("-n"), "--reactor=asyncio")
        return command


def faults(gateway: Gateway) -> list[dict[str, Any]]:
    """Lines of its log that say that something went wrong in it."""
    return [line for line in gateway.log_lines() if line["level"] in ("error", "critical") or "failure" in line]


class Talk:
    """A connection that is kept."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send a request; status and body of its answer."""
        self.socket.sendall(data)
        received = b""
        while True:
            head, separator, body = received.partition(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")]
            if separator and len(body) == int(length[0][16:]):
                return int(head[9:12]), body
            piece = self.socket.recv(65536)
            assert piece, received
            received += piece


@pytest.fixture
def talk_to() -> Iterator[Callable[[Gateway], Talk]]:
    """Connect to a gateway; closed at the end."""
    with ExitStack() as closing:
        yield lambda gateway: Talk(
            closing.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=10))
        )


def signed_webhook(price: float) -> bytes:
    """The bytes of one good webhook."""
    now = time.time()
    body = tradingview_body(now, price)
    return raw_request("/webhook/tradingview", body, stamped(body, now))


@pytest.mark.parametrize("reactor", [UVLOOP, ASYNCIO])
def test_descriptors(
    make_gateway: Callable[..., tuple[Gateway, NatsServer]], talk_to: Callable[[Gateway], Talk], reactor: str
) -> None:
    """
    With 128 descriptors and every connection taken, more are closed at once and counted; kept ones are served, NATS is
    found again through a flood of new ones, nothing spins or is logged, and one that ends makes room at once.
    """
    gateway, server = make_gateway(reactor, 128)
    kept = [talk_to(gateway) for _ in range(64)]
    assert {talk.ask(get("/healthz"))[0] for talk in kept} == {200}
    cpu_s = gateway.cpu_seconds()
    server.kill()
    done = Event()
    flood = Thread(target=_connect_until, args=(gateway.port, done))
    flood.start()
    try:
        time.sleep(0.5)
        status, body = kept[0].ask(get("/healthz"))
        assert (status, json.loads(body)["nats"]) == (200, "disconnected")
        server.start()
        deadline = time.monotonic() + 10
        while json.loads(kept[0].ask(get("/healthz"))[1])["nats"] != "connected":
            assert time.monotonic() < deadline, gateway.log_text()[-2000:]
            time.sleep(0.05)
        assert kept[1].ask(signed_webhook(1.5))[0] == 202
    finally:
        done.set()
        flood.join()
    refused = [
        line for line in kept[2].ask(get("/metrics"))[1].splitlines() if line.startswith(b"gateway_connections_ref")
    ]
    assert float(refused[0].split()[1]) > 100
    assert gateway.cpu_seconds() - cpu_s < 5
    cpu_s = gateway.cpu_seconds()
    time.sleep(1)
    assert gateway.cpu_seconds() - cpu_s < 0.5
    kept.pop().socket.close()
    time.sleep(0.1)
    began = time.monotonic()
    assert talk_to(gateway).ask(get("/readyz"))[0] == 200
    assert time.monotonic() - began < 1.0
    assert not faults(gateway)


def _connect_until(port: int, done: Event) -> None:
    while not done.is_set():
        connections = [socket.socket() for _ in range(100)]
        for connection in connections:
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        for connection in connections:
            connection.close()


def test_parallel_bodies(
    make_gateway: Callable[..., tuple[Gateway, NatsServer]], talk_to: Callable[[Gateway], Talk]
) -> None:
    """
    However many bodies of 1 MiB arrive at once and stop before their end, memory grows by less than 64 MiB: those
    beyond the bound are 503 GW-010, and a good webhook among them is accepted.
    """
    count = 1000 if FULL else 100
    gateway, _ = make_gateway()
    talk = talk_to(gateway)
    assert talk.ask(signed_webhook(1.1))[0] == 202
    before_mib = gateway.rss_mib()
    body = b'{"a":"' + b"x" * 1_048_568 + b'"}'
    data = raw_request("/webhook/tradingview", body, {"Content-Type": "application/json"})

    def send_most(number: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
        connection.sendall(data[:-1])
        return connection

    with ThreadPoolExecutor(20) as pool:
        connections = list(pool.map(send_most, range(count)))
        assert talk.ask(signed_webhook(1.2))[0] == 202
        time.sleep(1)  # what lies in the kernel's buffers is not read yet
        grown_mib = gateway.rss_mib() - before_mib
        statuses = [answer.status for data in pool.map(_finish, connections) for answer in read_answers(data)]
    print(f"{count} bodies of 1 MiB: {statuses.count(503)} refused, grown by {grown_mib:.1f} MiB")
    assert grown_mib < 64
    assert len(statuses) == count
    assert set(statuses) <= {401, 503, 408}
    assert statuses.count(503) >= count * 0.5
    assert statuses.count(401) > 20 or FULL  # sent in time; a thousand take longer than a body may
    assert not faults(gateway)


def _finish(connection: socket.socket) -> bytes:
    with connection:
        try:
            connection.sendall(b"}")
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # refused and closed by now: the answer is there
            pass
        return read_to_end(connection)


def test_slow_clients_of_a_gateway(
    make_gateway: Callable[..., tuple[Gateway, NatsServer]], not_run: Callable[[str], None]
) -> None:
    """A thousand slow clients of every kind, with the deadlines as they are in production."""
    if not FULL:
        not_run("a thousand slow clients take 80 s; GATEWAYD_TEST_FULL=1 has them")
        return
    plan = {"silent": 100, "blank": 100, "head": 400, "body": 200, "chunks": 100, "idle": 95, "unread": 5}
    gateway, _ = make_gateway()
    done = Event()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_until, gateway.port, done)
        try:
            clients = Crowd(gateway.port, plan).run(90.0)
        finally:
            done.set()
        took = asking.result()
    check_endings(clients, Limits())
    report(f"good client of a gateway among {len(clients)} slow ones", took)
    assert percentile(took, 0.99) < 0.25
    assert not faults(gateway)
