"""
A load generator: requests made beforehand, sent over keep-alive connections, one at a time on each.

Run as `python -m tests.bench.load PORT CONNECTIONS SECONDS SECRET`; prints one JSON object. It counts every answer by
its status and keeps every latency; what it sends is signed within the last seconds, each with a body of its own.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import uvloop

from tests.clients import raw_request, stamped, tradingview_body

REQUESTS_PER_SECOND = 14_000
"""How many requests are made for each second of the run: more than one process answers."""


def make_requests(count: int, secret: bytes) -> list[bytes]:
    """Distinct, validly signed TradingView webhooks of about 90 bytes of body."""
    now = time.time()
    fired = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))  # as TradingView's placeholders write it
    made = []
    for number in range(count):
        body = tradingview_body(now, number + 0.5, time=fired)
        made.append(raw_request("/webhook/tradingview", body, stamped(body, now, secret=secret)))
    return made


class _Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered, until the time is over."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.buffer = b""
        self.sent_at = 0.0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        now = time.perf_counter()
        request = next(self.run.requests, None) if now < self.run.ends_at else None
        if request is None:
            self.transport.close()
            return
        self.sent_at = now
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.index(b"Content-Length: ") + 16
        length = int(head[at:].partition(b"\r")[0])
        if len(rest) < length:
            return
        self.run.statuses[int(head[9:12])] += 1
        self.run.latencies.append(time.perf_counter() - self.sent_at)
        self.buffer = rest[length:]
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.run.open -= 1
        if not self.run.open:
            self.run.done.set()


class Run:
    """One run's requests and results."""

    def __init__(self, requests: list[bytes], seconds: float, connections: int) -> None:
        self.requests: Iterator[bytes] = iter(requests)
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.open = connections
        self.done = asyncio.Event()
        self.ends_at = time.perf_counter() + seconds


async def drive(port: int, connections: int, seconds: float, requests: list[bytes]) -> dict[str, object]:
    """Send until the time is over or the requests are used up; the counts and latencies in milliseconds."""
    loop = asyncio.get_running_loop()
    run = Run(requests, seconds, connections)
    began = time.perf_counter()
    await asyncio.gather(
        *(loop.create_connection(lambda: _Connection(run), "127.0.0.1", port) for _ in range(connections))
    )
    await run.done.wait()
    took = time.perf_counter() - began
    ordered = sorted(run.latencies)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3) if ordered else 0.0

    return {
        "seconds": round(took, 3),
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "p999_ms": at(0.999),
    }


def main() -> None:
    """See the module."""
    port, connections, seconds, secret = sys.argv[1:5]
    requests = make_requests(int(float(seconds) * REQUESTS_PER_SECOND), secret.encode())
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(uvloop.run(drive(int(port), int(connections), float(seconds), requests))))


if __name__ == "__main__":
    main()
