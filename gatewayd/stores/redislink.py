"""
The link to one Redis server: connections that come back by themselves, and a deadline on every call.

Decides when a call is refused at once, when it has waited long enough, when a connection is given up, and what is
counted and logged of it. Never decides what a reply means, and never tries a command again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable
from gatewayd.lifecycle import StartFailed
from gatewayd.stores.redisplace import RedisPlace
from gatewayd.stores.redisreader import BlockingReader
from gatewayd.stores.redisreplies import RedisRefused, ends_connection, judge
from gatewayd.stores.rediswire import CONNECT_S, OpenFailed, Wire
from gatewayd.stores.script import Script

__all__ = ["BlockingReader", "RedisLink", "RedisRefused", "Script"]

_log = Logger()

OPERATION_TIMEOUT_S: Final = 0.25
START_S: Final = 2.0
STUCK_S: Final = 1.0
"""A connection is given up when a reply is so long overdue; until it comes nothing more is sent there."""
RETRY_S: Final = (0.1, 0.5)
"""The first pause between attempts, and the longest."""
LINES: Final = 2
"""Connections for commands: the second one is for the time when the first is lost, not for speed."""

LATE_S: Final = 0.1
"""
So late, it is this process that was busy (a crowd of clients at once): what it sent meanwhile may have left only now,
and replies may lie there unread. The time that was lost is given once; the next sweep tells what is overdue then,
however late it is itself.
"""

_SWEEP_S: Final = 0.02
_SAID_EVERY_S: Final = 60.0
_SETTLED_S: Final = 5.0
"""A connection that lived so long was a good one: the pauses begin anew."""


class Counted(Protocol):
    """What a link counts."""

    def error(self, kind: str) -> None:
        """One error; `kind` from redisreplies.KINDS."""

    def connected(self, link: str, answers: bool) -> None:
        """The link came up or went down."""


class _Call:
    """A command that was sent. `deferred` is None once its caller was told something, or went away."""

    __slots__ = ("deferred", "due")

    def __init__(self, due: float) -> None:
        self.due = due
        self.deferred: Deferred[Any] | None = Deferred(self._leave)

    def _leave(self, _: Deferred[Any]) -> None:
        self.deferred = None


class _Line:
    """
    One connection after another. Replies come in the order of the calls, so the oldest call is the first in `waiting`;
    `overdue` of them have waited too long.
    """

    def __init__(self, wire: Wire, reactor: Any, link: "RedisLink") -> None:
        self._wire = wire
        self._reactor = reactor
        self._link = link
        self._pause_s = RETRY_S[0]
        self._since = 0.0
        self._opening: Deferred[Any] | None = None
        self._timer: Any = None
        self._stopped = False
        self.connection: Any = None
        self.waiting: deque[_Call] = deque()
        self.overdue = 0

    @property
    def usable(self) -> bool:
        """True when a call may be sent: connected, and no reply overdue."""
        return self.connection is not None and not self.overdue

    def connect(self) -> None:
        """Make an attempt, and after it others, until one succeeds."""
        self._timer = None
        self._opening = self._wire.open()
        self._opening.addCallbacks(self._opened, self._failed)

    def _opened(self, connection: Any) -> None:
        self._opening = None
        self._since = self._reactor.seconds()
        connection.whenDisconnected().addCallback(self._lost)
        self.connection = connection
        self._link.changed()

    def _failed(self, failure: Failure) -> None:
        self._opening = None
        if self._stopped:
            return
        self._again()
        self._link.could_not_connect(failure.value)

    def _lost(self, connection: Any) -> None:
        """Called before the calls that wait on it fail."""
        self.connection = None
        if self._reactor.seconds() - self._since > _SETTLED_S:
            self._pause_s = RETRY_S[0]
        if not self._stopped:
            self._again()
            self._link.lost(connection.lost)

    def _again(self) -> None:
        self._timer = self._reactor.callLater(self._pause_s, self.connect)
        self._pause_s = min(self._pause_s * 2, RETRY_S[1])

    def send(self, arguments: Sequence[bytes | str | int], due: float) -> Deferred[Any]:
        """Send a command; its reply is due by then."""
        raw = self.connection.execute_command(*arguments)
        call = _Call(due)
        self.waiting.append(call)
        raw.addCallbacks(self._answered, self._refused)
        return call.deferred  # type: ignore[return-value]  # it is there until the call is settled

    def _settle(self) -> Deferred[Any] | None:
        """Take the oldest call off; its Deferred when somebody still waits for it."""
        call = self.waiting.popleft()
        if self.overdue:
            self.overdue -= 1
            if not self.overdue:
                self._link.changed()
        deferred, call.deferred = call.deferred, None
        return deferred

    def _answered(self, reply: Any) -> None:
        deferred = self._settle()
        if deferred is not None:
            deferred.callback(reply)

    def _refused(self, failure: Failure) -> None:
        deferred = self._settle()
        text = str(failure.value)
        if self.connection is None:
            error: Exception = Unavailable("the connection to Redis was lost")
        else:
            error = self._link.refused(text)
            if ends_connection(text):
                self.connection.transport.abortConnection()
        if deferred is not None:
            deferred.errback(error)

    def expire(self, now: float) -> None:
        """Tell the callers whose replies are overdue; give the connection up when it has been silent for long."""
        late = []
        for call in islice(self.waiting, self.overdue, None):
            if call.due > now:
                break
            late.append(call)
        if late:
            self.overdue += len(late)
            self._link.timed_out(len(late))
        if self.overdue and self.connection is not None and self.waiting[0].due + STUCK_S <= now:
            self.connection.transport.abortConnection()
        for call in late:
            deferred, call.deferred = call.deferred, None
            if deferred is not None:
                deferred.errback(Unavailable("Redis did not answer in time"))

    def next_look(self) -> float | None:
        """When expire() has something to do next, as far as is known now."""
        if not self.waiting:
            return None
        if len(self.waiting) > self.overdue:
            return self.waiting[self.overdue].due
        return self.waiting[0].due + STUCK_S

    def stop(self) -> None:
        """Make no more attempts, and end the connection; what waits fails."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opening is not None:
            self._opening.cancel()
        if self.connection is not None:
            self.connection.transport.abortConnection()


