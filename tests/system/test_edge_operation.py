"""
A whole edge in operation: its signer's key rotated, its limits and origins reloaded, signals pushed, maintenance, and
what the access log and the metrics say of clients.
"""

import http.client
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandResponse
from gatewayd.sessions.signing import response_input, verify
from tests.clients import generic_body, stamped, tradingview_body
from tests.edge_requests import as_json, members
from tests.edge_world import Edge, write_signer
from tests.followers import FOLLOWERS, End, Follower, ask, execute, goes_back, now_ms

JSON = {"Content-Type": "application/json"}
ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One edge for every test here, with its reloadable settings in a file."""
    root = tmp_path_factory.mktemp("edge")
    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    made = Edge(
        root,
        GATEWAY_COMMAND_ROUTES=f"orders.=http://127.0.0.1:{service.server_port}/orders",
        GATEWAY_RESPONSE_SIGNER_PREVIOUS_KEY_PEM_PATH=str(write_signer(root / "previous.pem")),
        GATEWAY_SIGNALS_GRANTS="trader: tradingview/*; limited: tradingview/EURUSD; other: test",
        METRICS_ALLOW_CIDRS="all",
    )
    try:
        yield made.start()
    finally:
        made.close()
        service.shutdown()
        service.server_close()


class Service(BaseHTTPRequestHandler):
    """The service behind the commands: it answers with what it was asked."""

    def do_POST(self) -> None:
        """See BaseHTTPRequestHandler."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = f"{self.headers['X-User-Id']} {self.headers['X-Message-Type']} ".encode() + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Result-Code", "done")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is said of requests."""


def test_commands(edge: Edge) -> None:
    """A routed one is answered by its service; the answer is signed by a published key, and counted."""
    edge.sessions("commands", user="commander")
    asked = ask("commands", "orders.place", b"\0ten\xff")
    found = execute(edge.place, asked)
    assert isinstance(found, ExecuteCommandResponse), found
    assert (found.result_code, found.payload_bytes) == ("done", b"commander orders.place \0ten\xff")
    assert found.request_id == asked.request_id
    signed = response_input("v1", asked.request_id, found.timestamp_ms, "done", found.payload_hash)
    assert verify(edge.public_keys()[0], found.signature, signed)
    counted = {
        name: value for name, value in edge.metrics().items() if name.startswith("edge_commands_total") and value
    }
    assert any("orders." in name for name in counted), counted


def test_the_signer_is_rotated(edge: Edge) -> None:
    """
    Events before and after are each good under a key that is published; open streams go on; a file that holds no key is
    refused, and the key in force stays.
    """
    followers = edge.follow_all("rotated")
    path = Path(edge.gateway.settings["GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH"])
    old_keys, old_file = edge.public_keys(), path.read_bytes()
    edge.push(event_type="before")
    for follower in followers.values():
        follower.until(lambda it: it.of_type("before"))
    (path.parent / "previous.pem").write_bytes(old_file)
    write_signer(path)
    edge.reload()
    new_keys = edge.public_keys()
    assert old_keys[0] in new_keys[1:]
    assert new_keys[0] not in old_keys
    edge.push(event_type="after")
    for follower in followers.values():
        before, after = (
            follower.of_type("before")[0],
            follower.until(lambda it: it.of_type("after")).of_type("after")[0],
        )
        assert [
            verify(key, got.signature, got.signed) for got in (before, after) for key in (old_keys[0], new_keys[0])
        ] == [
            True,
            False,
            False,
            True,
        ]
        assert not follower.ends
    path.write_text("no key")
    assert "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH" in edge.reload("config.reload_refused")["msg"]
    assert edge.public_keys() == new_keys
    path.write_bytes(old_file)
    edge.reload()


def test_limits_are_reloaded(edge: Edge) -> None:
    """A lower rate holds at once for sessions that are known, and goes again with another reload."""
    edge.sessions("hasty", user="hasty-user")

    def refused(count: int) -> list[End]:
        found = [execute(edge.place, ask("hasty", "user.command")) for _ in range(count)]
        return [end for end in found if isinstance(end, End) and end.code == "RESOURCE_EXHAUSTED"]

    assert refused(10) == []
    edge.configure(gateway_session_rps="0.5")
    edge.reload()
    limited = refused(10)
    assert len(limited) >= 8
    assert limited[-1].message == "authenticated request rate limit exceeded"
    edge.configure()
    edge.reload()
    time.sleep(1.0)
    assert refused(10) == []


def test_origins_are_reloaded(edge: Edge) -> None:
    """A page that is listed may open streams, one that is not may not; what sends no Origin is no page."""
    edge.sessions("page")

    def opened(origin: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", edge.gateway.port, timeout=10)
        with closing(connection):
            connection.request("POST", "/edge/v1/events", as_json(ask("page")), {**JSON, "Origin": origin})
            with connection.getresponse() as answer:
                return answer.status

    assert opened(ORIGIN) == 403
    edge.configure(gateway_push_allowed_origins=[ORIGIN])
    edge.reload()
    assert opened(ORIGIN) == 200
    assert opened("https://evil.example") == 403
    edge.configure()
    edge.reload()
    assert opened(ORIGIN) == 403


def send_signal(edge: Edge, price: float, *, source: str = "tradingview", ticker: str = "EURUSD") -> None:
    """A good webhook."""
    body = (
        generic_body(time.time(), price=price)
        if source == "test"
        else tradingview_body(time.time(), price, ticker=ticker)
    )
    status, _, answer = edge.gateway.ask("POST", f"/webhook/{source}", body, stamped(body, time.time()))
    assert status == 202, answer


def test_signals(edge: Edge) -> None:
    """
    What comes in by webhook goes out on the streams of those who are granted it, in order, also to who comes back after
    a restart; nobody else has it, and who asks without a grant is refused.
    """
    followers = {}
    for name, user, wanted in (
        ("all", "trader", "signals.subscribe"),
        ("gold", "trader", "signals.subscribe:XAUUSD"),
        ("both", "trader", "all.subscribe"),
        ("limited", "limited", "signals.subscribe"),
        ("events", "trader", "events.subscribe"),
        ("other", "other", "signals.subscribe"),
    ):
        edge.sessions(f"signals-{name}", user=user)
        transport = list(FOLLOWERS)[len(followers) % 3]
        followers[name] = edge.follow(transport, f"signals-{name}", message_type=wanted, loyal=True)
    edge.sessions("signals-none", user="nobody")
    for transport, kind in FOLLOWERS.items():
        end = kind(edge.place, "signals-none", message_type="signals.subscribe").start().ended()
        assert end.message == "no route for this message type", transport

    def prices(follower: Follower) -> list[float]:
        once = {got.event_id: json.loads(got.payload)["price"] for got in follower.of_type("signal.normalized")}
        return list(once.values())

    sent = [(1.0, "EURUSD"), (2.0, "XAUUSD"), (3.0, "EURUSD")]
    for price, ticker in sent:
        send_signal(edge, price, ticker=ticker)
    edge.push(user="trader", event_type="trade")
    send_signal(edge, 9.0, source="test")
    edge.gateway.stop()
    edge.valkey.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    edge.gateway.start(wait="/readyz")
    ends_at = time.monotonic() + 5.0
    while "allkeys-lru" not in edge.warnings():  # a Redis that would drop sessions is warned of
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    edge.valkey.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    send_signal(edge, 4.0)
    send_signal(edge, 5.0, ticker="XAUUSD")
    expected = {"all": [1, 2, 3, 4, 5], "gold": [2, 5], "both": [1, 2, 3, 4, 5], "limited": [1, 3, 4], "events": []}
    for name, wanted in expected.items():
        follower = followers[name]
        follower.until(lambda it, wanted=wanted: len(prices(it)) >= len(wanted), 15.0)
        assert prices(follower) == wanted, name
        assert all(goes_back(stream) == [] for stream in follower.streams)
        assert not follower.of_type("gateway.resume_failed")
    for name, wanted in (("both", 1), ("events", 1), ("all", 0)):
        assert len({got.event_id for got in followers[name].of_type("trade")}) == wanted
    followers["other"].until(lambda it: it.of_type("signal.normalized"))
    assert len({got.event_id for got in followers["other"].of_type("signal.normalized")}) == 1
    for follower in followers.values():
        follower.stop()


def test_maintenance(edge: Edge) -> None:
    """New streams and commands are refused with a moment to come back at, probes go on, open streams stay."""
    followers = edge.follow_all("maintained")
    switch = edge.gateway.state / "maintenance.json"
    switch.parent.mkdir(exist_ok=True)
    switch.write_text("{}")
    try:
        edge.gateway.await_line(msg="maintenance is on")
        for kind in FOLLOWERS.values():
            end = kind(edge.place, "maintained-grpc").start().ended()
            assert "maintenance" in end.message or "503" in end.message, end
        found = execute(edge.place, ask("maintained-grpc", "user.command"))
        assert isinstance(found, End)
        assert (found.code, found.retry_after_ms is not None) == ("UNAVAILABLE", True)
        status, headers, body = edge.gateway.ask("POST", "/edge/v1/events", as_json(ask("maintained-grpc")), JSON)
        assert (status, "retry-after" in headers) == (503, True)
        assert json.loads(body)["error"]["code"] == "unavailable"
        for path in ("/healthz", "/.well-known/gatewayd/keys"):
            assert edge.gateway.get(path)[0] == 200
        event_id = edge.push()
        for follower in followers.values():
            follower.until(lambda it: it.of_type() and it.of_type()[-1].event_id == event_id)
    finally:
        switch.unlink()
    edge.gateway.await_line(msg="maintenance is off")


def test_what_is_said_of_clients(edge: Edge) -> None:
    """
    One access line for every request, refused or handed over, with its status and a word for why; labels of metrics
    stay few whatever clients send; nothing that a client signed or keeps secret is in either.
    """
    edge.sessions("said", user="said-user")
    marker = secrets.token_hex(8)
    good = ask("said", payload=marker.encode())
    wrong = {**members(good), "signature": "A" * 86}
    cases = [
        (as_json(ask("said", "user.x", at_ms=now_ms() - 3_600_000)), 400, "stale"),
        (json.dumps(wrong).encode(), 401, "authentication"),
        (as_json(ask("unknown-" + marker)), 401, "authentication"),
        (b"{", 400, "malformed"),
    ]
    lines = len(edge.gateway.log_lines())
    for body, status, _ in cases:
        found, headers, answer = edge.gateway.ask("POST", "/edge/v1/events", body, JSON)
        assert (found, "x-correlation-id" in headers) == (status, True), answer
    assert edge.gateway.ask("PUT", "/edge/v1/events", b"", {})[0] == 405
    assert edge.gateway.ask("GET", f"/edge/v1/events?token={marker}", b"", {})[0] in (400, 426)
    for number in range(40):
        execute(edge.place, ask("said", f"type.{marker}.{number}"))
        edge.push(user="said-user", event_type=f"event.{marker}.{number}")
    time.sleep(0.3)
    said = [line for line in edge.gateway.log_lines()[lines:] if line["event"] == "request"]
    of_post = [line for line in said if line.get("path") == "/edge/v1/events" and line["method"] == "POST"]
    assert [(line["status"], line["validation_status"]) for line in of_post] == [
        (status, word) for _, status, word in cases
    ]
    text = edge.gateway.log_text() + edge.admin("/metrics")[1].decode()
    assert marker not in text
    assert len({name for name in edge.metrics() if name.startswith("edge_")}) < 150
