"""
Many clients of server-sent events at once, on one thread: they open, and keep what kinds of events they were sent.

Decides nothing: who was refused is counted, not tried again.
"""

import json
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tests.edge_requests import as_json
from tests.followers import Place, ask


def opening(name: str, position: str = "") -> bytes:
    """The request that opens a stream of this session."""
    body = as_json(ask(name, payload=position.encode()))
    head = "POST /edge/v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


class Stream:
    """One of them."""

    def __init__(self) -> None:
        self.connection: socket.socket | None = None
        self.held = b""
        self.kinds: list[str] = []
        self.position = ""
        self.over = ""

    def take(self, data: bytes) -> None:
        """What the server sent."""
        self.held += data
        if not self.kinds and self.held[9:12] not in {b"200", b""}:
            self.over = "refused"
        while b"\n\n" in self.held:
            block, _, self.held = self.held.partition(b"\n\n")
            for line in block.split(b"\n"):
                if line.startswith(b"data: ") and b"event: close" not in block:
                    members = json.loads(line[6:])
                    self.kinds.append(members["event_type"])
                    self.position = members["position"]
                elif line.startswith(b"event: close"):
                    self.over = "closed"


class Crowd:
    """Clients of these sessions; open() opens a new stream for each."""

    def __init__(self, place: Place, names: Sequence[str]) -> None:
        self._place = place
        self._names = names
        self._selector = selectors.DefaultSelector()
        self.streams: list[Stream] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._selector.close()

    def open(self, timeout_s: float, positions: Sequence[str] = ()) -> None:
        """Leave the streams that there are, and open all anew; done when the first event of each is there."""
        self._close()
        self.streams = [Stream() for _ in self._names]
        for number, (name, stream) in enumerate(zip(self._names, self.streams, strict=True)):
            stream.connection = socket.create_connection(("127.0.0.1", self._place.http), 10)
            stream.connection.sendall(opening(name, positions[number] if positions else ""))
            stream.connection.setblocking(False)
            self._selector.register(stream.connection, selectors.EVENT_READ, stream)
            if number % 50 == 0:
                self._read(0.0)
        self.until(lambda it: all(stream.kinds or stream.over for stream in it.streams), timeout_s)
        refused = [stream.held[:300] for stream in self.streams if not stream.kinds]
        assert not refused, (len(refused), refused[0])

    def positions(self) -> list[str]:
        """The last one of each."""
        return [stream.position for stream in self.streams]

    def kinds(self) -> list[list[str]]:
        """The types of the events of each."""
        return [stream.kinds for stream in self.streams]

    def until(self, true: Callable[["Crowd"], object], timeout_s: float) -> None:
        """Read until it is true."""
        deadline = time.monotonic() + timeout_s
        while not true(self):
            assert time.monotonic() < deadline, [stream for stream in self.streams if not stream.kinds][:1]
            self._read(0.1)

    def _read(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            stream: Stream = key.data
            assert stream.connection is not None
            try:
                data = stream.connection.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                stream.take(data)
            else:
                stream.over = stream.over or "lost"
                self._selector.unregister(stream.connection)
                stream.connection.close()
                stream.connection = None

    def _close(self) -> None:
        for stream in self.streams:
            if stream.connection is not None:
                self._selector.unregister(stream.connection)
                stream.connection.close()
                stream.connection = None
