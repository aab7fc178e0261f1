"""
Very many clients of push streams in one process: `python -m tests.bench.pushload KIND PORT`.

It reads commands from its standard input, one JSON object a line, and answers each with one. Its readers know as much
of their protocol as tells one event from the next; each event's mark says when it was published, so that what comes out
is from the publishing to the client's read, and whether every event came once and in order. One thread on epoll, for it
shares its processors with the sources of the events.

Commands: open (`count`, `message_type`, `own`), expect (`events`, said to be armed before it is waited for), go_on,
stall (`count`), resume, close_seen (`count`), run (`count`, `message_type`: commands one after the other), leave.
"""

import json
import os
import resource
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

from tests.bench import pushnames as names
from tests.bench.pushnames import MARK, MARK_CHARS

AT_ONCE: Final = 100
"""Streams that are being opened at one time."""
PATIENCE_S: Final = 30.0
_READ_BYTES: Final = 65_536
_PONG: Final = b"\x8a\x80\0\0\0\0"
_AFTER_MARK: Final = len(MARK) + MARK_CHARS


class Tally:
    """What all streams together have got since the last look."""

    __slots__ = ("closed", "disordered", "last", "last_at", "latencies", "now", "number", "opened", "published")

    def __init__(self) -> None:
        self.now = 0
        self.opened = 0
        self.disordered = 0
        self.latencies = array("q")
        self.closed: dict[int, int] = {}
        self.last = b""
        self.number = self.published = self.last_at = 0

    def take(self, mark: bytes) -> int:
        """One event was read: its number. Most are the same one as before, for another stream."""
        if mark != self.last:
            self.last = mark
            self.number, self.published = int(mark[:8]), int(mark[9:])
        self.latencies.append(self.now - self.published)
        self.last_at = self.now
        return self.number


class Stream:
    """One stream on a connection of its own: `read` takes what has come."""

    __slots__ = ("index", "number", "open", "rest", "socket", "tally")

    def __init__(self, opened: socket.socket, index: int, tally: Tally) -> None:
        self.socket = opened
        self.index = index
        self.tally = tally
        self.rest = b""
        self.number = -1
        self.open = False

    def read(self, data: bytes) -> None:
        """Take what has come."""
        if self.rest:
            data = self.rest + data
        self.rest = data[self.parse(data) :]

    def parse(self, data: bytes) -> int:
        """Take every whole event; how many bytes they were."""
        raise NotImplementedError

    def ended(self) -> None:
        """The connection, or the stream, is over."""
        self.tally.closed.setdefault(self.index, self.tally.now)

    def _opened(self) -> None:
        if not self.open:
            self.open = True
            self.tally.opened += 1

    def _event(self, data: bytes, begin: int, end: int) -> None:
        at = data.find(MARK, begin, end)
        if at < 0:  # one of the gateway's own: the time, a heartbeat
            self._opened()
            return
        number = self.tally.take(data[at + 4 : at + _AFTER_MARK])
        if number != self.number + 1 and self.number >= 0:
            self.tally.disordered += 1
        self.number = number


class WebSocketStream(Stream):
    """A WebSocket; it is open once its first message is there, or with its head where none is sent first."""

    __slots__ = ()
    opens_with_head = False

    def parse(self, data: bytes) -> int:
        """See Stream."""
        at, size = 0, len(data)
        if data[:5] == b"HTTP/":
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                return 0
            if self.opens_with_head:
                self._opened()
        while size - at >= 4:
            length, begin = data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[begin : begin + 2], "big"), begin + 2
            elif length == 127:
                if size - at < 10:
                    break
                length, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
            end = begin + length
            if end > size:
                break
            opcode = data[at] & 15
            if opcode < 8:
                self._event(data, begin, end)
            elif opcode == 9:
                self.socket.send(_PONG)
            elif opcode == 8:
                self.ended()
            at = end
        if size - at >= 2 and data[at] == 0x89 and data[at + 1] == 0:  # a ping is shorter than what is looked for
            self.socket.send(_PONG)
            at += 2
        return at


class NchanWebSocketStream(WebSocketStream):
    """nchan says nothing first."""

    __slots__ = ()
    opens_with_head = True


class SseStream(Stream):
    """Server-sent events."""

    __slots__ = ()

    def parse(self, data: bytes) -> int:
        """See Stream."""
        at = 0
        if data[:5] == b"HTTP/":
            at = data.find(b"\r\n\r\n") + 4
            if at < 4:
                return 0
        while (end := data.find(b"\n\n", at)) >= 0:
            if data.find(b"event: close", at, end) >= 0:
                self.ended()
            elif data.find(b"data:", at, end) >= 0 or data.find(b": hi", at, end) >= 0:
                self._event(data, at, end)
            at = end + 2
        return at


