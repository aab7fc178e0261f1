"""
The operator's runbook of the edge, sentence by sentence, on a whole gatewayd: its start, its probes, its stop, and what
is looked at when a revocation or a push event seems to be missing.
"""

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.edge_world import EVENTS, PASSWORD, SESSIONS, Edge, edge_settings
from tests.followers import FOLLOWERS, End, Place, ask, execute, goes_back
from tests.gateway import Gateway
from tests.servers import free_port
from tests.sockets import Passed, listening_tcp

START_S = 5.0
REVOKED, OVER = "device session is revoked", "gateway is shutting down"

AUTH_PATHS = ("/api/v1/public/auth/send-email-code", "/api/v1/public/auth/confirm-email-code")
FAMILIES = (
    "edge_sessions",
    "edge_push_streams",
    "edge_push_events_total",
    "edge_push_stream_closed_total",
    "edge_push_delivery_seconds_count",
    "edge_commands_total",
    "edge_command_duration_seconds_count",
    "edge_replay_rejected_total",
    "edge_stream_lag_seconds",
    "edge_stream_entries_total",
    "redis_connected",
    "redis_errors_total",
)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One edge for every test here; a test leaves it running, with no follower of its own."""
    made = Edge(tmp_path_factory.mktemp("edge"))
    try:
        yield made.start()
    finally:
        made.close()


# The start.


def bad_keys(root: Path) -> dict[str, str]:
    """Files that hold no key to sign with, and what is said of each."""
    other = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (root / "rsa.pem").write_bytes(other)
    (root / "text.pem").write_text("-----BEGIN PRIVATE KEY-----\nnothing\n-----END PRIVATE KEY-----\n")
    (root / "directory.pem").mkdir()
    return {"rsa.pem": "Ed25519", "text.pem": "text.pem", "directory.pem": "directory.pem", "none.pem": "none.pem"}


def complaints(gateway: Gateway) -> list[str]:
    """What a gatewayd said that did not start: before there is a log in plain text, afterwards in the log."""
    found = []
    for line in gateway.log_text().splitlines():
        members = json.loads(line) if line.startswith("{") else {"level": "error", "msg": line}
        if members["level"] in ("error", "critical"):
            found.append(members["msg"])
    return found


def test_starts_that_fail(tmp_path: Path, edge: Edge) -> None:
    """
    A Redis with another password, without the database, that is not there or never answers; a key that is none; a port
    that is taken: no start, one line that names it, within five seconds.
    """
    redis, name = edge.valkey.address, "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH"
    silent = socket.create_server(("127.0.0.1", 0))  # the kernel accepts for it
    taken = socket.create_server(("127.0.0.1", 0))
    nobody = f"127.0.0.1:{free_port()}"
    cases: list[tuple[dict[str, str], str]] = [
        ({"GATEWAY_REDIS_PASSWORD": "another-password"}, "WRONGPASS"),
        ({"GATEWAY_REDIS_DB": "99"}, "out of range"),
        ({"GATEWAY_REDIS_MASTER_ADDR": nobody}, nobody),
        ({"GATEWAY_REDIS_MASTER_ADDR": f"127.0.0.1:{silent.getsockname()[1]}"}, str(silent.getsockname()[1])),
        (
            {"GATEWAY_AUTHENTICATED_GRPC_ADDR": f"127.0.0.1:{taken.getsockname()[1]}"},
            "GRPC_ADDR) did not start: 127.0.0.1",
        ),
        *(({name: str(tmp_path / file)}, said) for file, said in bad_keys(tmp_path).items()),
    ]

    def start(number: int) -> tuple[Gateway, float]:
        settings = edge_settings(tmp_path / str(number), redis, NATS_URL=edge.nats.url) | cases[number][0]
        gateway = Gateway(tmp_path / str(number) / "gateway", settings)
        began = time.monotonic()
        gateway.start(wait="")
        try:
            assert gateway.process is not None
            assert gateway.process.wait(20) == 1
        finally:
            gateway.close()
        return gateway, time.monotonic() - began

    with ThreadPoolExecutor(3) as threads:
        ended = list(threads.map(start, range(len(cases))))
    silent.close()
    taken.close()
    for (gateway, took_s), (changed, said) in zip(ended, cases, strict=True):
        lines = complaints(gateway)
        assert [said in line for line in lines] == [True], (changed, lines)
        assert "Traceback" not in gateway.log_text()
        assert '"event":"ready"' not in gateway.log_text()  # no webhook was taken
        assert not any(secret in gateway.log_text() for secret in (PASSWORD, "another-password"))
        assert took_s < START_S + 3, (changed, took_s)  # several start at once here


def test_where_it_listens_when_nobody_says(tmp_path: Path) -> None:
    """With the edge on also :8080, and gRPC at :9090; without it :8001 alone; the admin listener only when named."""
    told = {}
    for on in (True, False):
        settings = edge_settings(tmp_path / str(on), "127.0.0.1:1")
        five = {name for name in settings if name.startswith("GATEWAY_")}
        for name in five if not on else ("GATEWAY_AUTHENTICATED_GRPC_ADDR", "GATEWAY_ADMIN_HTTP_ADDR"):
            del settings[name]
        gateway = Gateway(tmp_path / str(on), settings)
        environ = {name: text for name, text in gateway.environment().items() if name != "PORT"} | {"HOST": "0.0.0.0"}
        told[on] = subprocess.run(
            gateway.command("--check-config"), env=environ, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    assert "GATEWAY_PUBLIC_HTTP_ADDR=0.0.0.0:8001,0.0.0.0:8080" in told[True]
    assert "GATEWAY_AUTHENTICATED_GRPC_ADDR=0.0.0.0:9090" in told[True]
    assert "GATEWAY_PUBLIC_HTTP_ADDR=0.0.0.0:8001  #" in told[False]
    for text in told.values():
        assert "GATEWAY_ADMIN_HTTP_ADDR=  # default" in text


def test_a_healthy_start(edge: Edge) -> None:
    """Every listener is named in the log, /healthz and /readyz answer, and every family of metrics is there."""
    addresses = [edge.gateway.settings[f"GATEWAY_{name}_ADDR"] for name in ("AUTHENTICATED_GRPC", "ADMIN_HTTP")]
    lines = edge.gateway.log_lines()
    opened = [line["msg"] for line in lines if line["event"] in ("listener.open", "grpc.open")]
    for address in (f"127.0.0.1:{edge.gateway.port}", *addresses):
        assert any(address in line for line in opened), (address, opened)
    assert edge.gateway.health()["redis"] == "ok"
    assert edge.gateway.get("/readyz")[0] == 200
    assert edge.admin("/healthz")[0] == edge.admin("/readyz")[0] == 200
    samples = edge.metrics()
    for family in FAMILIES:
        assert any(name.split("{")[0] == family for name in samples), family
    assert samples["redis_connected"] == 1
    assert sum(value for name, value in samples.items() if name.startswith("redis_errors_total")) == 0
    assert edge.gateway.get("/edge/v1/events")[0] == 426
    assert edge.admin("/edge/v1/events")[0] == 404


def test_the_admin_listener_tells_everything(edge: Edge) -> None:
    """Whoever reaches it may know what those who ask the public one may not."""
    edge.configure(metrics_allow_cidrs="none")
    edge.reload()
    try:
        told = edge.admin("/readyz")[1].decode()
        assert "no consumer" in told
        assert edge.admin("/metrics")[0] == 200
        status, _, body = edge.gateway.get("/readyz")
        assert "no consumer" not in body.decode()
        assert (status, edge.gateway.get("/metrics")[0]) == (200, 404)
    finally:
        edge.configure()
        edge.reload()


def test_known_caveats(edge: Edge) -> None:
    """Without a service the public authentication paths are 503, without a route a command is UNIMPLEMENTED."""
    for path in AUTH_PATHS:
        status, _, body = edge.gateway.ask("POST", path, b"{}", {"Content-Type": "application/json"})
        assert status == 503
        assert json.loads(body)["error"]["code"] == "service_unavailable"
    edge.sessions("caveats")
    found = execute(edge.place, ask("caveats", "user.games.command", b"x"))
    assert isinstance(found, End)
    assert found.code == "UNIMPLEMENTED"


# A revocation.


def test_a_revocation(edge: Edge) -> None:
    """
    The streams of that session end, with the same words on every transport, and its requests fail; another session of
    the user goes on; a later active snapshot changes nothing, neither after a restart.
    """
    followers = edge.follow_all("revoked")
    other = edge.follow_all("other")
    for transport, follower in followers.items():
        began = time.monotonic()
        edge.snapshot(follower.session, revoked=True)
        end = follower.ended()
        assert (end.code, end.message) == (
            {"grpc": "FAILED_PRECONDITION", "websocket": "4003", "sse": "revoked"}[transport],
            REVOKED,
        )
        assert end.at - began < 2.0  # 250 ms; the machine may be busy
    for follower in followers.values():
        found = execute(edge.place, ask(follower.session, "user.command"))
        assert isinstance(found, End)
        assert (found.code, found.message) == ("FAILED_PRECONDITION", REVOKED)
        edge.snapshot(follower.session)
        refused = FOLLOWERS["websocket"](edge.place, follower.session).start().ended()
        assert (refused.code, refused.message) == ("4003", REVOKED)
    event_id = edge.push(event_type="still.there")
    for follower in other.values():
        follower.until(lambda it: it.of_type("still.there"))
        assert follower.of_type("still.there")[0].event_id == event_id
        assert not follower.ends

    edge.gateway.kill()
    edge.gateway.start(wait="/readyz")
    for follower in followers.values():
        edge.snapshot(follower.session)
    for transport, follower in followers.items():
        refused = FOLLOWERS[transport](edge.place, follower.session).start().ended()
        assert refused.message == REVOKED, (transport, refused)


# Push.


def test_push(edge: Edge) -> None:
    """
    The time of the server comes first, bound to the request; then what is addressed to the user, or to one session of
    the user, and nobody else's; what is malformed is dropped and counted, and what comes behind it is delivered.
    """
    mine = edge.follow_all("mine", user="me")
    others = edge.follow_all("others", user="somebody-else")
    before = edge.metrics()
    everybody = [edge.push(b"\0\xff\n\r", user="me", trace_id="trace-9"), edge.push(b"", user="me")]
    malformed: tuple[dict[str, str | bytes], ...] = (
        {"user_id": "me", "event_type": "x", "payload_bytes": b"x"},
        {"user_id": "me", "event_type": "gateway.server_time", "event_id": "e", "payload_bytes": b"x"},
        {"user_id": "", "event_type": "x", "event_id": "e", "payload_bytes": b"x"},
        {"user_id": "me", "device_session_id": "", "event_type": "x", "event_id": "e", "payload_bytes": b"x"},
        {"user_id": b"\xff", "event_type": "x", "event_id": "e", "payload_bytes": b"x"},
        {"user_id": "me", "event_type": "x", "event_id": "e", "payload_bytes": b"x", "more": "x"},
    )
    for fields in malformed:
        edge.add(EVENTS, fields)
    edge.valkey.call("XADD", SESSIONS, "*", "device_session_id", "mine-grpc", "status", "deleted")
    own = {name: edge.push(user="me", device_session_id=it.session) for name, it in mine.items()}
    nobodys = edge.push(user="me", device_session_id="others-grpc")  # a session of somebody else
    last = edge.push(user="me", event_type="the.end\nid: 1")
    for name, follower in mine.items():
        follower.until(lambda it: it.of_type()[-1:] and it.of_type()[-1].event_id == last)
        assert [got.event_id for got in follower.of_type()] == [*everybody, own[name], last]
        first = follower.events[0]
        assert first.event_type == "gateway.server_time"
        (at_ms,) = struct.unpack(">Q", first.payload)
        assert abs(at_ms - time.time() * 1000) < 60_000
        assert (first.trace_id, bool(first.request_id), bool(first.position)) == ("trace-1", True, True)
        assert follower.of_type()[0].payload == b"\0\xff\n\r"
        assert follower.of_type()[0].trace_id == "trace-9"
        assert goes_back(follower.events) == []
        assert all(map(edge.verified, (first, *follower.of_type())))
    for follower in others.values():
        assert follower.of_type() == []
    assert nobodys
    counted = {name: value - before.get(name, 0) for name, value in edge.metrics().items()}
    dropped = [
        value
        for name, value in counted.items()
        if name.startswith("edge_stream_entries_total") and 'stream="events"' in name and "malformed_" in name
    ]
    assert sum(dropped) == len(malformed)
    assert counted['edge_push_events_total{event_type="_other",outcome="malformed"}'] == len(malformed)
    assert edge.gateway.await_line(event="stream.malformed", stream="events")


# The stop.


def test_a_stop(edge: Edge) -> None:
    """
    Every stream ends with UNAVAILABLE and a moment to come back at; the hub is closed before gRPC; the stop is within
    the budget of its parts; a follower that comes back misses nothing that was published meanwhile.
    """
    followers = edge.follow_all("stopped", loyal=True)
    first = edge.push()
    for follower in followers.values():
        follower.until(lambda it: it.of_type())
    stopped_before = len([line for line in edge.gateway.log_lines() if line["event"] == "service.stopped"])
    began = time.monotonic()
    assert edge.gateway.stop() in (0, -15)
    assert time.monotonic() - began < 5.0 + 2
    for transport, follower in followers.items():
        end = follower.ended()
        assert end.code == {"grpc": "UNAVAILABLE", "websocket": "1012", "sse": "shutdown"}[transport]
        assert end.message == OVER
        assert end.retry_after_ms is not None
        assert 0 <= end.retry_after_ms <= 30_000
    lines = [line for line in edge.gateway.log_lines() if line["event"] == "service.stopped"][stopped_before:]
    order = [line["msg"].partition(" stopped")[0] for line in lines]
    wanted = ["readiness", "gRPC listener", "sessions_poller", "events_poller", "push hub", "push connections", "gRPC"]
    assert [name for name in order if name in wanted] == wanted
    missed = edge.push()
    edge.gateway.start(wait="/readyz")
    for follower in followers.values():
        follower.until(lambda it: [got.event_id for got in it.of_type()] == [first, missed], 20.0)
        assert goes_back(follower.events) == []
        follower.stop()


def test_sockets_that_systemd_holds(edge: Edge, tmp_path: Path) -> None:
    """
    gRPC can be served on a socket of systemd's, like the public listener: over a restart a client waits in its queue,
    and nobody is refused a connection.
    """
    settings = edge.gateway.settings | {"GATEWAY_PUBLIC_HTTP_ADDR": "systemd:domain=INET:name=public"}
    settings["GATEWAY_AUTHENTICATED_GRPC_ADDR"] = "systemd:domain=INET:name=grpc"
    del settings["GATEWAY_ADMIN_HTTP_ADDR"]
    public, grpc = listening_tcp(), listening_tcp()
    gateway = Gateway(
        tmp_path / "gateway",
        settings,
        port=public.getsockname()[1],
        passed=Passed(("public", public), ("grpc", grpc)),
    )
    place = Place(gateway.port, grpc.getsockname()[1])
    edge.sessions("inherited")
    with public, grpc:
        try:
            gateway.start(wait="/readyz")
            for _ in range(2):
                found = execute(place, ask("inherited", "user.command"), 10.0)
                assert isinstance(found, End)
                assert found.code == "UNIMPLEMENTED", found
                gateway.stop()
                gateway.start(wait="")
        finally:
            gateway.close()
    assert '"event":"listener.unused"' not in gateway.log_text()
