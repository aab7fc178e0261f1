"""The link to Redis on a real server: what it promises while the server dies, hangs, refuses and comes back."""

import gc
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, DeferredList
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.errors import Unavailable
from gatewayd.lifecycle import StartFailed
from gatewayd.secret import Secret
from gatewayd.stores.redislink import OPERATION_TIMEOUT_S, RedisLink
from gatewayd.stores.redisplace import RedisPlace, parse_redis_url
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.stores.script import Script
from tests.buses import pause, reactor_clock, until
from tests.servers import free_port, make_certificates
from tests.valkey import ServerError, TlsFront, ValkeyMaker, ValkeyServer

pytest_plugins = ("tests.valkey",)

BOUND_S = 1.0
"""What a call with a deadline of 250 ms may take on a machine that is busy."""

PASSWORD = "a-password-nobody-may-read-in-a-log"


class Counts:
    """What a link counted."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.up: dict[str, bool] = {}

    def error(self, kind: str) -> None:
        self.errors[kind] += 1

    def connected(self, link: str, answers: bool) -> None:
        self.up[link] = answers


def place_of(server: ValkeyServer) -> RedisPlace:
    """The server's URL as settings read it."""
    place = parse_redis_url(server.url)
    assert place is not None
    return place


@asynccontextmanager
async def linked(
    server: ValkeyServer, counts: Counts | None = None, *, timeout_s: float = OPERATION_TIMEOUT_S, **places: Any
) -> AsyncIterator[RedisLink]:
    """A link that is connected; stopped at the end."""
    link = RedisLink(replace(place_of(server), **places), reactor_clock(), counts or Counts(), timeout_s=timeout_s)
    await link.start()
    try:
        yield link
    finally:
        await link.stop()


async def outcome(waiting: Awaitable[Any]) -> tuple[Any, float]:
    """What a call came to, its result or its failure, and after how many seconds."""
    began = time.monotonic()
    try:
        result = await waiting
    except (Unavailable, RedisRefused) as error:
        result = error
    return result, time.monotonic() - began


@pytest_twisted.ensureDeferred
async def test_replies(valkey: ValkeyServer) -> None:
    """Replies are bytes, int, None and lists of them, binary-safe; nothing is converted."""
    async with linked(valkey) as link:
        assert await link.call("SET", "k", b"\x00\xff\r\n") == b"OK"
        assert await link.call("GET", "k") == b"\x00\xff\r\n"
        assert await link.call("GET", "nothing") is None
        assert await link.call("SET", "n", "0123") == b"OK"
        assert await link.call("MGET", "n", "nothing") == [b"0123", None]
        assert await link.call("INCRBY", "count", 7) == 7
        assert await link.call("ECHO", "x" * 300_000) == b"x" * 300_000


@pytest_twisted.ensureDeferred
async def test_scripts_are_known_again(valkey: ValkeyServer) -> None:
    """A script that the server does not know, or has forgotten, is run all the same, and that is no error."""
    counts, script = Counts(), Script.of("admission_charge")
    async with linked(valkey, counts) as link:
        assert await link.run(script, ("bucket",), ("1000", "5")) == 1
        valkey.call("SCRIPT", "FLUSH")
        assert await link.run(script, ("bucket",), ("1000", "5")) == 1
        assert not counts.errors


@pytest_twisted.ensureDeferred
async def test_our_mistakes_are_told_apart(valkey: ValkeyServer) -> None:
    """A wrong type and an unknown command are refused, not unavailable, and the connection goes on."""
    counts = Counts()
    async with linked(valkey, counts) as link:
        await link.call("SET", "text", "x")
        for code, command in (("WRONGTYPE", ("LPUSH", "text", "y")), ("ERR", ("NO-SUCH-COMMAND",))):
            error, _ = await outcome(link.call(*command))
            assert isinstance(error, RedisRefused)
            assert error.code == code
        assert link.connected
        assert counts.errors == {"refused": 2}


