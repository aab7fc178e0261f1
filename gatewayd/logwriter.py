"""
How log lines leave the process without ever blocking it: one descriptor, one bounded queue, no thread.

Decides how a descriptor is written to, when lines wait, and that a line for which there is no room is dropped and
counted. Never looks into a line, never waits for who reads it (but at the stop, for half a second).
"""

# Twisted's services carry no annotations.
# mypy: disable-error-code="no-untyped-call"

import atexit
import errno
import math
import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

LIMIT_BYTES: Final = 4 * 1024 * 1024
INTERVAL_S: Final = 0.02
FLUSH_S: Final = 0.5

_PIPE_BYTES: Final = 4096  # PIPE_BUF: what a pipe that poll calls writable takes without blocking (pipe(7))
_TERMINAL_BYTES: Final = 256  # a terminal that poll calls writable may have room for little more
_CHUNK_BYTES: Final = 64 * 1024
_TURN_BYTES: Final = 1024 * 1024  # written in one turn of the reactor at most
_HUNGRY_S: Final = 0.005  # until the next try when a reader keeps up, but its pipe is full
_BROKEN_S: Final = 1.0  # until the next try after an error such as a full disk
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ENXIO)


class Output:
    """
    One descriptor that is written to without ever waiting for who reads it; `path` when it was opened by open_path.

    Setting O_NONBLOCK on an inherited descriptor would set it for every process that shares it (the shell's terminal),
    so a pipe or terminal is opened once more through /proc, where the flag is ours alone. Where that is refused, and
    for a socket, poll is asked before each small write. A file never makes anyone wait for long.
    """

    def __init__(self, fd: int, path: str = "") -> None:
        self.fd = fd
        self.path = path
        self._asks = False
        self._most = _CHUNK_BYTES
        mode = os.fstat(fd).st_mode
        if path or not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)):
            return
        try:
            self.fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            self._asks = True
            self._most = _TERMINAL_BYTES if stat.S_ISCHR(mode) else _PIPE_BYTES

    def send(self, data: memoryview) -> int:
        """Write some of `data`; how many bytes, 0 when there is no room now. OSError as write(2)."""
        if self._asks and not self.wait(0.0):
            return 0
        try:
            return os.write(self.fd, data[: self._most])
        except BlockingIOError:
            return 0

    def wait(self, seconds: float) -> bool:
        """Wait until there is room, or an error to be met, at most so long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(math.ceil(seconds * 1000)))

    def reopen(self) -> None:
        """Open the path again, after a rotation; without a path nothing happens. OSError leaves the old one in use."""
        if self.path:
            old, self.fd = self.fd, open_path(self.path)
            os.close(old)


def open_path(path: str) -> int:
    """A descriptor that appends to the file at `path`, made with mode 0640 when it is not there."""
    # O_NONBLOCK: opening a named pipe that nobody reads is refused instead of waiting for a reader.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o640)


class LogWriter(Service):
    """
    Takes complete lines and writes them out in order; first service of the tree, so that it stops last.

    At most limit_bytes wait; beyond, a line is dropped, `dropped` counts it, and once half of the bound is free a line
    made by `notice` says how many. While the service runs, one call of the clock is scheduled when something waits;
    before and after, where no reactor turns, each line is tried at once. A reader that is gone for good drops
    everything; any other error (a full disk) keeps what fits the bound and tries again every second.
    """

    name = "log"

    def __init__(
        self,
        output: Output,
        clock: IReactorTime,
        notice: Callable[[int], bytes],
        *,
        limit_bytes: int = LIMIT_BYTES,
        interval_s: float = INTERVAL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._clock = clock
        self._notice = notice
        self._limit_bytes = limit_bytes
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._lines: deque[bytes] = deque()
        self._chunk = memoryview(b"")
        self._call: IDelayedCall | None = None
        self._unsaid = 0
        self._gone = False
        self._broken = False
        self.waiting_bytes = 0
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """Take one line, its line feed included. Never blocks, never raises."""
        waiting = self.waiting_bytes + len(line)
        if waiting > self._limit_bytes or self._gone:
            self.dropped += 1
            self._unsaid += 1
            return
        self._lines.append(line)
        self.waiting_bytes = waiting
        if self._call is None:
            if self.running:
                self._call = self._clock.callLater(self._interval_s, self._turn)
            else:
                self._drain()

    def startService(self) -> None:
        """From here on the clock's turns write."""
        super().startService()
        atexit.register(self.flush)
        if self.waiting_bytes:
            self._call = self._clock.callLater(self._interval_s, self._turn)

    def stopService(self) -> None:
        """Write everything out, for at most FLUSH_S; later lines are tried at once."""
        super().stopService()
        atexit.unregister(self.flush)
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.flush()

    def flush(self, budget_s: float = FLUSH_S) -> None:
        """
        Write until nothing waits, for at most budget_s seconds: the one place that waits for a reader.

        Called in a signal handler it may meet a write half-way and repeat a part of it: the process ends then.
        """
        deadline = self._monotonic() + budget_s
        while not self._drain() and not self._broken:
            left = deadline - self._monotonic()
            if left <= 0:
                break
            self._output.wait(min(left, 0.05))

    def reopen(self) -> None:
        """Go on in the file that is at the log's path now (after a rotation). OSError when it cannot be opened."""
        self._drain()
        self._output.reopen()
        self._gone = False

    def _turn(self) -> None:
        self._call = None
        before = self.waiting_bytes
        if self._drain():
            return
        wait = _BROKEN_S if self._broken else _HUNGRY_S if self.waiting_bytes < before else self._interval_s
        self._call = self._clock.callLater(wait, self._turn)

    def _drain(self) -> bool:
        """Write what there is room for, up to _TURN_BYTES; whether nothing waits now."""
        self._broken = False
        left = _TURN_BYTES
        while left > 0 and (self._chunk or self._lines or self._unsaid):
            if not self._chunk and not self._next_chunk():
                return True
            try:
                sent = self._output.send(self._chunk)
            except OSError as error:
                self._fail(error)
                return self._gone
            if sent == 0:
                return False
            self._chunk = self._chunk[sent:]
            self.waiting_bytes -= sent
            left -= sent
        return not self.waiting_bytes

    def _next_chunk(self) -> bool:
        if self._unsaid and self.waiting_bytes <= self._limit_bytes // 2 and not self._gone:
            notice = self._notice(self._unsaid)
            self._unsaid = 0
            self._lines.append(notice)
            self.waiting_bytes += len(notice)
        taken, size = [], 0
        while self._lines and size < _CHUNK_BYTES:
            line = self._lines.popleft()
            taken.append(line)
            size += len(line)
        self._chunk = memoryview(b"".join(taken))
        return bool(taken)

    def _fail(self, error: OSError) -> None:
        if error.errno not in _GONE:
            self._broken = True
            return
        self._gone = True
        self.dropped += len(self._lines) + bytes(self._chunk).count(b"\n")
        self._lines.clear()
        self._chunk = memoryview(b"")
        self.waiting_bytes = 0
