"""
A stream in a Redis that exists only here, and the two connections by which it is read: as the server behaves, on a
clock that tests turn. What is known of the real server's behaviour is asserted against it in tests/wire/edge.
"""

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from gatewayd.errors import Unavailable
from gatewayd.stores.script import Script
from gatewayd.streams.cursor import ORIGIN, StreamId

Fields = list[bytes]


class FakeStreams:
    """The server: one stream. It is the link too: call() knows XRANGE, run() the look."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.entries: list[tuple[StreamId, Fields]] = []
        self.last = ORIGIN
        self.added = 0
        self.epoch = "epoch-0"
        self.base = self.seen = ORIGIN
        self.error: Exception | None = None
        """What every command fails with."""
        self.look_error: Exception | None = None
        """What every look fails with."""
        self.looks = 0
        self.commands: list[tuple[bytes | str | int, ...]] = []
        self.readers: list[FakeReader] = []

    def reader(self) -> "FakeReader":
        """A connection for reads that wait."""
        self.readers.append(FakeReader(self))
        return self.readers[-1]

    # What happens to the stream.

    def add(self, *fields: bytes, at: StreamId | None = None) -> StreamId:
        """One more entry; whoever waits for it has its answer."""
        entry_id = at or max(StreamId(int(self.clock.seconds() * 1000), 0), StreamId(self.last.ms, self.last.seq + 1))
        self.entries.append((entry_id, list(fields)))
        self.last = entry_id
        self.added += 1
        for reader in self.readers:
            reader.look_again()
        return entry_id

    def trim(self, keep: int) -> None:
        """Remove the oldest entries but `keep`."""
        del self.entries[: max(0, len(self.entries) - keep)]

    def recreate(self) -> None:
        """Delete the stream; what is added afterwards is another one."""
        self.entries, self.last, self.added = [], ORIGIN, 0
        self.base = self.seen = ORIGIN
        self.epoch += "'"

    def rewind(self, count: int) -> None:
        """Lose the newest entries, as a replica does that was behind."""
        del self.entries[len(self.entries) - count :]
        self.last = self.entries[-1][0] if self.entries else ORIGIN
        self.seen = min(self.seen, self.last)
        self.added -= count

    # The link.

    def call(self, *args: bytes | str | int) -> Deferred[Any]:
        """XRANGE key (after up-to COUNT n."""
        self.commands.append(args)
        if self.error is not None:
            return fail(self.error)
        assert (args[0], args[4]) == ("XRANGE", "COUNT")
        after, up_to = _id(str(args[2])[1:]), _id(str(args[3]))
        found = [(entry_id, fields) for entry_id, fields in self.entries if after < entry_id <= up_to]
        return succeed(_written(found[: int(args[5])]))

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> Deferred[Any]:
        """The look, with its rule for a caller who is ahead."""
        del keys
        assert script.name == "stream_look"
        error = self.error or self.look_error
        if error is not None:
            return fail(error)
        self.looks += 1
        new, known, at, _ = args
        if known == self.epoch and self.last < _id(at):
            self.epoch, self.base = new, self.seen
        self.seen = self.last
        first = self.entries[0][0] if self.entries else ORIGIN
        ids = [value.text.encode() for value in (self.base, first, self.last)]
        return succeed([self.epoch.encode(), *ids, self.added, len(self.entries)])


class FakeReader:
    """One connection on which a read waits until there is an entry, or until its BLOCK has passed."""

    def __init__(self, streams: FakeStreams) -> None:
        self._streams = streams
        self._waiting: tuple[Deferred[Any], StreamId, int] | None = None
        self._timer: Any = None
        self.disconnects = 0
        self.calls: list[tuple[bytes | str | int, ...]] = []

    def call(self, *args: bytes | str | int) -> Deferred[Any]:
        """XREAD BLOCK ms COUNT n STREAMS key after."""
        self.calls.append(args)
        assert self._waiting is None
        assert (*args[:2], args[3], args[5]) == ("XREAD", "BLOCK", "COUNT", "STREAMS")
        if self._streams.error is not None:
            return fail(self._streams.error)
        waiting: Deferred[Any] = Deferred(lambda _: self._drop())
        self._waiting = (waiting, _id(str(args[7])), int(args[4]))
        self._timer = self._streams.clock.callLater(int(args[2]) / 1000, self._answer, None)
        # The answer never comes before call() has returned, as from a socket.
        self._streams.clock.callLater(0, self.look_again)
        return waiting

    def look_again(self) -> None:
        """Answer the read that waits, when there is something for it."""
        if self._waiting is None:
            return
        _, after, count = self._waiting
        found = [(entry_id, fields) for entry_id, fields in self._streams.entries if entry_id > after]
        if found:
            self._answer([[b"key", _written(found[:count])]])

    def lose(self) -> None:
        """The connection is lost."""
        waiting = self._drop()
        if waiting is not None:
            waiting.errback(Unavailable("the connection was lost"))

    def disconnect(self) -> None:
        """End what waits."""
        self.disconnects += 1
        waiting = self._drop()
        if waiting is not None and not waiting.called:
            waiting.errback(CancelledError())

    def _answer(self, answer: Any) -> None:
        waiting = self._drop()
        if waiting is not None:
            waiting.callback(answer)

    def _drop(self) -> Deferred[Any] | None:
        if self._waiting is None:
            return None
        waiting, self._waiting = self._waiting[0], None
        if self._timer.active():
            self._timer.cancel()
        return waiting


def _id(text: str) -> StreamId:
    ms, seq = text.split("-")
    return StreamId(int(ms), int(seq))


def _written(entries: Sequence[tuple[StreamId, Fields]]) -> list[list[Any]]:
    return [[entry_id.text.encode(), list(fields)] for entry_id, fields in entries]
