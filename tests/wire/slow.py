"""
Clients that cost a server something: slow ones, silent ones, ones that never read. One thread drives hundreds of them.

Beside them a good client asks and asks; its times say what the others cost.
"""

import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Final

from tests.fakes.connection import get, post, read_answers

STEP_S: Final = 0.1


@dataclass(frozen=True)
class Kind:
    """
    What clients of a kind do: send `start`, then in every step the next byte of `drip`; `floods` sends all of `drip`
    again and again instead, as much as is taken. `reads` false never reads.
    """

    start: bytes = b""
    drip: bytes = b""
    floods: bool = False
    reads: bool = True


CHUNKED = get("/webhook/tradingview", "Transfer-Encoding: chunked", "Content-Type: application/json", method="POST")
KINDS: Final[Mapping[str, Kind]] = {
    "silent": Kind(),
    "blank": Kind(drip=b"\r\n"),
    "head": Kind(b"GET /healthz HTTP/1.1\r\nHost: gw\r\nA: ", b"b"),
    "body": Kind(post(b"x" * 1_000_000, "Content-Type: application/json")[:-999_990], b"x"),
    "chunks": Kind(CHUNKED, b"1\r\na\r\n"),
    "idle": Kind(get("/healthz")),
    "unread": Kind(drip=get("/big") * 20, floods=True, reads=False),
}


@dataclass
class Client:
    """One connection, from its beginning to its end as its client sees it."""

    kind: str
    socket: socket.socket
    began: float
    received: bytes = b""
    sent: int = 0
    took_s: float | None = None

    def statuses(self) -> list[int]:
        """What it was answered."""
        return [answer.status for answer in read_answers(self.received)]

    def end(self) -> None:
        """It is over."""
        if self.took_s is None:
            self.took_s = time.monotonic() - self.began
            self.socket.close()

    def read(self) -> None:
        """Take what there is."""
        try:
            piece = self.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            piece = b""
        self.received += piece
        if not piece:
            self.end()

    def drip(self) -> None:
        """Send what this step is for."""
        kind = KINDS[self.kind]
        try:
            if not kind.floods:
                at = self.sent % len(kind.drip)
                self.sent += self.socket.send(kind.drip[at : at + 1])
            while kind.floods:
                self.sent += self.socket.send(kind.drip[self.sent % len(kind.drip) :])
        except BlockingIOError:
            return
        except ConnectionError:
            self.end()


@dataclass
class Crowd:
    """Clients of every kind at one port; `plan` says how many of each."""

    port: int
    plan: Mapping[str, int]
    clients: list[Client] = field(default_factory=list)

    def run(self, limit_s: float) -> list[Client]:
        """Connect them all, let them be as they are until the last one is over, at most so long."""
        poll = select.poll()
        by_number: dict[int, Client] = {}
        for kind, count in self.plan.items():
            for _ in range(count):
                client = self._connect(kind)
                by_number[client.socket.fileno()] = client
                poll.register(client.socket, select.POLLIN if KINDS[kind].reads else 0)
                self.clients.append(client)
        ends = time.monotonic() + limit_s
        dripped = 0.0
        while by_number and time.monotonic() < ends:
            for number, events in poll.poll(STEP_S * 1000):
                client = by_number[number]
                client.read() if KINDS[client.kind].reads else client.end()
                assert events
                self._forget(poll, by_number, number, client)
            if time.monotonic() - dripped >= STEP_S:
                dripped = time.monotonic()
                for number, client in tuple(by_number.items()):
                    if KINDS[client.kind].drip:
                        client.drip()
                        self._forget(poll, by_number, number, client)
        for client in by_number.values():
            client.socket.close()
        return self.clients

    def _connect(self, kind: str) -> Client:
        connection = socket.socket()
        if not KINDS[kind].reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", self.port))
        client = Client(kind, connection, time.monotonic())
        connection.sendall(KINDS[kind].start)
        connection.setblocking(False)
        return client

    def _forget(self, poll: select.poll, by_number: dict[int, Client], number: int, client: Client) -> None:
        if client.took_s is not None:
            poll.unregister(number)
            del by_number[number]


def ask_until(port: int, done: Event) -> list[float]:
    """The seconds that each of a good client's requests took, every fifth on a connection of its own."""
    took: list[float] = []
    kept = socket.create_connection(("127.0.0.1", port), timeout=30)
    with kept:
        while not done.is_set():
            began = time.monotonic()
            if len(took) % 5:
                kept.sendall(get("/healthz"))
                assert kept.recv(65536).startswith(b"HTTP/1.1 200")
            else:
                with socket.create_connection(("127.0.0.1", port), timeout=30) as fresh:
                    fresh.sendall(get("/healthz", "Connection: close"))
                    assert fresh.recv(65536).startswith(b"HTTP/1.1 200")
            took.append(time.monotonic() - began)
            time.sleep(0.01)
    return took


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