@pytest_twisted.ensureDeferred
async def test_kill_and_restart(own_valkey: ValkeyServer) -> None:
    """A killed server: what waits fails at once, later calls are refused at once, and it recovers by itself."""
    counts = Counts()
    async with linked(own_valkey, counts) as link:
        own_valkey.freeze()
        waiting = [link.call("PING") for _ in range(10)]
        own_valkey.kill()
        outcomes = [await outcome(call) for call in waiting]
        assert all(isinstance(error, Unavailable) for error, _ in outcomes)
        assert max(seconds for _, seconds in outcomes) < BOUND_S
        await until(lambda: not link.connected)
        refused = link.call("PING")
        assert refused.called
        assert isinstance((await outcome(refused))[0], Unavailable)
        assert counts.up == {"Redis": False}
        await until(lambda: counts.errors["connect"] >= 1)
        own_valkey.start()
        await until(lambda: link.connected)
        assert await link.call("PING") == b"PONG"
        assert counts.errors["lost"] >= 1


@pytest_twisted.ensureDeferred
async def test_freeze_and_thaw(own_valkey: ValkeyServer) -> None:
    """A frozen server: no call waits beyond its deadline, soon none is sent, and late replies reach nobody."""
    counts = Counts()
    async with linked(own_valkey, counts) as link:
        for frozen_s in (0.5, 2.5):  # once before the connections are given up, once after
            own_valkey.freeze()
            waits, began = [], time.monotonic()
            while time.monotonic() - began < frozen_s:
                error, seconds = await outcome(link.call("ECHO", "while frozen"))
                assert isinstance(error, Unavailable)
                waits.append(seconds)
                await pause(0.01)
            assert max(waits) < BOUND_S
            assert sum(seconds > 0.1 for seconds in waits) <= 2, "one call for each connection finds out"
            own_valkey.thaw()
            await until(lambda: link.connected)
            assert [await link.call("ECHO", text) for text in ("a", "b", "c")] == [b"a", b"b", b"c"]
        assert 0 < counts.errors["timeout"] <= 4


@pytest_twisted.ensureDeferred
async def test_errors_that_mean_not_now(make_valkey: ValkeyMaker) -> None:
    """OOM, READONLY, MISCONF, BUSY and NOAUTH are Unavailable, each counted by its name, and pass with their cause."""
    counts = Counts()
    server = make_valkey(busy_reply_threshold="50", enable_debug_command="yes")
    (server.root / "dump.rdb").mkdir()  # no snapshot can be renamed to this
    async with linked(server, counts) as link:
        with server.client() as client:

            async def fails_as(kind: str) -> None:
                before = counts.errors[kind]
                error, seconds = await outcome(link.call("SET", "k", "v"))
                assert isinstance(error, Unavailable), (kind, error)
                assert seconds < BOUND_S
                assert counts.errors[kind] == before + 1

            async def passes() -> None:
                for _ in range(300):
                    result, _ = await outcome(link.call("SET", "k", "v"))
                    if result == b"OK":
                        return
                    await pause(0.02)
                raise AssertionError(result)

            client.call("CONFIG", "SET", "maxmemory", "1")
            await fails_as("oom")
            client.call("CONFIG", "SET", "maxmemory", "0")
            await passes()
            client.call("REPLICAOF", "127.0.0.1", free_port())
            await fails_as("readonly")
            client.call("REPLICAOF", "NO", "ONE")
            await passes()
            client.call("CONFIG", "SET", "save", "3600 1")
            client.call("BGSAVE")
            await until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            await fails_as("misconf")
            client.call("CONFIG", "SET", "save", "")
            await passes()
            client.send("EVAL", "while true do end", 0)
            await pause(0.15)
            await fails_as("busy")
            server.call("SCRIPT", "KILL")
            assert isinstance(client.read(), ServerError)
            await passes()
            client.call("CONFIG", "SET", "requirepass", PASSWORD)
            with server.client() as other:
                other.send("AUTH", PASSWORD)
                assert other.read() == b"OK"
                other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: "NOAUTH" in link.last_error)
        assert counts.errors["refused"] == 0


