"""
The stream and its consumer on a server: look, create what is missing, raise what is ours, report the rest.

Decides nothing itself (stream.py does); awaits what the bus hands out. Used at every connect and by gatewayctl.
"""

from dataclasses import dataclass, replace
from typing import Any

from gatewayd.bus.api import Api, api
from gatewayd.bus.publication import Unpublished
from gatewayd.bus.stream import (
    ConsumerWanted,
    Finding,
    StreamWanted,
    Surroundings,
    consumer_config,
    consumer_differences,
    differences,
    raised,
    stream_config,
    warnings,
)

_STREAM_NOT_FOUND = "(10059)"
_CONSUMER_NOT_FOUND = "(10014)"
_NO_ROOM = "(10047)"  # "insufficient storage resources available"
_SMALLEST_GUESS = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checked:
    """
    A stream or consumer that is there: its info, what was done to it now, and what is left to say about it.

    For a stream `created` (of the info) tells one stream from another of the same name.
    """

    info: dict[str, Any]
    findings: tuple[Finding, ...] = ()
    made: bool = False
    raised: bool = False

    @property
    def created(self) -> str:
        """When the stream or consumer was created, as the server writes it."""
        return str(self.info.get("created", ""))

    @property
    def last_sequence(self) -> int:
        """The stream's last sequence."""
        return int(self.info.get("state", {}).get("last_seq", 0))


async def check_stream(bus: Api, wanted: StreamWanted, around: Surroundings) -> Checked | Unpublished | None:
    """Look at the stream and change nothing; None when there is none."""
    info = await api(bus, f"$JS.API.STREAM.INFO.{wanted.name}", {})
    if isinstance(info, Unpublished):
        return None if info.error.endswith(_STREAM_NOT_FOUND) else info
    return Checked(info, (*differences(info, wanted), *warnings(info, around)))


async def ensure_stream(
    bus: Api, wanted: StreamWanted, around: Surroundings, *, guessed: bool = False
) -> Checked | Unpublished:
    """
    Make the stream when there is none, raise it when it is ours and too small, and report what is left.

    `guessed` says that nobody set max_bytes: half of a disk that may not be the server's. One that the server has no
    room for is halved until it fits. Safe in several processes at once: an identical stream that another one made
    meanwhile is the same stream.
    """
    found = await check_stream(bus, wanted, around)
    if isinstance(found, Unpublished):
        return found
    if found is None:
        info = await _create(bus, wanted, guessed=guessed)
        if isinstance(info, Unpublished):
            return info
        return Checked(info, (*differences(info, wanted), *warnings(info, around)), made=True)
    config = raised(found.info, wanted)
    if config is None:
        return found
    info = await api(bus, f"$JS.API.STREAM.UPDATE.{wanted.name}", config)
    if isinstance(info, Unpublished):
        return info
    return Checked(info, (*differences(info, wanted), *warnings(info, around)), raised=True)


async def _create(bus: Api, wanted: StreamWanted, *, guessed: bool) -> dict[str, Any] | Unpublished:
    while True:
        info = await api(bus, f"$JS.API.STREAM.CREATE.{wanted.name}", stream_config(wanted))
        full = isinstance(info, Unpublished) and info.error.endswith(_NO_ROOM)
        if not (guessed and full) or wanted.max_bytes < _SMALLEST_GUESS:
            return info
        wanted = replace(wanted, max_bytes=wanted.max_bytes // 2)


async def check_consumer(bus: Api, wanted: ConsumerWanted) -> Checked | Unpublished | None:
    """Look at the consumer; None when there is none."""
    info = await api(bus, f"$JS.API.CONSUMER.INFO.{wanted.stream}.{wanted.durable}", {})
    if isinstance(info, Unpublished):
        return None if info.error.endswith(_CONSUMER_NOT_FOUND) else info
    return Checked(info, tuple(consumer_differences(info, wanted)))


async def ensure_consumer(bus: Api, wanted: ConsumerWanted) -> Checked | Unpublished:
    """Make the consumer when there is none; one that is there is only checked: creating it again would change it."""
    found = await check_consumer(bus, wanted)
    if found is not None:
        return found
    subject = f"$JS.API.CONSUMER.CREATE.{wanted.stream}.{wanted.durable}.{wanted.filter_subject}"
    create = {"stream_name": wanted.stream, "config": consumer_config(wanted), "action": "create"}
    info = await api(bus, subject, create)
    if isinstance(info, Unpublished):
        return info
    return Checked(info, tuple(consumer_differences(info, wanted)), made=True)