class GrpcStream(Stream):
    """One connection with many calls."""

    __slots__ = ("answers", "calls", "numbers", "sent")

    def __init__(self, opened: socket.socket, index: int, tally: Tally) -> None:
        super().__init__(opened, index, tally)
        self.calls: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        self.answers = 0
        self.sent = 0

    def begin(self, index: int, path: bytes, message: bytes) -> None:
        """One more call."""
        stream_id = 2 * self.sent + 1
        self.sent += 1
        self.calls[stream_id] = index
        self.socket.send(names.call(stream_id, path, message))

    def parse(self, data: bytes) -> int:
        """See Stream."""
        at, size, tally, numbers = 0, len(data), self.tally, self.numbers
        while size - at >= 9:
            end = at + 9 + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream_id = int.from_bytes(data[at + 5 : at + 9], "big")
            if kind == names.DATA:
                found = data.find(MARK, at + 9, end)
                if found < 0:
                    if stream_id not in numbers:
                        numbers[stream_id] = -1
                        tally.opened += 1
                else:
                    number, before = tally.take(data[found + 4 : found + _AFTER_MARK]), numbers[stream_id]
                    if number != before + 1 and before >= 0:
                        tally.disordered += 1
                    numbers[stream_id] = number
            elif kind == names.HEADERS and flags & names.END_STREAM:
                self.answers += 1
                tally.closed.setdefault(self.calls.pop(stream_id), tally.now)
            elif kind == names.PING and not flags:
                self.socket.send(names.frame(names.PING, names.ACK, 0, data[at + 9 : end]))
            elif kind == names.SETTINGS and not flags:
                self.socket.send(names.frame(names.SETTINGS, names.ACK, 0))
            at = end
        return at

    def ended(self) -> None:
        """The connection is over, and every call on it."""
        for index in self.calls.values():
            self.tally.closed.setdefault(index, self.tally.now)


KINDS: Final[dict[str, type[Stream]]] = {
    "websocket": WebSocketStream,
    "sse": SseStream,
    "grpc": GrpcStream,
    "nchan websocket": NchanWebSocketStream,
    "nchan sse": SseStream,
}