@pytest_twisted.ensureDeferred
async def test_a_changed_password(own_valkey: ValkeyServer) -> None:
    """A password changed under open connections: they go on; new ones cannot log in until it is right again."""
    own_valkey.call("CONFIG", "SET", "requirepass", PASSWORD)
    own_valkey.password = PASSWORD
    async with linked(own_valkey) as link:
        with own_valkey.client() as client:
            client.call("CONFIG", "SET", "requirepass", "another")
            assert await link.call("PING") == b"PONG"
            client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: not link.connected and "WRONGPASS" in link.last_error)
            client.call("CONFIG", "SET", "requirepass", PASSWORD)
        await until(lambda: link.connected)
        assert await link.call("PING") == b"PONG"


@pytest_twisted.ensureDeferred
async def test_a_server_that_reads_its_data(make_valkey: ValkeyMaker) -> None:
    """While a restarted server is LOADING the link is not connected; then it is, with everything there."""
    server = make_valkey(append_only=True, enable_debug_command="yes", key_load_delay="200")
    with server.client() as client:
        for number in range(5000):
            client.send("SET", f"k{number}", "v")
        for _ in range(5000):
            client.read()
    counts = Counts()
    async with linked(server, counts) as link:
        server.kill()
        server.start(wait=False)
        await until(lambda: "LOADING" in link.last_error)
        await until(lambda: link.connected, 10.0)
        assert await link.call("DBSIZE") == 5000


@pytest_twisted.ensureDeferred
async def test_cancelling_mixes_nothing_up(valkey: ValkeyServer) -> None:
    """Of 5,000 calls with random cancellations every other one gets its own reply."""
    chance = random.Random(7)
    async with linked(valkey, timeout_s=5.0) as link:
        calls = []
        for number in range(5000):
            call = link.call("ECHO", str(number))
            calls.append(call)
            if chance.random() < 0.3:
                chance.choice(calls[-20:]).cancel()
            if number % 50 == 0:
                await pause(0)
        wrong = cancelled = 0
        for number, (ok, result) in enumerate(await DeferredList(calls, consumeErrors=True)):
            if ok:
                wrong += result != str(number).encode()
            else:
                assert isinstance(result.value, CancelledError), result
                cancelled += 1
        assert wrong == 0
        assert cancelled > 100


@pytest_twisted.ensureDeferred
async def test_nothing_is_kept_while_disconnected(own_valkey: ValkeyServer) -> None:
    """A thousand calls while there is no server leave nothing behind, and none of them is run later."""
    async with linked(own_valkey) as link:
        await link.call("SET", "count", 0)
        own_valkey.kill()
        await until(lambda: not link.connected)
        await outcome(link.call("INCR", "count"))
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(1000):
            assert isinstance((await outcome(link.call("INCR", "count")))[0], Unavailable)
        gc.collect()
        assert len(gc.get_objects()) - before < 200
        own_valkey.start()
        await until(lambda: link.connected)
        assert await link.call("INCR", "count") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": None}, "NOAUTH"),
        ({"password": Secret(b"not-this-one")}, "WRONGPASS"),
        ({"db": 9999}, "out of range"),
        ({"port": 1}, "refused"),
    ],
    ids=["no password", "wrong password", "wrong database", "no server"],
)
@pytest_twisted.ensureDeferred
async def test_start_fails_with_one_line(make_valkey: ValkeyMaker, wrong: dict[str, Any], said: str) -> None:
    """What keeps a link from starting is said in one line within 5 s, without the password; nothing goes on after."""
    server = make_valkey(password=PASSWORD)
    counts = Counts()
    place = replace(place_of(server), **wrong)
    link = RedisLink(place, reactor_clock(), counts, name="Redis")
    began = time.monotonic()
    with pytest.raises(StartFailed) as failed:
        await link.start()
    assert time.monotonic() - began < 5
    text = str(failed.value)
    assert text.startswith(f"Redis at {place}: ")
    assert said in text
    assert "\n" not in text
    assert PASSWORD not in text + repr(place) + repr(link) + place.url
    assert not link.connected
    errors = counts.errors.total()
    await pause(0.2)
    assert counts.errors.total() == errors


