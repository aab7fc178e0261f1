"""
A replica that is behind takes Redis' place: what was written last is gone, as with any asynchronous replication. What
gatewayd knows of it stays true, nobody is told that nothing was missed, and no webhook is stored twice.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import stamped, tradingview_body
from tests.edge_world import PASSWORD, Edge
from tests.followers import End, ask, execute
from tests.streams import read_stream
from tests.valkey import ValkeyServer


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    """An edge whose webhooks share Redis, too."""
    valkey = ValkeyServer(tmp_path / "valkey", password=PASSWORD).start()
    made = Edge(tmp_path, valkey=valkey, REDIS_URL=valkey.url)
    try:
        yield made.start()
    finally:
        made.close()
        valkey.close()


@pytest.fixture
def replica(edge: Edge, tmp_path: Path) -> Iterator[ValkeyServer]:
    """A replica of its Redis."""
    made = ValkeyServer(tmp_path / "replica", password=PASSWORD, masterauth=PASSWORD).start()
    try:
        made.call("REPLICAOF", "127.0.0.1", edge.valkey.port)
        yield made
    finally:
        made.close()


def told(edge: Edge, name: str) -> str:
    """What a command of this session is told; UNIMPLEMENTED when it may pass."""
    found = execute(edge.place, ask(name, "user.command"))
    assert isinstance(found, End)
    return found.code


def until(edge: Edge, name: str, code: str, timeout_s: float = 10.0) -> None:
    """Wait until a command of this session is told so."""
    deadline = time.monotonic() + timeout_s
    while (found := told(edge, name)) != code:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def caught_up(edge: Edge, replica: ValkeyServer) -> bool:
    """True when the replica has all that its master has."""
    there, here = edge.valkey.client(), replica.client()
    with there, here:
        state = here.info("replication")
        written = there.info("replication")["master_repl_offset"]
        return state["master_link_status"] == "up" and state["slave_repl_offset"] == written


def test_a_replica_that_is_behind_takes_over(edge: Edge, replica: ValkeyServer) -> None:
    """A revocation, an event, a nonce and a reservation are on the master only when it dies."""
    followers = edge.follow_all("moved")
    name = followers["grpc"].session
    edge.sessions("revoked-late")
    edge.push()
    for follower in followers.values():
        follower.until(lambda it: it.of_type())
    deadline = time.monotonic() + 10
    while not caught_up(edge, replica):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    replica.call("REPLICAOF", "NO", "ONE")

    body = tradingview_body(time.time())
    headers = stamped(body, time.time())
    assert edge.gateway.ask("POST", "/webhook/tradingview", body, headers)[0] == 202
    edge.snapshot("revoked-late", revoked=True)
    until(edge, "revoked-late", "FAILED_PRECONDITION")
    lost = edge.push()
    for follower in followers.values():
        follower.until(lambda it: [got for got in it.of_type() if got.event_id == lost])

    edge.valkey.kill()
    until(edge, name, "UNAVAILABLE")
    replica.call("CONFIG", "SET", "port", edge.valkey.port)
    replica.port = edge.valkey.port  # and so for whatever speaks to edge.valkey

    until(edge, name, "UNIMPLEMENTED")
    assert told(edge, "revoked-late") == "FAILED_PRECONDITION"
    for follower in followers.values():
        follower.until(lambda it: it.of_type("gateway.resume_failed"))
    back = edge.push()
    for follower in followers.values():
        follower.until(lambda it: [got for got in it.of_type() if got.event_id == back])
        assert not follower.ends
    status, _, answer = edge.gateway.ask("POST", "/webhook/tradingview", body, headers)
    assert status == 401, answer
    assert len(read_stream(edge.nats.url)) == 2
