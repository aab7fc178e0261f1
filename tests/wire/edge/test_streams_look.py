"""What one look says of a stream in a real server, and which stream it was."""

from itertools import count
from typing import Any

import pytest
import pytest_twisted

from gatewayd.errors import Unavailable
from gatewayd.stores.redislink import RedisLink
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.streams.cursor import ORIGIN, Cursor, Look, StreamId
from gatewayd.streams.entries import RawEntry
from gatewayd.streams.redis_stream import Cut, RedisStream
from tests.buses import pause, until
from tests.valkey import ValkeyMaker, ValkeyServer
from tests.wire.edge.followed import KEY, add, linked


def stream(link: RedisLink, name: str = "epoch") -> RedisStream:
    numbers = count()
    return RedisStream(KEY, link, lambda: f"{name}-{next(numbers)}")


def reader(epoch: str, at: StreamId, counted: int | None = None) -> Cursor:
    """One that follows the stream of this epoch, and has read up to `at`."""
    cursor = Cursor(Look(epoch, ORIGIN, ORIGIN, ORIGIN, 0, 0), at)
    cursor.counted = counted
    return cursor


async def refusal(looking: Any) -> Exception:
    try:
        await looking
    except (Unavailable, RedisRefused) as error:
        return error
    raise AssertionError("it was not refused")


@pytest_twisted.ensureDeferred
async def test_a_stream_as_it_stands(valkey: ValkeyServer) -> None:
    """First, last, how many there are and how many there were: for a stream that is not there, full, trimmed, empty."""
    async with linked(valkey) as link:
        looked = stream(link)
        none = await looked.look()
        assert none == Look(none.epoch, ORIGIN, ORIGIN, ORIGIN, 0, 0)
        first, second, third = add(valkey, "*", "*", "*")
        assert await looked.look() == Look(none.epoch, ORIGIN, first, third, 3, 3)
        valkey.call("XTRIM", KEY, "MAXLEN", 2)
        assert await looked.look() == Look(none.epoch, ORIGIN, second, third, 3, 2)
        valkey.call("XTRIM", KEY, "MAXLEN", 0)
        assert await looked.look(reader(none.epoch, third)) == Look(none.epoch, ORIGIN, ORIGIN, third, 3, 0)


@pytest_twisted.ensureDeferred
async def test_every_gateway_sees_the_same_epoch(valkey: ValkeyServer) -> None:
    """Whoever looks first after a stream was made anew renews its epoch, once; the others learn it."""
    async with linked(valkey) as one, linked(valkey) as other:
        first, second = stream(one, "one"), stream(other, "other")
        add(valkey, "*", "*", "*")
        epoch = (await first.look()).epoch
        assert (await second.look()).epoch == epoch
        valkey.call("DEL", KEY)
        (added,) = add(valkey, "*")
        renewed = await second.look(reader(epoch, ORIGIN))
        assert renewed == Look(renewed.epoch, ORIGIN, added, added, 1, 1)
        assert renewed.epoch.startswith("other-")
        assert (await first.look(reader(epoch, ORIGIN))).epoch == renewed.epoch
        assert (await second.look(reader(renewed.epoch, added))).epoch == renewed.epoch


@pytest.mark.parametrize("ids", [(), ("1-1", "1-2", "1-3", "1-4"), ("1-1", "*"), ("*",) * 4, ("*",) * 3], ids=str)
@pytest_twisted.ensureDeferred
async def test_a_stream_that_was_made_anew_between_two_looks(valkey: ValkeyServer, ids: tuple[str, ...]) -> None:
    """Recognised by lower ids, fewer entries, or entries that cannot all be new; also while it is gone."""
    async with linked(valkey) as link:
        looked = stream(link)
        *_, last = add(valkey, "*", "*", "*")
        before = await looked.look()
        valkey.call("DEL", KEY)
        await pause(0.002)  # the server's clock, in milliseconds, is what new ids are made of
        add(valkey, *ids)
        after = await looked.look(reader(before.epoch, last))
        assert (after.epoch != before.epoch, after.base) == (True, ORIGIN)
        add(valkey, "*", "*")
        assert (await looked.look(reader(after.epoch, after.last))).epoch == after.epoch


