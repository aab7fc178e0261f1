"""
A load generator that does not wait: requests leave when they are due, whatever became of those before.

Run as `python -m tests.bench.openload PORT CONNECTIONS SECONDS RATE SECRET`; prints one JSON object. Each connection
has one request under way; a request that finds none idle waits here for WAIT_S at most and then counts as unsent, as
with a sender's own pool of connections. Latencies count from when a request was due, so that a server cannot look fast
by being slow to take requests; an answer after GIVE_UP_S comes too late. One thread on epoll: what is spent here is
taken from the load.
"""

import json
import select
import sys
import time
from collections import Counter, deque

from tests.bench.load import Connection, make_requests, quantile

WAIT_S = 0.25
GIVE_UP_S = 2.5


class Run:
    """One run: its requests, its connections, and what was seen."""

    def __init__(self, port: int, connections: int, requests: list[bytes]) -> None:
        self.port = port
        self.requests = requests
        self.next = 0
        self.poll = select.epoll()
        self.by_fd: dict[int, Connection] = {}
        self.idle: deque[Connection] = deque()
        self.latencies: dict[int, list[float]] = {}
        self.statuses: Counter[int] = Counter()
        self.unsent = self.lost = 0
        for number in range(connections):
            self.open(number)

    def open(self, number: int) -> None:
        """One more connection."""
        connection = Connection(self.port, number)
        self.by_fd[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        self.idle.append(connection)

    def send_due(self, began: float, rate: float) -> float:
        """Send what is due; seconds until there is more to do."""
        now = time.perf_counter()
        due = min(len(self.requests), int((now - began) * rate) + 1)
        while self.next < due and self.idle:
            due_at = began + self.next / rate
            request = self.requests[self.next]
            self.next += 1
            if now - due_at > WAIT_S:
                self.unsent += 1
                continue
            connection = self.idle.popleft()
            connection.due_at = due_at
            connection.sent_at = now
            try:
                connection.socket.send(request)
            except OSError:
                self.lose(connection)
        return 0.01 if self.next < due else max(0.0, began + self.next / rate - now)

    def lose(self, connection: Connection) -> None:
        """The server closed it: what was under way is lost, and another takes its place."""
        self.lost += 1
        self.by_fd.pop(connection.socket.fileno(), None)
        connection.socket.close()
        self.open(self.lost)

    def go(self, rate: float, seconds: float) -> float:
        """Send at `rate` for so long, then hear what is still under way; the seconds of sending."""
        began = time.perf_counter()
        ends = began + seconds
        while (now := time.perf_counter()) < ends + GIVE_UP_S:
            if now < ends:
                wait = self.send_due(began, rate)
            elif len(self.idle) == len(self.by_fd):
                break
            else:
                wait = 0.01
            for fd, _ in self.poll.poll(min(wait, 0.01), 256):
                connection = self.by_fd[fd]
                status = connection.read()
                if status < 0:
                    self.lose(connection)
                elif status:
                    self.statuses[status] += 1
                    self.latencies.setdefault(status, []).append(time.perf_counter() - connection.due_at)
                    self.idle.append(connection)
        self.unsent += max(0, int(seconds * rate) - self.next)
        return seconds


def main() -> None:
    """See the module."""
    port, connections, seconds, rate, secret = sys.argv[1:6]
    requests = make_requests(int(float(seconds) * float(rate)) + 1, secret.encode())
    run = Run(int(port), int(connections), requests)
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    took = run.go(float(rate), float(seconds))
    accepted = run.latencies.get(202, [])
    refused = [latency for status, found in run.latencies.items() if status != 202 for latency in found]
    seen = {
        "seconds": took,
        "statuses": {str(status): count for status, count in sorted(run.statuses.items())},
        "in_time": sum(latency <= GIVE_UP_S for latency in accepted),
        "unsent": run.unsent,
        "lost": run.lost,
        "accepted_p50_ms": quantile(accepted, 0.5),
        "accepted_p99_ms": quantile(accepted, 0.99),
        "accepted_p999_ms": quantile(accepted, 0.999),
        "refused_p99_ms": quantile(refused, 0.99),
        "cpu_share": round((time.process_time() - before) / took, 3),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