class RedisLink:
    """
    The link of one part of the process to one server. `name` says in logs and warnings which link it is.

    Every call fires within `timeout_s` (and 20 ms), whatever the server does. After a timeout nothing is known: the
    command may have run.
    """

    def __init__(
        self,
        place: RedisPlace,
        reactor: Any,
        counted: Counted,
        *,
        name: str = "Redis",
        timeout_s: float = OPERATION_TIMEOUT_S,
    ) -> None:
        self.place = place
        self.name = name
        self.last_error = ""
        self._reactor = reactor
        self._counted = counted
        self._timeout_s = timeout_s
        self._wire: Wire | None = None
        self._lines: list[_Line] = []
        self._turn = 0
        self._sweeping: Any = None
        self._sweep_due = 0.0
        self._spared = False  # the last sweep was late, and left everything to the next one
        self._up = False
        self._told: list[Callable[[bool], object]] = []
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        self._starting: Deferred[None] | None = None
        self._required = True
        self._ending: list[_Line] = []
        self._stopping: Deferred[None] | None = None
        counted.connected(name, False)

    @property
    def connected(self) -> bool:
        """True while a call would be sent, not refused at once."""
        return self._up

    def watch(self, told: Callable[[bool], object]) -> None:
        """Have `told` called with `connected` whenever that changes."""
        self._told.append(told)

    # ---- calls ----

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        """
        One command. The reply: bytes (bulk and status), int, None, or a list of these.

        Fails with Unavailable when the server cannot answer now, and with RedisRefused when the command was wrong; in a
        list an error is a value. Cancelling the Deferred takes nothing back.
        """
        lines = self._lines
        self._turn += 1
        for turn in range(len(lines)):
            line = lines[(self._turn + turn) % len(lines)]
            if line.usable:
                if self._sweeping is None:
                    self._sweep_in(self._timeout_s)
                return line.send(arguments, self._reactor.seconds() + self._timeout_s)
        return fail(Unavailable(f"{self.name} is not connected"))

    def run(
        self, script: Script, keys: Sequence[bytes | str] = (), arguments: Sequence[bytes | str | int] = ()
    ) -> Deferred[Any]:
        """Run a script; a server that does not know it (any more) is given its text. As call()."""
        rest = (len(keys), *keys, *arguments)

        def teach(failure: Failure) -> Deferred[Any] | Failure:
            error = failure.value
            if isinstance(error, RedisRefused) and error.code == "NOSCRIPT":
                return self.call("EVAL", script.text, *rest)
            return failure

        return self.call("EVALSHA", script.sha, *rest).addErrback(teach)

    def reader(self) -> "BlockingReader":
        """A connection of its own, for commands that block."""
        return BlockingReader(self._made_wire(), self._reactor, self)

    def _sweep_in(self, seconds: float) -> None:
        self._sweeping = self._reactor.callLater(max(_SWEEP_S, seconds), self._sweep)
        self._sweep_due = self._reactor.seconds() + max(_SWEEP_S, seconds)

    def _sweep(self) -> None:
        now, lines = self._reactor.seconds(), self._lines or self._ending
        late_s = now - self._sweep_due
        if late_s > LATE_S and not self._spared:
            self._spared = True
            self._sweep_in(min(late_s, self._timeout_s))
            return
        self._spared = False
        for line in lines:
            line.expire(now)  # whose callers may call again: no other sweep must be begun meanwhile
        self._sweeping = None
        looks = [at for at in (line.next_look() for line in lines) if at is not None]
        if looks:
            # At the latest when a call that is sent now is due: one line may have nothing to do for long.
            self._sweep_in(0.0 if self._ending else min(min(looks) - now, self._timeout_s))
        self._end_when_quiet()

    # ---- what lines say ----

    def changed(self) -> None:
        """A line became usable, or stopped being so."""
        up = any(line.usable for line in self._lines)
        if up == self._up:
            return
        self._up = up
        self._counted.connected(self.name, up)
        if up:
            self.last_error = ""
            self._say("redis.connected", "", "connected")
            self._end_start()
        elif self._stopping is None:
            self._say("redis.lost", "", f"does not answer: {self.last_error}")
        for told in self._told:
            try:
                told(up)
            except Exception:
                _log.failure("a watcher of {link} failed", event="redis.watcher_failed", link=self.name)

    def timed_out(self, count: int, text: str = "") -> None:
        """So many calls had no reply in time."""
        for _ in range(count):
            self._counted.error("timeout")
        self.last_error = text or f"no answer within {self._timeout_s * 1000:.0f} ms"
        self.changed()
        self._say("redis.error", "timeout", self.last_error)

    def lost(self, why: Failure | None) -> None:
        """A connection was lost."""
        self._counted.error("lost")
        self.last_error = "the connection was lost" if why is None else f"lost: {why.getErrorMessage()}"
        self.changed()
        self._say("redis.error", "lost", self.last_error)

    def refused(self, text: str) -> Unavailable | RedisRefused:
        """The server answered with this error; what the caller gets."""
        kind, error = judge(text)
        if isinstance(error, RedisRefused) and error.code == "NOSCRIPT":
            return error  # no fault: a server that was restarted is told the text by run()
        self._counted.error(kind)
        self.last_error = text[:200]
        self._say("redis.error", kind, self.last_error)
        return error

    def could_not_connect(self, error: BaseException | None) -> None:
        """An attempt failed; during the start that may be the end of it."""
        self._counted.error("connect")
        self.last_error = str(error)
        self._say("redis.error", "connect", self.last_error)
        if isinstance(error, OpenFailed) and error.ours:
            self._end_start(failing=True)
        elif not self._required:
            self._end_start()

    def _say(self, event: str, kind: str, text: str) -> None:
        """Log it, each event and kind once a minute; `left_out` says how many were not said since."""
        now = self._reactor.seconds()
        since, left_out = self._said.get((event, kind), (float("-inf"), 0))
        if now - since < _SAID_EVERY_S:
            self._said[event, kind] = (since, left_out + 1)
            return
        self._said[event, kind] = (now, 0)
        level = LogLevel.info if event == "redis.connected" else LogLevel.warn
        members = {"event": event, "kind": kind, "left_out": left_out}
        _log.emit(level, "{link} at {place}: {text}", link=self.name, place=str(self.place), text=text, **members)

    # ---- start and stop ----

    def _made_wire(self) -> Wire:
        if self._wire is None:
            self._wire = Wire(self.place, self._reactor)
        return self._wire

    def start(self, *, required: bool = True) -> Deferred[None]:
        """
        Connect. Fails with StartFailed, a line for a person, when the server refuses the login or the database, and,
        if `required`, when it has not answered a PING within START_S; else it is waited for until one attempt is over.
        """
        wire = self._made_wire()
        self._required = required
        self._lines = [_Line(wire, self._reactor, self) for _ in range(LINES)]
        starting: Deferred[None] = Deferred(lambda _: self._end_start(failing=True))
        self._starting = starting
        overdue = self._reactor.callLater(START_S if required else CONNECT_S, self._end_start, failing=required)
        for line in self._lines:
            line.connect()

        def ended(result: Any) -> Any:
            if overdue.active():
                overdue.cancel()
            return result

        return starting.addBoth(ended)

    def _end_start(self, *, failing: bool = False) -> None:
        starting, self._starting = self._starting, None
        if starting is None:
            return
        if not failing:
            starting.callback(None)
            return
        for line in self._lines:
            line.stop()
        self._lines = []
        starting.errback(StartFailed(f"{self.name} at {self.place}: {self.last_error or 'no answer in time'}"))

    def stop(self) -> Deferred[None]:
        """
        Refuse calls, wait for those under way, which takes `timeout_s` at the most, and disconnect; never fails.

        Readers are ended by those who have them.
        """
        if self._stopping is None:
            self._stopping = Deferred()
            self._ending, self._lines = self._lines, []
            if self._sweeping is not None and self._sweeping.active():
                self._sweeping.reset(_SWEEP_S)
            self.changed()
            self._end_when_quiet()
        return self._stopping if not self._stopping.called else succeed(None)

    def _end_when_quiet(self) -> None:
        if self._stopping is None or self._stopping.called:
            return
        if any(len(line.waiting) > line.overdue for line in self._ending):
            return
        for line in self._ending:
            line.stop()
        if self._sweeping is not None and self._sweeping.active():
            self._sweeping.cancel()
        self._stopping.callback(None)
