"""
Following the stream: what is stored from now on, or from the last N messages on, one line each.

Decides where to begin, how a message is printed and how to go on after a lost connection. Never acknowledges and never
changes the stream: its consumer is its own, and the server forgets it.

Messages are pulled, a bounded number at a time, so that a slow reader of the lines slows the server down and nothing
piles up here.
"""

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.msg import Msg

from gatewayd.bus.client import NatsSettings, describe
from gatewayd.bus.publication import Unpublished
from gatewayd.bus.requests import status_of
from gatewayd.cli.console import Code, Failed, note, plain, show
from gatewayd.cli.link import Link, open_link, refused
from gatewayd.times import format_wall

BATCH: Final = 200
WAIT_S: Final = 5.0
_PAUSE_S: Final = 1.0
_FORGOTTEN_NS: Final = 30_000_000_000
_WIDER: Final = 4


@dataclass(slots=True)
class _Consumer:
    """The server's cursor: its name, and how many messages it still has."""

    name: str
    pending: int


class Following:
    """One run of `stream tail`."""

    def __init__(
        self, settings: NatsSettings, subjects: tuple[str, ...], *, last: int | None, follow: bool, as_json: bool
    ) -> None:
        self._settings = settings
        self._subjects = subjects
        self._last = last
        self._follow = follow
        self._as_json = as_json
        self._next_sequence: int | None = None
        self._skip = 0

    async def run(self) -> None:
        """Until everything asked for is printed, for ever otherwise; Failed when it cannot begin."""
        begun = False
        while True:
            try:
                link = await open_link(self._settings)
                try:
                    consumer = await self._begin(link)
                    begun = True
                    await self._read(link, consumer)
                    return
                finally:
                    await link.close()
            except Failed as failed:
                # A stream that was there may be made again; a follower waits for it.
                if not begun or not (self._follow or failed.code is Code.UNREACHABLE):
                    raise
                reason = "; ".join(failed.lines)
            except (nats.errors.Error, TimeoutError) as error:
                reason = describe(error)
            note(f"gatewayctl: interrupted ({reason}); trying again")
            await asyncio.sleep(_PAUSE_S)

    async def _begin(self, link: Link) -> _Consumer:
        """A consumer at the message to print next."""
        state = await self._state(link)
        first, last = max(1, int(state["first_seq"])), int(state["last_seq"])
        if self._next_sequence is not None and self._next_sequence > last + 1:
            note("gatewayctl: this is another stream than before; it is followed from its first message")
            self._next_sequence = first
        if self._next_sequence is not None:
            return await self._make(link, self._next_sequence)
        if self._last is None:
            self._next_sequence = last + 1
            return await self._make(link, last + 1)
        span = self._last
        while True:
            start = max(first, last - span + 1)
            consumer = await self._make(link, start)
            if consumer.pending >= self._last or start <= first:
                self._skip = max(0, consumer.pending - self._last)
                self._next_sequence = start
                return consumer
            await link.ask(f"CONSUMER.DELETE.{link.stream}.{consumer.name}", {})
            span *= _WIDER

    async def _state(self, link: Link) -> Mapping[str, Any]:
        info = await link.ask(f"STREAM.INFO.{link.stream}", {})
        if isinstance(info, Unpublished):
            raise refused(info)
        state: Mapping[str, Any] = info["state"]
        return state

    async def _make(self, link: Link, start: int) -> _Consumer:
        config = {
            "ack_policy": "none",
            "replay_policy": "instant",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "filter_subjects": list(self._subjects),
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _FORGOTTEN_NS,
        }
        made = await link.ask(f"CONSUMER.CREATE.{link.stream}", {"stream_name": link.stream, "config": config})
        if isinstance(made, Unpublished):
            raise refused(made)
        return _Consumer(str(made["name"]), int(made["num_pending"]))

    async def _read(self, link: Link, consumer: _Consumer) -> None:
        """Pull and print. Returns when nothing more is asked for; any end of the consumer is an nats.errors.Error."""
        ask = json.dumps({"batch": BATCH, "expires": int(WAIT_S * 1e9)}).encode()
        inbox = link.driver.new_inbox()
        heard = await link.driver.subscribe(inbox)
        while self._follow or consumer.pending > 0:
            await link.driver.publish(f"$JS.API.CONSUMER.MSG.NEXT.{link.stream}.{consumer.name}", ask, reply=inbox)
            for _ in range(BATCH):
                message = await heard.next_msg(timeout=WAIT_S + 2)
                status = status_of(message.headers)
                if status in (404, 408):
                    break  # nothing came within WAIT_S
                if status:
                    raise nats.errors.Error(f"the consumer is gone ({status})")
                self._take(consumer, message)
                if not self._follow and consumer.pending == 0:
                    return

    def _take(self, consumer: _Consumer, message: Msg) -> None:
        place = message.metadata
        sequence = place.sequence.stream
        consumer.pending = place.num_pending
        self._next_sequence = sequence + 1
        if self._skip:
            self._skip -= 1
            return
        at = format_wall(place.timestamp.timestamp())
        show(as_json(message, sequence, at) if self._as_json else as_line(message, sequence, at))


def as_line(message: Msg, sequence: int, at: str) -> str:
    """One message in six words; - for what it does not say."""
    headers = message.headers or {}
    told = (
        plain(headers[name]).replace(" ", "_") if headers.get(name) else "-"
        for name in ("Corr-ID", "Source", "Instrument")
    )
    return " ".join((plain(message.subject), str(sequence), at, *told))


def as_json(message: Msg, sequence: int, at: str) -> str:
    """
    One message as one line of JSON. The body is put in as it was stored but for the blanks between its tokens: numbers
    keep their digits. A body that is not JSON is given as `body_base64`.
    """
    headers = message.headers or {}
    members = {
        "subject": message.subject,
        "sequence": sequence,
        "time": at,
        "corr_id": headers.get("Corr-ID"),
        "source": headers.get("Source"),
        "instrument": headers.get("Instrument"),
        "headers": headers,
    }
    try:
        body = msgspec.json.format(message.data, indent=-1).decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members["body_base64"] = base64.b64encode(message.data).decode("ascii")
        return json.dumps(members, separators=(",", ":"))
    return f'{json.dumps(members, separators=(",", ":"))[:-1]},"body":{body}}}'
