"""
IEventBus on NATS JetStream: the lane, the requests and the connection, put together.

Decides when frames are written, when a server that hangs is left, and what is said about it. Never decides what a
message holds, never retries a publication by itself (but for JetStream's "being proposed", in the lane), and knows
asyncio only by aio.Loop and the client.

`connected` is judged by what became of publications, not by the socket: a server with a full disk keeps the
connection up and acknowledges nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.aio import Loop
from gatewayd.bus.api import read_api
from gatewayd.bus.client import Client, Ear, Link, NatsSettings, describe
from gatewayd.bus.inlet import Acks, Delivery
from gatewayd.bus.lane import BusCounters, Lane
from gatewayd.bus.publication import BusState, Cause, Message, Published, Stored, Unpublished
from gatewayd.bus.requests import NO_RESPONDERS, Answer, Reply, Requests, frame
from gatewayd.bus.servers import Server, parse_server
from gatewayd.bus.stored import stored_of
from gatewayd.bus.tail import Gently, ReadBack, Seen, read_back
from gatewayd.committed import Committed
from gatewayd.interfaces import IEventBus
from gatewayd.times import Wall, parse_rfc3339

_log = Logger()

TICK_S: Final = 0.05
STOOD_STILL_S: Final = 0.5
"""A tick that comes so much late: this process stood still, and has not read what the server answered meanwhile."""
STOP_S: Final = 3.0
"""Beyond the budget of stop(): what closing may take at most."""

_MESSAGE_NOT_FOUND: Final = "(10037)"
_ADDED_BY_DIRECT_GET: Final = frozenset({"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"})


class Seldom:
    """Lets one line a second through and counts the rest, so that an outage does not fill the log."""

    __slots__ = ("_interval_s", "_left_out", "_next")

    def __init__(self, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._next: float | None = None
        self._left_out = 0

    def passes(self, now: float) -> int | None:
        """How many were left out since the last line that passed, or None: this one is left out too."""
        if self._next is not None and now < self._next:
            self._left_out += 1
            return None
        self._next = now + self._interval_s
        left_out, self._left_out = self._left_out, 0
        return left_out


@implementer(IEventBus)
class NatsBus:
    """
    The stream `settings.stream` on NATS.

    `on_connected`, when set, is called after every connect, also the first; its Deferred is cancelled when the
    connection is lost before it has fired, and a failure of it is logged. `last_error` is the text of the last
    failure of the connection or, while it is up, of a publication; it never holds a credential. `last_sequence` is
    the largest sequence that was ever acknowledged, 0 for none. `server_version` and `max_payload` are what the
    server of the last connection said.
    """

    def __init__(
        self,
        settings: NatsSettings,
        loop: Loop,
        clock: IReactorTime,
        wall: Callable[[], Wall],
        counters: BusCounters,
    ) -> None:
        self.attempts = 0
        self.server_version = ""
        self.max_payload = 0
        self.on_connected: Callable[[], Deferred[Any]] | None = None
        self._settings = settings
        self._loop = loop
        self._clock = clock
        self._wall = wall
        self._counters = counters
        self._lane = Lane(
            settings.stream,
            counters,
            self._broken,
            timeout_s=settings.publish_timeout_s,
            limit=settings.pending_limit,
            limit_bytes=settings.pending_limit_bytes,
        )
        self._requests = Requests(self._broken)
        self._link = Link(settings, self)
        self._client: Client | None = None
        self._inbox = b""
        self._running: Deferred[None] | None = None
        self._first: Deferred[None] | None = None
        self._stopping = False
        self._timer: IDelayedCall | None = None
        self._tick_due: float | None = None
        self._hook: Deferred[Any] | None = None
        self._slices: set[Deferred[Unpublished | None]] = set()
        self._flush_due = False
        self._connected_wall: float | None = None
        self._connection_error = ""
        self._connection_lines = Seldom()
        self._publish_lines = Seldom()
        self._warning_lines = Seldom()
        self._failures_said = 0

    # IEventBus

    @property
    def state(self) -> BusState:
        """See IEventBus."""
        return self._lane.state(self._clock.seconds())

    @property
    def max_message(self) -> int:
        """See IEventBus: the server's max_payload less what the lane adds."""
        return self._lane.max_message

    @property
    def last_success(self) -> float | None:
        """See IEventBus."""
        at = self._lane.last_ack_at
        return self._connected_wall if at is None else self._wall() - (self._clock.seconds() - at)

    @property
    def unacked(self) -> int:
        """Publications that wait for their acknowledgement."""
        return self._lane.unacked

    @property
    def failures(self) -> int:
        """Publications that were written, or about to be, and are not known to be stored."""
        return self._lane.failures

    @property
    def last_sequence(self) -> int:
        """The largest sequence ever acknowledged; 0: none."""
        return self._lane.last_sequence

    def forget_sequence(self) -> None:
        """The stream is another one: what was acknowledged before says nothing of it."""
        self._lane.last_sequence = 0

    @property
    def last_error(self) -> str:
        """What went wrong last."""
        return self._lane.last_error if self._client is not None else self._connection_error

    def publish(self, messages: Sequence[Message]) -> Deferred[Published | Unpublished]:
        """See IEventBus. Publications of one turn of the loop leave in one write."""
        if self._stopping:
            return succeed(Unpublished(Cause.DISCONNECTED, "stopping"))
        deferred: Committed[Published | Unpublished] = Committed()
        refused = self._lane.publish(messages, self._clock.seconds(), deferred.callback)
        if refused is not None:
            return succeed(refused)
        if not self._flush_due:
            self._flush_due = True
            self._loop.soon(self._flush)
        return deferred

    def read(self, sequence: int, msg_id: bytes) -> Deferred[Stored | Unpublished | None]:
        """See IEventBus. A direct get first, which any replica answers; what it does not have the leader is asked."""
        return Deferred.fromCoroutine(self._read(sequence, msg_id.decode("ascii")))

    # life

    def start(self, servers: Sequence[str] = ()) -> Deferred[None]:
        """
        Begin to connect; fires when the first connection is ready or the first attempt has failed. Never fails.

        `servers` are used where the settings name none: an embedded server's port is known only now. ValueError when
        there are none, or one cannot be understood.
        """
        urls = self._settings.servers or servers
        if not urls:
            raise ValueError("no NATS server is given")
        self._first = Deferred()
        self._running = self._loop.from_asyncio(self._link.run([parse_server(url) for url in urls]))
        self._running.addErrback(self._bug)
        self._tick()
        return self._first

    def stop(self, budget_s: float) -> Deferred[None]:
        """
        Refuse what comes from now on, wait up to `budget_s` for acknowledgements, close. Never fails; takes at most
        STOP_S longer than the budget, whatever the server does.
        """
        return Deferred.fromCoroutine(self._stop(budget_s))

    async def _stop(self, budget_s: float) -> None:
        self._stopping = True
        deadline = self._clock.seconds() + budget_s
        while self._lane.unacked and self._client is not None and self._clock.seconds() < deadline:
            await deferLater(self._clock, TICK_S / 2, _nothing)
        self._down("stopping")
        self._link.stop()
        running, self._running = self._running, None
        if running is not None:
            running.addTimeout(STOP_S, self._clock, _drop)
            await running
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._come()

    # requests

    def request(self, subject: str, payload: bytes, timeout_s: float) -> Deferred[bytes | Unpublished]:
        """One request and the body of its answer; Unpublished(REJECTED) when nobody listens on the subject."""
        return self.ask(subject, payload, timeout_s).addCallback(_body)

    def ask(self, subject: str, payload: bytes, timeout_s: float, headers: bytes = b"") -> Deferred[Answer]:
        """
        One request and its answer with headers and status; fires within `timeout_s`, never fails. `headers` are lines
        that end in CR LF. Cancelling it gives its place up: what was written stays written.
        """
        if self._client is None:
            return succeed(Unpublished(Cause.DISCONNECTED, self._connection_error or "not connected"))
        deferred: Deferred[Answer] = Deferred(lambda _: self._requests.drop(token or ""))
        token = self._requests.add(self._clock.seconds() + timeout_s, deferred.callback)
        if token is None:
            return succeed(Unpublished(Cause.BUFFER, "too many requests wait for the server"))
        reply = b"%b.%b" % (self._inbox, token.encode("ascii"))
        self._write(frame(subject.encode("ascii"), reply, payload, headers))
        return deferred

    def tail(
        self,
        subject: str,
        seen: Seen,
        *,
        back_s: float | None = None,
        from_sequence: int | None = None,
        limit: int | None = None,
        gently: Gently | None = None,
    ) -> Deferred[ReadBack | Unpublished]:
        """Read the stream back, headers only; see tail.read_back."""
        stream = self._settings.stream
        return Deferred.fromCoroutine(
            read_back(
                self, stream, subject, seen, back_s=back_s, from_sequence=from_sequence, limit=limit, gently=gently
            )
        )

    def slice(
        self, subject: str, payload: bytes, count: int, timeout_s: float, heard: Callable[[Delivery], object]
    ) -> Deferred[Unpublished | None]:
        """See tail.Reading."""
        return Deferred.fromCoroutine(self._slice(subject, payload, count, timeout_s, heard))

    async def _slice(
        self, subject: str, payload: bytes, count: int, timeout_s: float, heard: Callable[[Delivery], object]
    ) -> Unpublished | None:
        client = self._client
        if client is None:
            return Unpublished(Cause.DISCONNECTED, self._connection_error)
        ended: Deferred[Unpublished | None] = Deferred()
        left = count

        def hear(message: Delivery) -> None:
            nonlocal left
            over = message.status >= 400  # nothing more to come, or the slice's time is over
            if not over:
                heard(message)
                left -= 1
            if (over or not left) and not ended.called:
                ended.callback(None)

        try:
            ear: Ear = await self._loop.from_asyncio(client.listen(hear)).addTimeout(timeout_s, self._clock)
        except Exception as error:  # of the driver, the socket or the deadline: no subscription
            return Unpublished(Cause.DISCONNECTED, describe(error))
        self._slices.add(ended)
        try:
            self._write(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), ear.inbox.encode(), len(payload), payload))
            return await ended.addTimeout(timeout_s, self._clock, _too_late)
        finally:
            self._slices.discard(ended)
            await self._loop.from_asyncio(ear.close())

    async def _read(self, sequence: int, msg_id: str) -> Stored | Unpublished | None:
        stream, timeout_s = self._settings.stream, self._settings.publish_timeout_s
        began = self._clock.seconds()
        ask = json.dumps({"seq": sequence}).encode("ascii")
        direct = await self.ask(f"$JS.API.DIRECT.GET.{stream}", ask, timeout_s / 2)
        if isinstance(direct, Unpublished) and direct.cause is not Cause.TIMEOUT:
            return direct
        if isinstance(direct, Reply) and not direct.status and direct.headers.get("Nats-Msg-Id") == msg_id:
            return stored_direct(sequence, direct)
        left_s = began + timeout_s - self._clock.seconds()
        leader = await self.ask(f"$JS.API.STREAM.MSG.GET.{stream}", ask, left_s)
        if isinstance(leader, Unpublished):
            return leader
        if leader.status == NO_RESPONDERS:
            return Unpublished(Cause.REJECTED, "nobody answers for JetStream")
        return stored_by_leader(leader.body, msg_id)

    # what the client says (client.Listener)

    def connected(self, client: Client) -> None:
        """A connection is ready: publish on it."""
        now = self._clock.seconds()
        self._client, self._inbox = client, client.inbox
        self.attempts = 0
        self.server_version, self.max_payload = client.version, client.max_payload
        self._connected_wall = self._wall()
        self._lane.connect(client.inbox, client.max_payload)
        left_out = self._connection_lines.passes(now) or 0
        _log.info(
            "Connected to NATS {version} at {server}",
            version=client.version,
            server=client.server.address,
            left_out=left_out,
            event="nats_connected",
        )
        self._come()
        if self.on_connected is not None and not self._stopping:
            self._hook = maybeDeferred(self.on_connected)
            self._hook.addErrback(self._bug)

    def lost(self, error: str) -> None:
        """The connection is gone: nothing more is written to it, and everything under way is unknown."""
        self._counters.error("connection")
        self._down(error)
        self._say("NATS connection lost: {error}", error, "nats_lost", "")

    def failed(self, server: Server, error: str) -> None:
        """An attempt to connect failed."""
        self.attempts += 1
        self._connection_error = error
        self._counters.error("connection")
        self._say("Cannot connect to NATS at {server}: {error}", error, "nats_connect_failed", server.address)
        self._come()

    def warned(self, error: str) -> None:
        """The server complained of one thing, a permission for example; the publications it concerns time out."""
        left_out = self._warning_lines.passes(self._clock.seconds())
        if left_out is not None:
            _log.warn("NATS says: {error}", error=error, left_out=left_out, event="nats_error")

    def acknowledged(self, acks: Acks) -> None:
        """See client.Listener."""
        self._lane.acknowledge(acks, self._clock.seconds())

    def answered(self, token: str, headers: Mapping[str, str] | None, body: bytes) -> None:
        """A message came to the inbox: an acknowledgement, or the answer to a request."""
        try:
            if token.isdecimal():
                self._lane.answer(token, headers, body, self._clock.seconds())
            else:
                self._requests.answer(token, headers, body)
        except Exception as error:  # an answer that we cannot read must not end the driver's reading
            self._broken(error)

    # inside

    def _tick(self) -> None:
        self._timer = self._clock.callLater(TICK_S, self._tick)
        now = self._clock.seconds()
        due, self._tick_due = self._tick_due, now + TICK_S
        if due is not None and now - due > STOOD_STILL_S:  # judged at the next tick, when the socket has been read
            return
        self._lane.sweep(now)
        self._requests.sweep(now)
        self._flush()
        client = self._client
        if client is not None:
            if not client.alive:
                client.lose("the driver gave the connection up")
            elif self._lane.timeouts and client.silent:
                client.lose("the server does not answer")
            elif client.unsent_bytes > self._settings.pending_limit_bytes:
                client.lose("the server does not read")
        self._say_failures(now)

    def _flush(self) -> None:
        self._flush_due = False
        self._write(self._lane.outgoing())

    def _write(self, frames: bytes) -> None:
        if frames and self._client is not None:
            self._client.write(frames)

    def _down(self, error: str) -> None:
        """No connection from here on; everybody who waits on it is told."""
        self._client = None
        self._connection_error = error
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.cancel()
        self._lane.disconnect(error)
        self._requests.disconnect(error)
        slices, self._slices = self._slices, set()
        for ended in slices:
            if not ended.called:
                ended.callback(Unpublished(Cause.DISCONNECTED, error))

    def _come(self) -> None:
        first, self._first = self._first, None
        if first is not None:
            first.callback(None)

    def _say(self, text: str, error: str, event: str, server: str) -> None:
        left_out = self._connection_lines.passes(self._clock.seconds())
        if left_out is not None:
            _log.warn(text, error=error, server=server, left_out=left_out, event=event)

    def _say_failures(self, now: float) -> None:
        """Say what publications failed of, once a second at most and away from the hot path."""
        new = self._lane.failures - self._failures_said
        if new and self._publish_lines.passes(now) is not None:
            self._failures_said = self._lane.failures
            _log.warn(
                "{count} publications failed, the last one: {error}",
                count=new,
                error=self._lane.last_error,
                event="nats_publish_failed",
            )

    def _broken(self, error: Exception) -> None:
        """A waiter raised: a bug of whoever waits, said with its traceback and kept from everybody else."""
        self._bug(Failure(error, type(error), error.__traceback__))  # type: ignore[no-untyped-call]

    def _bug(self, failure: Failure) -> None:
        if not failure.check(CancelledError):  # type: ignore[no-untyped-call]
            _log.failure("An error inside the NATS bridge", failure, event="nats_bug")


