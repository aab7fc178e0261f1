"""Sessions, reservations and whole commands on a real server."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest_twisted
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred, gatherResults, succeed

from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.ingress.admission import Limit
from gatewayd.sessions.cache import PAGE, SessionCache
from gatewayd.sessions.endings import (
    AUTHENTICATION_FAILED,
    REPLAYED,
    REVOKED,
    SESSION_MALFORMED,
    UNAVAILABLE_NOW,
    Ending,
)
from gatewayd.sessions.execution import Execution
from gatewayd.sessions.limits import Limits
from gatewayd.sessions.reservations import Reservations
from gatewayd.sessions.snapshots import write_key
from gatewayd.sessions.values import Answered, Command, Envelope, Reply, Session
from gatewayd.sessions.verification import Verification
from gatewayd.stores.script import Script
from gatewayd.times import Monotonic, Wall
from tests.buses import pause, until
from tests.edge_requests import SESSION, base64url, private_key, request, session
from tests.fakes.session_redis import Store
from tests.valkey import ValkeyServer
from tests.wire.edge.followed import Counted, make_link

WINDOW_MS = 300_000
KEY = f"session:{SESSION}"
MARK = f"{KEY} revoked"
REVOKED_SESSION = session(revoked=True)


class Gateway:
    """What one gateway has of the edge between a transport and a service; the service says "ok"."""

    def __init__(self, server: ValkeyServer) -> None:
        from twisted.internet import reactor

        clock: Any = reactor
        self.link = make_link(server, Counted())
        self.revoked: list[str] = []
        self.cache = SessionCache(
            self.link, clock=clock, key_prefix="session:", on_revoked=self.revoked.append, on_size=lambda _: None
        )
        self.now = lambda: Monotonic(clock.seconds())
        plenty = Limit(1e6, 1e6)
        reservations = Reservations(self.link, clock=clock, key_prefix="replay:", window_ms=WINDOW_MS, timeout_s=None)
        verification = Verification(
            self.cache,
            reserve=reservations.reserve,
            limits=Limits(session=plenty, user=plenty, message_type=plenty, group=str),
            window_ms=WINDOW_MS,
            now=self.now,
            wall=lambda: Wall(time.time()),
            replayed=lambda: None,
        )
        self.verification = verification
        self.execution = Execution(
            verification.verify,
            self,
            sign=private_key(9).sign,
            now=self.now,
            wall=lambda: Wall(time.time()),
            counts=EdgeMetrics(CollectorRegistry()),
            group=str,
        )

    def find(self, message_type: str) -> "Gateway":
        return self

    def call(self, command: Command, deadline_s: float | None) -> Deferred[Answered | Ending]:
        return succeed(Answered("ok", command.payload))

    def verify(self, envelope: Envelope) -> Deferred[Session | Ending]:
        """As a request comes, with the session stream just heard of."""
        self.cache.poller_seen(self.now())
        return Deferred.fromCoroutine(self.verification.verify(envelope))

    def execute(self, envelope: Envelope) -> Deferred[Reply | Ending]:
        self.cache.poller_seen(self.now())
        return Deferred.fromCoroutine(self.execution.execute(envelope, 2.0))


@asynccontextmanager
async def running(server: ValkeyServer) -> AsyncIterator[Gateway]:
    """A gateway that is connected."""
    gateway = Gateway(server)
    await gateway.link.start()
    try:
        yield gateway
    finally:
        gateway.cache.stop()
        await gateway.link.stop()


def fresh(request_id: str = "request-1", **others: Any) -> Envelope:
    """A request of now."""
    return request(request_id, at_ms=int(time.time() * 1000), **others)


def put(server: ValkeyServer, of: Session) -> None:
    server.call("SET", f"session:{of.device_session_id}", write_key(of))


@pytest_twisted.ensureDeferred
async def test_command(valkey: ValkeyServer) -> None:
    """A signed command is answered once; a second time, a wrong key and an unknown session are refused."""
    put(valkey, session())
    async with running(valkey) as gateway:
        reply = await gateway.execute(fresh(payload=b"\0\xff"))
        assert isinstance(reply, Reply)
        assert reply.payload == b"\0\xff"
        assert await gateway.execute(fresh(payload=b"\0\xff")) is REPLAYED
        assert await gateway.execute(fresh("request-2", seed=2)) is AUTHENTICATION_FAILED
        assert await gateway.execute(fresh("request-3", device_session_id="another")) is AUTHENTICATION_FAILED


@pytest_twisted.ensureDeferred
async def test_reservation(valkey: ValkeyServer) -> None:
    """The reservation is a key of the documented name that lives until the request's time plus the window."""
    put(valkey, session())
    async with running(valkey) as gateway:
        for request_id, age_ms, least, most in (
            ("now", 0, WINDOW_MS - 5000, WINDOW_MS),
            ("old", WINDOW_MS - 1500, 1, 1500),
            ("new", -WINDOW_MS + 1000, 2 * WINDOW_MS - 7000, 2 * WINDOW_MS),
        ):
            at_ms = int(time.time() * 1000) - age_ms
            assert isinstance(await gateway.verify(request(request_id, at_ms=at_ms)), Session)
            left = valkey.call("PTTL", f"replay:{base64url(SESSION.encode())}:{base64url(request_id.encode())}")
            assert isinstance(left, int)
            assert least <= left <= most, request_id


@pytest_twisted.ensureDeferred
async def test_two_gateways(valkey: ValkeyServer) -> None:
    """Of one request sent to two gateways at once, fifty times over, exactly one passes."""
    put(valkey, session())
    async with running(valkey) as one, running(valkey) as two:
        for number in range(50):
            envelope = fresh(f"request-{number}")
            answers = await gatherResults([gateway.verify(envelope) for gateway in (one, two)])
            assert sorted(isinstance(answer, Session) for answer in answers) == [False, True]
            assert REPLAYED in answers