class Clients:
    """All of them, and the loop that they are read in."""

    def __init__(self, kind: str, port: int) -> None:
        self._kind = kind
        self._port = port
        self._tally = Tally()
        self._poll = select.epoll()
        self._by_fd: dict[int, Stream] = {}
        self._stalled: list[Stream] = []
        self._made = 0
        self._expected = 0
        self._began_cpu = 0.0

    def serve(self) -> None:
        """Commands, until there are none; what comes for the streams meanwhile is read."""
        acts: dict[str, Callable[..., dict[str, Any]]] = {
            "open": self.open,
            "expect": self.expect,
            "go_on": self.go_on,
            "stall": self.stall,
            "resume": self.resume,
            "close_seen": self.close_seen,
            "run": self.run,
            "leave": self.leave,
        }
        commands, buffer = sys.stdin.fileno(), b""
        self._poll.register(commands, select.EPOLLIN)
        while True:
            if commands in self._turn(60.0, {commands}):
                buffer += os.read(commands, 65536)
                if not buffer:
                    return
                line, newline, buffer = buffer.partition(b"\n")
                if newline:
                    asked = json.loads(line)
                    self._say(acts[asked.pop("act")](**asked))

    def open(self, count: int, message_type: str = "events.subscribe", own: bool = False) -> dict[str, Any]:
        """Open so many streams more, AT_ONCE at a time, and wait until each has its first event."""
        indices = range(self._made, self._made + count)
        self._made += count
        now_ms = int(time.time() * 1000)
        envelopes = [names.signed(names.session_of(index, own=own), message_type, now_ms) for index in indices]
        openings = [names.opening(self._kind, envelope) for envelope in envelopes]
        connection: Stream | None = None
        began, before = time.monotonic(), self._tally.opened
        for sent, (index, opening) in enumerate(zip(indices, openings, strict=True), 1):
            if not isinstance(connection, GrpcStream) or connection.sent == names.CALLS_A_CONNECTION:
                connection = self._connect(index)
            if isinstance(connection, GrpcStream):
                connection.begin(index, names.SUBSCRIBE, opening)
            else:
                connection.socket.send(opening)
            if not self._await_opened(before + sent - AT_ONCE):
                break
        if not self._await_opened(before + count):
            return {"wrong": f"{self._tally.opened - before} of {count} streams opened"}
        return {"seconds": time.monotonic() - began}

    def expect(self, events: int) -> dict[str, Any]:
        """From now on count; each stream that is read is to get so many events."""
        streams = self._made - len(self._tally.closed) - len(self._stalled)
        self._expected = events * streams
        self._tally.latencies = array("q")
        self._tally.disordered = 0
        self._began_cpu = time.process_time()
        return {"streams": streams}

    def go_on(self) -> dict[str, Any]:
        """Wait until all that was expected is there; milliseconds from each event's publishing to its reading."""
        deadline, tally = time.monotonic() + PATIENCE_S, self._tally
        while len(tally.latencies) < self._expected and time.monotonic() < deadline:
            self._turn(1.0)
        found = sorted(tally.latencies)
        if len(found) != self._expected or tally.disordered:
            return {"wrong": f"{len(found)} of {self._expected} events came, {tally.disordered} out of order"}
        return {
            "deliveries": len(found),
            "first_ms": found[0] / 1e6,
            "median_ms": found[len(found) // 2] / 1e6,
            "p99_ms": found[int(len(found) * 0.99)] / 1e6,
            "last_ms": found[-1] / 1e6,
            "ended_ns": tally.last_at,
            "load_cpu_us": (time.process_time() - self._began_cpu) / len(found) * 1e6,
        }

    def stall(self, count: int) -> dict[str, Any]:
        """Read no more of the first so many streams."""
        self._stalled = list(self._by_fd.values())[:count]
        for stream in self._stalled:
            self._poll.unregister(stream.socket)
        return {}

    def resume(self) -> dict[str, Any]:
        """Leave those, unread."""
        for stream in self._stalled:
            del self._by_fd[stream.socket.fileno()]
            stream.socket.close()
            self._tally.closed[stream.index] = 0
        self._stalled = []
        return {}

    def close_seen(self, count: int) -> dict[str, Any]:
        """Wait until so many streams have ended; when each did, in monotonic nanoseconds."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self._tally.closed) < count and time.monotonic() < deadline:
            self._turn(1.0)
        return {"closed": {str(index): at for index, at in self._tally.closed.items()}}

    def run(self, count: int, message_type: str) -> dict[str, Any]:
        """So many commands one after the other on a gRPC connection of its own; milliseconds of each."""
        connection = GrpcStream(socket.create_connection(("127.0.0.1", self._port)), -1, self._tally)
        connection.socket.send(names.preface())
        session, now_ms = names.session_of(0, own=False), int(time.time() * 1000)
        made = [names.as_protobuf(names.signed(session, message_type, now_ms, b"x" * 100)) for _ in range(count)]
        took = []
        for message in made:
            began, before = time.monotonic(), connection.answers
            connection.begin(-1, names.EXECUTE, message)
            while connection.answers == before:
                data = connection.socket.recv(_READ_BYTES)
                if not data:
                    return {"wrong": "the connection was closed"}
                connection.read(data)
            took.append((time.monotonic() - began) * 1e3)
        connection.socket.close()
        self._tally.closed.pop(-1, None)
        took.sort()
        return {"p50_ms": took[count // 2], "p99_ms": took[int(count * 0.99)]}

    def leave(self) -> dict[str, Any]:
        """Close every connection."""
        for stream in self._by_fd.values():
            stream.socket.close()
        self._by_fd.clear()
        self._stalled = []
        self._made = 0
        self._tally = Tally()
        return {}

    def _connect(self, index: int) -> Stream:
        opened = socket.create_connection(("127.0.0.1", self._port))
        opened.setblocking(False)
        stream = KINDS[self._kind](opened, index, self._tally)
        if self._kind == "grpc":
            opened.send(names.preface())
        self._by_fd[opened.fileno()] = stream
        self._poll.register(stream.socket, select.EPOLLIN)
        return stream

    def _await_opened(self, count: int) -> bool:
        """Wait until so many have opened; False when some were closed instead, or nothing happens."""
        tally, closed, deadline = self._tally, len(self._tally.closed), time.monotonic() + PATIENCE_S
        while tally.opened < count:
            self._turn(1.0)
            if len(tally.closed) > closed or time.monotonic() > deadline:
                return False
        return True

    def _turn(self, patience_s: float, others: frozenset[int] | set[int] = frozenset()) -> set[int]:
        """Read what has come; the descriptors that had something."""
        ready = self._poll.poll(patience_s, 256)
        tally = self._tally
        for fd, _ in ready:
            if fd in others:
                continue
            stream = self._by_fd.get(fd)
            if stream is None:
                continue
            try:
                data = stream.socket.recv(_READ_BYTES)
            except OSError:
                data = b""
            tally.now = time.monotonic_ns()
            if data:
                stream.read(data)
                continue
            stream.ended()
            self._poll.unregister(fd)
            del self._by_fd[fd]
            stream.socket.close()
        return {fd for fd, _ in ready}

    def _say(self, answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main() -> None:
    """See the module."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Clients(sys.argv[1], int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
