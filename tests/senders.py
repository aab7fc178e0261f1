"""
Senders that never stop by themselves: each signs with its own secret, over one kept connection, and notes every answer.

They run in a thread of their own between begin() and end(); a request without an answer is noted too, and not sent
again.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import msgspec

from tests.clients import SECRET, generic_body, raw_request, stamped, tradingview_body

TIMEOUT_S = 3.0
"""What senders wait for an answer."""

LIMIT_S = 20.0


@dataclass(frozen=True)
class Noted:
    """One request; wall times. `status` 0: no answer, `code` then says why."""

    sent_at: float
    ended_at: float
    status: int
    code: str
    corr_id: str


class _Body(msgspec.Struct):
    corr_id: str = ""
    code: str = ""


@dataclass
class Sender:
    """One sender of one source; `noted` is what it got so far."""

    port: int
    secret: bytes = SECRET
    source: str = "tradingview"
    every_s: float = 0.02
    timeout_s: float = TIMEOUT_S
    noted: list[Noted] = field(default_factory=list)

    def between(self, began: float, ended: float = float("inf")) -> list[Noted]:
        """Requests that were sent after one time and answered before another."""
        return [one for one in self.noted if one.sent_at >= began and one.ended_at <= ended]

    async def run(self, over: Callable[[], bool], numbers: Iterator[int]) -> None:
        """Send until it is over."""
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not over():
            sent_at = time.time()
            price = next(numbers) + 0.25
            status, code, said = 0, "", _Body()
            try:
                async with asyncio.timeout(self.timeout_s):
                    if streams is None or streams[0].at_eof():
                        streams = await asyncio.open_connection("127.0.0.1", self.port)
                    status, headers, said = await self._ask(*streams, sent_at, price)
                    code = said.code
                    if b"connection: close" in headers.lower():
                        streams[1].close()
                        streams = None
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                code = type(error).__name__
                if streams is not None:
                    streams[1].close()
                    streams = None
            self.noted.append(Noted(sent_at, time.time(), status, code, said.corr_id))
            await asyncio.sleep(self.every_s)
        if streams is not None:
            streams[1].close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, now: float, price: float
    ) -> tuple[int, bytes, _Body]:
        body = (
            tradingview_body(now, price)
            if self.source == "tradingview"
            else generic_body(now, self.source, price=price)
        )
        writer.write(raw_request(f"/webhook/{self.source}", body, stamped(body, now, secret=self.secret)))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        said = msgspec.json.decode(await reader.readexactly(length), type=_Body)
        return int(head[9:12]), head, said


class Senders:
    """Several senders at once; add() also while they run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(1)
        self._running = self._thread.submit(self._loop.run_forever)
        self._work: list[Future[None]] = []
        self._numbers = count(1)
        self._over = False

    def add(self, sender: Sender) -> Sender:
        """Let it send from now on."""
        work = sender.run(lambda: self._over, self._numbers)
        self._work.append(asyncio.run_coroutine_threadsafe(work, self._loop))
        return sender

    def end(self) -> None:
        """Let every sender have its last answer; an error of one is raised."""
        self._over = True
        try:
            for one in self._work:
                one.result(LIMIT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._running.result(LIMIT_S)
            self._loop.close()
            self._thread.shutdown()


@contextmanager
def sending(*first: Sender) -> Iterator[Senders]:
    """Senders for as long as the block lasts."""
    senders = Senders()
    for sender in first:
        senders.add(sender)
    try:
        yield senders
    finally:
        senders.end()
