"""Dead letters as they are read back, and the place of a fault in a body."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Stored
from gatewayd.ingress.letters import parse_letter, point_at
from gatewayd.ingress.strict import Malformed, read
from gatewayd.times import Wall


class LetterTests(SynchronousTestCase):
    def test_what_the_headers_say(self) -> None:
        """Every header of ours, and the body's length with or without the body."""
        headers = {
            "Dlq-Code": "GW-013",
            "Dlq-Reasons": '["one","two"]',
            "Dlq-Position": "3,17",
            "Source": "custom",
            "Corr-ID": "req_1",
            "Received-At": "2024-01-15T10:30:00.000Z",
            "Idempotency-Key": "order-17",
            "Dlq-Identity": "key",
        }
        found = parse_letter(Stored(12, "dlq.signals.raw", headers, b"{", Wall(1.0)))
        self.assertEqual((found.code, found.reasons, found.position), ("GW-013", ("one", "two"), (3, 17)))
        self.assertEqual((found.key, found.key_is_identity, found.size_bytes), ("order-17", True, 1))
        self.assertEqual(
            parse_letter(Stored(12, "dlq.signals.raw", {"Nats-Msg-Size": "77"}, b"", Wall(1.0))).size_bytes, 77
        )

    def test_what_is_not_ours(self) -> None:
        """Headers of another form are not understood, and nothing breaks."""
        for headers, reasons in (
            ({}, ()),
            ({"Dlq-Reasons": "not JSON", "Dlq-Position": "3", "Nats-Msg-Size": "-1"}, ("not JSON",)),
            ({"Dlq-Reasons": '{"a":1}', "Dlq-Position": "a,b"}, ('{"a":1}',)),
            ({"Dlq-Reasons": "[1]", "Dlq-Position": "3,"}, ("1",)),
        ):
            found = parse_letter(Stored(12, "dlq.x", headers, b"", Wall(1.0)))
            self.assertEqual((found.reasons, found.position, found.size_bytes), (reasons, None, 0))


class PointTests(SynchronousTestCase):
    def test_the_caret_stands_under_the_fault(self) -> None:
        """Behind CR LF, tabs, wide characters and combining ones; at the end; in what is no text."""
        for body, position, expected in (
            (b'{\r\n "a": 1,\r\n}', (2, 9), (' "a": 1,', "        ^")),
            (b'{"a":', (1, 6), ('{"a":', "     ^")),
            (b"", (1, 1), ("", "^")),
            (b'{"a": 1}\n', (2, 1), ("", "^")),
            ("{\u65e5\u672cx".encode(), (1, 4), ("{\u65e5\u672cx", "     ^")),
            ("{e\u0301x".encode(), (1, 4), ("{e\u0301x", "  ^")),
            (b"{\tx", (1, 3), ("{\\tx", "   ^")),
            (b"{\x1b[2Jx", (1, 2), ("{\\x1b[2Jx", " ^")),
            (b"ab\xff\xfe", (1, 3), ("ab\ufffd\ufffd", "  ^")),
            (b"ab", (9, 9), ("", "^")),
            (b"ab", (1, 99), ("ab", "  ^")),
        ):
            self.assertEqual(point_at(body, position), expected, body)

    def test_a_long_line_is_cut_around_the_fault(self) -> None:
        """Sixty characters before and after, with signs that there is more."""
        line, caret = point_at(b"x" * 1000 + b"!" + b"y" * 1000, (1, 1001))
        self.assertEqual(line, "…" + "x" * 60 + "!" + "y" * 59 + "…")
        self.assertEqual(line[len(caret) - 1], "!")

    @given(st.binary(max_size=80))
    def test_every_place_that_the_gateway_names(self, body: bytes) -> None:
        """Whatever is wrong with a body, its place can be shown, on one line."""
        found = read(body)
        if isinstance(found, Malformed):
            line, caret = point_at(body, (found.line, found.column))
            self.assertEqual((line.count("\n"), caret.strip()), (0, "^"))
