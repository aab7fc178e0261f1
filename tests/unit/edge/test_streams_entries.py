"""Client events, and what is none."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.streams.cursor import StreamId
from gatewayd.streams.entries import (
    MAX_PAYLOAD_BYTES,
    MAX_TEXT_BYTES,
    ClientEvent,
    Malformed,
    RawEntry,
    parse_client_event,
    read_answer,
    read_entries,
)

ID = StreamId(1_700_000_000_000, 7)
REQUIRED = {b"user_id": b"user-1", b"event_type": b"trade.filled", b"event_id": b"ev-1", b"payload_bytes": b"\x00\xff"}
FULL = REQUIRED | {b"device_session_id": b"device-1", b"request_id": b"request-1", b"trace_id": b"trace-1"}


def flat(members: dict[bytes, bytes]) -> list[bytes]:
    return [part for member in members.items() for part in member]


def parse(fields: Any) -> ClientEvent | Malformed:
    return parse_client_event(RawEntry(ID, fields))


class ClientEventTest(SynchronousTestCase):
    def refused(self, members: dict[bytes, bytes], reason: str) -> None:
        self.assertEqual(parse(flat(members)), Malformed(reason), members)

    def test_a_full_event(self) -> None:
        """Every member is there, the payload byte for byte."""
        event = parse(flat(FULL))
        expected = ("user-1", "device-1", "trade.filled", "ev-1", b"\x00\xff", "request-1", "trace-1")
        self.assertEqual(event, ClientEvent(ID, *expected))

    def test_optional_members(self) -> None:
        """Without them an event is for all sessions of its user and answers nothing; empty ones say the same."""
        expected = ClientEvent(ID, "user-1", None, "trade.filled", "ev-1", b"\x00\xff", "", "")
        self.assertEqual(parse(flat(REQUIRED)), expected)
        self.assertEqual(parse(flat(REQUIRED | {b"request_id": b"", b"trace_id": b""})), expected)

    def test_an_empty_payload(self) -> None:
        """An event need not say more than its type."""
        event = parse(flat(REQUIRED | {b"payload_bytes": b""}))
        assert isinstance(event, ClientEvent)
        self.assertEqual(event.payload, b"")

    def test_a_missing_member(self) -> None:
        """Each of the four is needed."""
        for name in REQUIRED:
            self.refused({key: value for key, value in FULL.items() if key != name}, "missing")

    def test_an_empty_session_is_not_every_session(self) -> None:
        """Nor is any other empty name taken."""
        for name in (b"device_session_id", b"user_id", b"event_type", b"event_id"):
            self.refused(FULL | {name: b""}, "empty")

    def test_bounds(self) -> None:
        """Texts and payloads are taken up to their bounds, not beyond."""
        for name in FULL:
            bound = MAX_PAYLOAD_BYTES if name == b"payload_bytes" else MAX_TEXT_BYTES
            self.assertIsInstance(parse(flat(FULL | {name: b"x" * bound})), ClientEvent)
            self.refused(FULL | {name: b"x" * (bound + 1)}, "too_long")

    def test_texts_are_utf_8(self) -> None:
        """In every member but the payload."""
        for name in FULL.keys() - {b"payload_bytes"}:
            self.refused(FULL | {name: b"\xff\xfe"}, "not_text")
            self.refused(FULL | {name: b"\xed\xa0\x80"}, "not_text")

    def test_names(self) -> None:
        """A name twice, or one that no client event has, spoils the entry."""
        self.refused(FULL | {b"payload": b"x"}, "unknown_member")
        self.refused(FULL | {b"User_id": b"x"}, "unknown_member")
        for name, value in FULL.items():
            self.assertEqual(parse([*flat(FULL), name, value]), Malformed("duplicate_member"))

    def test_the_gateways_own_events_cannot_be_made_by_others(self) -> None:
        """A client acts on these: it must be able to trust who says them."""
        self.refused(FULL | {b"event_type": b"gateway.resume_failed"}, "reserved_type")
        self.assertIsInstance(parse(flat(FULL | {b"event_type": b"gateways.opened"})), ClientEvent)

    def test_what_would_break_a_framing_is_passed_on(self) -> None:
        """Line ends, quotes and NULs are for the transports to encode."""
        odd = b'a\r\n\r\ndata: x\n\nid: 7\x00"\\\xe2\x80\xa8'
        event = parse(flat(FULL | {b"event_type": odd, b"event_id": odd, b"payload_bytes": odd}))
        assert isinstance(event, ClientEvent)
        self.assertEqual((event.event_type.encode(), event.payload), (odd, odd))

    def test_odd_shapes(self) -> None:
        """What no server sends is malformed, and nothing worse."""
        for fields in (None, 7, [b"user_id"], [[], b"x"]):
            self.assertEqual(parse(fields), Malformed("shape"))
        for name in FULL:
            for odd in (7, None, "text", [b"x"]):
                if odd is not None or name in REQUIRED:
                    found = parse_client_event(RawEntry(ID, flat(FULL | {name: odd})))  # type: ignore[dict-item]
                    self.assertEqual(found, Malformed("shape"), (name, odd))
        self.assertEqual(parse([]), Malformed("missing"))

    def test_the_time_of_an_event_fits_its_field(self) -> None:
        """An id may say any 64-bit number; the signed field of an event holds 63 bits of it."""
        for ms, expected in ((5, 5), ((1 << 64) - 1, (1 << 63) - 1)):
            event = parse_client_event(RawEntry(StreamId(ms, 0), flat(FULL)))
            assert isinstance(event, ClientEvent)
            self.assertEqual(event.at_ms, expected)

    @given(st.lists(st.one_of(st.sampled_from([*FULL, b"status"]), st.binary(max_size=9)), max_size=16))
    def test_anything_at_all(self, fields: list[bytes]) -> None:
        """Any list of texts is an event or malformed for one of the known reasons."""
        found = parse(fields)
        if isinstance(found, Malformed):
            reasons = "missing empty too_long not_text unknown_member duplicate_member shape reserved_type"
            self.assertIn(found.reason, reasons.split())
        else:
            self.assertLessEqual({b"user_id", b"event_type", b"event_id", b"payload_bytes"}, set(fields[::2]))


class AnswerTest(SynchronousTestCase):
    def test_answers(self) -> None:
        """nil is no entries; one stream's entries keep their order."""
        self.assertEqual(read_answer(None), [])
        answer = [[b"key", [[b"1-0", [b"a", b"b"]], [b"1-1", [b"c", b"d"]]]]]
        expected = [RawEntry(StreamId(1, 0), [b"a", b"b"]), RawEntry(StreamId(1, 1), [b"c", b"d"])]
        self.assertEqual(read_answer(answer), expected)
        self.assertEqual([entry.size_bytes for entry in expected], [2, 2])
        self.assertEqual(read_entries([[b"1-0", None]])[0].size_bytes, 0)

    def test_another_shape(self) -> None:
        """Whatever else comes is an error of the server's, said as one."""
        for answer in ([], [[b"key"]], [[b"a", []], [b"b", []]], 7, [[b"key", [[b"x", []]]]]):
            self.assertRaises(ValueError, read_answer, answer)
