"""
An event bus without a server that can do what servers do: answer late or never, say duplicate of another body, fail
and store all the same (a ghost), lose a message, be full, be away.

It passes the contract suite of IEventBus. What a test does to it is at the end of the class.
"""

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from gatewayd.bus.publication import Ack, BusState, Cause, Message, Published, Stored, Unpublished
from gatewayd.committed import Committed
from gatewayd.interfaces import IEventBus
from gatewayd.times import Wall

Outcome: TypeAlias = Published | Unpublished


def headers_of(message: Message) -> dict[str, str]:
    """Every header of a message, of a repeated one the first value."""
    found: dict[str, str] = {}
    for line in message.headers.decode().split("\r\n"):
        key, colon, text = line.partition(":")
        if colon:
            found.setdefault(key, text.strip())
    return found


@implementer(IEventBus)
class DoubleBus:
    """
    `messages` are what is stored, by sequence; `publications` every publication that was not refused at once, in the
    order of the calls; `reads` every read that was asked.

    Without a clock answers come at once, or when release() is called after hold(). With one they come `delay_s` later,
    and what is held ends with TIMEOUT after `timeout_s`.
    """

    def __init__(
        self,
        clock: IReactorTime | None = None,
        *,
        delay_s: float = 0.0,
        timeout_s: float = 2.0,
        limit: int = 1000,
        max_message: int = 1_048_000,
        max_messages: int | None = None,
        wall: Wall = Wall(1_700_000_000.0),
    ) -> None:
        self.state = BusState.CONNECTED
        self.max_message = max_message
        self.last_success: float | None = None
        self.attempts = 0
        self.messages: dict[int, Stored] = {}
        self.publications: list[list[Message]] = []
        self.reads: list[tuple[int, bytes]] = []
        self.max_messages = max_messages
        self.wall = wall
        self._clock = clock
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._limit = limit
        self._ids: dict[str, int] = {}
        self._last = 0
        self._held: deque[Deferred[None]] | None = None
        self._under_way: list[Deferred[Outcome]] = []
        self._script: deque[tuple[Unpublished, bool]] = deque()
        self._unreadable: Unpublished | None = None

    def publish(self, messages: Sequence[Message]) -> Deferred[Outcome]:
        """See IEventBus."""
        refused = self._refusal(messages)
        if refused is not None:
            return succeed(refused)
        self.publications.append(list(messages))
        deferred: Deferred[Outcome] = Committed()
        self._under_way.append(deferred)
        failure, ghost = self._script.popleft() if self._script else (None, True)
        stored = self._store(messages) if ghost else None
        outcome = failure or stored or Unpublished(Cause.REJECTED)

        def answer(outcome: Outcome) -> None:
            if deferred in self._under_way:
                self._under_way.remove(deferred)
                if isinstance(outcome, Published):
                    self.last_success = self.wall
                deferred.callback(outcome)

        self._later().addCallback(lambda _: answer(outcome))
        if self._clock is not None and not deferred.called:
            self._clock.callLater(self._timeout_s, answer, Unpublished(Cause.TIMEOUT, "no acknowledgement"))
        return deferred

    def read(self, sequence: int, msg_id: bytes) -> Deferred[Stored | Unpublished | None]:
        """See IEventBus."""
        self.reads.append((sequence, msg_id))
        if self.state is BusState.DISCONNECTED:
            return succeed(Unpublished(Cause.DISCONNECTED, "not connected"))
        deferred: Deferred[Stored | Unpublished | None] = Deferred()

        def answer(late: bool) -> None:
            if deferred.called:
                return
            if late:
                deferred.callback(Unpublished(Cause.TIMEOUT, "no answer"))
            elif self._unreadable is not None:
                deferred.callback(self._unreadable)
            else:
                found = self.messages.get(sequence)
                same = found is not None and found.headers.get("Nats-Msg-Id") == msg_id.decode()
                deferred.callback(found if same else None)

        self._later().addCallback(lambda _: answer(False))
        if self._clock is not None and not deferred.called:
            self._clock.callLater(self._timeout_s, answer, True)
        return deferred

    # what a test does

    def hold(self) -> None:
        """Answer nothing from now on; publications are stored all the same."""
        self._held = deque()

    def release(self) -> None:
        """Answer what was held, in order, and at once from now on."""
        held, self._held = self._held or deque(), None
        for waiting in held:
            waiting.callback(None)

    def fail(self, outcome: Unpublished, *, ghost: bool = False, count: int = 1) -> None:
        """The next `count` publications end with `outcome`; as a `ghost` they are stored all the same."""
        self._script.extend([(outcome, ghost)] * count)

    def plant(self, message: Message) -> int:
        """Store a message as if somebody else had published it, and say its sequence."""
        stored = self._store([message])
        assert isinstance(stored, Published)
        return stored.acks[0].sequence

    def drop(self, sequence: int) -> None:
        """Lose a stored message; its id stays known, as after its deletion or expiry."""
        del self.messages[sequence]

    def forget_ids(self) -> None:
        """Lose every message id, as after the duplicate window."""
        self._ids.clear()

    def refuse_reads(self, answer: Unpublished | None) -> None:
        """Reads have this answer from now on; None: the true one again."""
        self._unreadable = answer

    def go_down(self) -> None:
        """Lose the connection: what is under way is unknown, everything after is refused at once."""
        self.state = BusState.DISCONNECTED
        self.attempts = 1
        gone, self._under_way = self._under_way, []
        for deferred in gone:
            deferred.callback(Unpublished(Cause.DISCONNECTED, "the connection is gone"))

    def come_up(self) -> None:
        """Have a connection again."""
        self.state = BusState.CONNECTED
        self.attempts = 0

    def ids(self) -> list[str]:
        """The id of every stored message, in order."""
        return [stored.headers.get("Nats-Msg-Id", "") for stored in self.messages.values()]

    def _refusal(self, messages: Sequence[Message]) -> Unpublished | None:
        assert 1 <= len(messages) <= 3
        assert all(message.headers.endswith(b"\r\n") and b"\r\n\r\n" not in message.headers for message in messages)
        if any(len(message.headers) + len(message.body) > self.max_message for message in messages):
            return Unpublished(Cause.REJECTED, "too large")
        if self.state is BusState.DISCONNECTED:
            return Unpublished(Cause.DISCONNECTED, "not connected")
        if len(self._under_way) >= self._limit:
            return Unpublished(Cause.BUFFER, "too many")
        return None

    def _store(self, messages: Sequence[Message]) -> Outcome:
        acks = []
        for message in messages:
            msg_id = headers_of(message).get("Nats-Msg-Id")
            known = None if msg_id is None else self._ids.get(msg_id)
            if known is not None:
                acks.append(Ack(known, True))
                continue
            if self.max_messages is not None and len(self.messages) >= self.max_messages:
                return Unpublished(Cause.STREAM_FULL, "maximum messages exceeded (10077)")
            self._last += 1
            stored = Stored(self._last, message.subject.decode(), headers_of(message), message.body, self.wall)
            self.messages[self._last] = stored
            if msg_id is not None:
                self._ids[msg_id] = self._last
            acks.append(Ack(self._last, False))
        return Published(tuple(acks))

    def _later(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        if self._held is not None:
            self._held.append(waiting)
        elif self._clock is not None and self._delay_s:
            self._clock.callLater(self._delay_s, waiting.callback, None)
        else:
            waiting.callback(None)
        return waiting
