"""The stream as the official client sees it."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

T = TypeVar("T")


@dataclass(frozen=True)
class Read:
    """One message that was read back."""

    sequence: int
    subject: str
    headers: dict[str, str]
    data: bytes


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on an event loop of its own, in a thread: the tests' own loop is running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _read(url: str, stream: str, options: dict[str, Any]) -> list[Read]:
    client = await nats.connect(url, **options)
    try:
        stream_context = client.jetstream()
        info = await stream_context.stream_info(stream)
        found: list[Read] = []
        if not info.state.messages:
            return found
        subscription = await stream_context.subscribe(
            ">",
            stream=stream,
            ordered_consumer=True,
            config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
            pending_msgs_limit=10_000_000,
            pending_bytes_limit=2**31,
        )
        while not found or found[-1].sequence < info.state.last_seq:
            message = await subscription.next_msg(timeout=10)
            place = message.metadata.sequence.stream
            found.append(Read(place, message.subject, dict(message.headers or {}), message.data))
        return found
    finally:
        await client.close()


def read_stream(url: str, stream: str = "trading-events", **options: Any) -> list[Read]:
    """Every message of the stream, in order."""
    return run(_read(url, stream, options))


async def delete_stream(url: str, stream: str = "trading-events") -> None:
    """Delete the stream, as an operator may."""
    client = await nats.connect(url)
    try:
        await client.jetstream().delete_stream(stream)
    finally:
        await client.close()