@pytest_twisted.ensureDeferred
async def test_start_where_nothing_answers(own_valkey: ValkeyServer) -> None:
    """A server that accepts and never answers fails a start within 5 s; one that is not required is waited for 1 s."""
    own_valkey.freeze()
    link = RedisLink(place_of(own_valkey), reactor_clock(), Counts())
    began = time.monotonic()
    with pytest.raises(StartFailed, match="no answer in time"):
        await link.start()
    assert time.monotonic() - began < 5
    link = RedisLink(place_of(own_valkey), reactor_clock(), Counts())
    began = time.monotonic()
    await link.start(required=False)
    assert time.monotonic() - began < 2
    own_valkey.thaw()
    await until(lambda: link.connected)
    await link.stop()


@pytest_twisted.ensureDeferred
async def test_stop(own_valkey: ValkeyServer) -> None:
    """A stop waits for replies, but for no frozen server; afterwards every call is refused."""
    link = RedisLink(place_of(own_valkey), reactor_clock(), Counts())
    await link.start()
    call = link.call("PING")
    await link.stop()
    assert await call == b"PONG"
    assert isinstance((await outcome(link.call("PING")))[0], Unavailable)
    link = RedisLink(place_of(own_valkey), reactor_clock(), Counts())
    await link.start()
    own_valkey.freeze()
    call, began = link.call("PING"), time.monotonic()
    await link.stop()
    assert time.monotonic() - began < BOUND_S
    assert isinstance((await outcome(call))[0], Unavailable)


@pytest_twisted.ensureDeferred
async def test_tls(make_valkey: ValkeyMaker, tmp_path: Path) -> None:
    """rediss:// verifies: with the authority it works, without it, or for another name, the start says why."""
    files = make_certificates(tmp_path / "certificates")
    server = make_valkey(certificates=files, password=PASSWORD)
    async with linked(server, ca=files.ca, db=3) as link:
        await link.call("SET", "k", "v")
    with server.client(db=3) as client:
        assert client.call("GET", "k") == b"v"
    place, others = place_of(server), make_certificates(tmp_path / "others", "redis.example")
    front = TlsFront(others, server.port)
    misnamed = replace(place, ca=others.ca, port=front.port)
    for wrong in (place, replace(place, ca=others.ca), misnamed):
        link = RedisLink(wrong, reactor_clock(), Counts())
        with pytest.raises(StartFailed, match="certificate verify failed"):
            await link.start()
    front.close()
    with pytest.raises(StartFailed, match="no PEM certificate"):
        await RedisLink(replace(place, ca=files.key), reactor_clock(), Counts()).start()


@pytest_twisted.ensureDeferred
async def test_unix_socket(valkey: ValkeyServer) -> None:
    """A UNIX socket serves as well."""
    place = parse_redis_url(f"unix://{valkey.unix_path}?db=2")
    assert place is not None
    link = RedisLink(place, reactor_clock(), Counts())
    await link.start()
    await link.call("SET", "k", "v")
    await link.stop()
    with valkey.client(db=2) as client:
        assert client.call("GET", "k") == b"v"


@pytest_twisted.ensureDeferred
async def test_one_line_for_each_kind_and_minute(own_valkey: ValkeyServer) -> None:
    """However often an error comes, a kind of it is logged once a minute, without the password."""
    said: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace")).startswith("gatewayd.stores"):
            said.append(event)

    own_valkey.call("CONFIG", "SET", "requirepass", PASSWORD)
    own_valkey.password = PASSWORD
    globalLogPublisher.addObserver(observe)
    try:
        async with linked(own_valkey) as link:
            await link.call("SET", "k", "v")
            for _ in range(50):
                await outcome(link.call("LPUSH", "k", "x"))
            own_valkey.kill()
            await pause(1.0)
    finally:
        globalLogPublisher.removeObserver(observe)
    kinds = Counter((event["event"], event["kind"]) for event in said)
    assert set(kinds.values()) == {1}, kinds
    assert {("redis.error", "refused"), ("redis.error", "lost"), ("redis.lost", "")} <= set(kinds)
    assert not [event for event in said if PASSWORD in repr(event)]


