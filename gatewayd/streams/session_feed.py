"""
What the session stream is for: every snapshot goes to the cache, which knows at once who is revoked.

Decides what of the cache is called for what of the stream. Never decides what a snapshot says or who may pass.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from gatewayd.sessions.snapshots import read_entry
from gatewayd.sessions.values import Session
from gatewayd.streams.entries import SHAPE, Malformed, RawEntry
from gatewayd.streams.poller import Feed
from gatewayd.times import Monotonic


class Sessions(Protocol):
    """What is needed of the sessions; see sessions.cache."""

    def apply(self, sessions: Sequence[Session]) -> Deferred[Any]:
        """Consume snapshots; who is revoked is so, and its streams end, before this returns."""

    def gap(self, open_sessions: Iterable[str]) -> object:
        """Snapshots were missed: believe nothing that is not confirmed anew, and ask for these at once."""

    def poller_seen(self, now: Monotonic) -> None:
        """Everything that was in the stream then has been consumed."""


def parse_snapshot(entry: RawEntry) -> Session | Malformed:
    """The snapshot in an entry of the session stream, or why there is none."""
    found = SHAPE.reason if entry.fields is None else read_entry(entry.fields)
    return found if isinstance(found, Session) else Malformed(found)


def session_feed(sessions: Sessions, open_sessions: Callable[[], Iterable[str]]) -> Feed[Session]:
    """
    The feed of a poller that reads the session stream from its beginning. `open_sessions` gives the ids of the sessions
    that have streams open: after a gap their keys are read again, whether they are in memory or not.
    """
    return Feed(
        parse=parse_snapshot,
        deliver=sessions.apply,
        placed=lambda epoch, at: None,
        gap=lambda: sessions.gap(open_sessions()),
        current=lambda at: sessions.poller_seen(Monotonic(at)),
    )
