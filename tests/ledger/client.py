"""
A load client that behaves as a good sender does, and writes down every attempt before it goes on.

Decides when a request is sent again: after 503, 429, a reset, a refused connection or no answer in time, with the same
body and key and a fresh nonce and time, until it is answered or the run's deadline is reached. Never judges an answer:
the checker does.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import IO, Final

import msgspec

from tests.clients import SECRET, raw_request, stamped
from tests.ledger.plan import Kind, Step, Webhook

ANSWER_TIMEOUT_S: Final = 6.0
"""How long the client waits for one answer: longer than any sender, to see how late a late one is."""

MAX_WAIT_S: Final = 2.0
"""A Retry-After above this is cut, so that a run stays bounded."""

_EAGER_WAIT_S: Final = 0.03
_STALE_S: Final = 400.0


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    One attempt. `status` is 0 when there was no answer, `code` then says how it ended (reset, refused, timeout).

    `copy` numbers the webhooks of one step, `attempt` the attempts of one webhook; `life` is which gatewayd process
    the connection went to. `sent_at` is wall time. `original` is the answer's original_corr_id, `odd` what is wrong
    with the form of the answer.
    """

    id: int
    kind: str
    plan: int
    copy: int
    attempt: int
    life: int
    body: str
    nonce: str
    sent_at: float
    latency_ms: float
    status: int = 0
    code: str = ""
    corr_id: str = ""
    duplicate: bool | None = None
    original: str = ""
    retry_after: int = 0
    odd: str = ""

    @property
    def ended_at(self) -> float:
        """Wall time of the answer, or of giving up."""
        return self.sent_at + self.latency_ms / 1000


class Ledger:
    """The append-only file: one line for each attempt; synced to disk after every `sync_every` lines."""

    def __init__(self, path: Path, sync_every: int) -> None:
        self.path = path
        self.count = 0
        self._file: IO[bytes] = path.open("xb", buffering=0)
        self._sync_every = sync_every
        self._encode = msgspec.json.Encoder().encode

    def write(self, line: Line) -> None:
        """Append one line."""
        self.count += 1
        self._file.write(self._encode(line) + b"\n")
        if self.count % self._sync_every == 0:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        os.fsync(self._file.fileno())
        self._file.close()


def read_ledger(path: Path) -> list[Line]:
    """The lines of a ledger's file."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


class _Error(msgspec.Struct):
    """What an answer's body may hold."""

    corr_id: str = ""
    code: str = ""
    duplicate: bool | None = None
    status: str = ""
    details: dict[str, object] = {}


