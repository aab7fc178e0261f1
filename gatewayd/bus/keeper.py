"""
The stream, kept as it should be: at every connect and once a second after.

Decides when the stream is made, raised or checked, when what is remembered of it is worthless because it is another
stream, when the nonces have been read back so that webhooks may be taken, and from where on halves are looked for.
Never publishes an event.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gatewayd.bus.api import api
from gatewayd.bus.ensure import Checked, check_consumer, check_stream, ensure_stream
from gatewayd.bus.marks import Marks
from gatewayd.bus.nats import NatsBus
from gatewayd.bus.publication import BusState, Unpublished
from gatewayd.bus.stream import ConsumerWanted, Finding, Lag, StreamWanted, Surroundings, id_memory_s, lag
from gatewayd.times import Wall

_log = Logger()
T = TypeVar("T")

SHED_WHILE_MOVING_S: Final = 30.0
"""A consumer counts as reading while its acknowledgements moved within this time."""

PAIR_WITHIN_S: Final = 10.0
"""A pair whose outcome is unknown was begun at most so long before: the deadlines of both messages, and late ticks."""

_MARKS: Final = 64
_MESSAGE_NOT_FOUND: Final = "(10037)"


class StreamKeeper:
    """
    `fill` is shown the headers and times of normalised events that are read back once, at start; `forget` drops what
    is remembered of another stream; `recognised` is told when the stream was created, whenever that has changed;
    `ready` is called when the nonces are filled; `repair` then, and whenever publications have failed, with the
    sequence from which on halves are to be looked for, None for a stream that is
    new to us. `guessed` says that nobody set the
    stream's max_bytes, `sync_always` whether the server is known to write before it acknowledges. `shed_above` is
    LAG_SHED_MESSAGES.
    """

    def __init__(
        self,
        bus: NatsBus,
        stream: StreamWanted,
        consumer: ConsumerWanted,
        *,
        guessed: bool,
        sync_always: bool | None,
        read_back_s: float,
        shed_above: int | None,
        fill: Callable[[Mapping[str, str]], None],
        forget: Callable[[], int],
        ready: Callable[[], None],
        repair: Callable[[int | None], None],
        recognised: Callable[[str], object] = len,
        now: Callable[[], float],
        wall: Callable[[], Wall],
    ) -> None:
        self._bus = bus
        self._stream = stream
        self._consumer = consumer
        self._guessed = guessed
        self._sync_always = sync_always
        self._read_back_s = read_back_s
        self._shed_above = shed_above
        self._fill = fill
        self._forget = forget
        self._ready = ready
        self._repair = repair
        self._recognised = recognised
        self._now = now
        self._wall = wall
        self._created = ""
        self._filled = False
        self._prepared = False
        self._preparing = False
        self._trouble = ""
        self._acked = (0, float("-inf"))
        self._waiting: Deferred[None] | None = None
        self._recent = Marks(1.0, _MARKS)
        self._acknowledged = Marks(stream.duplicate_window_s / _MARKS, _MARKS)
        self._noted_at = now()
        self._failures = 0
        self._repairing = False
        self._removed = 0
        self._deleted = 0
        self._removed_until = self._short_until = float("-inf")
        self.findings: tuple[Finding, ...] = ()
        self.bytes = 0
        self.lag = 0
        self.shedding = False

    def warnings(self) -> list[str]:
        """What /readyz says of the stream and its consumer."""
        trouble = [self._trouble] if self._trouble else []
        return trouble + [finding.text for finding in self.findings] + self._lapses()

    def _lapses(self) -> list[str]:
        """What was done to the stream and still weakens what was promised of events that are accepted already."""
        found = []
        if self._now() < self._removed_until:
            found.append(
                "Events that were accepted lately have been removed from the stream. Sent again they are answered 202 "
                "as duplicates and not stored; after a restart of nats-server they are stored again. Send anew, with "
                "other keys, what is still wanted."
            )
        if self._now() < self._short_until and not any(finding.kind == "duplicate_window" for finding in self.findings):
            found.append(
                "The duplicate window was too short for a while: an event that was accepted before, sent again, may be "
                "stored twice."
            )
        return found

    def prepare(self) -> Deferred[None]:
        """Look at the stream after a connect; see _prepare."""
        self._prepared, self._preparing = False, True
        return Deferred.fromCoroutine(self._prepare()).addBoth(self._attempted)

    def _attempted(self, result: T) -> T:
        self._preparing = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)
        return result

    def attempt(self) -> Deferred[None]:
        """Fires when the next preparation has ended, well or not; for one caller at a time."""
        self._waiting = Deferred()
        return self._waiting

    async def _prepare(self) -> None:
        """
        Make or raise the stream, check it and its consumer; the first time read the nonces back, then say ready.

        What fails is said in the warnings and tried again by tick().
        """
        bus, acknowledged = self._bus, self._bus.last_sequence
        stream = await ensure_stream(bus, self._stream, self._around(), guessed=self._guessed)
        if isinstance(stream, Unpublished):
            self._fail(f"The stream {self._stream.name} cannot be read or made: {stream.error}")
            return
        consumer = await check_consumer(bus, self._consumer)
        if isinstance(consumer, Unpublished):
            self._fail(f"The consumer {self._consumer.durable} cannot be read: {consumer.error}")
            return
        self._take(stream, consumer, acknowledged)
        if not self._filled:
            read = await bus.tail(self._consumer.filter_subject, self._seen, back_s=self._read_back_s)
            if isinstance(read, Unpublished):
                self._fail(f"The nonces cannot be read back: {read.error}")
                return
            self._filled = True
            _log.info("{count} nonces read back from the stream", event="nonces.read_back", count=read.count)
        self._prepared, self._trouble = True, ""
        self._ready()
        self._begin_repair()

    def _take(self, stream: Checked, consumer: Checked | None, acknowledged: int) -> None:
        """What a look at both says: findings, fill, lag, and whether it is the stream that it was."""
        missing = Finding(
            "consumer_missing",
            f"There is no consumer {self._consumer.durable}: nobody reads the events by it. "
            "Make it with `gatewayctl consumer ensure`, or set NATS_DURABLE.",
        )
        self._report((*stream.findings, *((missing,) if consumer is None else consumer.findings)))
        self.bytes = int(stream.info["state"]["bytes"])
        self._recognise(stream, acknowledged)
        self._notice(stream)
        behind = Lag(0, 0, 0) if consumer is None else lag(consumer.info)
        self.lag = behind.pending + behind.unacked
        if consumer is not None and behind.acked_sequence != self._acked[0]:
            self._acked = (behind.acked_sequence, self._now())
        moving = self._now() - self._acked[1] < SHED_WHILE_MOVING_S
        self.shedding = self._shed_above is not None and self.lag > self._shed_above and moving

    def _around(self) -> Surroundings:
        return Surroundings(self._bus.server_version, self._bus.max_payload, self._sync_always, self._wall())

    def _seen(self, subject: str, headers: Mapping[str, str], sequence: int, at: Wall) -> None:
        del subject, sequence, at
        self._fill(headers)

    def _fail(self, text: str) -> None:
        if text != self._trouble:
            _log.error("{text}", event="stream.unusable", text=text)
        self._trouble = text

    def _report(self, findings: tuple[Finding, ...]) -> None:
        known = {finding.kind for finding in self.findings}  # their texts may count, and are not said each second
        for finding in findings:
            if finding.kind not in known:
                level = _log.error if finding.fatal else _log.warn
                level("{text}", event="stream.finding", kind=finding.kind, text=finding.text)
        self.findings = findings

    def _recognise(self, stream: Checked, acknowledged: int) -> None:
        """Another creation time, or a last sequence below one that was `acknowledged` before we asked: another one."""
        known, self._created = self._created, stream.created
        if known != stream.created:
            self._recognised(stream.created)
        if (known and known != stream.created) or stream.last_sequence < acknowledged:
            dropped = self._forget()
            self._bus.forget_sequence()
            self._recent.clear()
            self._acknowledged.clear()
            self._repairing = False
            self._removed = self._deleted = 0
            _log.warn(
                "{stream} is another stream than before: what was remembered of it is dropped ({dropped} entries)",
                event="stream.replaced",
                stream=self._stream.name,
                dropped=dropped,
            )

    def _notice(self, stream: Checked) -> None:
        """Acknowledged events that are gone before their time, and a duplicate window that was shortened."""
        now, span_s = self._now(), id_memory_s(stream.info)
        if any(finding.kind == "duplicate_window" for finding in stream.findings):
            self._short_until = now + self._stream.duplicate_window_s
        removed = self._acknowledged.last_below(int(stream.info["state"]["first_seq"]), now - span_s)
        if removed > self._removed:
            self._removed = removed
            self._say_removed(span_s)

    def _say_removed(self, span_s: float) -> None:
        self._removed_until = self._now() + span_s
        _log.error(
            "{stream} has lost events that were accepted lately: purged, deleted, or pushed out by a limit",
            event="stream.events_removed",
            stream=self._stream.name,
        )

    async def _look_for_deleted(self, stream: Checked) -> None:
        """After deletions inside the stream (a purge of one subject is that): is the newest event still there?"""
        deleted, sequence = int(stream.info["state"].get("num_deleted", 0)), self._bus.last_sequence
        before, self._deleted = self._deleted, deleted
        if deleted <= before or not sequence:
            return
        found = await api(self._bus, f"$JS.API.STREAM.MSG.GET.{self._stream.name}", {"seq": sequence})
        if isinstance(found, Unpublished) and found.error.endswith(_MESSAGE_NOT_FOUND):
            self._say_removed(id_memory_s(stream.info))

    def _begin_repair(self) -> None:
        """Have halves looked for: from the beginning in a stream that is new to us, else from before the trouble."""
        self._failures = self._bus.failures
        known, self._repairing = self._repairing, True
        self._repair(self._recent.before(self._noted_at - PAIR_WITHIN_S) if known else None)

    def _note(self) -> None:
        """How far the stream is acknowledged now; publications that failed although the connection stood."""
        if self._repairing and self._bus.failures != self._failures:
            self._begin_repair()
        self._noted_at = self._now()
        self._recent.note(self._noted_at, self._bus.last_sequence)
        self._acknowledged.note(self._noted_at, self._bus.last_sequence)

    async def tick(self) -> None:
        """Once a second: look at both again; make a stream that went away, prepare what could not be prepared."""
        if self._bus.state is BusState.DISCONNECTED or self._preparing:
            return
        self._note()
        acknowledged = self._bus.last_sequence
        stream = await check_stream(self._bus, self._stream, self._around()) if self._prepared else None
        if stream is None:
            await self.prepare()
        elif isinstance(stream, Checked):
            consumer = await check_consumer(self._bus, self._consumer)
            if not isinstance(consumer, Unpublished):
                self._take(stream, consumer, acknowledged)
                await self._look_for_deleted(stream)
                if not self._repairing:
                    self._begin_repair()

    def widen(self, duplicate_window_s: float) -> Deferred[str | None]:
        """Make the duplicate window at least so long, for a reload; fires with None, or why it is not."""
        return Deferred.fromCoroutine(self._widen(duplicate_window_s))

    async def _widen(self, duplicate_window_s: float) -> str | None:
        if duplicate_window_s > self._stream.max_age_s:
            return "it would be longer than NATS_STREAM_MAX_AGE"
        wanted = replace(self._stream, duplicate_window_s=duplicate_window_s)
        stream = await ensure_stream(self._bus, wanted, self._around())
        if isinstance(stream, Unpublished):
            return stream.error or stream.cause.value
        short = [finding.text for finding in stream.findings if finding.kind == "duplicate_window"]
        if short:
            return short[0]
        self._stream = wanted
        return None
