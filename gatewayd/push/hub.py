"""
The hub: who is subscribed, what was published, and what each stream gets. Pure: no clock, no socket, no chance; times
are handed in, and what is to be done comes back as effects.

Decides for whom an event is, in which order, from where a client that comes back goes on, which streams are quiet,
stuck or too many, and why a stream ends. Never sends, reads a source, or verifies a session (push.delivery has that
done).

A broadcast names the streams that were live when its event was published. A stream that joins takes what the rings
hold up to the position of that moment and is live from then on: nothing between is missed and nothing comes twice, in
whatever slices the broadcasts are performed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Final, TypeAlias

from msgspec import Struct, structs

from gatewayd.push.frames import Event, EventSigner
from gatewayd.push.position import EVENTS, SIGNALS, SOURCES, At, Mark, Position, parse_position
from gatewayd.push.ring import EVERYBODY, Entry, Ring
from gatewayd.push.stream import Stream
from gatewayd.push.wishes import Selection, Topic
from gatewayd.sessions.endings import LIMITED, OVERFLOWED, REVOKED, SHUTTING_DOWN, UNAVAILABLE_NOW, Ending

SERVER_TIME: Final = "gateway.server_time"
HEARTBEAT: Final = "gateway.heartbeat"
RESUME_FAILED: Final = "gateway.resume_failed"

AHEAD_S: Final = 10.0
"""How long a client may be ahead of this gateway, which reads what another one has sent it already."""
STUCK_S: Final = 60.0
"""A stream that takes nothing for so long while something waits has overflowed in time."""
_TOO_MANY_RETRY_MS: Final = 5000


class Bounds(Struct, frozen=True):
    """The hub's bounds; beyond each a stream is refused, closed as overflowed, or told that it cannot be resumed."""

    streams: int = 20_000
    streams_per_user: int = 256
    streams_per_session: int = 16
    queue_events: int = 256
    queue_bytes: int = 1024 * 1024
    ring_events: int = 10_000
    ring_s: float = 600.0
    ring_bytes: int = 64 * 1024 * 1024
    """Of each source, every form of every event counted: 10,000 events of 800 bytes just fit."""
    replay_events: int = 10_000
    replay_bytes: int = 4 * 1024 * 1024
    """Of one stream that is resumed; it holds them until they are sent."""
    heartbeat_s: float = 15.0


class Item(Struct, frozen=True):
    """
    What a source publishes at `at`: for the streams of `user_id`, of one session only when that is given, or for who
    selects `topic`.
    """

    at: At
    event_type: str
    event_id: str
    timestamp_ms: int
    payload: bytes
    request_id: str = ""
    trace_id: str = ""
    user_id: str = EVERYBODY
    device_session_id: str | None = None
    topic: Topic | None = None


class Broadcast(Struct, frozen=True):
    """Send this event to these streams, all of them live, after the broadcasts before it."""

    event: Event
    streams: Sequence[Stream]
    source: int | None = None
    """None for the gateway's own events."""


class Close(Struct, frozen=True):
    """End these streams, ahead of every broadcast that waits; they are out of the hub already."""

    streams: Sequence[Stream]
    ending: Ending


class Read(Struct, frozen=True):
    """Read what `source` holds after `after` up to and with `up_to`, all of it, and call read_back()."""

    stream: Stream
    source: int
    after: Mark
    up_to: At


class Joined(Struct, frozen=True):
    """Something waits for this stream that did not before."""

    stream: Stream


Effect: TypeAlias = Broadcast | Close | Read | Joined


class _Joining(Struct):
    """A stream on its way: the client has everything up to `cut`, and what is between that and `reached` was read."""

    cut: Position
    reached: Position
    since: float
    request_id: str
    trace_id: str
    found: list[Entry]
    read: set[int]
    """The sources of which something was read: each once at most."""


