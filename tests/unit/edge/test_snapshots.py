"""Snapshots of sessions, in both of their forms."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.sessions.snapshots import REASONS, read_entry, read_key, write_key
from gatewayd.sessions.values import Session
from tests.edge_requests import NOW_MS, SESSION, session, snapshot_fields


def flat(members: dict[str, str]) -> list[bytes]:
    """The fields as a stream's entry has them."""
    return [text.encode() for pair in members.items() for text in pair]


def changed(of: Session, **others: str | None) -> list[bytes]:
    """The entry of a session with other fields, None for left out."""
    members = {**snapshot_fields(of), **others}
    return flat({name: text for name, text in members.items() if text is not None})


class EntryTests(SynchronousTestCase):
    """An entry of the session stream."""

    def test_good_ones(self) -> None:
        """Active and revoked snapshots are read; fields of a later writer, in any order, are ignored."""
        for of in (session(), session(revoked=True)):
            self.assertEqual(read_entry(changed(of)), of)
            self.assertEqual(read_entry(changed(of, schema="2", created_at_ms="")), of)
            self.assertEqual(read_entry(flat(dict(reversed(snapshot_fields(of).items())))), of)

    def test_malformed(self) -> None:
        """Each defect has one of a few words; nothing of an entry is in it."""
        cases: dict[str, tuple[dict[str, str | None], ...]] = {
            "device_session_id": tuple({"device_session_id": wrong} for wrong in (None, "", "a b", "x" * 129, "é")),
            "status": tuple({"status": wrong} for wrong in (None, "", "ACTIVE", "Revoked", "revoked ", "deleted")),
            "user_id": tuple({"user_id": wrong} for wrong in (None, "", "a b", "x" * 129)),
            "client_public_key": tuple(
                {"client_public_key": wrong}
                for wrong in (None, "", "A" * 43, "A" * 43 + "=", "A" * 44, "é", "A" * 42 + "B=", "_" * 43 + "=")
            ),
        }
        for reason, wrongs in cases.items():
            for wrong in wrongs:
                self.assertEqual(read_entry(changed(session(), **wrong)), reason, wrong)

    def test_shape(self) -> None:
        """An odd list, a name that stands twice and bytes that are no UTF-8 are malformed, revoked or not."""
        good = changed(session(revoked=True))
        for wrong in (good[:-1], [*good, b"status", b"active"], [*good, b"x", b"\xff"], [*good, b"\xff", b"x"]):
            self.assertEqual(read_entry(wrong), "fields")
        self.assertEqual(read_entry([]), "device_session_id")

    def test_a_revocation_needs_little(self) -> None:
        """A revoked session's id and status are enough, whatever the other fields hold: XADD by hand revokes."""
        bare = read_entry(flat({"device_session_id": SESSION, "status": "revoked"}))
        self.assertEqual(bare, Session(SESSION, "", b"", None, True))
        for wrong in ("", "soon", "-1", "1.5", "٣", "9" * 400):
            spoilt = read_entry(changed(session(revoked=True), client_public_key="?", user_id="", revoked_at_ms=wrong))
            self.assertEqual(spoilt, Session(SESSION, "", b"", None, True))

    def test_revoked_at_of_an_active_one(self) -> None:
        """An active session has no time of revocation, whatever is said."""
        self.assertEqual(read_entry(changed(session(), revoked_at_ms=str(NOW_MS))), session())

    @given(st.lists(st.one_of(st.binary(max_size=9), st.sampled_from(changed(session()))), max_size=12))
    def test_anything(self, fields: list[bytes]) -> None:
        """Whatever comes, it is a session or one of the reasons."""
        found = read_entry(fields)
        self.assertTrue(isinstance(found, Session) or found in REASONS)


class KeyTests(SynchronousTestCase):
    """What stands under a session's key."""

    def members(self, **others: Any) -> bytes:
        """The JSON of an active session with other members."""
        return json.dumps({**snapshot_fields(session()), **others}).encode()

    def test_round_trip(self) -> None:
        """What is written is read, and has the stream's members."""
        for of in (session(), session(revoked=True), Session(SESSION, "", b"", None, True)):
            self.assertEqual(read_key(write_key(of), SESSION), of)
        at = json.loads(write_key(session(revoked=True)))
        self.assertEqual(at, {**snapshot_fields(session(revoked=True)), "revoked_at_ms": NOW_MS})

    def test_time_as_text_or_number(self) -> None:
        """revoked_at_ms may be a number or a string of digits."""
        for at in (5, "5"):
            found = read_key(self.members(status="revoked", revoked_at_ms=at), SESSION)
            assert isinstance(found, Session)
            self.assertEqual(found.revoked_at_ms, 5)

    def test_malformed(self) -> None:
        """Not strict JSON, not an object, too large, another type, another session: each has its word."""
        for wrong in (b"", b"{", b"[]", b"active", b'{"status":"revoked","status":"active"}', b" " * 5000):
            self.assertEqual(read_key(wrong, SESSION), "json")
        self.assertEqual(read_key(self.members(user_id=7), SESSION), "user_id")
        self.assertEqual(read_key(self.members(status=True), SESSION), "status")
        self.assertEqual(read_key(self.members(), "device-session-2"), "another_session")
