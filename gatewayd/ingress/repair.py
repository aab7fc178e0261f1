"""
The halves that a crash or a hung server left in the stream, made whole in the background.

Decides when the stream is looked at, from where on, and when again. Never decides what a half is or what completes it
(halves does), and never delays a webhook: it reads in small slices and pauses between them. What it publishes has the
id that its request would have used, so that several gatewayd may do the same at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.bus.publication import Cause, Message, Published, Stored, Unpublished
from gatewayd.bus.tail import Gently, ReadBack, Seen
from gatewayd.ingress.events import Events, raw_id
from gatewayd.ingress.halves import Damaged, Half, Halves, restore
from gatewayd.ingress.sources import Rules
from gatewayd.times import Wall

_log = Logger()

BACK_S: Final = 600.0
"""How far before the stream's last message the first look begins."""

AGAIN_S: Final = (5.0, 30.0)
"""A server that hung stores what lay in its old connections when it wakes."""

SLICE: Final = 1000
"""Messages after which the bound on halves is looked at."""

AT_A_TIME: Final = 50
PAUSE_S: Final = 0.02
"""Measured over 20,000 messages at 200 webhooks/s: 50 at a time leave the latency as it is, 250 multiply it by four."""

_FIRST_RETRY_S: Final = 0.5
_LONGEST_RETRY_S: Final = 5.0
_SOON_S: Final = 0.05
_SHOWN: Final = 5


class Stream(Protocol):
    """The bus, as the repair needs it: NatsBus."""

    def publish(self, messages: Sequence[Message]) -> Deferred[Published | Unpublished]:
        """See IEventBus."""

    def read(self, sequence: int, msg_id: bytes) -> Deferred[Stored | Unpublished | None]:
        """See IEventBus."""

    def tail(
        self,
        subject: str,
        seen: Seen,
        *,
        back_s: float | None = None,
        from_sequence: int | None = None,
        limit: int | None = None,
        gently: Gently | None = None,
    ) -> Deferred[ReadBack | Unpublished]:
        """See tail.read_back."""


class Counters(Protocol):
    """What the repair counts."""

    def repaired(self, result: str) -> None:
        """One half: "normalized", "dead_letter", or "failed" (it is damaged, or an attempt that is made again)."""

    def orphaned(self, count: int) -> None:
        """So many normalised events have no raw one."""

    def dead_letter(self, code: str) -> None:
        """See pipeline.Counters."""


class _Tally:
    """What one look came to, for its line in the log."""

    __slots__ = ("dead", "failed", "normalised", "orphans", "seen")

    def __init__(self) -> None:
        self.seen = self.normalised = self.dead = self.failed = self.orphans = 0

    def found(self) -> bool:
        return bool(self.normalised or self.dead or self.failed or self.orphans)