def _nothing() -> None:
    """What deferLater calls when it is only waited for."""


def _drop(_: object, __: float) -> None:
    """A deadline that passed without anything to report."""


def _too_late(_: object, seconds: float) -> Unpublished:
    return Unpublished(Cause.TIMEOUT, f"no answer within {seconds:g} s")


def _body(answer: Answer) -> bytes | Unpublished:
    if isinstance(answer, Unpublished):
        return answer
    if answer.status:
        text = "nobody answers for JetStream" if answer.status == NO_RESPONDERS else f"status {answer.status}"
        return Unpublished(Cause.REJECTED, text)
    return answer.body


def stored_direct(sequence: int, answer: Reply) -> Stored:
    """The message that a direct get found; the server's own headers, at the end of the block, are taken out."""
    headers = {name: text for name, text in answer.headers.items() if name not in _ADDED_BY_DIRECT_GET}
    at = parse_rfc3339(answer.headers.get("Nats-Time-Stamp", "")) or Wall(0.0)
    return Stored(sequence, answer.headers.get("Nats-Subject", ""), headers, answer.body, at)


def stored_by_leader(answer: bytes, msg_id: str) -> Stored | Unpublished | None:
    """What the stream's leader says of one sequence: the message if it carries `msg_id`, None when it is gone."""
    members = read_api(answer)
    if isinstance(members, Unpublished):
        return None if members.error.endswith(_MESSAGE_NOT_FOUND) else members
    message = members.get("message")
    if not isinstance(message, dict):
        return Unpublished(Cause.REJECTED, "the answer holds no message")
    stored = stored_of(message)
    return stored if stored.headers.get("Nats-Msg-Id") == msg_id else None
