"""
Sessions between this process and Redis: looked up at use, written as their snapshots are consumed.

Decides when Redis is asked, that all who ask for one session at once share one answer, and that a snapshot is written
until Redis has taken it. Never decides what may be believed (sessions.roster does) nor what a snapshot says
(sessions.snapshots does).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable
from gatewayd.sessions.endings import SESSION_MALFORMED, UNAVAILABLE_NOW, Ending
from gatewayd.sessions.roster import BOUND, Roster
from gatewayd.sessions.snapshots import REVOKED, read_key, write_key
from gatewayd.sessions.values import Session
from gatewayd.stores.redisreplies import RedisRefused
from gatewayd.stores.script import Script
from gatewayd.times import Monotonic

MAX_LOOKUPS: Final = 10_000
"""Sessions that Redis is asked for at once; past it a request is answered UNAVAILABLE."""

PAGE: Final = 100
"""Sessions in one command: a page of them keeps a server of one thread busy for less than a millisecond."""

_MARK: Final = " revoked"
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 1.0

_DECOY: Final = write_key(Session("0" * 36, "0" * 36, bytes(32)))

_log = Logger()


class Link(Protocol):
    """What is asked of the connection to Redis; see stores.redislink."""

    def call(self, *args: bytes | str | int) -> Deferred[Any]:
        """One command."""

    def run(self, script: Script, keys: Sequence[bytes | str], args: Sequence[bytes | str | int], /) -> Deferred[Any]:
        """One script."""


class SessionCache:
    """
    The sessions, by device_session_id.

    A session stands under `key_prefix` + id as JSON; under the same key with " revoked" behind it (no id has a blank)
    stands the mark that it was revoked, which this gateway writes and never takes back. `on_revoked` is called with the
    id once a session is known to be revoked, before anything is written; `on_size` with the number in memory.
    """

    def __init__(
        self,
        link: Link,
        *,
        clock: IReactorTime,
        key_prefix: str,
        on_revoked: Callable[[str], None],
        on_size: Callable[[int], None],
        bound: int = BOUND,
    ) -> None:
        self._link = link
        self._clock = clock
        self._prefix = key_prefix
        self._script = Script.of("session_snapshots")
        self._roster = Roster(on_revoked=on_revoked, on_size=on_size, bound=bound)
        self._lookups: dict[str, list[Deferred[Session | Ending | None]]] = {}
        self._pauses: dict[Deferred[None], IDelayedCall] = {}
        self._stopped = False

    # At use.

    def fresh(self, device_session_id: str) -> Session | Ending | None:
        """
        What memory says: the session, revoked or confirmed at most 5 s ago; UNAVAILABLE_NOW while the session stream is
        silent; None when read() must be asked.
        """
        now = self._now()
        session = self._roster.fresh(device_session_id, now)
        if self._roster.silent(now) and (session is None or not session.revoked):
            return UNAVAILABLE_NOW
        return session

    def revoked(self, device_session_id: str) -> bool:
        """True when the session is known to be revoked."""
        return self._roster.revoked(device_session_id)

    def read(self, device_session_id: str) -> Deferred[Session | Ending | None]:
        """
        Ask Redis: the session; None when there is none; SESSION_MALFORMED when what is there is none; UNAVAILABLE_NOW
        when Redis does not answer. Never fails. Cancelling it leaves the others that wait for the same answer alone.
        """
        waiters = self._lookups.get(device_session_id)
        if waiters is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                return succeed(UNAVAILABLE_NOW)
            waiters = self._lookups[device_session_id] = []
            waiting = _join(waiters)
            self._roster.ask(device_session_id, self._now())
            asked = self._link.call("MGET", *self._keys(device_session_id))
            asked.addCallbacks(self._found, self._not_found, (device_session_id,), errbackArgs=(device_session_id,))
            asked.addCallback(self._tell, device_session_id)
            asked.addErrback(lambda failure: _log.failure("a look-up failed", failure, event="edge.lookup_fault"))
            return waiting
        return _join(waiters)

    def _tell(self, outcome: Session | Ending | None, device_session_id: str) -> None:
        waiters = self._lookups.pop(device_session_id)
        while waiters:  # one may cancel another
            waiters.pop(0).callback(outcome)

    def _found(self, values: list[bytes | None], device_session_id: str) -> Session | Ending | None:
        """What holds of one session, from its key's value and its mark's."""
        value, mark = values
        if value is None:
            read_key(_DECOY, device_session_id)  # an unknown session takes as long as a known one
        found = None if value is None else read_key(value, device_session_id)
        if mark is not None:
            found = read_key(mark, device_session_id)
            if isinstance(found, str) or not found.revoked:
                found = Session(device_session_id, "", b"", revoked=True)
        if isinstance(found, str):
            _log.warn(
                "the session under {key} is malformed: {reason}",
                event="edge.session_malformed",
                repeats=found,
                reason=found,
                key=self._prefix + device_session_id,
            )
            return self._roster.drop(device_session_id) or SESSION_MALFORMED
        if found is not None and found.revoked and mark is None:
            # Whoever wrote the key may write it again: the mark stays.
            self._keep(found)
        return self._roster.answer(device_session_id, found)

    def _not_found(self, failure: Failure, device_session_id: str) -> Session | Ending:
        if isinstance(failure.value, RedisRefused):
            _refused(failure.value)
        elif not isinstance(failure.value, Unavailable):
            _log.failure("a session cannot be read", failure, event="edge.lookup_fault", repeats=True)
        return self._roster.drop(device_session_id) or UNAVAILABLE_NOW

    # As snapshots are consumed.

    def poller_seen(self, now: Monotonic) -> None:
        """The session stream's reader had an answer of any kind, an empty one too."""
        self._roster.seen(now)

    def apply(self, sessions: Sequence[Session]) -> Deferred[None]:
        """
        Consume snapshots, in their order: what is revoked is so when this returns; the rest, and the keys, when it
        fires, which waits for Redis as long as that takes, or for stop(). Never fails but by being cancelled.
        """
        now = self._now()
        for session in sessions:
            self._roster.ask(session.device_session_id, now)
        for session in sessions:
            if session.revoked:
                self._roster.revoke(session)
        return Deferred.fromCoroutine(self._write(sessions))

    async def _write(self, sessions: Sequence[Session]) -> None:
        open_questions = list(sessions)
        try:
            while open_questions:
                page = open_questions[:PAGE]
                held = await self._until_answered(partial(self._run, page))
                del open_questions[: len(page)]
                for number, session in enumerate(page):
                    self._written(session, None if held is None else held[number])
        finally:
            for session in open_questions:
                self._roster.drop(session.device_session_id)

    def _run(self, page: Sequence[Session]) -> Deferred[Any]:
        keys = [key for session in page for key in self._keys(session.device_session_id)]
        args: list[bytes | str | int] = []
        for session in page:
            args += (write_key(session), REVOKED if session.revoked else "")
        return self._link.run(self._script, keys, args)

    def _written(self, session: Session, revoked: bytes | None) -> None:
        """Close the question: `revoked` is the snapshot that holds in its place, b"" for none, None for no answer."""
        name = session.device_session_id
        if revoked is None:
            self._roster.drop(name)
            return
        holds: Session | str = read_key(revoked, name) if revoked else session
        if isinstance(holds, str) or (revoked and not holds.revoked):
            holds = Session(name, "", b"", revoked=True)
        self._roster.answer(name, holds)

    def _keep(self, session: Session) -> None:
        self.apply([session]).addErrback(
            lambda failure: _log.failure("a revocation cannot be kept", failure, event="edge.revocation_fault")
        )

    # After a gap.

    def gap(self, open_sessions: Iterable[str] = ()) -> Deferred[None]:
        """
        Snapshots were missed: nothing in memory is believed unconfirmed, and the keys of all of it, and of
        `open_sessions` (those with open streams), are read again; what turns out to be revoked is said by on_revoked.
        Fires when all were read, or at stop(). Never fails but by being cancelled.
        """
        self._roster.cool()
        return Deferred.fromCoroutine(self._read_again([*self._roster.known(), *open_sessions]))

    async def _read_again(self, names: Iterable[str]) -> None:
        rest = iter(dict.fromkeys(names))
        while page := list(islice(rest, PAGE)):
            now = self._now()
            for name in page:
                self._roster.ask(name, now)
            keys = [key for name in page for key in self._keys(name)]
            values = None
            try:
                values = await self._until_answered(partial(self._link.call, "MGET", *keys))
            finally:
                for number, name in enumerate(page):
                    if values is None:
                        self._roster.drop(name)
                    else:
                        self._found(values[2 * number : 2 * number + 2], name)

    # What both need.

    async def _until_answered(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Redis' reply, however long it is away; None after stop(), and for a command that it refuses."""
        wait_s = _FIRST_WAIT_S
        while not self._stopped:
            try:
                return await attempt()
            except Unavailable:
                await self._pause(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
            except RedisRefused as error:
                _refused(error)
                return None
        return None

    def _pause(self, wait_s: float) -> Deferred[None]:
        pause: Deferred[None] = Deferred(lambda _: self._resume(pause, cancelled=True))
        self._pauses[pause] = self._clock.callLater(wait_s, self._resume, pause)
        return pause

    def _resume(self, pause: Deferred[None], *, cancelled: bool = False) -> None:
        timer = self._pauses.pop(pause)
        if timer.active():
            timer.cancel()
        if cancelled:
            pause.errback(CancelledError())
        else:
            pause.callback(None)

    def stop(self) -> None:
        """Ask and write nothing any more; what waits to be written is read from the stream again at the next start."""
        self._stopped = True
        for pause in list(self._pauses):
            self._resume(pause)

    def _keys(self, device_session_id: str) -> tuple[str, str]:
        key = self._prefix + device_session_id
        return key, key + _MARK

    def _now(self) -> Monotonic:
        return Monotonic(self._clock.seconds())


def _join(waiters: list[Deferred[Session | Ending | None]]) -> Deferred[Session | Ending | None]:
    """One more that waits; cancelled, it leaves."""
    waiting: Deferred[Session | Ending | None] = Deferred(waiters.remove)
    waiters.append(waiting)
    return waiting


def _refused(error: RedisRefused) -> None:
    _log.error("Redis refused sessions: {text}", event="edge.sessions_refused", repeats=error.code, text=error.text)