# ---- readers ----


@pytest_twisted.ensureDeferred
async def test_reader_blocks_beyond_the_deadline(valkey: ValkeyServer) -> None:
    """A blocking read waits as long as it says, disturbs no call, and gets what comes."""
    async with linked(valkey) as link:
        reader = link.reader()
        waiting = reader.call("XREAD", "BLOCK", 5000, "STREAMS", "events", "0-0")
        await pause(0.4)
        assert await link.call("PING") == b"PONG"
        valkey.call("XADD", "events", "1-1", "k", b"\xff")
        assert await waiting == [[b"events", [[b"1-1", [b"k", b"\xff"]]]]]
        assert await reader.call("XREAD", "BLOCK", 50, "STREAMS", "events", "1-1") is None
        first = reader.call("XREAD", "BLOCK", 5000, "STREAMS", "events", "1-1")
        with pytest.raises(RuntimeError):
            reader.call("PING")
        reader.disconnect()
        assert isinstance((await outcome(first))[0], Unavailable)


@pytest_twisted.ensureDeferred
async def test_reader_ends_at_once(own_valkey: ValkeyServer) -> None:
    """disconnect() ends a blocked read at once, also on a frozen server; the next call connects anew."""
    async with linked(own_valkey) as link:
        reader = link.reader()
        for freeze in (False, True):
            waiting = reader.call("XREAD", "BLOCK", 60_000, "STREAMS", "events", "0-0")
            await pause(0.1)
            if freeze:
                own_valkey.freeze()
            began = time.monotonic()
            reader.disconnect()
            assert isinstance((await outcome(waiting))[0], Unavailable)
            assert time.monotonic() - began < 2.0
        waiting = reader.call("PING")  # connects to the frozen server
        await pause(0.05)
        reader.disconnect()
        assert isinstance((await outcome(waiting))[0], Unavailable)
        own_valkey.thaw()
        assert await reader.call("PING") == b"PONG"
        reader.disconnect()
        with own_valkey.client() as client:
            await until(lambda: client.info("clients")["blocked_clients"] == "0")


@pytest_twisted.ensureDeferred
async def test_cancelled_read_takes_nothing(own_valkey: ValkeyServer) -> None:
    """Cancelling a blocked read ends its connection: what comes later is there for the next read."""
    async with linked(own_valkey) as link:
        reader = link.reader()
        waiting = reader.call("BLPOP", "list", 5)
        await pause(0.1)
        waiting.cancel()
        with pytest.raises(CancelledError):
            await waiting
        await pause(0.1)
        own_valkey.call("RPUSH", "list", "x")
        assert await reader.call("LPOP", "list") == b"x"
        reader.disconnect()


@pytest_twisted.ensureDeferred
async def test_reader_of_a_server_that_hangs_or_goes(own_valkey: ValkeyServer) -> None:
    """A read that is 2 s longer silent than it may block is given up; a lost connection and a refusal say so."""
    counts = Counts()
    async with linked(own_valkey, counts) as link:
        reader = link.reader()
        assert await reader.call("PING") == b"PONG"
        own_valkey.freeze()
        error, seconds = await outcome(reader.call("XREAD", "BLOCK", 100, "STREAMS", "events", "0-0"))
        assert isinstance(error, Unavailable)
        assert 2.0 < seconds < 4.0
        assert counts.errors["timeout"] == 1
        own_valkey.thaw()
        assert await reader.call("PING") == b"PONG"
        error, _ = await outcome(reader.call("XREAD", "STREAMS", "events", "no id"))
        assert isinstance(error, RedisRefused)
        own_valkey.kill()
        assert isinstance((await outcome(reader.call("PING")))[0], Unavailable)
        assert isinstance((await outcome(reader.call("PING")))[0], Unavailable)
