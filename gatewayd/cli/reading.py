"""
The stream as a command reads it: a stretch of it in order, or one message.

Decides how a stretch is read in slices. Never acknowledges and never changes the stream: a stretch is read by a
consumer of its own, which is taken away at its end, and which the server forgets when the command was killed.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import nats.errors

from gatewayd.bus.client import describe
from gatewayd.bus.publication import Stored, Unpublished
from gatewayd.bus.stored import parse_headers, place, stored_of
from gatewayd.cli.console import Code, Failed, note
from gatewayd.cli.link import Link, refused, within
from gatewayd.times import Wall, format_wall

SLICE: Final = 1000
SLICE_S: Final = 5.0
PROGRESS_S: Final = 2.0
_FORGOTTEN_NS: Final = 30_000_000_000
_NOT_FOUND: Final = "(10037)"

Seen = Callable[[Stored], object]


class Stretch:
    """
    What is read of a stream: the headers of these subjects, from a time or from the beginning on, everything once.

    read() shows what was stored since the last call. `progress` is told the number of messages and, of how many, after
    each slice.
    """

    def __init__(
        self,
        link: Link,
        subjects: Sequence[str],
        *,
        since: Wall | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._link = link
        self._subjects = list(subjects)
        self._since = since
        self._progress = progress
        self._next = 0
        self.last_sequence = 0

    async def read(self, seen: Seen) -> None:
        """Show `seen` every message up to the stream's last one as it is now; Failed when the connection ends."""
        state = (await stream_info(self._link))["state"]
        last = int(state["last_seq"])
        if state["messages"] and last >= self._next:
            await self._read(seen, last)
        self._next = last + 1
        self.last_sequence = last

    async def _read(self, seen: Seen, last: int) -> None:
        link = self._link
        config = {
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subjects": self._subjects,
            "headers_only": True,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _FORGOTTEN_NS,
            **self._beginning(),
        }
        made = await link.ask(f"CONSUMER.CREATE.{link.stream}", {"stream_name": link.stream, "config": config})
        if isinstance(made, Unpublished):
            raise refused(made)
        try:
            await _Slices(link, str(made["name"]), last, int(made["num_pending"])).read(seen, self._progress)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise Failed(Code.UNREACHABLE, f"NATS does not answer: {describe(error)}") from None
        await link.ask(f"CONSUMER.DELETE.{link.stream}.{made['name']}", {})

    def _beginning(self) -> dict[str, Any]:
        if self._next:
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": self._next}
        if self._since is None:
            return {"deliver_policy": "all"}
        return {"deliver_policy": "by_start_time", "opt_start_time": format_wall(max(0.0, self._since))}


class _Slices:
    """The messages of one consumer, pulled a slice at a time; what comes is kept until the slice is whole."""

    def __init__(self, link: Link, consumer: str, last: int, pending: int) -> None:
        self._link = link
        self._consumer = consumer
        self._last = last
        self._pending = pending
        self._heard: list[tuple[bytes, bytes, bytes]] = []
        self._size = 0
        self._whole = asyncio.Event()
        self._over = False

    async def read(self, seen: Seen, progress: Callable[[int, int], object] | None) -> None:
        total, count = self._pending, 0
        driver = self._link.driver
        inbox = driver.new_inbox()
        subscription = await driver.listen(inbox, self._hear)
        while self._pending and not self._over:
            self._size = min(SLICE, self._pending)
            ask = json.dumps({"batch": self._size, "expires": int(SLICE_S * 0.8e9)}).encode()
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._link.stream}.{self._consumer}"
            await driver.publish(subject, ask, reply=inbox)
            await within(SLICE_S, self._whole.wait())
            for message in self._heard:
                stored, self._pending = _stored(*message)
                if stored.sequence <= self._last:
                    count += 1
                    seen(stored)
                self._over = self._over or stored.sequence >= self._last
            self._heard.clear()
            self._whole.clear()
            if progress is not None:
                progress(count, total)
        await driver.silence(subscription)

    def _hear(self, subject: bytes, reply: bytes, headers: bytes) -> None:
        """A message, or the status line with which the server ends a slice: what was pending has gone meanwhile."""
        if reply:
            self._heard.append((subject, reply, headers))
        else:
            self._over = True
        if self._over or len(self._heard) >= self._size:
            self._whole.set()


def _stored(subject: bytes, reply: bytes, headers: bytes) -> tuple[Stored, int]:
    """A delivered message, and how many are still to come."""
    sequence, _, at, pending = place(reply.decode("utf-8", "replace"))
    known = parse_headers(headers.decode("utf-8", "replace"))
    return Stored(sequence, subject.decode("utf-8", "replace"), known, b"", at), pending


async def stream_info(link: Link) -> dict[str, Any]:
    """What the server says of the stream."""
    info = await link.ask(f"STREAM.INFO.{link.stream}", {})
    if isinstance(info, Unpublished):
        raise refused(info)
    return info


async def read_message(link: Link, sequence: int) -> Stored | None:
    """One message, by the stream's leader; None when there is none with this sequence."""
    return await _get(link, {"seq": sequence})


async def read_last(link: Link, subject: str) -> Stored | None:
    """The last message on a subject; None when there is none."""
    return await _get(link, {"last_by_subj": subject})


async def _get(link: Link, asked: Mapping[str, Any]) -> Stored | None:
    found = await link.ask(f"STREAM.MSG.GET.{link.stream}", asked)
    if isinstance(found, Unpublished):
        if found.error.endswith(_NOT_FOUND):
            return None
        raise refused(found)
    return stored_of(found["message"])


class Progress:
    """Says how far a long reading is, every PROGRESS_S seconds."""

    def __init__(self, monotonic: Callable[[], float], what: str) -> None:
        self._monotonic = monotonic
        self._what = what
        self._due = monotonic() + PROGRESS_S

    def say(self, count: int, total: int) -> None:
        """So many messages of so many were read."""
        if self._monotonic() >= self._due:
            self._due = self._monotonic() + PROGRESS_S
            note(f"gatewayctl: {self._what}: {count} of {total} messages")