@dataclass(slots=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class _Cut(Exception):
    """There is no answer: refused, reset or timeout."""


class _Connection:
    """
    One keep-alive connection, opened again when it is gone; `eager` does not sit out a Retry-After. `life` is the
    process that it went to: with a socket that outlives processes that is known from its answers only.
    """

    def __init__(self, port: int, life: Callable[[int], int], *, eager: bool, inherited: bool) -> None:
        self.life = 0
        self.eager = eager
        self._inherited = inherited
        self._port = port
        self._current_life = life
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> _Answer:
        """Send one request and read its answer; _Cut when there is none."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if self._streams is not None and self._streams[0].at_eof():
                    self.close()  # it was closed while it was idle: nothing was sent that could be lost
                if self._streams is None:
                    await self._connect()
                return await self._exchange(request)
        except TimeoutError:
            self.close()
            self._answered()  # whoever listens now may have read it, or reads it still
            raise _Cut("timeout") from None
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            raise _Cut("reset") from None

    async def _connect(self) -> None:
        try:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            self.life = self._current_life(self._port)
            raise _Cut("refused") from None
        self.life = self._current_life(self._port)

    async def _exchange(self, request: bytes) -> _Answer:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self._answered()
        if headers.get("connection") == "close":
            self.close()
        return _Answer(int(first.split(" ", 2)[1]), headers, body)

    def _answered(self) -> None:
        if self._inherited:
            self.life = self._current_life(self._port)

    def close(self) -> None:
        """Close it; ask() opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Client:
    """
    Runs a plan over `connections` keep-alive connections to the ports in turn; `life` says which gatewayd process
    listens on a port.

    The first `eager` connections ask again soon whatever Retry-After says, to see when there is an answer again.
    `pace_rps` bounds the steps begun in a second (0: as fast as they are answered), `secret` is what is signed with
    now. `on_progress` is called with the number of steps that are over, in the client's thread, after each of them.
    While `paused` is set no attempt is begun; `busy` are under way.
    """

    def __init__(
        self,
        ports: Sequence[int],
        plan: Sequence[Step],
        ledger: Ledger,
        *,
        connections: int,
        deadline_s: float,
        seed: int,
        life: Callable[[int], int],
        on_progress: Callable[[int], None],
        eager: int = 0,
        pace_rps: float = 0.0,
        inherited: bool = False,
        secret: Callable[[], bytes] = lambda: SECRET,
    ) -> None:
        self.paused = False
        self.busy = 0
        self._plan = plan
        self._ledger = ledger
        self._connections = connections
        self._deadline_s = deadline_s
        self._random = Random(seed)
        self._on_progress = on_progress
        self._ports = cycle(ports)
        self._life = life
        self._eager = eager
        self._inherited = inherited
        self._pace_s = 1 / pace_rps if pace_rps else 0.0
        self._secret = secret
        self._spare: list[_Connection] = []
        self._over: dict[int, asyncio.Future[None]] = {}
        self._accepted: dict[int, bytes] = {}  # by step: the request that was answered 202
        self._done = 0
        self._begun = 0
        self._began_at = self._ends_at = 0.0

    async def run(self) -> None:
        """Send everything; returns when each step is answered, or at the deadline."""
        loop = asyncio.get_running_loop()
        self._began_at = time.monotonic()
        self._ends_at = self._began_at + self._deadline_s
        self._over = {step.id: loop.create_future() for step in self._plan}
        steps = iter(self._plan)
        await asyncio.gather(*[self._work(steps, number < self._eager) for number in range(self._connections)])
        for connection in self._spare:
            connection.close()

    def _open(self, eager: bool = False) -> _Connection:
        return _Connection(next(self._ports), self._life, eager=eager, inherited=self._inherited)

    async def _work(self, steps: Iterator[Step], eager: bool) -> None:
        connection = self._open(eager)
        for step in steps:
            if step.base is not None:
                await self._over[step.base]
            early_s = self._began_at + self._begun * self._pace_s - time.monotonic()
            self._begun += 1
            if early_s > 0:
                await asyncio.sleep(early_s)
            if time.monotonic() < self._ends_at:
                await self._take(connection, step)
            self._done += 1
            self._over[step.id].set_result(None)
            self._on_progress(self._done)
        connection.close()

    async def _take(self, connection: _Connection, step: Step) -> None:
        """One step: its webhooks at once, each on a connection of its own."""
        if len(step.webhooks) == 1:
            await self._settle(connection, step, 0, step.webhooks[0])
            return
        same = self._make(step, step.webhooks[0]) if step.kind is Kind.TWINS else None
        extra = [self._spare.pop() if self._spare else self._open() for _ in step.webhooks[1:]]
        wires = zip([connection, *extra], enumerate(step.webhooks), strict=True)
        await asyncio.gather(*[self._settle(wire, step, copy, webhook, same) for wire, (copy, webhook) in wires])
        self._spare += extra

    async def _settle(
        self, connection: _Connection, step: Step, copy: int, webhook: Webhook, first: tuple[bytes, str] | None = None
    ) -> None:
        """One webhook, attempt after attempt; `first` is the first one's request where it is made already."""
        made = first
        for attempt in range(1_000_000):
            while self.paused:  # noqa: ASYNC110 - it is set in another thread
                await asyncio.sleep(0.005)
            request, nonce = made = made or self._make(step, webhook)
            self.busy += 1
            line = await self._attempt(connection, step, copy, attempt, webhook, request, nonce)
            self.busy -= 1
            if line.status == 202 and step.kind is Kind.VALID:
                self._accepted[step.id] = request
            if line.status not in (0, 429, 503) or time.monotonic() > self._ends_at:
                return
            wait_s = min(line.retry_after, MAX_WAIT_S) * (1 + 0.1 * self._random.random())
            if connection.eager:
                wait_s = _EAGER_WAIT_S
            await asyncio.sleep(wait_s if line.status else 0.02 + 0.05 * self._random.random())
            if step.kind not in (Kind.REPLAY, Kind.STUBBORN):
                made = None

    def _make(self, step: Step, webhook: Webhook) -> tuple[bytes, str]:
        """The bytes of one attempt, and its nonce."""
        if step.kind is Kind.REPLAY:
            assert step.base is not None
            accepted = self._accepted.get(step.base)
            if accepted is not None:
                return accepted, "of " + str(step.base)
        nonce = f"{self._random.getrandbits(96):024x}"
        at = time.time() - (_STALE_S if step.fault == "stale_time" else 0.0)
        secret = self._secret()
        headers = stamped(webhook.body, at, scheme=webhook.scheme, secret=secret, key=webhook.key, nonce=nonce)
        if step.fault == "bad_signature":
            scheme, _, digest = headers["X-Signature"].partition("=")
            headers["X-Signature"] = f"{scheme}={digest[::-1]}"
        if step.fault == "media_type":
            headers["Content-Type"] = "text/plain"
        return raw_request(webhook.path, webhook.body, headers), nonce

    async def _attempt(
        self,
        connection: _Connection,
        step: Step,
        copy: int,
        attempt: int,
        webhook: Webhook,
        request: bytes,
        nonce: str,
    ) -> Line:
        sent_at, began = time.time(), time.perf_counter()
        cut, answer = "", None
        try:
            answer = await connection.ask(request)
        except _Cut as ended:
            cut = str(ended)
        latency_ms = round((time.perf_counter() - began) * 1000, 2)
        line = Line(
            id=self._ledger.count,
            kind=step.fault or step.kind.value,
            plan=step.id,
            copy=copy,
            attempt=attempt,
            life=connection.life,
            body=webhook.digest,
            nonce=nonce,
            sent_at=sent_at,
            latency_ms=latency_ms,
            code=cut,
        )
        if answer is not None:
            line = _read_answer(line, answer)
        self._ledger.write(line)
        return line


def _read_answer(line: Line, answer: _Answer) -> Line:
    """The line with what the answer says, and with what is wrong with its form."""
    odd = []
    try:
        said = msgspec.json.decode(answer.body, type=_Error)
    except msgspec.DecodeError:
        said = _Error()
        odd.append("the body is no JSON of ours")
    original = said.details.get("original_corr_id")
    if not said.corr_id or answer.headers.get("x-correlation-id") != said.corr_id:
        odd.append("X-Correlation-ID is not the body's corr_id")
    if (answer.headers.get("idempotent-replayed") == "true") != (said.duplicate is True):
        odd.append("Idempotent-Replayed does not say what duplicate says")
    if answer.status == 202 and (said.status != "accepted" or said.duplicate is None):
        odd.append("not the body of a 202")
    if answer.status >= 400 and not said.code:
        odd.append("no code")
    retry_after = answer.headers.get("retry-after", "")
    if answer.status in (429, 503) and (not retry_after.isdigit() or int(retry_after) < 1):
        odd.append("no Retry-After")
    return msgspec.structs.replace(
        line,
        status=answer.status,
        code=said.code,
        corr_id=said.corr_id,
        duplicate=said.duplicate,
        original=original if isinstance(original, str) else "",
        retry_after=int(retry_after) if retry_after.isdigit() else 0,
        odd="; ".join(odd),
    )
