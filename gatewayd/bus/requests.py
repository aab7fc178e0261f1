"""
Requests to NATS other than publications: what was asked, until when, and who waits. Pure, sans-io.

Decides which answer belongs to which request. Never touches a socket, a timer or a clock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gatewayd.bus.publication import Cause, Unpublished

LIMIT: Final = 2000
"""Requests under way; beyond, Cause.BUFFER at once."""

NO_RESPONDERS: Final = 503
PREFIX: Final = "r"
"""What tokens of requests begin with; tokens of publications are digits."""
_VERSION: Final = b"NATS/1.0\r\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `status` is that of its status line, 0 without one."""

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 0


Answer: TypeAlias = Reply | Unpublished


def status_of(headers: Mapping[str, str] | None) -> int:
    """The status line's number among the headers that nats-py made of a message; 0 when it had none."""
    text = headers.get("Status", "") if headers is not None else ""
    return int(text) if text.isascii() and text.isdigit() else 0


def frame(subject: bytes, reply: bytes, payload: bytes, headers: bytes = b"") -> bytes:
    """
    The bytes of one request: PUB, or HPUB with `headers`, lines that end in CR LF. ValueError for a block that would
    end early.
    """
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)
    if not headers.endswith(b"\r\n") or headers.startswith(b"\r\n") or b"\r\n\r\n" in headers:
        raise ValueError("a header block is lines that end in CR LF, none of them empty")
    head = len(_VERSION) + len(headers) + 2
    sizes = b"%d %d" % (head, head + len(payload))
    return b"HPUB %b %b %b\r\n%b%b\r\n%b\r\n" % (subject, reply, sizes, _VERSION, headers, payload)


class Requests:
    """
    The requests of one process. Tokens are "r" and a number that is never used again; a late answer finds nothing.

    `broken` is told of an exception that a waiter raised.
    """

    def __init__(self, broken: Callable[[Exception], object], limit: int = LIMIT) -> None:
        self._broken = broken
        self._limit = limit
        self._number = 0
        self._open: dict[str, tuple[float, Callable[[Answer], object]]] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._open)

    def add(self, deadline: float, done: Callable[[Answer], object]) -> str | None:
        """The token of a new request, whose `done` is called once; None when too many are under way."""
        if len(self._open) >= self._limit:
            return None
        self._number += 1
        token = f"{PREFIX}{self._number}"
        self._open[token] = (deadline, done)
        return token

    def answer(self, token: str, headers: Mapping[str, str] | None, body: bytes) -> None:
        """An answer arrived for `token`."""
        found = self._open.pop(token, None)
        if found is not None:
            self._finish(found[1], Reply(body, headers or {}, status_of(headers)))

    def drop(self, token: str) -> None:
        """Nobody waits for this one any more; an answer to it will find nothing."""
        self._open.pop(token, None)

    def sweep(self, now: float) -> None:
        """End what is overdue at `now`; call it every 50 ms or so."""
        overdue = [token for token, (deadline, _) in self._open.items() if deadline <= now]
        for token in overdue:
            _, done = self._open.pop(token)
            self._finish(done, Unpublished(Cause.TIMEOUT, "no answer in time"))

    def disconnect(self, error: str) -> None:
        """The connection is gone, and the answers with it."""
        gone, self._open = self._open, {}
        for _, done in gone.values():
            self._finish(done, Unpublished(Cause.DISCONNECTED, error))

    def _finish(self, done: Callable[[Answer], object], answer: Answer) -> None:
        try:
            done(answer)
        except Exception as error:
            self._broken(error)
