"""A stream in a real server and a poller that follows it, for the tests of streams."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import Any

from twisted.internet.defer import Deferred

from gatewayd.secret import Secret
from gatewayd.stores.redislink import RedisLink
from gatewayd.stores.redisplace import RedisPlace
from gatewayd.streams.cursor import StreamId, parse_id
from gatewayd.streams.entries import Malformed, RawEntry
from gatewayd.streams.poller import Feed, StreamPoller
from gatewayd.streams.redis_stream import RedisStream
from gatewayd.times import Wall
from tests.buses import until
from tests.valkey import Client, ValkeyServer

KEY = "client-events"


class Counted:
    """What links and pollers count."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.lag_s = 0.0

    def entry(self, stream: str, outcome: str, count: int = 1) -> None:
        """Entries, by what became of them."""
        self.outcomes[outcome] += count

    def lag(self, stream: str, seconds: float) -> None:
        """The lag now."""
        self.lag_s = seconds

    def error(self, kind: str) -> None:
        """One error of Redis."""
        self.errors[kind] += 1

    def connected(self, link: str, answers: bool) -> None:
        """Up or down."""


class Followed:
    """What a poller delivered: texts in order, with the seconds from the time in the text to then."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.at: list[float] = []
        self.placed: list[tuple[str, StreamId]] = []
        self.gaps = 0
        self.current_at = float("-inf")
        self.waiting: Deferred[None] | None = None

    def parse(self, entry: RawEntry) -> bytes | Malformed:
        """The one value of a well-formed entry."""
        fields = entry.fields or ()
        return fields[1] if len(fields) == 2 and fields[0] == b"text" else Malformed("shape")

    def deliver(self, batch: Sequence[bytes]) -> Deferred[None] | None:
        """Keep them."""
        self.texts += batch
        self.at += [time.monotonic()] * len(batch)
        return self.waiting

    def feed(self) -> Feed[bytes]:
        """All of it."""
        return Feed(self.parse, self.deliver, lambda *at: self.placed.append(at), self._gap, self._current)

    def _gap(self) -> None:
        self.gaps += 1

    def _current(self, at: float) -> None:
        self.current_at = at


class Following(Followed):
    """A started link and a poller on the server's stream."""

    def __init__(self, server: ValkeyServer, *, from_beginning: bool = False, key: str = KEY) -> None:
        super().__init__()
        from twisted.internet import reactor

        self.server = server
        self.counted = Counted()
        self.link = make_link(server, self.counted)
        self._clock: Any = reactor
        self._from_beginning = from_beginning
        self._key = key
        self.poller: StreamPoller[bytes]

    async def start(self) -> None:
        """Start both, and wait for the poller's first answer."""
        await self.link.start()
        epochs = count()
        self.poller = StreamPoller(
            "events",
            RedisStream(self._key, self.link, lambda: f"{id(self)}-{next(epochs)}"),
            self.link.reader(),
            self.feed(),
            from_beginning=self._from_beginning,
            counts=self.counted,
            clock=self._clock,
            wall=lambda: Wall(time.time()),
            jitter=Random(7).random,
        )
        self.poller.startService()
        await until(lambda: self.placed)

    def seconds(self) -> float:
        """The clock that `current_at` is a time of."""
        return float(self._clock.seconds())

    async def stop(self) -> None:
        """Stop both."""
        await self.poller.stopService()
        await self.link.stop()


def make_link(server: ValkeyServer, counted: Counted) -> RedisLink:
    """A link to the server, not started."""
    from twisted.internet import reactor

    password = Secret(server.password.encode()) if server.password else None
    return RedisLink(RedisPlace(port=server.port, password=password), reactor, counted)


@asynccontextmanager
async def linked(server: ValkeyServer) -> AsyncIterator[RedisLink]:
    """A started link to the server."""
    link = make_link(server, Counted())
    await link.start()
    try:
        yield link
    finally:
        await link.stop()


@asynccontextmanager
async def following(server: ValkeyServer, *, from_beginning: bool = False, key: str = KEY) -> AsyncIterator[Following]:
    """A poller that has begun."""
    follower = Following(server, from_beginning=from_beginning, key=key)
    await follower.start()
    try:
        yield follower
    finally:
        await follower.stop()


def add(server: ValkeyServer, *ids: str, size: int = 1) -> list[StreamId]:
    """One entry for each id, "*" for the server's own."""
    with server.client() as client:
        found = [parse_id(client.call("XADD", KEY, entry_id, "text", b"x" * size)) for entry_id in ids]
    return [entry_id for entry_id in found if entry_id is not None]


def write(server: ValkeyServer, texts: Sequence[bytes], *options: str | int) -> None:
    """One entry for each text, all in one go; `options` stand before the id (MAXLEN, ...)."""
    with server.client() as client:
        write_on(client, texts, *options)


def write_on(client: Client, texts: Sequence[bytes], *options: str | int) -> None:
    """As write(), on a connection that is there."""
    for begin in range(0, len(texts), 1000):
        part = texts[begin : begin + 1000]
        for text in part:
            client.send("XADD", KEY, *options, "*", "text", text)
        for _ in part:
            client.read()
