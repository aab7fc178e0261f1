"""From a snapshot in the session stream of a real server to who may pass."""

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from random import Random
from typing import Any

import pytest_twisted

from gatewayd.sessions.cache import SessionCache
from gatewayd.sessions.values import Session
from gatewayd.streams.poller import StreamPoller
from gatewayd.streams.redis_stream import RedisStream
from gatewayd.streams.session_feed import session_feed
from gatewayd.times import Wall
from tests.buses import pause, until
from tests.valkey import ValkeyServer
from tests.wire.edge.followed import Counted, make_link

KEY = "session-events"
REVOKED_WITHIN_S = 0.25


class Sessions:
    """A gateway's sessions: link, cache and poller; `revoked` is who was said to be, and when."""

    def __init__(self, server: ValkeyServer) -> None:
        from twisted.internet import reactor

        clock: Any = reactor
        self.server = server
        self.revoked: dict[str, float] = {}
        self.open: list[str] = []
        self.counted = Counted()
        self.link = make_link(server, self.counted)
        self.cache = SessionCache(
            self.link, clock=clock, key_prefix="session:", on_revoked=self._revoke, on_size=lambda _: None
        )
        self.clock = clock
        self.poller: StreamPoller[Session]

    def _revoke(self, device_session_id: str) -> None:
        assert device_session_id not in self.revoked
        self.revoked[device_session_id] = time.monotonic()

    async def start(self) -> None:
        await self.link.start()
        self.poller = StreamPoller(
            "sessions",
            RedisStream(KEY, self.link, lambda: "epoch"),
            self.link.reader(),
            session_feed(self.cache, lambda: self.open),
            from_beginning=True,
            counts=self.counted,
            clock=self.clock,
            wall=lambda: Wall(time.time()),
            jitter=Random(7).random,
        )
        self.poller.startService()
        await self.poller.caught_up()

    async def stop(self) -> None:
        await self.poller.stopService()
        self.cache.stop()
        await self.link.stop()


@asynccontextmanager
async def running(server: ValkeyServer) -> AsyncIterator[Sessions]:
    sessions = Sessions(server)
    await sessions.start()
    try:
        yield sessions
    finally:
        await sessions.stop()


def snapshot(name: str, status: str = "active") -> tuple[str, ...]:
    """XADD's words for one snapshot."""
    key = base64.b64encode(sha256(name.encode()).digest()).decode()
    return (
        *("XADD", KEY, "*", "device_session_id", name, "user_id", "user-1"),
        *("client_public_key", key, "status", status),
    )


async def known(sessions: Sessions, name: str) -> bool | None:
    """Whether Redis and memory say that the session is revoked; None when they know nothing of it."""
    found = await sessions.cache.read(name)
    return found.revoked if isinstance(found, Session) else None


@pytest_twisted.ensureDeferred
async def test_a_revocation_is_known_in_time(valkey: ValkeyServer) -> None:
    """Among other snapshots: from the writer's command to the end of streams, the 99th percentile is under 250 ms."""
    async with running(valkey) as sessions:
        written: dict[str, float] = {}
        with valkey.client() as client:
            for number in range(200):
                name = f"device-{number}"
                for other in range(5):
                    client.send(*snapshot(f"other-{number}-{other}"))
                client.send(*snapshot(name))
                written[name] = time.monotonic()
                client.send(*snapshot(name, "revoked"))
                for _ in range(7):
                    client.read()
                await pause(0.003)
        await until(lambda: len(sessions.revoked) == 200)
        took_s = sorted(sessions.revoked[name] - at for name, at in written.items())
        assert took_s[198] < REVOKED_WITHIN_S
        assert await known(sessions, "other-199-4") is False


@pytest_twisted.ensureDeferred
async def test_revoked_for_ever(valkey: ValkeyServer) -> None:
    """No later snapshot, no trimmed stream and no restart brings a revoked session back."""
    async with running(valkey) as sessions:
        for status in ("active", "revoked", "active", "active"):
            valkey.call(*snapshot("device-1", status))
        valkey.call(*snapshot("device-2"))
        await until(lambda: sessions.counted.outcomes["ok"] == 5)
        assert await known(sessions, "device-1") is True
        assert await known(sessions, "device-2") is False
    valkey.call("XTRIM", KEY, "MAXLEN", 0)
    valkey.call(*snapshot("device-1"))
    async with running(valkey) as sessions:
        assert await known(sessions, "device-1") is True
        assert list(sessions.revoked) == ["device-1"]


@pytest_twisted.ensureDeferred
async def test_poison(valkey: ValkeyServer) -> None:
    """Whatever is wrong with a snapshot, the next one is consumed; counted by what was wrong."""
    async with running(valkey) as sessions:
        good = snapshot("device-1", "revoked")
        for wrong in (good[:3] + good[5:], (*good[:-1], "retired"), (*good[:-1], ""), (*good, "status", "active")):
            valkey.call(*wrong)
        valkey.call(*good)
        await until(lambda: sessions.counted.outcomes["ok"])
        assert sessions.revoked
        assert sessions.counted.outcomes == {
            "malformed_device_session_id": 1,
            "malformed_status": 2,
            "malformed_fields": 1,
            "ok": 1,
        }


@pytest_twisted.ensureDeferred
async def test_a_revocation_that_was_trimmed_unread(valkey: ValkeyServer) -> None:
    """Another gateway consumed it, this one could not: after the gap the keys of open streams are read again."""
    async with running(valkey) as first, running(valkey) as second:
        valkey.call(*snapshot("device-1"))
        await until(lambda: second.counted.outcomes["ok"] and first.counted.outcomes["ok"])
        second.open.append("device-1")
        await second.poller.stopService()
        valkey.call(*snapshot("device-1", "revoked"))
        await until(lambda: first.revoked)
        await until(lambda: valkey.call("EXISTS", "session:device-1 revoked"))
        valkey.call("XTRIM", KEY, "MAXLEN", 0)
        second.poller.startService()
        await until(lambda: second.revoked)
        assert second.counted.outcomes["gap"] == 1


@pytest_twisted.ensureDeferred
async def test_a_long_stream_at_the_start(valkey: ValkeyServer) -> None:
    """Nobody is believed before all of it was read; then everything in it is known."""
    with valkey.client() as client:
        for number in range(3000):
            client.send(*snapshot(f"device-{number}", "revoked" if number % 3 == 0 else "active"))
        for _ in range(3000):
            client.read()
    async with running(valkey) as sessions:
        assert len(sessions.revoked) == 1000
        assert sessions.counted.outcomes == {"ok": 3000}
        assert await known(sessions, "device-2998") is False
        assert await known(sessions, "device-2997") is True
