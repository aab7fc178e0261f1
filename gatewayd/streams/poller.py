"""
Follows one stream: reads on from a concrete id for as long as the process lives, whatever happens to the server.

Decides where reading begins, how much is read at once, when the stream is looked at for what may have been lost, how
long to wait after an error, and as of when everything is known to have been read. Never decides what an entry means
(Feed.parse does) nor what becomes of it (Feed.deliver does), and never reads on while those who take it are behind.
"""

# Twisted's services carry no annotations.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable
from gatewayd.log import RepeatFilter
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.streams.cursor import ORIGIN, Cursor, StreamId, next_count
from gatewayd.streams.entries import Malformed, RawEntry, read_answer
from gatewayd.streams.redis_stream import RedisStream
from gatewayd.times import Wall

_log = Logger()
T = TypeVar("T")

BLOCK_S: Final = 1.0
"""How long a read waits on the server for an entry: a fifth of the silence after which nothing is believed any more."""

BATCH_ENTRIES: Final = 128
BATCH_BYTES: Final = 1024 * 1024
LOOK_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
LOGGED_ONCE_S: Final = 60.0
_KIND_CHARS: Final = 64


class Reader(Protocol):
    """A connection of its own for reads that wait; see stores.redislink."""

    def call(self, *args: bytes | str | int) -> Deferred[Any]:
        """One command, without the link's deadline."""

    def disconnect(self) -> None:
        """End the read that is under way; the next call connects again."""


class Counts(Protocol):
    """What is counted; see edge_metrics."""

    def entry(self, stream: str, outcome: str, count: int = 1) -> None:
        """`count` entries, by what became of them."""

    def lag(self, stream: str, seconds: float) -> None:
        """The age of what was read last; 0 when nothing waits."""


@dataclass(frozen=True, slots=True)
class Feed(Generic[T]):
    """
    What the entries of a stream are for. All of it is called on the reactor's thread, and nothing after the stop.

    `parse` makes a value of an entry, or says why it is dropped. `deliver` takes a batch of them, in order, and may
    return a Deferred: the next batch is read when it has fired, and the stop cancels it. Failing with Unavailable it
    gets the same batch again a little later. Failing with anything else is a bug: it gets the entries of the batch
    again one by one, and those that fail again are skipped.

    `placed(epoch, at)`: before the first batch, and whenever the stream is another one: what comes next comes after
    `at` in that epoch. `gap()`: before what comes next, entries were removed unread.

    `current(at)`: whatever was in the stream at `at` (monotonic seconds) has been delivered. While all is well that is
    at most two waits of a read ago, and what `deliver` takes; it stands still while the server is silent, refuses, or
    the reading is behind.
    """

    parse: Callable[[RawEntry], T | Malformed]
    deliver: Callable[[Sequence[T]], Deferred[Any] | None]
    placed: Callable[[str, StreamId], object]
    gap: Callable[[], object]
    current: Callable[[float], object]


