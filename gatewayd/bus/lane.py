"""
The publish lane: publications under way, their frames, deadlines, acknowledgements and outcomes. Pure, sans-io.

Decides what is written to NATS for a publication, when it is refused at once, what JetStream's answers mean, and
whether the server is worth writing to. Never touches a socket, a timer or a clock: whoever owns the connection takes
the bytes, hands the answers in, and calls sweep() now and then.

One publication is one to three messages with one outcome. Its token is a number that no other publication of this
lane ever had, so that an acknowledgement that comes after a reconnect finds nothing instead of somebody else's claim.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

from gatewayd.bus.inlet import Acks
from gatewayd.bus.publication import Ack, BusState, Cause, Message, Published, Unpublished

Outcome: TypeAlias = Published | Unpublished

MAX_MESSAGES: Final = 3
DEFAULT_MAX_PAYLOAD: Final = 1024 * 1024
"""What nats-server allows unless it is told otherwise; used until a server has said its own."""

_INDEX_BITS: Final = 2  # a token is the publication's number and, in its lowest bits, which of its messages
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1

_SUBJECT: Final = re.compile(rb"[^\s.*>\x00-\x1f\x7f]+(?:\.[^\s.*>\x00-\x1f\x7f]+)*")
_FULL: Final = re.compile(r"maximum .*exceeded")

_STREAM_STORE_FAILED: Final = 10077  # "maximum messages exceeded", "maximum bytes exceeded"
_TWIN_IN_PROPOSAL: Final = 10158  # on clusters: the same message id is being proposed and not stored yet
_MAX_KNOWN_SUBJECTS: Final = 64

SLOW_S: Final = 1.0
TROUBLE_S: Final = 10.0


class BusCounters(Protocol):
    """What the lane and the client count; called on the hot path, so bound metric children, no look-ups."""

    def published(self, subject: bytes, ok: bool) -> None:
        """One message of a publication that has its outcome; `ok` when the publication is stored."""

    def publish_seconds(self, seconds: float) -> None:
        """How long a stored publication took from its write to its last acknowledgement."""

    def error(self, kind: str) -> None:
        """One error of the kind "connection" (a failed connect, a lost connection) or "timeout" (one publication)."""

    def late_ack(self) -> None:
        """An acknowledgement of a publication that has its outcome already."""


class Breaker:
    """
    What publishes say of the server, whatever the socket says.

    A server with a full or failing disk keeps the connection up, answers pings and acknowledges nothing (measured).
    After `threshold` publications in a row that had no answer in time, publications are refused at once, but for one
    every `retry_s`; the first answer of any kind closes the breaker again.
    """

    __slots__ = ("_next_try", "_retry_s", "_threshold", "_trouble_at", "connected", "timeouts")

    def __init__(self, threshold: int = 3, retry_s: float = 1.0) -> None:
        self.connected = False
        self._threshold = threshold
        self._retry_s = retry_s
        self.timeouts = 0
        self._next_try = 0.0
        self._trouble_at: float | None = None

    def reset(self) -> None:
        """A new connection: what was counted belonged to another one."""
        self.timeouts = 0

    def timed_out(self, now: float) -> None:
        """One publication had no answer within its deadline."""
        self._trouble_at = now
        self.timeouts += 1
        if self.timeouts == self._threshold:
            self._next_try = now + self._retry_s

    def answered(self) -> None:
        """The server answered a publication in time, with whatever."""
        self.timeouts = 0

    def trouble(self, now: float) -> None:
        """A publication was slow, refused or not written."""
        self._trouble_at = now

    def allows(self, now: float) -> bool:
        """True when a publication may be written now; while the breaker is open this spends the one try."""
        if self.timeouts < self._threshold:
            return True
        if now < self._next_try:
            return False
        self._next_try = now + self._retry_s
        return True

    def state(self, now: float) -> BusState:
        """The state at `now`; DEGRADED while an open breaker would let a publication through, so that one comes."""
        if not self.connected or (self.timeouts >= self._threshold and now < self._next_try):
            return BusState.DISCONNECTED
        if self.timeouts >= self._threshold:
            return BusState.DEGRADED
        if self._trouble_at is not None and now - self._trouble_at < TROUBLE_S:
            return BusState.DEGRADED
        return BusState.CONNECTED


class _Publication:
    """One publication under way: what was answered to each message, None for not yet, and how many answers are due."""

    __slots__ = ("answers", "deadline", "done", "error", "left", "messages", "size", "started")

    def __init__(
        self, messages: Sequence[Message], size: int, now: float, deadline: float, done: Callable[[Outcome], object]
    ) -> None:
        self.messages = messages
        self.size = size
        self.started = now
        self.deadline = deadline
        self.done = done
        self.answers: list[Ack | Unpublished | None] = [None] * len(messages)
        self.left = len(messages)
        self.error: Unpublished | None = None  # the first one that was answered


class Lane:
    """
    The publications of one process to one stream, over one connection after another.

    `stream` is expected of every acknowledgement (header Nats-Expected-Stream). At most `limit` publications and
    `limit_bytes` of their headers and bodies are under way; beyond, Cause.BUFFER at once. Each has its outcome
    `timeout_s` after it was handed in at the latest, if sweep() is called often enough. `broken` is told of an
    exception that a waiter raised; it never reaches anyone else's outcome.

    `last_sequence` is the largest sequence that was ever acknowledged (0: none), `last_ack_at` when the last
    acknowledgement came, `last_error` the text of the last failure, `failures` how many publications failed.
    """

    def __init__(
        self,
        stream: str,
        counters: BusCounters,
        broken: Callable[[Exception], object],
        *,
        timeout_s: float = 2.0,
        limit: int = 1000,
        limit_bytes: int = 64 * 1024 * 1024,
        breaker: Breaker | None = None,
    ) -> None:
        self.last_sequence = 0
        self.last_ack_at: float | None = None
        self.last_error = ""
        self.failures = 0
        self._block = b"NATS/1.0\r\nNats-Expected-Stream: %b\r\n" % stream.encode("ascii")
        self.max_message = DEFAULT_MAX_PAYLOAD - len(self._block) - 2
        self._counters = counters
        self._broken = broken
        self._timeout_s = timeout_s
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._breaker = breaker or Breaker()
        self._inbox = b""
        self._bytes = 0
        self._number = 0
        self._open: dict[int, _Publication] = {}  # in the order of their deadlines
        self._starts: dict[bytes, bytes] = {}  # subject -> how its frames begin on this connection
        self._frames: list[bytes] = []
        self._again: list[tuple[int, int]] = []

    @property
    def unacked(self) -> int:
        """Publications without an outcome."""
        return len(self._open)

    @property
    def timeouts(self) -> int:
        """Publications in a row that had no answer in time."""
        return self._breaker.timeouts

    def state(self, now: float) -> BusState:
        """What connection and publications say of the server at `now`."""
        return self._breaker.state(now)

    def connect(self, inbox: bytes, max_payload: int) -> None:
        """A connection is ready: replies to `inbox`.<token> arrive, a message may have `max_payload` bytes."""
        self._inbox = inbox
        self._starts.clear()
        self.max_message = max_payload - len(self._block) - 2
        self._breaker.connected = True
        self._breaker.reset()

    def disconnect(self, error: str) -> None:
        """The connection is gone: every publication under way is unknown, what was not written never will be."""
        self._inbox = b""
        self._breaker.connected = False
        self._frames.clear()
        self._again.clear()
        self.last_error = error
        gone, self._open = self._open, {}
        self._bytes = 0
        for publication in gone.values():
            self._finish(publication, publication.error or Unpublished(Cause.DISCONNECTED, error))

    def publish(self, messages: Sequence[Message], now: float, done: Callable[[Outcome], object]) -> Unpublished | None:
        """
        Take one publication; its frames are in outgoing() and `done` is called once with its outcome. A refusal is
        returned instead, `done` is then never called and nothing is written.

        ValueError for what only a bug hands in: no message or more than three, a subject that is none, a header block
        that would end or break the frame.
        """
        if not 1 <= len(messages) <= MAX_MESSAGES:
            raise ValueError(f"a publication has 1 to {MAX_MESSAGES} messages, not {len(messages)}")
        size = 0
        for message in messages:
            length = len(message.headers) + len(message.body)
            if length > self.max_message:
                return self._refuse(messages, Cause.REJECTED, f"{length} bytes, the server takes {self.max_message}")
            size += length
        if not self._inbox:
            return self._refuse(messages, Cause.DISCONNECTED, self.last_error or "not connected")
        if len(self._open) >= self._limit or self._bytes + size > self._limit_bytes:
            self._breaker.trouble(now)
            return self._refuse(messages, Cause.BUFFER, f"{len(self._open)} publications wait for the server")
        if not self._breaker.allows(now):
            return self._refuse(messages, Cause.DISCONNECTED, "the server does not acknowledge")
        number = self._number + 1
        token = number << _INDEX_BITS
        frames = [self._frame(message, token + i) for i, message in enumerate(messages)]
        self._number = number
        self._frames += frames
        self._open[number] = _Publication(messages, size, now, now + self._timeout_s, done)
        self._bytes += size
        return None

    def outgoing(self) -> bytes:
        """The bytes to write now, in the order of the publications; each is handed out once."""
        frames, self._frames = self._frames, []
        return b"".join(frames)

    def acknowledge(self, acks: Acks, now: float) -> None:
        """Acknowledgements in their usual form, as they came: the whole of what one read of the socket gave."""
        opened = self._open
        for digits, sequence_digits, said in acks:
            token = int(digits)
            publication = opened.get(token >> _INDEX_BITS)
            index = token & _INDEX_MASK
            if publication is None or index >= len(publication.answers) or publication.answers[index] is not None:
                self._counters.late_ack()
                continue
            sequence = int(sequence_digits)
            self.last_ack_at = now
            if sequence > self.last_sequence:  # noqa: PLR1730 - max() costs three times as much here
                self.last_sequence = sequence
            publication.answers[index] = Ack(sequence, said is not None)
            publication.left -= 1
            self._breaker.answered()  # before the waiter, who may publish at once
            if not publication.left:
                self._settle(token >> _INDEX_BITS, publication, now)

    def answer(self, token: str, headers: Mapping[str, str] | None, body: bytes, now: float) -> None:
        """JetStream's answer to the message `token`: an acknowledgement, an error, or a status line in `headers`."""
        number, index = divmod(int(token), 1 << _INDEX_BITS)
        publication = self._open.get(number)
        if publication is None or index >= len(publication.answers) or publication.answers[index] is not None:
            self._counters.late_ack()
            return
        read = _read(headers, body)
        if read is None:
            self._again.append((number, index))
            return
        if isinstance(read, Unpublished):
            publication.error = publication.error or read
        else:
            self.last_ack_at = now
            self.last_sequence = max(self.last_sequence, read.sequence)
        publication.answers[index] = read
        publication.left -= 1
        self._breaker.answered()
        if not publication.left:
            self._settle(number, publication, now)

    def _settle(self, number: int, publication: _Publication, now: float) -> None:
        """Every message of a publication is answered."""
        del self._open[number]
        self._bytes -= publication.size
        if publication.error is not None:
            self._breaker.trouble(now)
            self._finish(publication, publication.error)
            return
        taken_s = now - publication.started
        if taken_s > SLOW_S:
            self._breaker.trouble(now)
        self._counters.publish_seconds(taken_s)
        self._finish(publication, Published(cast("tuple[Ack, ...]", tuple(publication.answers))))

    def sweep(self, now: float) -> int:
        """
        End what is overdue at `now` and say how many; publish again what the server asked to have again.

        Call it every 50 ms or so: a deadline is kept to that.
        """
        overdue = []
        for number, publication in self._open.items():
            if publication.deadline > now:
                break
            overdue.append(number)
        for number in overdue:
            publication = self._open.pop(number)
            self._bytes -= publication.size
            self._breaker.timed_out(now)
            self._counters.error("timeout")
            error = f"no acknowledgement within {self._timeout_s:g} s"
            self._finish(publication, publication.error or Unpublished(Cause.TIMEOUT, error))
        if self._again:
            again, self._again = self._again, []
            for number, index in again:
                late = self._open.get(number)
                if late is not None:
                    token = (number << _INDEX_BITS) + index
                    self._frames.append(self._frame(late.messages[index], token))
        return len(overdue)

    def _frame(self, message: Message, token: int) -> bytes:
        """One HPUB frame; the reply subject is the inbox and the token."""
        start = self._starts.get(message.subject) or self._start(message.subject)
        headers, body = message.headers, message.body
        if (headers and not headers.endswith(b"\r\n")) or headers.startswith(b"\r\n") or headers.find(b"\r\n\r\n") >= 0:
            raise ValueError("a header block is lines that end in CR LF, none of them empty")
        head = len(self._block) + len(headers) + 2
        return b"%b%d %d %d\r\n%b%b\r\n%b\r\n" % (start, token, head, head + len(body), self._block, headers, body)

    def _start(self, subject: bytes) -> bytes:
        """How the frames of a subject begin; checked here, once per connection."""
        if _SUBJECT.fullmatch(subject) is None:
            raise ValueError(f"no subject to publish to: {subject!r}")
        start = b"HPUB %b %b." % (subject, self._inbox)
        if len(self._starts) < _MAX_KNOWN_SUBJECTS:
            self._starts[subject] = start
        return start

    def _refuse(self, messages: Sequence[Message], cause: Cause, error: str) -> Unpublished:
        for message in messages:
            self._counters.published(message.subject, False)
        return Unpublished(cause, error)

    def _finish(self, publication: _Publication, outcome: Outcome) -> None:
        """Count and tell; a waiter that raises is its own affair."""
        ok = not isinstance(outcome, Unpublished)
        if isinstance(outcome, Unpublished):
            self.failures += 1
            self.last_error = outcome.error
        for message in publication.messages:
            self._counters.published(message.subject, ok)
        try:
            publication.done(outcome)
        except Exception as error:
            self._broken(error)


