"""
A whole edge while Redis dies, hangs, refuses, forgets and is trimmed, while gatewayd itself is killed, and beside
clients that come all at once or read nothing: what is refused meanwhile, what goes on, and that nothing is lost.

With GATEWAYD_TEST_FULL=1 the crowd is of 2,000.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from gatewayd.sessions.snapshots import write_key
from tests.clients import stamped, tradingview_body
from tests.crowd import Crowd, opening
from tests.edge_requests import session
from tests.edge_world import EVENTS, PASSWORD, SESSIONS, Edge
from tests.followers import End, Follower, ask, execute, goes_back

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
REVOKED = "device session is revoked"
SSE = 'edge_push_streams{transport="sse"}'
OVERFLOWED = 'edge_push_stream_closed_total{reason="overflow"}'


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One edge for every test here; a test leaves everything running and Redis in order."""
    made = Edge(tmp_path_factory.mktemp("edge"), RATE_LIMIT_RPS="100000", MAX_CONNECTIONS_PER_ADDRESS="5000")
    try:
        yield made.start()
    finally:
        made.close()


def until(true: Callable[[], object], timeout_s: float = 10.0) -> float:
    """Wait until it is true; the seconds that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < timeout_s, true
        time.sleep(0.02)
    return time.monotonic() - began


def command(edge: Edge, name: str) -> str:
    """The status of one command: without a route UNIMPLEMENTED is what a session that may pass is told."""
    began = time.monotonic()
    found = execute(edge.place, ask(name, "user.command"))
    assert time.monotonic() - began < 2.5
    assert isinstance(found, End)
    return found.code


def webhook(edge: Edge) -> int:
    """The status of a good one."""
    body = tradingview_body(time.time(), price=1 + time.monotonic())
    began = time.monotonic()
    status = edge.gateway.ask("POST", "/webhook/tradingview", body, stamped(body, time.time()))[0]
    assert time.monotonic() - began < 2.5
    return status


def all_well(edge: Edge, followers: dict[str, Follower], timeout_s: float = 10.0) -> float:
    """Wait until commands pass again and an event reaches streams that never ended; the seconds until commands did."""
    name = followers["grpc"].session
    took_s = until(lambda: command(edge, name) == "UNIMPLEMENTED", timeout_s)
    event_id = edge.push(event_type="back")
    for follower in followers.values():
        follower.until(lambda it: [got for got in it.of_type("back") if got.event_id == event_id])
        assert not follower.ends
        assert len(follower.of_type("gateway.server_time")) == 1
        assert goes_back(follower.events) == []
    return took_s


def said_unavailable(edge: Edge, name: str) -> None:
    """Commands are refused; webhooks and probes are not, and say what there is to say."""
    until(lambda: command(edge, name) == "UNAVAILABLE")
    assert webhook(edge) == 202
    assert "does not answer" in edge.warnings() or edge.gateway.health()["redis"] == "ok"
    assert edge.gateway.get("/healthz")[0] == 200


def test_redis_is_killed(edge: Edge) -> None:
    """While it is gone commands are UNAVAILABLE and streams stay open; back again everything goes on by itself."""
    followers = edge.follow_all("killed")
    name = followers["grpc"].session
    pid = edge.gateway.pid
    assert command(edge, name) == "UNIMPLEMENTED"
    used = ask(name, "user.command")
    execute(edge.place, used)
    edge.valkey.kill()
    said_unavailable(edge, name)
    until(lambda: edge.gateway.health()["redis"] == "error")
    assert "GATEWAY_REDIS_MASTER_ADDR" in edge.warnings()
    assert edge.metrics()["redis_connected"] == 0
    time.sleep(0.5)
    edge.valkey.start()
    print(f"commands again {all_well(edge, followers):.2f} s after redis was back")
    assert edge.metrics()["redis_connected"] == 1
    again = execute(edge.place, used)
    assert isinstance(again, End)
    assert again.message == "request replay detected"
    assert edge.gateway.pid == pid


def test_redis_hangs(edge: Edge) -> None:
    """Every call ends in time; what was published meanwhile is delivered when it goes on."""
    followers = edge.follow_all("frozen")
    name = followers["grpc"].session
    edge.valkey.freeze()
    try:
        said_unavailable(edge, name)
        began = time.monotonic()
        assert command(edge, name) == "UNAVAILABLE"
        assert time.monotonic() - began < 1.0
    finally:
        edge.valkey.thaw()
    print(f"commands again {all_well(edge, followers):.2f} s after redis went on")


def test_redis_refuses(edge: Edge) -> None:
    """Another password, and no memory left: refused meanwhile, streams stay open, and all is well again afterwards."""
    followers = edge.follow_all("refused")
    name = followers["grpc"].session
    with edge.valkey.client() as client, ExitStack() as restored:
        restored.callback(client.call, "CONFIG", "SET", "requirepass", PASSWORD)
        client.call("CONFIG", "SET", "requirepass", "another")
        client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        said_unavailable(edge, name)
        until(lambda: "WRONGPASS" in edge.warnings())
    print(f"commands again {all_well(edge, followers):.2f} s after the password was right")
    with edge.valkey.client() as client, ExitStack() as restored:
        restored.callback(client.call, "CONFIG", "SET", "maxmemory", "0")
        client.call("CONFIG", "SET", "maxmemory", "1")
        said_unavailable(edge, name)
    print(f"commands again {all_well(edge, followers):.2f} s after there was memory")
    counted = {name for name, value in edge.metrics().items() if name.startswith("redis_errors_total") and value}
    assert any("oom" in kind for kind in counted), counted
    assert PASSWORD not in edge.gateway.log_text()


def test_poison(edge: Edge) -> None:
    """Entries of every wrong kind, and a key that is no stream any more: those behind them are delivered."""
    followers = edge.follow_all("poisoned")
    for number in range(20):
        edge.add(EVENTS, {f"field-{number}": b"\xff" * number})
        edge.add(SESSIONS, {"status": "revoked", f"field-{number}": b"\0"})
    all_well(edge, followers)
    with edge.valkey.client() as client:
        client.call("RENAME", EVENTS, "aside")
        client.call("SET", EVENTS, "no stream")
        edge.gateway.await_line(event="stream.unreadable", stream="events")
        assert command(edge, followers["grpc"].session) == "UNIMPLEMENTED"
        client.call("DEL", EVENTS)
        client.call("RENAME", "aside", EVENTS)
    all_well(edge, followers)


def test_trimmed(edge: Edge) -> None:
    """
    What was trimmed before it could be read is a gap: it is counted, and the keys of sessions are read again, which
    tells of a revocation whose snapshot is gone.
    """
    followers = edge.follow_all("trimmed")
    before = edge.metrics().get('edge_stream_entries_total{outcome="gap",stream="sessions"}', 0)
    edge.gateway.signal(signal.SIGSTOP)
    lost = followers["sse"]
    for number in range(5):
        edge.snapshot(f"unread-{number}")
    edge.valkey.call("SET", f"gateway:session:{lost.session}", write_key(session(lost.session, revoked=True)))
    edge.valkey.call("XTRIM", SESSIONS, "MAXLEN", "0")
    edge.gateway.signal(signal.SIGCONT)
    assert lost.ended().message == REVOKED
    edge.snapshot("after-the-gap")
    until(lambda: command(edge, "after-the-gap") == "UNIMPLEMENTED")
    followers.pop("sse")
    all_well(edge, followers)
    assert edge.metrics()['edge_stream_entries_total{outcome="gap",stream="sessions"}'] == before + 1


def test_flushed(edge: Edge) -> None:
    """
    An emptied Redis: who was revoked stays so for this process, sessions are known again by new snapshots, an event of
    the new stream is delivered, and a position of the old one is none any more.
    """
    followers = edge.follow_all("flushed")
    edge.snapshot("flushed-revoked", revoked=True)
    until(lambda: command(edge, "flushed-revoked") == "FAILED_PRECONDITION")
    edge.push()
    position = followers["grpc"].until(lambda it: it.of_type()).position
    edge.valkey.call("FLUSHALL")
    edge.sessions(*(follower.session for follower in followers.values()))
    edge.snapshot("flushed-revoked")
    all_well(edge, followers)
    assert command(edge, "flushed-revoked") == "FAILED_PRECONDITION"
    resumed = edge.follow("websocket", followers["websocket"].session, position=position)
    resumed.until(lambda it: it.of_type("gateway.resume_failed"))


def test_gatewayd_is_restarted(edge: Edge) -> None:
    """
    Through a stop and a kill while events are published: each loyal client has every event, in order, and no position
    ever goes back; nobody is refused because the many sessions that there are have not been read yet.
    """
    with edge.valkey.client() as client:
        for number in range(3000):
            client.send("XADD", SESSIONS, "*", *edge.fields(f"many-{number}", "user-many"))
        for _ in range(3000):
            client.read()
    edge.sessions("behind-the-many")
    followers = edge.follow_all("resumed", loyal=True, user="user-9")
    published: list[str] = []
    done = threading.Event()

    def publish() -> None:
        with edge.valkey.client() as client:
            while not done.is_set():
                event_id = f"event-{len(published):06d}"
                fields = ("user_id", "user-9", "event_type", "t", "event_id", event_id, "payload_bytes", b"x" * 100)
                client.call("XADD", EVENTS, "*", *fields)
                published.append(event_id)
                time.sleep(0.004)

    publisher = threading.Thread(target=publish)
    publisher.start()
    times = []
    try:
        for end in (edge.gateway.stop, edge.gateway.kill):
            time.sleep(0.5)
            opened = {name: len(it.of_type("gateway.server_time")) for name, it in followers.items()}
            end()
            edge.gateway.start(wait="/readyz")
            began = time.monotonic()
            for name, follower in followers.items():
                follower.opened(opened[name] + 1)
            times.append(time.monotonic() - began)
    finally:
        done.set()
        publisher.join(10)
    print(f"{len(published)} published; all back {[f'{took_s:.2f} s' for took_s in times]} after it was ready")
    for follower in followers.values():
        follower.until(lambda it: it.of_type()[-1:] and it.of_type()[-1].event_id == published[-1])
        follower.stop()
        assert not follower.of_type("gateway.resume_failed")
        assert not [end for end in follower.ends if "cannot check" in end.message]
        ids = [got.event_id for got in follower.of_type()]
        assert sorted(set(ids)) == published  # ids are made in their order
        for stream in follower.streams:
            assert goes_back(stream) == []
            own = [got.event_id for got in stream if got.event_type == "t"]
            assert own == sorted(own)


def percentile(times_s: list[float], share: float) -> float:
    """The value that so many are below, in ms."""
    return 1000 * sorted(times_s)[min(len(times_s) - 1, int(share * len(times_s)))]


def measure(edge: Edge, followers: dict[str, Follower], count: int) -> float:
    """Publish so many events, the 99th percentile of their way to all followers, in ms."""
    sent: dict[str, float] = {}
    with edge.valkey.client() as client:
        for number in range(count):
            event_id = f"{count}-{number}-{time.monotonic()}"
            sent[event_id] = time.monotonic()
            fields = ("user_id", "user-8", "event_type", "t", "event_id", event_id, "payload_bytes", b"x" * 2000)
            client.call("XADD", EVENTS, "*", *fields)
            time.sleep(0.002)
    last = event_id
    for follower in followers.values():
        follower.until(lambda it: it.of_type()[-1].event_id == last, 20.0)
    times = [
        got.at - sent[got.event_id]
        for follower in followers.values()
        for got in follower.of_type()
        if got.event_id in sent
    ]
    assert len(times) == count * len(followers)
    return percentile(times, 0.99)


def test_clients_that_do_not_read(edge: Edge) -> None:
    """Each of them is closed with its reason when its queue is full, and nobody else notices."""
    followers = edge.follow_all("reading", user="user-8")
    edge.push(user="user-8")
    for follower in followers.values():
        follower.until(lambda it: it.of_type())
    alone = measure(edge, followers, 600)
    before = edge.metrics()
    edge.sessions(*(f"stalled-{number}" for number in range(5)), user="user-8")
    with ExitStack() as stalled:
        for number in range(5):
            connection = stalled.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", edge.gateway.port))
            connection.sendall(opening(f"stalled-{number}"))
        until(lambda: edge.metrics()[SSE] >= before[SSE] + 5)
        rss_mib = edge.gateway.rss_mib()
        beside = measure(edge, followers, 600)
        grown = edge.gateway.rss_mib() - rss_mib
        print(
            f"p99 of the others {alone:.1f} ms alone, {beside:.1f} ms beside 5 that read nothing; {grown:.1f} MiB more"
        )
        until(lambda: edge.metrics()[SSE] == before[SSE])
    assert edge.metrics()[OVERFLOWED] - before[OVERFLOWED] == 5
    assert edge.gateway.await_line(event="push.overflow", user_id="user-8")
    assert all(not follower.ends for follower in followers.values())
    assert beside < alone + 500
    assert grown < 64


def test_a_crowd_comes_back(edge: Edge) -> None:
    """Everybody at once after a restart: all are back, the others go on, and all have what was published meanwhile."""
    size = 2000 if FULL else 300
    names = [f"crowd-{number}" for number in range(size)]
    with edge.valkey.client() as client:
        for number, name in enumerate(names):
            fields = edge.fields(name, f"crowd-user-{number}")
            client.call("XADD", SESSIONS, "*", *fields)
    until(lambda: command(edge, names[-1]) == "UNIMPLEMENTED", 20.0)
    with Crowd(edge.place, names) as crowd:
        crowd.open(60.0)
        positions = crowd.positions()
        edge.gateway.stop()
        with edge.valkey.client() as client:
            for number in range(size):
                fields = ("user_id", f"crowd-user-{number}", "event_type", "t", "event_id", "e", "payload_bytes", "x")
                client.call("XADD", EVENTS, "*", *fields)
        edge.gateway.start(wait="/readyz")
        began = time.monotonic()
        crowd.open(60.0, positions)
        opened_s = time.monotonic() - began
        crowd.until(lambda it: all("t" in kinds for kinds in it.kinds()), 30.0)
        print(f"{size} back in {opened_s:.2f} s, all with what they had missed after {time.monotonic() - began:.2f} s")
        assert edge.gateway.get("/healthz")[0] == 200
        assert webhook(edge) == 202
    assert json.loads(edge.gateway.get("/healthz")[2])["redis"] == "ok"