class StreamPoller(Service, Generic[T]):
    """
    `label` is the stream's name in metrics and the log. `from_beginning`: read what is there already, else only what
    comes after the last entry at the start. `jitter` gives a number from 0 to 1.
    """

    def __init__(
        self,
        label: str,
        stream: RedisStream,
        reader: Reader,
        feed: Feed[T],
        *,
        from_beginning: bool,
        counts: Counts,
        clock: IReactorTime,
        wall: Callable[[], Wall],
        jitter: Callable[[], float],
    ) -> None:
        self.name = f"{label}_poller"
        self.current_at = float("-inf")
        """As of when everything in the stream has been delivered; see Feed.current."""
        self._label = label
        self._stream = stream
        self._reader = reader
        self._feed = feed
        self._from_beginning = from_beginning
        self._counts = counts
        self._clock = clock
        self._wall = wall
        self._jitter = jitter
        self._said = RepeatFilter(clock.seconds, LOGGED_ONCE_S)
        self._cursor: Cursor | None = None
        self._mark: tuple[float, StreamId] | None = None
        self._look_due = 0.0
        self._count = BATCH_ENTRIES // 2
        self._pause_s = FIRST_PAUSE_S
        self._troubled = False
        self._life: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []

    def caught_up(self) -> Deferred[None]:
        """Fires when everything that was in the stream at the start has been delivered; never when it is stopped."""
        waiting: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        self._tell()
        return waiting

    def startService(self) -> None:
        """Begin; the server need not be there yet."""
        super().startService()
        self._life = Deferred.fromCoroutine(self._run())

    def stopService(self) -> Deferred[None] | None:
        """End at once: nothing is delivered any more, and a read that waits on the server is cut off."""
        super().stopService()
        life, self._life = self._life, None
        if life is not None:
            life.addErrback(_cancelled)
            life.cancel()
        self._reader.disconnect()
        return life

    async def _run(self) -> None:
        while self.running:
            try:
                await self._turn(self._cursor or await self._place())
            except Exception as error:  # whatever it is, the stream must be read on
                if not self.running:
                    return
                self._trouble(error)
                await self._rest()
            else:
                self._pause_s = FIRST_PAUSE_S
                if self._troubled:
                    self._troubled = False
                    _log.info("{stream}: the stream is read again", event="stream.read_again", stream=self._label)

    async def _place(self) -> Cursor:
        """Where reading begins: resolved once, however often the connection is lost later."""
        asked = self._clock.seconds()
        look = await self._stream.look()
        cursor = self._cursor = Cursor(look, ORIGIN if self._from_beginning else look.last)
        self._look_due = asked + LOOK_S
        self._feed.placed(cursor.epoch, cursor.at)
        self._passed(cursor, (asked, look.last))
        return cursor

    async def _turn(self, cursor: Cursor) -> None:
        """One read, and a look when it is due."""
        if self._clock.seconds() >= self._look_due:
            await self._compare(cursor)
        asked, count = self._clock.seconds(), self._count
        block_ms, after = int(BLOCK_S * 1000), cursor.at.text
        answer = await self._reader.call("XREAD", "BLOCK", block_ms, "COUNT", count, "STREAMS", self._stream.key, after)
        entries = read_answer(answer)
        if entries:
            self._counts.lag(self._label, max(0.0, self._wall() - entries[-1].id.ms / 1000))
            await self._take(entries)
            cursor.advance(entries[-1].id, len(entries))
            size_bytes = sum(entry.size_bytes for entry in entries)
            self._count = next_count(len(entries), size_bytes, most=BATCH_ENTRIES, budget_bytes=BATCH_BYTES)
        else:
            self._counts.lag(self._label, 0.0)
        if len(entries) < count:  # nothing was left behind when the server answered
            self._current(asked if entries else min(asked + BLOCK_S, self._clock.seconds()))
        elif self._mark is not None:
            self._passed(cursor, self._mark)

    async def _compare(self, cursor: Cursor) -> None:
        """
        Look whether reading connects. The server may have lost its tail or the stream may be another one; both are seen
        here before anything is read after an error. A look that fails is made up for by the next one: reading goes on.
        """
        asked = self._clock.seconds()
        self._look_due = asked + LOOK_S
        try:
            look = await self._stream.look(cursor)
        except (Unavailable, RedisRefused) as error:
            self._say_trouble(error)
            return
        found = cursor.compare(look)
        if found is not None:
            self._mark = None
            self._counts.entry(self._label, "gap")
            self._counts.entry(self._label, "lost", found.lost or 0)
            text = "it is another stream" if found.new_epoch else f"{found.lost} entries were removed unread"
            _log.warn("{stream}: {text}", event="stream.gap", stream=self._label, text=text)
            self._feed.gap()
            if found.new_epoch:
                self._feed.placed(cursor.epoch, cursor.at)
        self._passed(cursor, self._mark or (asked, look.last))

    def _passed(self, cursor: Cursor, mark: tuple[float, StreamId]) -> None:
        """What was in the stream at the mark's time has been read once its last id has."""
        reached = cursor.at >= mark[1]
        self._mark = None if reached else mark
        if reached:
            self._current(mark[0])

    def _current(self, at: float) -> None:
        self.current_at = max(self.current_at, at)
        self._feed.current(self.current_at)
        self._tell()

    def _tell(self) -> None:
        while self._waiting and self.current_at != float("-inf"):  # one may cancel another
            self._waiting.pop(0).callback(None)

    async def _take(self, entries: Sequence[RawEntry]) -> None:
        """Parse and deliver; what is malformed is dropped and counted."""
        batch: list[T] = []
        for entry in entries:
            try:
                parsed = self._feed.parse(entry)
            except Exception:  # one entry must not hold up those behind it
                self._skip()
                continue
            if isinstance(parsed, Malformed):
                self._drop(entry.id, parsed.reason)
            else:
                batch.append(parsed)
        if batch:
            await self._deliver(batch)

    async def _deliver(self, batch: Sequence[T]) -> None:
        while True:
            try:
                under_way = self._feed.deliver(batch)
                if under_way is not None:
                    await under_way
            except CancelledError:
                raise
            except Unavailable as error:
                self._trouble(error)
                await self._rest()
            except Exception:
                if len(batch) == 1:
                    self._skip()
                else:
                    for one in batch:
                        await self._deliver([one])
                return
            else:
                self._counts.entry(self._label, "ok", len(batch))
                return

    def _drop(self, entry_id: StreamId, reason: str) -> None:
        self._counts.entry(self._label, f"malformed_{reason}")
        left_out = self._said.admit(("malformed", reason))
        if left_out is not None:
            _log.warn(
                "{stream}: a malformed entry was dropped: {reason}",
                event="stream.malformed",
                stream=self._label,
                reason=reason,
                entry_id=entry_id.text,
                held_back=left_out,
            )

    def _skip(self) -> None:
        """An entry that something of ours cannot take, in an except clause: a bug, of which one a minute is shown."""
        self._counts.entry(self._label, "fault")
        if self._said.admit(("fault", "")) is not None:
            _log.failure("{stream}: an entry was skipped", event="stream.fault", stream=self._label)

    def _trouble(self, error: Exception) -> None:
        """Something failed; what is known of the stream may be wrong from here on."""
        self._look_due = self._clock.seconds()
        self._troubled = True
        self._say_trouble(error)

    def _say_trouble(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        kind = error.code if isinstance(error, RedisRefused) else text[:_KIND_CHARS]
        left_out = self._said.admit(("trouble", kind))
        if left_out is None:
            return
        if isinstance(error, Unavailable | RedisRefused):
            _log.error(
                "{stream}: the stream cannot be read: {text}",
                event="stream.unreadable",
                stream=self._label,
                text=text,
                held_back=left_out,
            )
        else:
            _log.failure("{stream}: reading failed", event="stream.fault", stream=self._label)

    async def _rest(self) -> None:
        """Wait a while, up to twice as long each time, at random, so that many gateways do not come back at once."""
        pause_s = self._pause_s * (0.5 + 0.5 * self._jitter())
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        await deferLater(self._clock, pause_s)


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)