def _read(headers: Mapping[str, str] | None, body: bytes) -> Ack | Unpublished | None:
    """An answer that is not the usual acknowledgement; None asks to publish again."""
    if headers is not None and "Status" in headers:
        if headers["Status"] == "503":
            return Unpublished(Cause.REJECTED, "no stream listens on the subject")
        return Unpublished(Cause.REJECTED, f"status {headers['Status']}")
    try:
        members = json.loads(body)
    except ValueError:
        members = None
    if not isinstance(members, dict):
        return Unpublished(Cause.REJECTED, "the answer is no acknowledgement")
    error = members.get("error")
    sequence = members.get("seq")
    if error is None and isinstance(sequence, int) and sequence > 0:
        return Ack(sequence, members.get("duplicate") is True)
    return _judge(error if isinstance(error, dict) else {})


def _judge(error: Mapping[str, Any]) -> Unpublished | None:
    """What an error of JetStream means for the publication."""
    number = error.get("err_code")
    if number == _TWIN_IN_PROPOSAL:
        return None
    text = str(error.get("description", "no acknowledgement"))
    if number == _STREAM_STORE_FAILED or _FULL.search(text):
        return Unpublished(Cause.STREAM_FULL, f"{text} ({number})")
    return Unpublished(Cause.REJECTED, f"{text} ({number})")
