"""
A TCP proxy that breaks connections on purpose, in a process of its own: `FaultProxy(port)` in a test.

Decides what happens to bytes on their way: late, in slices, slowly, not at all, later, cut by a reset, cut behind the
k-th acknowledgement of JetStream. Needs no privilege. Never changes a byte and never puts one before another; a
connection of which it dropped bytes is reset before anything else of it is forwarded.

Run as `python -m tests.faultproxy PORT` it forwards to 127.0.0.1:PORT; its first line of output is
`{"port": …}`; then it answers each line of input, a command in JSON, with one line of JSON. It ends with its input.
"""

import asyncio
import contextlib
import json
import logging
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

CHUNK_BYTES: Final = 65_536
HELD_BYTES: Final = 64 * 1024 * 1024
"""What one direction of one connection holds back; beyond, it is not read on."""

Way = Literal["up", "down"]
"""up: towards the server."""


class Toxics(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What one direction does. The default forwards at once.

    `latency_s` plus or minus `jitter_s`; `rate_bytes_s` 0 is unbounded; `slice_bytes` cuts into pieces of at most this,
    each written for itself. `reset_after_bytes` more bytes pass, then both sides are reset. `discard` reads and drops
    (a server that accepts and never speaks); `hold` reads and forwards once it is taken back, even when the sender has
    gone meanwhile; `stall` does not read (a peer that is gone without a word). `close_delay_s` is how long an end of
    the bytes takes to be passed on.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    rate_bytes_s: float = 0.0
    slice_bytes: int = 0
    reset_after_bytes: int | None = None
    discard: bool = False
    hold: bool = False
    stall: bool = False
    close_delay_s: float = 0.0


NONE: Final = Toxics()


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """
    What a line of input asks: other toxics (None: as they are) for all connections, or for the open ones only; to cut
    everything behind so many acknowledgements from now on (-1: never); to reset every connection.
    """

    up: Toxics | None = None
    down: Toxics | None = None
    open_only: bool = False
    cut_after_acks: int | None = None
    reset: bool = False


class State(msgspec.Struct, frozen=True):
    """The answer to a command: connections open, ever accepted, ever connected, bytes forwarded, acks, resets."""

    open: int
    accepted: int
    connected: int
    up_bytes: int
    down_bytes: int
    acks: int
    resets: int
    cut: bool


class Acks:
    """Finds JetStream's acknowledgements of publications in what a NATS server sends. Pure."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._fed = self._read = 0

    def feed(self, data: bytes) -> list[int]:
        """The places in `data` behind which an acknowledgement is whole."""
        before, ends = self._fed, []
        self._fed += len(data)
        self._rest += data
        while (end := self._rest.find(b"\r\n") + 2) > 1:
            words = bytes(self._rest[:end]).split()
            size = int(words[-1]) + 2 if words and words[0] in (b"MSG", b"HMSG") else 0
            if len(self._rest) < end + size:
                break
            body = self._rest[end : end + size]
            del self._rest[: end + size]
            self._read += end + size
            if body.startswith(b'{"stream":') and b'"seq":' in body:
                ends.append(self._read - before)
        return ends


class _Direction:
    """The bytes of one connection in one direction: read by one task, written by another, in order."""

    def __init__(self, pair: "_Pair", way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self.toxics: Toxics = getattr(pair.proxy, way)
        self.dropped = False  # bytes are missing: what comes after them must not be forwarded any more
        self._changed = asyncio.Event()
        self._pair, self._way, self._source, self._sink = pair, way, source, sink
        self._held: deque[tuple[float, bytes]] = deque()  # when to write, and what; b"" ends it
        self._held_bytes = 0
        self._due = 0.0
        self._passed = 0
        self._acks = Acks() if way == "down" else None

    def set(self, toxics: Toxics) -> None:
        """Other toxics from now on; what is counted is counted anew."""
        self.toxics, self._passed = toxics, 0
        self._changed.set()

    async def read(self) -> None:
        """Read until the end, which a reset is as well."""
        data = b"-"
        while data:
            while self.toxics.stall or self._held_bytes > HELD_BYTES:
                await self._wait(None)
            try:
                data = await self._source.read(CHUNK_BYTES)
            except OSError:
                data = b""
            size = self.toxics.slice_bytes or CHUNK_BYTES
            for start in range(0, len(data) or 1, size):
                piece = data[start : start + size]
                self._held.append((self._when(len(piece)), piece))
                self._held_bytes += len(piece)
            self._changed.set()

    def _when(self, size: int) -> float:
        """When a piece is due: never before the one before it."""
        toxics = self.toxics
        late_s = toxics.latency_s + random.uniform(-toxics.jitter_s, toxics.jitter_s)
        if not size:
            late_s += toxics.close_delay_s
        self._due = max(self._due, time.monotonic() + max(0.0, late_s))
        if toxics.rate_bytes_s:
            self._due += size / toxics.rate_bytes_s
        return self._due

    async def write(self) -> None:
        """Write each piece when it is due, until the end."""
        while True:
            while not self._held or self.toxics.hold or self.toxics.stall:
                await self._wait(None)
            due, piece = self._held[0]
            left_s = due - time.monotonic()
            if left_s > 0:
                await self._wait(left_s)
                continue
            self._held.popleft()
            self._held_bytes -= len(piece)
            self._changed.set()
            if not piece:
                with contextlib.suppress(OSError, RuntimeError):
                    self._sink.write_eof()
                return
            await self._pass(piece)

    async def _pass(self, piece: bytes) -> None:
        proxy, limit = self._pair.proxy, self.toxics.reset_after_bytes
        over = limit is not None and self._passed + len(piece) >= limit
        if over and limit is not None:
            piece = piece[: limit - self._passed]
        forwarded = piece[: 0 if self.toxics.discard or proxy.cut else self._before_cut(piece)]
        self.dropped = self.dropped or len(forwarded) < len(piece)
        self._passed += len(piece)
        proxy.forwarded[self._way] += len(forwarded)
        with contextlib.suppress(OSError):
            self._sink.write(forwarded)
            await self._sink.drain()
        if over:
            self._pair.reset()

    def _before_cut(self, piece: bytes) -> int:
        """How much of it may pass: all, unless the last acknowledgement that may pass is in it."""
        if self._acks is None:
            return len(piece)
        return next((end for end in self._acks.feed(piece) if self._pair.proxy.count_ack()), len(piece))

    async def _wait(self, timeout_s: float | None) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()


class _Pair:
    """One connection and its counterpart."""

    def __init__(
        self,
        proxy: "_Proxy",
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.proxy = proxy
        self._writers = client[1], server[1]
        self.ways: dict[Way, _Direction] = {
            "up": _Direction(self, "up", client[0], server[1]),
            "down": _Direction(self, "down", server[0], client[1]),
        }
        self._living: asyncio.Future[list[None]] | None = None

    async def live(self) -> None:
        """Forward both ways until both have ended, or a reset."""
        self._living = asyncio.gather(*[work() for way in self.ways.values() for work in (way.read, way.write)])
        with contextlib.suppress(asyncio.CancelledError):
            await self._living
        for writer in self._writers:
            writer.transport.abort()

    def reset(self) -> None:
        """RST to both sides, whatever is on its way."""
        self.proxy.resets += 1
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if self._living is not None:
            self._living.cancel()


class _Proxy:
    """The process: its listener, its connections, what it counts."""

    def __init__(self, target: int) -> None:
        self.up = self.down = NONE
        self.cut = False
        self.resets = 0
        self.forwarded: dict[Way, int] = {"up": 0, "down": 0}
        self._target = target
        self._pairs: set[_Pair] = set()
        self._accepted = self._connected = 0
        self._acks = 0
        self._cut_at: int | None = None

    async def run(self) -> None:
        """Serve until the input ends."""
        listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
        loop = asyncio.get_running_loop()
        commands: asyncio.Queue[bytes] = asyncio.Queue()

        def read() -> None:
            for line in sys.stdin.buffer:
                loop.call_soon_threadsafe(commands.put_nowait, line)
            loop.call_soon_threadsafe(commands.put_nowait, b"")

        threading.Thread(target=read, daemon=True).start()
        while line := await commands.get():
            state = self._obey(msgspec.json.decode(line, type=Command))
            print(msgspec.json.encode(state).decode(), flush=True)

    def _obey(self, command: Command) -> State:
        for way in get_args(Way):
            toxics: Toxics | None = getattr(command, way)
            if toxics is None:
                continue
            if not command.open_only:
                setattr(self, way, toxics)
            for pair in self._pairs:
                pair.ways[way].set(toxics)
        if command.cut_after_acks is not None:
            self.cut = False
            self._cut_at = None if command.cut_after_acks < 0 else self._acks + command.cut_after_acks
        for pair in list(self._pairs):
            if command.reset or any(way.dropped and not (way.toxics.discard or self.cut) for way in pair.ways.values()):
                pair.reset()
        return State(
            open=len(self._pairs),
            accepted=self._accepted,
            connected=self._connected,
            up_bytes=self.forwarded["up"],
            down_bytes=self.forwarded["down"],
            acks=self._acks,
            resets=self.resets,
            cut=self.cut,
        )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        try:
            server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(self, (reader, writer), server)
        self._connected += 1
        self._pairs.add(pair)
        await pair.live()
        self._pairs.discard(pair)

    def count_ack(self) -> bool:
        """An acknowledgement passes; True when it is the last one that may."""
        self._acks += 1
        self.cut = self.cut or (self._cut_at is not None and self._acks >= self._cut_at)
        return self.cut


class FaultProxy:
    """The proxy's process, and its commands; close() ends it."""

    def __init__(self, target: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faultproxy", str(target)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.port = int(json.loads(self._line())["port"])

    @property
    def url(self) -> str:
        """nats://127.0.0.1:port."""
        return f"nats://127.0.0.1:{self.port}"

    def set(self, *, up: Toxics | None = None, down: Toxics | None = None, open_only: bool = False) -> State:
        """Other toxics, for the open connections and (unless `open_only`) those to come."""
        return self._ask(Command(up, down, open_only))

    def clear(self) -> State:
        """Forward everything again; what was held goes out."""
        return self._ask(Command(NONE, NONE, cut_after_acks=-1))

    def reset(self) -> State:
        """RST to every connection."""
        return self._ask(Command(reset=True))

    def cut_after_acks(self, count: int) -> State:
        """Forward nothing in either direction from behind the `count`-th acknowledgement on, until clear()."""
        return self._ask(Command(cut_after_acks=count))

    def state(self) -> State:
        """What it has done so far."""
        return self._ask(Command())

    def await_cut(self, timeout_s: float = 10.0) -> State:
        """Returns once the cut was made."""
        ends_at = time.monotonic() + timeout_s
        while not (state := self.state()).cut:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"only {state.acks} acknowledgements in {timeout_s:g} s")
            time.sleep(0.002)
        return state

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait(10)
        self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, command: Command) -> State:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=State)

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line: Any = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy has ended")
        return bytes(line)


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes to what the other side has reset
    asyncio.run(_Proxy(int(sys.argv[1])).run())
