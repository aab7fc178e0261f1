"""
Reading the stream back: the headers of a stretch of it, in order, in slices.

Decides where to begin and when it is done, and notices a gap. Never keeps what it reads and never changes the stream:
it uses a consumer of its own without acknowledgements, which the server forgets. A pull consumer sends what was asked
for and no more, so the acknowledgements of publications on the same connection never wait behind more than a slice.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from gatewayd.bus.api import Api, api
from gatewayd.bus.inlet import Delivery
from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.bus.stored import place
from gatewayd.times import Wall, format_wall, parse_rfc3339

Seen: TypeAlias = Callable[[str, Mapping[str, str], int, Wall], object]
"""Called with subject, headers, sequence and time of each message."""

SLICE: Final = 1000
SLICE_TIMEOUT_S: Final = 5.0
_FORGOTTEN_NS: Final = 30_000_000_000  # the server drops the consumer when nobody has asked for so long


@dataclass(frozen=True, slots=True)
class ReadBack:
    """
    A stretch that was read: how many messages were seen, and the stream's last sequence when the reading began, which
    was at `server_time` (None when the server does not say its time).
    """

    count: int
    last_sequence: int
    server_time: Wall | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Gently:
    """
    Read in the background: `count` messages at a time, `pause` awaited in between, so that whatever looks at them
    keeps nobody waiting for longer than for a few.
    """

    count: int
    pause: Callable[[], Awaitable[object]]


class Reading(Api, Protocol):
    """The connection, as the reader needs it."""

    def slice(
        self, subject: str, payload: bytes, count: int, timeout_s: float, heard: Callable[[Delivery], object]
    ) -> Deferred[Unpublished | None]:
        """Ask, and hear `count` messages or fewer; fires when they came or the server said that there are no more."""


async def read_back(
    bus: Reading,
    stream: str,
    subject: str,
    seen: Seen,
    *,
    back_s: float | None = None,
    from_sequence: int | None = None,
    limit: int | None = None,
    gently: Gently | None = None,
) -> ReadBack | Unpublished:
    """
    Show `seen` the messages of `subject` (wildcards allowed) up to the stream's last one as it is now, in order.

    Begins `back_s` seconds before the stream's last message, or at `from_sequence`, or, with neither, at the first;
    ends early after `limit` messages.
    Unpublished when the connection or the server ends it early: what was seen then is not all. A `seen` that raises
    ends it too, with its exception.
    """
    info = await api(bus, f"$JS.API.STREAM.INFO.{stream}", {})
    if isinstance(info, Unpublished):
        return info
    state = info["state"]
    last, at = int(state["last_seq"]), parse_rfc3339(info.get("ts", ""))
    if not state["messages"] or (from_sequence is not None and from_sequence > last):
        return ReadBack(0, last, at)
    config = {"ack_policy": "none", "replay_policy": "instant", "headers_only": True, "filter_subject": subject}
    config |= {"mem_storage": True, "num_replicas": 1, "inactive_threshold": _FORGOTTEN_NS}
    config |= _beginning(state, back_s, from_sequence)
    create = {"stream_name": stream, "config": config}
    made = await api(bus, f"$JS.API.CONSUMER.CREATE.{stream}", create)
    if isinstance(made, Unpublished):
        return made
    reader = _Reader(seen, last, int(made["num_pending"]))
    name, most = made["name"], SLICE if gently is None else gently.count
    while reader.pending and not reader.done and reader.count != limit:
        if gently is not None and reader.count:
            await gently.pause()
        count = min(most, reader.pending, reader.pending if limit is None else limit - reader.count)
        ask = json.dumps({"batch": count, "expires": int(SLICE_TIMEOUT_S * 0.8e9)}).encode()
        before = reader.count
        ended = await bus.slice(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", ask, count, SLICE_TIMEOUT_S, reader.heard)
        if reader.error is not None:
            raise reader.error
        if ended is not None:
            return ended
        if reader.count == before:
            break  # what was pending has expired or was deleted meanwhile
    if reader.pending and not reader.count:
        return Unpublished(Cause.TIMEOUT, "the server delivers nothing")
    if not isinstance(removed := await api(bus, f"$JS.API.CONSUMER.DELETE.{stream}.{name}", {}), dict):
        return removed
    return ReadBack(reader.count, last, at)


def _beginning(state: Mapping[str, Any], back_s: float | None, from_sequence: int | None) -> dict[str, Any]:
    """The consumer's deliver policy. Time is counted from the last message: the stream may have rested for days."""
    if from_sequence is not None:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, from_sequence)}
    newest = parse_rfc3339(state["last_ts"]) if back_s is not None else None
    if newest is None or back_s is None:
        return {"deliver_policy": "all"}
    return {"deliver_policy": "by_start_time", "opt_start_time": format_wall(max(0.0, newest - back_s))}


class _Reader:
    """Takes the messages of one stretch; `pending` is what the server says is still to come."""

    __slots__ = ("_last", "_seen", "count", "done", "error", "pending")

    def __init__(self, seen: Seen, last: int, pending: int) -> None:
        self._seen = seen
        self._last = last
        self.pending = pending
        self.count = 0
        self.done = False
        self.error: Exception | None = None

    def heard(self, message: Delivery) -> None:
        """One message, whose reply subject says where it stands; see _place."""
        sequence, delivered, at, self.pending = place(message.reply)
        if sequence >= self._last:
            self.done = True
        if sequence > self._last or self.error is not None:
            return
        self.count += 1
        try:
            if delivered != self.count:
                raise RuntimeError(f"message {delivered} of the consumer came as number {self.count}")
            self._seen(message.subject, message.headers, sequence, at)
        except Exception as error:
            self.error = error