@pytest_twisted.ensureDeferred
async def test_script(valkey: ValkeyServer) -> None:
    """The script does what the double of the unit tests does, in any order of snapshots and of others' writes."""
    script, store, random = Script.of("session_snapshots"), Store(), Random(11)
    async with running(valkey) as gateway:
        for _ in range(300):
            name = random.choice("abcd")
            key, mark = f"session:{name}", f"session:{name} revoked"
            of = session(name, user=f"user-{random.randrange(9)}", revoked=random.random() < 0.15)
            match random.randrange(4):
                case 0:
                    foreign = random.choice((write_key(of), b"{", b"[]", b"7", b'{"status":"revoked"}'))
                    valkey.call("SET", key, foreign)
                    store.values[key] = foreign
                case 1:
                    valkey.call("DEL", key)
                    store.values.pop(key, None)
                case _:
                    arguments = ((key, mark), (write_key(of), "revoked" if of.revoked else ""))
                    assert await gateway.link.run(script, *arguments) == store.run("session_snapshots", *arguments)
            assert [valkey.call("GET", one) for one in (key, mark)] == [store.values.get(one) for one in (key, mark)]


@pytest_twisted.ensureDeferred
async def test_key_of_another_kind(valkey: ValkeyServer) -> None:
    """A session's key that holds no string is no session, and is written over by the next snapshot."""
    valkey.call("RPUSH", KEY, "x")
    async with running(valkey) as gateway:
        assert await gateway.verify(fresh()) is AUTHENTICATION_FAILED
        await gateway.cache.apply([session()])
        assert isinstance(await gateway.verify(fresh()), Session)


@pytest_twisted.ensureDeferred
async def test_lifetime_of_a_session(valkey: ValkeyServer) -> None:
    """A lifetime that the key's writer gave stays with it; that of a revoked one ends: revoked is for ever."""
    put(valkey, session())
    valkey.call("PEXPIRE", KEY, 60_000)
    async with running(valkey) as gateway:
        await gateway.cache.apply([session()])
        left = valkey.call("PTTL", KEY)
        assert isinstance(left, int)
        assert 50_000 < left <= 60_000
        await gateway.cache.apply([REVOKED_SESSION])
        assert [valkey.call("PTTL", one) for one in (KEY, MARK)] == [-1, -1]


@pytest_twisted.ensureDeferred
async def test_revoked_for_ever(valkey: ValkeyServer) -> None:
    """A revocation outlives the process, later snapshots and other writers; the key shows it as JSON."""
    async with running(valkey) as gateway:
        await gateway.cache.apply([session(), REVOKED_SESSION])
        assert await gateway.verify(fresh()) is REVOKED
    shown = valkey.call("GET", KEY)
    assert isinstance(shown, bytes)
    assert json.loads(shown)["status"] == "revoked"
    async with running(valkey) as gateway:
        await gateway.cache.apply([session()])
        assert await gateway.verify(fresh()) is REVOKED
    put(valkey, session())
    async with running(valkey) as gateway:
        assert await gateway.verify(fresh()) is REVOKED


@pytest_twisted.ensureDeferred
async def test_malformed_key(valkey: ValkeyServer) -> None:
    """A session that cannot be read is told from one that is not there."""
    valkey.call("SET", KEY, "{}")
    async with running(valkey) as gateway:
        assert await gateway.verify(fresh()) is SESSION_MALFORMED


@pytest_twisted.ensureDeferred
async def test_frozen(own_valkey: ValkeyServer) -> None:
    """While the server hangs every request ends UNAVAILABLE within its deadline; a revocation is written after it."""
    put(own_valkey, session())
    async with running(own_valkey) as gateway:
        assert isinstance(await gateway.verify(fresh("warm")), Session)
        own_valkey.freeze()
        try:
            began = time.monotonic()
            answers = await gatherResults([gateway.verify(fresh(f"request-{number}")) for number in range(20)])
            assert set(map(id, answers)) == {id(UNAVAILABLE_NOW)}
            assert time.monotonic() - began < 2.0
            written = gateway.cache.apply([REVOKED_SESSION])
            assert gateway.revoked == [SESSION]
            assert await gateway.verify(fresh("request-x")) is REVOKED
            await pause(0.5)
            assert not written.called
        finally:
            own_valkey.thaw()
        await until(lambda: written.called)
        assert own_valkey.call("EXISTS", MARK) == 1


@pytest_twisted.ensureDeferred
async def test_killed(make_valkey: Any) -> None:
    """A killed server: UNAVAILABLE at once, and service again when it is back; what was used stays used."""
    server: ValkeyServer = make_valkey(append_only=True)
    put(server, session())
    async with running(server) as gateway:
        used = fresh()
        assert isinstance(await gateway.verify(used), Session)
        server.kill()
        await until(lambda: not gateway.link.connected)
        assert await gateway.verify(fresh("request-2")) is UNAVAILABLE_NOW
        server.start()
        await until(lambda: gateway.link.connected)
        assert await gateway.verify(used) is REPLAYED
        assert isinstance(await gateway.verify(fresh("request-3")), Session)


@pytest_twisted.ensureDeferred
async def test_many_snapshots(valkey: ValkeyServer) -> None:
    """Snapshots by the thousand are written in pages; all of them are there when it is said so."""
    async with running(valkey) as gateway:
        await gateway.cache.apply([session(f"s-{number}") for number in range(20 * PAGE + 7)])
        assert valkey.call("DBSIZE") == 20 * PAGE + 7