@pytest_twisted.ensureDeferred
async def test_a_stream_that_was_made_anew_behind_a_reader_only(valkey: ValkeyServer) -> None:
    """It had been looked at before it had anything in it: the reader's own count tells, or all of it is read again."""
    async with linked(valkey) as link:
        looked = stream(link)
        before = await looked.look()
        for ids, new in (("*", "*"), ("*", "1-1")):
            (read,) = add(valkey, ids)
            valkey.call("DEL", KEY)
            await pause(0.002)
            add(valkey, new)
            after = await looked.look(reader(before.epoch, read, 1))
            assert (after.epoch != before.epoch, after.base) == (True, ORIGIN)
            valkey.call("DEL", KEY)
            before = await looked.look()
        add(valkey, "*")
        valkey.call("DEL", KEY)
        (read,) = add(valkey, "*")
        assert (await looked.look(reader(before.epoch, read, 2))).epoch != before.epoch


@pytest_twisted.ensureDeferred
async def test_entries_that_go_are_no_other_stream(valkey: ValkeyServer) -> None:
    """Whatever is added, trimmed or deleted in whatever order, it stays the same one."""
    async with linked(valkey) as link:
        looked = stream(link)
        epoch = (await looked.look()).epoch
        for command in (("XTRIM", KEY, "MAXLEN", 1), ("XTRIM", KEY, "MAXLEN", 0), ("XDEL", KEY, "last")) * 2:
            *_, last = add(valkey, *["*"] * 7)
            valkey.call(*[last.text if word == "last" else word for word in command])
            assert (await looked.look(reader(epoch, last))).epoch == epoch
        add(valkey, *["*"] * 40)
        valkey.call("XTRIM", KEY, "MAXLEN", 3)
        assert (await looked.look(reader(epoch, ORIGIN))).epoch == epoch


@pytest_twisted.ensureDeferred
async def test_a_server_that_lost_its_tail(own_valkey: ValkeyServer) -> None:
    """A reader who is ahead of a server that came back from an older file: one new epoch, based on what is left."""
    async with linked(own_valkey) as link:
        looked = stream(link)
        (kept,) = add(own_valkey, "5-1")
        epoch = (await looked.look()).epoch
        own_valkey.call("SAVE")
        (ahead,) = add(own_valkey, "5-2")
        assert (await looked.look(reader(epoch, ahead))).epoch == epoch
        own_valkey.restart()
        await until(lambda: not link.connected)
        await until(lambda: link.connected)
        renewed = await looked.look(reader(epoch, ahead))
        assert (renewed.epoch != epoch, renewed.base, renewed.last) == (True, kept, kept)
        # Another gateway that was ahead, too, and does not know it yet.
        assert (await looked.look(reader(epoch, ahead))).epoch == renewed.epoch
        assert (await looked.look(reader(renewed.epoch, kept))).epoch == renewed.epoch


@pytest_twisted.ensureDeferred
async def test_ids_of_64_bits(valkey: ValkeyServer) -> None:
    """Numbers that a script cannot count in are compared all the same."""
    async with linked(valkey) as link:
        looked = stream(link)
        add(valkey, "9007199254740993-1", "9007199254740993-18446744073709551614")
        epoch = (await looked.look()).epoch
        (last,) = add(valkey, "9007199254740993-18446744073709551615")
        assert (await looked.look(reader(epoch, last))).epoch == epoch
        (last,) = add(valkey, "18446744073709551615-18446744073709551615")
        assert await looked.look(reader(epoch, last)) == Look(epoch, ORIGIN, StreamId(9007199254740993, 1), last, 4, 4)


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_type(valkey: ValkeyServer) -> None:
    """Is refused as what it is."""
    async with linked(valkey) as link:
        valkey.call("SET", KEY, "text")
        error = await refusal(stream(link).look())
        assert isinstance(error, RedisRefused)
        assert error.code == "WRONGTYPE"


def raw(entry: RawEntry) -> StreamId:
    return entry.id


