"""Following a stream of a real server through what happens to servers, connections and streams."""

import gc
import os
import resource
import time
from collections.abc import Iterator
from random import Random

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.streams.cursor import ORIGIN
from gatewayd.streams.poller import BLOCK_S
from tests.buses import pause, until
from tests.valkey import ValkeyMaker, ValkeyServer
from tests.wire.edge.followed import KEY, Following, add, following, write, write_on

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    """What is logged in the test."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def count(logged: list[LogEvent], name: str) -> int:
    return sum(event.get("event") == name for event in logged)


async def delivered(follower: Following, *texts: bytes, within_s: float = 5.0) -> float:
    """Wait until exactly these, in this order, have been delivered since the beginning."""
    took_s = await until(lambda: len(follower.texts) >= len(texts), within_s, str(texts[-3:]))
    assert follower.texts == list(texts)
    return took_s


@pytest_twisted.ensureDeferred
async def test_what_comes_is_delivered_at_once(valkey: ValkeyServer) -> None:
    """In order, each once; what was there before is left; an idle wait on the server does not delay what comes."""
    write(valkey, [b"old"])
    async with following(valkey) as follower:
        await pause(1.3)
        written_at = time.monotonic()
        write(valkey, [b"1", b"2"])
        await delivered(follower, b"1", b"2")
        assert follower.at[0] - written_at < 0.5
        write(valkey, [b"\x00\xff\r\n$-1\r\n"])
        await delivered(follower, b"1", b"2", b"\x00\xff\r\n$-1\r\n")


@pytest_twisted.ensureDeferred
async def test_poison(valkey: ValkeyServer, logged: list[LogEvent]) -> None:
    """Malformed entries are skipped, counted and said once; the place moves on past them."""
    async with following(valkey) as follower:
        with valkey.client() as client:
            for number in range(50):
                client.call("XADD", KEY, "*", "text", "", "text", "twice")
                client.call("XADD", KEY, "*", "", "")
                client.call("XADD", KEY, "*", "text", b"%d" % number)
        await delivered(follower, *[b"%d" % number for number in range(50)])
        assert follower.counted.outcomes == {"ok": 50, "malformed_shape": 100}
        assert count(logged, "stream.malformed") == 1
        assert follower.gaps == 0


@pytest_twisted.ensureDeferred
async def test_ids_far_in_the_future(valkey: ValkeyServer) -> None:
    """A writer's wrong clock moves the place ahead of time, up to the last id there is: nothing after it is missed."""
    async with following(valkey) as follower:
        ids = ("99999999999999-0", "*", "*", "18446744073709551615-18446744073709551615")
        add(valkey, *ids)
        await delivered(follower, *[b"x"] * len(ids))
        await until(lambda: follower.counted.lag_s == 0.0)
        await pause(1.2)
        assert follower.gaps == 0
        assert follower.seconds() - follower.current_at < 2.0


@pytest_twisted.ensureDeferred
async def test_trimmed_behind_the_reader(valkey: ValkeyServer, logged: list[LogEvent]) -> None:
    """A writer that trims to nothing at once: what was read is no gap, what was not is told, with its number."""
    async with following(valkey) as follower:
        write(valkey, [b"1", b"2"])
        await delivered(follower, b"1", b"2")
        valkey.call("XTRIM", KEY, "MAXLEN", 0)
        await pause(1.5)
        assert follower.gaps == 0
        with valkey.client() as client:  # in one transaction: nobody can read what is trimmed in it
            for command in (
                ("MULTI",),
                *[("XADD", KEY, "*", "text", "lost")] * 5,
                ("XTRIM", KEY, "MAXLEN", 0),
                ("EXEC",),
            ):
                client.call(*command)
        await until(lambda: follower.gaps)
        assert (follower.counted.outcomes["gap"], follower.counted.outcomes["lost"]) == (1, 5)
        assert count(logged, "stream.gap") == 1
        write(valkey, [b"3"])
        await delivered(follower, b"1", b"2", b"3")
        assert len(follower.placed) == 1


@pytest.mark.parametrize("first", ["*", "1-1"])
@pytest_twisted.ensureDeferred
async def test_deleted_while_it_is_read(valkey: ValkeyServer, first: str) -> None:
    """The key is deleted under a waiting read: what comes into the new stream is delivered, whatever its ids are."""
    async with following(valkey) as follower:
        write(valkey, [b"1"])
        await delivered(follower, b"1")
        valkey.call("DEL", KEY)
        await pause(0.01)
        valkey.call("XADD", KEY, first, "text", "2")
        await delivered(follower, b"1", b"2")
        await until(lambda: follower.gaps)
        write(valkey, [b"3"])
        await delivered(follower, b"1", b"2", b"3")
        assert len({epoch for epoch, _ in follower.placed}) == 2


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_type(valkey: ValkeyServer, logged: list[LogEvent]) -> None:
    """Is said once, is no answer to be believed, and reading goes on when the stream is back, with a gap told."""
    async with following(valkey) as follower:
        write(valkey, [b"1"])
        await delivered(follower, b"1")
        valkey.call("SET", KEY, "text")
        await until(lambda: count(logged, "stream.unreadable"))
        stood = follower.current_at
        await pause(1.0)
        assert follower.current_at == stood
        valkey.call("DEL", KEY)
        write(valkey, [b"2"])
        await delivered(follower, b"1", b"2")
        await until(lambda: follower.gaps)
        assert count(logged, "stream.unreadable") == 1
        assert count(logged, "stream.read_again") == 1


