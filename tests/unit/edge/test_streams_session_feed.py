"""What the session stream's entries lead to."""

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.sessions.values import Session
from gatewayd.streams.cursor import StreamId
from gatewayd.streams.entries import Malformed, RawEntry
from gatewayd.streams.session_feed import parse_snapshot, session_feed
from gatewayd.times import Monotonic

ENTRY = StreamId(1, 0)
REVOKED = Session("device-1", "", b"", revoked=True)


class Recorded:
    """Sessions that write down what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def apply(self, sessions: Sequence[Session]) -> Deferred[None]:
        self.told.append(("apply", list(sessions)))
        return succeed(None)

    def gap(self, open_sessions: Iterable[str]) -> None:
        self.told.append(("gap", list(open_sessions)))

    def poller_seen(self, now: Monotonic) -> None:
        self.told.append(("seen", now))


class SessionFeedTest(SynchronousTestCase):
    def test_what_is_told(self) -> None:
        """Batches as they come, a gap with the sessions that have streams open at that moment, and as of when."""
        sessions, opened = Recorded(), ["device-1"]
        feed = session_feed(sessions, lambda: opened)
        delivered = feed.deliver([REVOKED])
        assert delivered is not None
        self.successResultOf(delivered)
        opened.append("device-2")
        feed.gap()
        feed.placed("epoch", ENTRY)
        feed.current(7.5)
        expected = [("apply", [REVOKED]), ("gap", ["device-1", "device-2"]), ("seen", 7.5)]
        self.assertEqual(sessions.told, expected)

    def test_snapshots(self) -> None:
        """A snapshot is a session, anything else malformed, by the snapshot's own words."""
        fields = [b"device_session_id", b"device-1", b"status", b"revoked"]
        self.assertEqual(parse_snapshot(RawEntry(ENTRY, fields)), REVOKED)
        self.assertEqual(parse_snapshot(RawEntry(ENTRY, [*fields[:3], b"retired"])), Malformed("status"))
        self.assertEqual(parse_snapshot(RawEntry(ENTRY, [b"x"])), Malformed("fields"))
        self.assertEqual(parse_snapshot(RawEntry(ENTRY, None)), Malformed("shape"))
