"""
A load generator: requests made beforehand, sent over connections that each have one under way.

Run as `python -m tests.bench.load PORT CONNECTIONS SECONDS SECRET [--each] [--size BYTES]`; prints one JSON object. It
counts every answer by its status and keeps every latency; what it sends is signed within the last seconds, each with a
body of its own. With --each every request has a connection of its own, and latencies include opening it. One thread on
epoll, for it shares a processor with nats-server.
"""

import argparse
import hashlib
import json
import secrets
import select
import socket
import sys
import time
from collections import Counter

from tests.clients import tradingview_body

REQUESTS_PER_SECOND = 18_000
"""How many requests are made for each second of the run: more than one process answers."""
MAX_BYTES = 96 * 2**20
"""What all the bodies of a run take together at the most."""
PER_ADDRESS = 1500
"""Connections from one address of this machine, below gatewayd's own cap."""

_LENGTH = b"ength: "  # of Content-Length, which some write in lower case
_HEAD = (
    b"POST /webhook/tradingview HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nContent-Type: application/json\r\n"
    b"X-Timestamp: %b\r\nX-Nonce: %b\r\nX-Signature: v1=%b\r\n%b\r\n%b"
)


def make_requests(count: int, secret: bytes, size: int = 0, *, close: bool = False) -> list[bytes]:
    """
    Distinct, validly signed TradingView webhooks: of about 90 bytes of body, or `size` with a member nobody knows.

    With `close` each asks for its connection to be closed.
    """
    now = time.time()
    fired = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))  # as TradingView's placeholders write it
    usual = tradingview_body(now, 7654321.5, time=fired)
    before, _, after = usual.partition(b"7654321.5")
    if size > len(usual) + 16:
        after = after[:-1] + b', "note": "%b"}' % (b"n" * (size - len(usual) - 12))
    timestamp = str(int(now)).encode()
    key = secret.ljust(64, b"\0") if len(secret) <= 64 else hashlib.sha256(secret).digest().ljust(64, b"\0")
    inner, outer = hashlib.sha256(bytes(b ^ 0x36 for b in key)), hashlib.sha256(bytes(b ^ 0x5C for b in key))
    end = b"Connection: close\r\n" if close else b""
    run = secrets.token_hex(8).encode()
    part = 1000 + secrets.randbelow(9000)  # two runs may begin in one second
    made = []
    for number in range(count):
        body = b"%b%d%06d.5%b" % (before, part, number, after)
        nonce = b"%b%08d" % (run, number)
        one, two = inner.copy(), outer.copy()
        one.update(b"%b\n%b\n\n%b" % (timestamp, nonce, body))
        two.update(one.digest())
        made.append(_HEAD % (len(body), timestamp, nonce, two.hexdigest().encode(), end, body))
    return made


class Connection:
    """One connection: what it is waiting for, and what came of it so far."""

    __slots__ = ("buffer", "due_at", "rest", "sent_at", "socket")

    def __init__(self, port: int, number: int) -> None:
        self.socket = socket.socket()
        self.socket.bind((f"127.0.0.{1 + number // PER_ADDRESS}", 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.buffer = b""
        self.rest: memoryview | None = None
        self.due_at = 0.0
        self.sent_at = 0.0

    def send(self, request: bytes) -> bool:
        """Begin a request; True when all of it is on its way."""
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        if sent == len(request):
            return True
        self.rest = memoryview(request)[sent:]
        return False

    def go_on(self) -> bool:
        """Send what was left; True when that is all."""
        assert self.rest is not None
        try:
            self.rest = self.rest[self.socket.send(self.rest) :]
        except BlockingIOError:
            return False
        return not self.rest

    def read(self) -> int:
        """The status of the answer, 0 while it is not complete, -1 when the connection is gone."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return 0
        except OSError:
            return -1
        if not data:
            return -1
        data = self.buffer = self.buffer + data if self.buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return 0
        at = data.find(_LENGTH) + len(_LENGTH)
        if len(data) < end + 4 + int(data[at : data.index(b"\r", at)]):
            return 0
        self.buffer = b""
        return int(data[9:12])


class Run:
    """One run's requests and results."""

    def __init__(self, port: int, connections: int, requests: list[bytes], *, each: bool) -> None:
        self.port = port
        self.requests = iter(requests)
        self.each = each
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.poll = select.epoll()
        self.by_fd: dict[int, Connection] = {}
        self.opened = self.lost = 0
        self.ends_at = 0.0
        if not each:
            for _ in range(connections):
                self.open()

    def open(self) -> Connection:
        """One more connection."""
        connection = Connection(self.port, self.opened % (2 * PER_ADDRESS))
        self.opened += 1
        self.by_fd[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        return connection

    def close(self, connection: Connection) -> None:
        """No more on this one."""
        del self.by_fd[connection.socket.fileno()]
        connection.socket.close()

    def begin(self, connection: Connection | None, now: float) -> None:
        """Send the next request, on a connection of its own when it is None; close it when there is none."""
        request = next(self.requests, None) if now < self.ends_at else None
        if request is None:
            if connection is not None:
                self.close(connection)
            return
        if connection is None:
            connection = self.open()
        connection.sent_at = now
        if not connection.send(request):
            self.poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def heard(self, connection: Connection, events: int) -> None:
        """Go on with one connection."""
        if events & select.EPOLLOUT and connection.rest is not None and connection.go_on():
            connection.rest = None
            self.poll.modify(connection.socket, select.EPOLLIN)
        if not events & ~select.EPOLLOUT:
            return
        status = connection.read()
        if not status:
            return
        now = time.perf_counter()
        if status < 0:
            self.lost += 1
            self.close(connection)
            return
        self.statuses[status] += 1
        self.latencies.append(now - connection.sent_at)
        if self.each:
            self.close(connection)
            self.begin(None, time.perf_counter())
        else:
            self.begin(connection, now)

    def go(self, connections: int, seconds: float) -> float:
        """Send until the time is over or the requests are used up; the seconds that it took."""
        began = time.perf_counter()
        self.ends_at = began + seconds
        idle: list[Connection | None] = list(self.by_fd.values()) if not self.each else [None] * connections
        for connection in idle:
            self.begin(connection, time.perf_counter())
        while self.by_fd:
            found = self.poll.poll(10.0, 1024)
            if not found:
                raise SystemExit("no answer in 10 s")
            for fd, events in found:
                self.heard(self.by_fd[fd], events)
        return time.perf_counter() - began


def quantile(values: list[float], share: float) -> float:
    """In milliseconds; 0 when there are none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3) if ordered else 0.0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("secret")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--size", type=int, default=0)
    given = parser.parse_args()
    count = int(given.seconds * REQUESTS_PER_SECOND)
    if given.size:
        count = min(count, MAX_BYTES // given.size)
    requests = make_requests(count, given.secret.encode(), given.size, close=given.each)
    run = Run(given.port, given.connections, requests, each=given.each)
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    took = run.go(given.connections, given.seconds)
    seen = {
        "seconds": round(took, 4),
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "lost": run.lost,
        **{
            f"p{name}_ms": quantile(run.latencies, share) for name, share in (("50", 0.5), ("99", 0.99), ("999", 0.999))
        },
        "load_cpu": round((time.process_time() - before) / took, 3),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