@pytest_twisted.ensureDeferred
async def test_killed_and_restarted(make_valkey: ValkeyMaker) -> None:
    """A server that comes back with its data: what was written before and after is delivered, each once."""
    server = make_valkey(append_only=True)
    async with following(server) as follower:
        write(server, [b"1"])
        await delivered(follower, b"1")
        server.kill()
        await pause(0.5)
        server.start()
        write(server, [b"2"])
        assert await delivered(follower, b"1", b"2") < 3.0
        await pause(1.5)
        assert (follower.gaps, len(follower.placed)) == (0, 1)


@pytest_twisted.ensureDeferred
async def test_restarted_empty(own_valkey: ValkeyServer) -> None:
    """A server that comes back with nothing has another stream: its entries are delivered, after a gap."""
    async with following(own_valkey) as follower:
        write(own_valkey, [b"1"])
        await delivered(follower, b"1")
        own_valkey.restart()
        own_valkey.call("XADD", KEY, "5-5", "text", "2")
        await delivered(follower, b"1", b"2")
        assert follower.gaps == 1
        assert follower.placed[-1][1] == ORIGIN


@pytest_twisted.ensureDeferred
async def test_frozen(own_valkey: ValkeyServer) -> None:
    """A frozen server is silence, in which `current` stands; when it goes on, so does the reading: nothing is lost."""
    async with following(own_valkey) as follower:
        write(own_valkey, [b"1"])
        await delivered(follower, b"1")
        own_valkey.freeze()
        frozen_at = follower.seconds()
        await pause(3.5)  # beyond the end of the read that waited, and an attempt to connect again
        assert follower.current_at <= frozen_at
        own_valkey.thaw()
        write(own_valkey, [b"2"])
        assert await delivered(follower, b"1", b"2") < 3.0
        await until(lambda: follower.seconds() - follower.current_at < 2.0)
        assert follower.gaps == 0


@pytest_twisted.ensureDeferred
async def test_the_password_is_changed(make_valkey: ValkeyMaker) -> None:
    """While it is another one, nothing is believed once the connection is gone; corrected, reading goes on."""
    server = make_valkey(password="a-password-for-a-test")
    async with following(server) as follower:
        write(server, [b"1"])
        await delivered(follower, b"1")
        with server.client() as client:
            client.call("CONFIG", "SET", "requirepass", "another-password")
            client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await pause(1.0)
            stood = follower.current_at
            write_on(client, [b"2"])
            await pause(1.0)
            assert (follower.current_at, follower.texts) == (stood, [b"1"])
            client.call("CONFIG", "SET", "requirepass", server.password)
        await delivered(follower, b"1", b"2")
        assert follower.gaps == 0


@pytest_twisted.ensureDeferred
async def test_nothing_is_lost_or_doubled_over_disconnects(valkey: ValkeyServer) -> None:
    """Every connection is cut at random moments while entries come: each entry is delivered once, in order."""
    random = Random(20)
    texts: list[bytes] = []
    async with following(valkey) as follower:
        with valkey.client() as client:
            for _ in range(100 if FULL else 30):
                until_s = time.monotonic() + random.uniform(0.01, 0.12)
                while time.monotonic() < until_s:
                    batch = [b"%d" % (len(texts) + number) for number in range(random.randint(1, 40))]
                    write_on(client, batch)
                    texts += batch
                    await pause(0.002)
                client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: len(follower.texts) >= len(texts))
        assert follower.texts == texts
        assert follower.gaps == 0


@pytest_twisted.ensureDeferred
async def test_a_long_stream_is_read_in_bounded_memory(valkey: ValkeyServer) -> None:
    """From the beginning, with takers who are slower than the server: never more than a batch is in memory."""
    total = 100_000 if FULL else 30_000
    text = b"x" * 300
    write(valkey, [text] * total)
    follower = Following(valkey, from_beginning=True)
    most = taken = 0

    def deliver(batch: list[bytes]) -> Deferred[None]:
        nonlocal most, taken
        most, taken = max(most, len(batch)), taken + len(batch)
        return pause(0)

    follower.deliver = deliver  # type: ignore[assignment,method-assign]
    gc.collect()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await follower.start()
    caught_up = follower.poller.caught_up()
    await caught_up
    assert (taken, most) == (total, 128)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 16 * 1024
    assert follower.counted.lag_s < 60
    await follower.stop()


@pytest_twisted.ensureDeferred
async def test_the_stop_is_at_once(own_valkey: ValkeyServer) -> None:
    """In the middle of a wait, of a frozen server too: long before that is over, and nothing comes after it."""
    for frozen in (False, True):
        follower = Following(own_valkey)
        await follower.start()
        await pause(0.2)
        if frozen:
            own_valkey.freeze()
        began = time.monotonic()
        await follower.poller.stopService()
        took_s = time.monotonic() - began
        if frozen:
            own_valkey.thaw()
        write(own_valkey, [b"1"])
        await pause(0.3)
        assert follower.texts == []
        assert took_s < BLOCK_S / 2
        await follower.link.stop()
    with own_valkey.client() as client:
        assert client.info("clients")["blocked_clients"] == "0"


@pytest_twisted.ensureDeferred
async def test_several_streams_on_one_link(valkey: ValkeyServer) -> None:
    """Each waits on a connection of its own: none of them delays another, or the link."""
    async with following(valkey) as one, following(valkey, key="session-events") as other:
        await pause(0.1)
        valkey.call("XADD", "session-events", "*", "text", "s")
        write(valkey, [b"1"])
        await delivered(one, b"1")
        await delivered(other, b"s")
        began = time.monotonic()
        await one.link.call("PING")
        assert time.monotonic() - began < BLOCK_S / 2