class Repair:
    """
    The background repair of one process. begin() wakes it; looks then follow at once, `again_s` later, and when a half
    that was too young has ripened. A look that fails is tried again until it succeeds, from where it ended.

    It reads on from look to look: `_next` is the first sequence that it has not seen, and every half before that is in
    `_halves`, or whole, or given up.
    """

    def __init__(
        self,
        *,
        bus: Stream,
        events: Events,
        rules: Callable[[], Rules],
        clock: IReactorTime,
        wall: Callable[[], Wall],
        counters: Counters,
        back_s: float = BACK_S,
        again_s: Sequence[float] = AGAIN_S,
        halves: Callable[[], Halves] = Halves,
    ) -> None:
        self._bus = bus
        self._events = events
        self._rules = rules
        self._clock = clock
        self._wall = wall
        self._counters = counters
        self._back_s = back_s
        self._again_s = tuple(again_s)
        self._gently = Gently(AT_A_TIME, self._pause)
        self._new_halves = halves
        self._halves = halves()
        self._next: int | None = None
        self._due: list[float] = []
        self._tries = 0
        self._begun = False
        self._timer: IDelayedCall | None = None
        self._look: Deferred[None] | None = None
        self._stopped = False

    @property
    def idle(self) -> bool:
        """True when no look is under way and none is due."""
        return self._look is None and not self._due

    def begin(self, from_sequence: int | None) -> None:
        """
        Look for halves from this sequence on, or further back where an earlier call is not done yet.

        None: the stream is new to us, or another one than before. It is looked at from `back_s` before its last
        message, and what was known of halves is dropped.
        """
        if self._stopped:
            return
        if from_sequence is None:
            self._next, self._halves = None, self._new_halves()
            if self._look is not None:
                self._look.cancel()
        elif self.idle and (self._next is None or from_sequence > self._next):
            self._next, self._halves = from_sequence, self._new_halves()
        now = self._clock.seconds()
        # A look that is due stays so: who begins again and again must not put it off for ever. While looks fail there
        # is one due, and its pause is kept: a completion that fails is a reason to begin, too.
        soon = [now] if not self._tries else []
        self._due = sorted({*self._due[:1], *soon, *(now + later for later in self._again_s)})
        self._begun = True
        self._arm()

    def stop(self) -> Deferred[None]:
        """Fires when nothing of it runs any more, a publication's deadline later at most."""
        self._stopped = True
        self._due.clear()
        self._arm()
        look = self._look
        if look is None:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        look.addBoth(lambda _: ended.callback(None))
        look.cancel()
        return ended

    def _arm(self) -> None:
        """Have the timer stand at the next look, unless one is under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and self._look is None:
            self._timer = self._clock.callLater(max(0.0, self._due[0] - self._clock.seconds()), self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        self._due = [due for due in self._due if due > now]
        look = self._look = Deferred.fromCoroutine(self._look_on())
        look.addErrback(self._broken).addBoth(self._ended)

    def _ended(self, _: object) -> None:
        self._look = None
        self._arm()

    def _broken(self, failure: Failure) -> None:
        """A look was cancelled, by begin() or stop(); or it failed by a fault of ours, and the next may not."""
        if failure.check(CancelledError):  # type: ignore[no-untyped-call]
            return
        _log.failure("the repair failed", failure, event="repair.failed")
        self._again(self._retry_s())

    def _again(self, later_s: float) -> None:
        """One more look, unless one is due before, which says anew what is left."""
        at = self._clock.seconds() + later_s
        if not self._stopped and (not self._due or at < self._due[0]):
            self._due.insert(0, at)

    def _retry_s(self) -> float:
        self._tries += 1
        return min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(10, self._tries - 1))

    async def _look_on(self) -> None:
        """Read to the stream's end as it is now, judge and mend; what is left is due again."""
        halves, tally, first = self._halves, _Tally(), self._begun
        self._begun = False
        now = await self._read(halves, tally)
        if isinstance(now, Unpublished):
            self._begun = first
            self._again(self._retry_s())
            return
        self._say_orphans(halves.take_orphans(now), tally)
        failed = await self._mend(halves, halves.incomplete(now), tally)
        if failed is not None:
            self._again(self._retry_s())
        else:
            self._tries = 0
        ripens_s = halves.ripens_in(now)
        if ripens_s is not None:
            self._again(ripens_s + _SOON_S)
        self._say(tally, failed, first=first)

    async def _read(self, halves: Halves, tally: _Tally) -> Wall | Unpublished:
        """Show the halves what is new in the stream; the server's time up to which everything was seen."""

        def see(_: str, headers: Mapping[str, str], sequence: int, at: Wall) -> None:
            if halves is self._halves:  # else a begin() has cancelled this look, and this was on its way
                self._next = sequence + 1
                tally.seen += 1
                halves.see(headers, sequence, at)

        end: int | None = None
        now = self._wall()
        while halves is self._halves and not self._stopped:
            back_s = self._back_s if self._next is None else None
            read = await self._bus.tail(
                ">", see, back_s=back_s, from_sequence=self._next, limit=SLICE, gently=self._gently
            )
            if isinstance(read, Unpublished):
                return read
            if end is None:
                end, now = read.last_sequence, read.server_time or now
            if not read.count:  # the rest has expired, or there was none
                self._next = max(self._next or 1, end + 1)
            if self._next is not None and self._next > end:
                return now
            raws, orphans = halves.overflow()
            self._say_orphans(orphans, tally)
            if raws:
                _log.warn("{count} halves are too many to hold", event="repair.overflow", count=len(raws))
                failed = await self._mend(halves, raws, tally)
                if failed is not None:
                    return failed
            await self._pause()
        return Unpublished(Cause.DISCONNECTED, "the look was given up")

    def _pause(self) -> Deferred[None]:
        return deferLater(self._clock, PAUSE_S, _nothing)

    async def _mend(self, halves: Halves, raws: Sequence[Half], tally: _Tally) -> Unpublished | None:
        """Complete these raws, one after the other; the first that cannot be, for the time being, ends it."""
        for half in raws:
            if self._stopped or halves is not self._halves:
                return None
            failed = await self._complete(half, tally)
            if failed is not None:
                tally.failed += 1
                self._counters.repaired("failed")
                return failed
            halves.drop(half)
        return None

    async def _complete(self, half: Half, tally: _Tally) -> Unpublished | None:
        stored = await self._bus.read(half.sequence, raw_id(half.identity))
        if stored is None:  # purged or expired meanwhile
            return None
        if isinstance(stored, Unpublished):
            return stored
        restored = restore(half, stored, self._events, self._rules(), _report)
        if isinstance(restored, Damaged):
            tally.failed += 1
            self._counters.repaired("failed")
            _log.error(
                "the raw event at {sequence} has no normalised one, and none can be made: {reason}",
                event="repair.damaged",
                corr_id=half.corr_id,
                sequence=half.sequence,
                reason=restored.reason,
            )
            return None
        published = await self._bus.publish((restored.message,))
        if isinstance(published, Unpublished):
            return published
        if published.acks[0].duplicate:  # somebody was faster, or did it at an earlier start
            return None
        known = {"corr_id": half.corr_id, "source": restored.source, "sequence": half.sequence}
        if restored.dead is None:
            tally.normalised += 1
            self._counters.repaired("normalized")
            _log.info("a missing normalised event is published", event="repair.normalised", **known)
        else:
            tally.dead += 1
            self._counters.repaired("dead_letter")
            self._counters.dead_letter(restored.dead)
            _log.warn(
                "a raw event can no longer be normalised and is a dead letter now",
                event="repair.dead_letter",
                code=restored.dead,
                **known,
            )
        return None

    def _say_orphans(self, orphans: Sequence[Half], tally: _Tally) -> None:
        if not orphans:
            return
        tally.orphans += len(orphans)
        self._counters.orphaned(len(orphans))
        _log.error(
            "{count} normalised events have no raw one, the first of them {corr_ids}",
            event="repair.orphans",
            count=len(orphans),
            corr_ids=", ".join(half.corr_id for half in orphans[:_SHOWN]),
        )

    def _say(self, tally: _Tally, failed: Unpublished | None, *, first: bool) -> None:
        """One line of a look that found something, and of the first one after a begin()."""
        if not (tally.found() or first):
            return
        _log.info(
            "looked for halves in {seen} messages: {normalised} completed, {dead} dead letters, {orphans} without a "
            "raw one, {failed} failed",
            event="repair.looked",
            seen=tally.seen,
            normalised=tally.normalised,
            dead=tally.dead,
            orphans=tally.orphans,
            failed=tally.failed,
            **({} if failed is None else {"nats_error": failed.error or failed.cause.value}),
        )


def _nothing() -> None:
    """What deferLater calls when it is only waited for."""


def _report(step: str) -> None:
    _log.failure("a stored body could not be read again: {step}", event="repair.read_failed", step=step)