class Hub:
    """`signer` signs what is published here. Streams enter by subscribe() and leave by a Close or by drop()."""

    def __init__(self, bounds: Bounds, signer: EventSigner) -> None:
        self.position = Position()
        self.bounds = bounds
        self._signer = signer
        self._rings = tuple(Ring(bounds.ring_events, bounds.ring_s, bounds.ring_bytes) for _ in SOURCES)
        self._streams: dict[Stream, None] = {}
        # Tuples: a user has few streams, bounded; a broadcast takes them as they stand.
        self._users: dict[str, tuple[Stream, ...]] = {}
        self._sessions: dict[str, tuple[Stream, ...]] = {}
        self._selections: dict[Selection, dict[Stream, None]] = {}
        self._joining: dict[Stream, _Joining] = {}
        self._ahead: set[Stream] = set()
        self._gaps: set[int] = set()
        self._number = 0
        self._made = 0

    def __len__(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    @property
    def sessions(self) -> list[str]:
        """The sessions that have streams open."""
        return list(self._sessions)

    # Sources

    def begin(self, source: int, mark: Mark, floor: At, items: Iterable[Item], now: float) -> None:
        """
        `source` is there: it stands at `mark`, and `items` are all that it published after `floor` up to there.

        Only before the first publish() of the source.
        """
        self._rings[source].clear(floor)
        for item in items:
            self._keep(source, Mark(mark.epoch, item.at), item, now)
        self.position = self.position.moved(source, mark)

    def publish(self, source: int, item: Item, now: float) -> Broadcast | None:
        """The event for who is live and may have it; None when it was published before."""
        own = self.position.marks[source]
        if own is None or item.at <= own.at:
            return None
        if source in self._gaps:
            self._gaps.discard(source)
            self._rings[source].clear(item.at)
        entry = self._keep(source, Mark(own.epoch, item.at), item, now)
        return Broadcast(entry.event, self._audience(entry), source)

    def reset(self, source: int, mark: Mark, now_ms: int) -> Broadcast:
        """
        What `source` published up to `mark` may have been missed: every live stream that gets its events is told so,
        and nobody resumes from before.
        """
        self._rings[source].clear(mark.at)
        self._gaps.discard(source)
        self.position = self.position.moved(source, mark)
        return self._warn(source, now_ms)

    def gap(self, source: int, now_ms: int) -> Broadcast:
        """
        What `source` publishes next may come after something that was missed, nobody knows how far from here. Live
        streams are told; until it comes nobody resumes without being told, and from before it nobody does afterwards.
        """
        self._gaps.add(source)
        return self._warn(source, now_ms)

    def _warn(self, source: int, now_ms: int) -> Broadcast:
        event = self._own(RESUME_FAILED, self.position, now_ms, b"gap")
        return Broadcast(event, [stream for stream in self._streams if stream.live and source in _sources(stream)])

    # Streams

    def subscribe(
        self, stream: Stream, resume: bytes, now: float, now_ms: int, *, request_id: str, trace_id: str
    ) -> list[Effect] | Ending:
        """
        Open `stream`, which goes on after the position in `resume`, or begins here and now when that is empty. Its
        first event is the server's time, bound to the request that opened it.
        """
        users, sessions = self._users.get(stream.user_id, ()), self._sessions.get(stream.device_session_id, ())
        bounds = self.bounds
        if (
            len(self._streams) >= bounds.streams
            or len(users) >= bounds.streams_per_user
            or len(sessions) >= bounds.streams_per_session
        ):
            return structs.replace(LIMITED, retry_after_ms=_TOO_MANY_RETRY_MS)
        if any(self.position.marks[source] is None for source in _sources(stream)):
            return UNAVAILABLE_NOW
        self._streams[stream] = None
        self._users[stream.user_id] = (*users, stream)
        self._sessions[stream.device_session_id] = (*sessions, stream)
        stream.last_at = now
        asked = parse_position(resume) if resume else self.position
        # Not where the hub stands: a client that leaves after the first event still misses what it missed before.
        cut = self.position if asked is None else self._cut(stream, asked)
        joining = _Joining(cut, cut, now, request_id, trace_id, [], set())
        stream.put_first((self._own(SERVER_TIME, cut, now_ms, now_ms.to_bytes(8, "big"), joining),))
        if asked is None:
            return self._fail(stream, joining, b"malformed", now_ms)
        return self._join(stream, joining, now_ms) if resume else self._enter(stream)

    def read_back(self, read: Read, items: Iterable[Item] | None, now_ms: int) -> list[Effect]:
        """What a Read found; None when it is too much, gone, or cannot be read."""
        stream = read.stream
        joining = self._joining.pop(stream, None)
        if joining is None:
            return []
        if items is None:
            return self._fail(stream, joining, b"too_old", now_ms)
        for item in items:
            position = Position().moved(read.source, Mark(read.after.epoch, item.at))
            entry = self._entry(item, position, 0)
            if _takes(stream, entry):
                joining.found.append(entry)
        return self._join(stream, joining, now_ms)

    def settle(self, now: float, now_ms: int) -> list[Effect]:
        """Let those streams in whose clients were ahead of this gateway. To be called when things were published."""
        effects: list[Effect] = []
        for stream in list(self._ahead):
            joining = self._joining[stream]
            late = now - joining.since >= AHEAD_S
            if self._is_ahead(stream, joining.reached) and not late:
                continue
            self._ahead.discard(stream)
            del self._joining[stream]
            effects += self._fail(stream, joining, b"ahead", now_ms) if late else self._join(stream, joining, now_ms)
        return effects

    def hold(self, stream: Stream, event: Event) -> Close | None:
        """A broadcast's event for a stream that can take nothing now."""
        if stream.hold(event, self.bounds.queue_events, self.bounds.queue_bytes):
            return None
        self.drop(stream)
        return Close((stream,), OVERFLOWED)

    def revoke(self, device_session_id: str) -> Close | None:
        """End every stream of a session."""
        streams = self._sessions.get(device_session_id)
        if streams is None:
            return None
        for stream in streams:
            self.drop(stream)
        return Close(streams, REVOKED)

    def beat(self, now: float, now_ms: int) -> list[Effect]:
        """One heartbeat for all streams that had nothing for a while, and the end of those that take nothing."""
        for ring in self._rings:
            ring.expire(now)
        effects = self.settle(now, now_ms)
        quiet_at, stuck_at = now - self.bounds.heartbeat_s, now - STUCK_S
        stuck = [stream for stream in self._streams if stream.last_at <= stuck_at and stream.stuck]
        for stream in stuck:
            self.drop(stream)
        if stuck:
            effects.append(Close(stuck, OVERFLOWED))
        quiet = [stream for stream in self._streams if stream.last_at <= quiet_at and stream.live and stream.ready]
        if quiet:
            effects.append(Broadcast(self._own(HEARTBEAT, self.position, now_ms, b""), quiet))
        return effects

    def end(self, count: int, window_ms: int, chance: Callable[[], float]) -> list[Close]:
        """
        End `count` of the streams, for this process ends; each client is told a moment within `window_ms` to come back
        at, all of them drawn alike (`chance` is uniform from 0 to 1), so that they do not come together.
        """
        streams = list(islice(self._streams, count))
        for stream in streams:
            self.drop(stream)
        return [
            Close((stream,), structs.replace(SHUTTING_DOWN, retry_after_ms=round(chance() * window_ms)))
            for stream in streams
        ]

    def drop(self, stream: Stream) -> None:
        """The stream is over: out of every index, and nothing of it is kept. Idempotent."""
        if stream.closed:
            return
        stream.close()
        del self._streams[stream]
        _remove(self._users, stream.user_id, stream)
        _remove(self._sessions, stream.device_session_id, stream)
        self._joining.pop(stream, None)
        self._ahead.discard(stream)
        selection = stream.wish.selection
        group = self._selections.get(selection) if selection is not None else None
        if group is not None and selection is not None:
            group.pop(stream, None)
            if not group:
                del self._selections[selection]

    # Inside

    def _cut(self, stream: Stream, asked: Position) -> Position:
        """
        The position that the stream goes on from: of what it gets the client's marks, our own where it has none; of
        the rest those that say something here.
        """
        cut = asked
        for source in SOURCES:
            mark, own = asked.marks[source], self.position.marks[source]
            if source in _sources(stream):
                cut = cut.moved(source, mark or own)
            elif mark is None or own is None or mark.epoch != own.epoch or mark.at > own.at:
                cut = cut.moved(source, None)
        return cut

    def _is_ahead(self, stream: Stream, reached: Position) -> bool:
        """True when the client has something that was not published here yet."""
        return any(
            mark is not None and own is not None and mark.epoch == own.epoch and mark.at > own.at
            for mark, own in ((reached.marks[source], self.position.marks[source]) for source in _sources(stream))
        )

    def _join(self, stream: Stream, joining: _Joining, now_ms: int) -> list[Effect]:
        """Make the stream live with what it missed before it, or say what has to be read or waited for first."""
        if self._is_ahead(stream, joining.reached):
            self._joining[stream] = joining
            self._ahead.add(stream)
            return []
        for source in _sources(stream):
            mark, own = joining.reached.marks[source], self.position.marks[source]
            if mark is None or own is None or mark.epoch != own.epoch:
                return self._fail(stream, joining, b"epoch", now_ms)
            if source in self._gaps:
                return self._fail(stream, joining, b"gap", now_ms)
            floor = self._rings[source].floor
            if mark.at < floor:
                if source in joining.read:
                    return self._fail(stream, joining, b"too_old", now_ms)
                joining.read.add(source)
                joining.reached = joining.reached.moved(source, Mark(mark.epoch, floor))
                self._joining[stream] = joining
                return [Read(stream, source, mark, floor)]
        entries = self._missed(stream, joining)
        if entries is None:
            return self._fail(stream, joining, b"too_much", now_ms)
        stream.put_first(_replay(joining.cut, entries))
        return self._enter(stream)

    def _missed(self, stream: Stream, joining: _Joining) -> list[Entry] | None:
        """What was read and what the rings have behind that, in order; None when it is more than a stream may hold."""
        kept = []
        for source in _sources(stream):
            mark = joining.reached.marks[source]
            key = stream.user_id if source == EVENTS else EVERYBODY
            if mark is not None:
                kept.append([one for one in self._rings[source].after(mark.at, key) if _takes(stream, one)])
        entries = joining.found + list(merge(*kept, key=attrgetter("number")))
        size = sum(entry.event.size for entry in entries)
        return entries if len(entries) <= self.bounds.replay_events and size <= self.bounds.replay_bytes else None

    def _fail(self, stream: Stream, joining: _Joining, reason: bytes, now_ms: int) -> list[Effect]:
        """Tell the client that something may be missing, and go on from here."""
        stream.put_first((self._own(RESUME_FAILED, self.position, now_ms, reason, joining),))
        return self._enter(stream)

    def _enter(self, stream: Stream) -> list[Effect]:
        stream.live = True
        if stream.wish.selection is not None:
            self._selections.setdefault(stream.wish.selection, {})[stream] = None
        return [Joined(stream)]

    def _audience(self, entry: Entry) -> list[Stream]:
        """The live streams that an entry is for."""
        topic = entry.topic
        if topic is None:
            streams = self._users.get(entry.key, ())
            return [stream for stream in streams if stream.live and _takes(stream, entry)]
        groups = [group for selection, group in self._selections.items() if selection.takes(topic)]
        return [stream for group in groups for stream in group]

    def _keep(self, source: int, mark: Mark, item: Item, now: float) -> Entry:
        """Number an item, move the position to it and keep it for those who come back."""
        self._number += 1
        self.position = self.position.moved(source, mark)
        entry = self._entry(item, self.position, self._number)
        self._rings[source].append(entry, now)
        return entry

    def _entry(self, item: Item, position: Position, number: int) -> Entry:
        event = Event(
            self._signer,
            event_type=item.event_type,
            event_id=item.event_id,
            timestamp_ms=item.timestamp_ms,
            payload=item.payload,
            position=position.text,
            request_id=item.request_id,
            trace_id=item.trace_id,
        )
        device_session_id, topic = item.device_session_id, item.topic
        return Entry(
            event, position, item.at, number, key=item.user_id, device_session_id=device_session_id, topic=topic
        )

    def _own(
        self, event_type: str, position: Position, now_ms: int, payload: bytes, bound_to: _Joining | None = None
    ) -> Event:
        """An event of the gateway's own."""
        self._made += 1
        return Event(
            self._signer,
            event_type=event_type,
            event_id=f"gateway-{now_ms:x}-{self._made:x}",
            timestamp_ms=now_ms,
            payload=payload,
            position=position.text,
            request_id=bound_to.request_id if bound_to is not None else "",
            trace_id=bound_to.trace_id if bound_to is not None else "",
        )


def _sources(stream: Stream) -> tuple[int, ...]:
    """The sources of which a stream gets something."""
    wish = stream.wish
    if wish.selection is None:
        return (EVENTS,)
    return SOURCES if wish.events else (SIGNALS,)


def _takes(stream: Stream, entry: Entry) -> bool:
    """True when the entry is for this stream: the one place where that is decided."""
    wish = stream.wish
    if entry.topic is not None:
        return wish.selection is not None and wish.selection.takes(entry.topic)
    return (
        wish.events
        and entry.key == stream.user_id
        and (entry.device_session_id is None or entry.device_session_id == stream.device_session_id)
    )


def _replay(cut: Position, entries: Iterable[Entry]) -> Iterator[Event]:
    """
    The entries' events for a client that has everything up to `cut`. No position goes back: an event whose own one
    would, since the client came from another gateway, which saw the sources in another order, is signed anew.
    """
    for entry in entries:
        cut = cut.joined(entry.position)
        yield entry.event if cut is entry.position else entry.event.moved(cut.text)


def _remove(index: dict[str, tuple[Stream, ...]], key: str, stream: Stream) -> None:
    left = tuple(other for other in index[key] if other is not stream)
    if left:
        index[key] = left
    else:
        del index[key]