@pytest_twisted.ensureDeferred
async def test_a_range(valkey: ValkeyServer) -> None:
    """What lies behind one id, up to and with another, over several pages; nothing behind the last one."""
    async with linked(valkey) as link:
        looked = stream(link)
        ids = add(valkey, *["*"] * 700)
        epoch = (await looked.look()).epoch
        limits = {"count": 700, "size_bytes": 10**6}
        assert await looked.read_range(epoch, ids[0], ids[-2], raw, **limits) == ids[1:-1]
        assert await looked.read_range(epoch, ORIGIN, ids[-1], raw, **limits) == ids
        assert await looked.read_range(epoch, ids[-1], ids[-1], raw, **limits) == []
        valkey.call("XTRIM", KEY, "MAXLEN", 0)
        assert await looked.read_range(epoch, ids[-1], ids[-1], raw, **limits) == []


@pytest_twisted.ensureDeferred
async def test_a_range_that_is_too_much(valkey: ValkeyServer) -> None:
    """Too many entries, or too many bytes, are not read to their end."""
    async with linked(valkey) as link:
        looked = stream(link)
        ids = add(valkey, *["*"] * 300, size=1000)
        epoch = (await looked.look()).epoch
        assert await looked.read_range(epoch, ORIGIN, ids[-1], raw, count=299, size_bytes=10**6) is Cut.TOO_MUCH
        assert await looked.read_range(epoch, ORIGIN, ids[-1], raw, count=300, size_bytes=250_000) is Cut.TOO_MUCH
        found = await looked.read_range(epoch, ORIGIN, ids[-1], raw, count=300, size_bytes=10**6)
        assert found == ids


@pytest_twisted.ensureDeferred
async def test_a_range_that_is_not_whole(valkey: ValkeyServer) -> None:
    """Trimmed behind its beginning, of another epoch, of a stream made anew, of another type, of nobody: said so."""
    async with linked(valkey) as link:
        looked = stream(link)
        ids = add(valkey, *["*"] * 10)
        epoch = (await looked.look()).epoch

        async def read(after: StreamId, of: str = epoch) -> object:
            return await looked.read_range(of, after, ids[-1], raw, count=100, size_bytes=10**6)

        assert await read(ids[2], "another") is Cut.TRIMMED
        valkey.call("XTRIM", KEY, "MAXLEN", 6)
        assert await read(ids[2]) is Cut.TRIMMED
        assert await read(ORIGIN) is Cut.TRIMMED
        assert await read(ids[4]) == ids[5:]
        valkey.call("XTRIM", KEY, "MAXLEN", 0)
        assert await read(ids[8]) is Cut.TRIMMED
        assert await read(ids[9]) == []
        valkey.call("DEL", KEY)
        assert await read(ids[9]) is Cut.TRIMMED
        valkey.call("SET", KEY, "text")
        assert await read(ids[4]) is Cut.UNAVAILABLE
    assert await read(ids[4]) is Cut.UNAVAILABLE


@pytest_twisted.ensureDeferred
async def test_since_when_a_stream_was_quiet(make_valkey: ValkeyMaker) -> None:
    """The entry before a place, or the beginning of a stream that never lost one; else the place itself."""
    valkey = make_valkey()
    async with linked(valkey) as link:
        looked = stream(link)
        epoch, place = (await looked.look()).epoch, StreamId(50, 0)
        assert await looked.quiet_from(epoch, place) == ORIGIN
        add(valkey, "60-0")
        assert await looked.quiet_from(epoch, place) == ORIGIN
        add(valkey, "70-1", "80-0")
        assert await looked.quiet_from(epoch, StreamId(75, 0)) == StreamId(70, 1)
        assert await looked.quiet_from(epoch, StreamId(70, 1)) == StreamId(70, 1)
        assert await looked.quiet_from("another", StreamId(75, 0)) == StreamId(75, 0)
        valkey.call("XTRIM", KEY, "MAXLEN", 1)
        assert await looked.quiet_from(epoch, StreamId(75, 0)) == StreamId(75, 0)
        valkey.kill()
        assert await looked.quiet_from(epoch, StreamId(75, 0)) == StreamId(75, 0)
