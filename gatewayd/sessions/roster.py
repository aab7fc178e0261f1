"""
The sessions this process knows, and what may be believed of them. Pure.

Decides that revoked wins for ever, whatever comes before, after or at the same time; how long an entry is good without
being confirmed; and that nothing is, while the session stream is silent. Never asks Redis (sessions.cache does).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from gatewayd.sessions.values import Session
from gatewayd.times import Monotonic

CONFIRM_S: Final = 5.0
SILENT_S: Final = 5.0
BOUND: Final = 100_000
"""Sessions in memory, about 45 MB of them; past it the one used longest ago is forgotten, and read again at use."""


class _Entry:
    """One session, when it was confirmed, and in which round: entries of an earlier round are cold."""

    __slots__ = ("confirmed_at", "round", "session")

    def __init__(self, session: Session, confirmed_at: Monotonic, in_round: int) -> None:
        self.session = session
        self.confirmed_at = confirmed_at
        self.round = in_round


class Question:
    """
    Something that is being asked of Redis about one session, or written there: what comes back is as old as the moment
    it was asked, and a revocation that arrived meanwhile goes before it.
    """

    __slots__ = ("asked_at", "count", "revoked", "round")

    def __init__(self, asked_at: Monotonic, in_round: int) -> None:
        self.asked_at = asked_at
        self.round = in_round
        self.count = 0
        self.revoked: Session | None = None


class Roster:
    """
    At most `bound` sessions, least recently used forgotten first.

    `on_revoked` is called with the id whenever a session is learnt to be revoked that was not known to be. Every
    question to Redis is opened with ask() and closed with answer() or drop(): as long as one is open, a revocation of
    its session is remembered even when the entry is forgotten.
    """

    def __init__(
        self, *, on_revoked: Callable[[str], None], on_size: Callable[[int], None], bound: int = BOUND
    ) -> None:
        self._on_revoked = on_revoked
        self._on_size = on_size
        self._bound = bound
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._questions: dict[str, Question] = {}
        self._round = 0
        self._seen_at: Monotonic | None = None
        self.evictions = 0

    # The session stream.

    def seen(self, now: Monotonic) -> None:
        """The session stream's reader had an answer at `now`. After a silence every entry is cold."""
        if self.silent(now):
            self.cool()
        self._seen_at = now

    def silent(self, now: Monotonic) -> bool:
        """True when nothing was heard for over 5 s, or ever: revocations may be missing, so nobody may pass."""
        return self._seen_at is None or now - self._seen_at > SILENT_S

    def cool(self) -> None:
        """Entries may have been missed: each is confirmed before it is believed again."""
        self._round += 1

    # What is known.

    def fresh(self, device_session_id: str, now: Monotonic) -> Session | None:
        """The session as far as it needs no confirming: revoked, or confirmed at most 5 s ago."""
        entry = self._entries.get(device_session_id)
        if entry is not None:
            self._entries.move_to_end(device_session_id)
            if entry.session.revoked or (entry.round == self._round and now - entry.confirmed_at <= CONFIRM_S):
                return entry.session
        question = self._questions.get(device_session_id)
        return question.revoked if question is not None else None

    def revoked(self, device_session_id: str) -> bool:
        """True when the session is known to be revoked."""
        entry = self._entries.get(device_session_id)
        question = self._questions.get(device_session_id)
        return (entry is not None and entry.session.revoked) or (question is not None and question.revoked is not None)

    def known(self) -> Iterable[str]:
        """The ids in memory that are not revoked."""
        return [name for name, entry in self._entries.items() if not entry.session.revoked]

    def size(self) -> int:
        """How many sessions are in memory."""
        return len(self._entries)

    # What is learnt.

    def ask(self, device_session_id: str, now: Monotonic) -> Question:
        """Open a question at `now`, or join the one that is open: it stays as old as its first asker."""
        question = self._questions.get(device_session_id)
        if question is None:
            question = self._questions[device_session_id] = Question(now, self._round)
        question.count += 1
        return question

    def answer(self, device_session_id: str, found: Session | None) -> Session | None:
        """Close one question: what Redis said, None for nothing. Returns what holds, a revocation before all else."""
        question = self._questions[device_session_id]
        if found is not None and found.revoked:
            self.revoke(found)
        revoked = self.drop(device_session_id)
        if revoked is not None:
            return revoked
        if found is None:
            self._forget(device_session_id)
        else:
            self._put(found, question.asked_at, question.round)
        return found

    def drop(self, device_session_id: str) -> Session | None:
        """Close one question that got no answer. Returns the revoked session where that is known."""
        question = self._close(device_session_id)
        entry = self._entries.get(device_session_id)
        return entry.session if entry is not None and entry.session.revoked else question.revoked

    def revoke(self, session: Session) -> None:
        """The session is revoked, from now on and for ever."""
        name = session.device_session_id
        news = not self.revoked(name)
        question = self._questions.get(name)
        if question is not None and question.revoked is None:
            question.revoked = session
        if news:
            self._put(session, Monotonic(0.0), self._round)
            self._on_revoked(name)

    def _close(self, device_session_id: str) -> Question:
        question = self._questions[device_session_id]
        question.count -= 1
        if question.count == 0:
            del self._questions[device_session_id]
        return question

    def _put(self, session: Session, confirmed_at: Monotonic, in_round: int) -> None:
        name = session.device_session_id
        entry = self._entries.get(name)
        if entry is not None:
            entry.session, entry.confirmed_at, entry.round = session, confirmed_at, in_round
            self._entries.move_to_end(name)
            return
        self._entries[name] = _Entry(session, confirmed_at, in_round)
        if len(self._entries) > self._bound:
            self._entries.popitem(last=False)
            self.evictions += 1
        self._on_size(len(self._entries))

    def _forget(self, device_session_id: str) -> None:
        if self._entries.pop(device_session_id, None) is not None:
            self._on_size(len(self._entries))
