"""Command routes as they are written, and which of them holds."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.commands.routes import OTHER, RouteSpec, RouteTable, is_http_url, parse_route, parse_routes
from gatewayd.commands.trace import traceparent_of
from gatewayd.settings_values import Wrong

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = bytes(range(1, 9))


class RouteTest(SynchronousTestCase):
    """One route's text."""

    def test_good_ones(self) -> None:
        """A message type or a prefix, a subject or a URL, and a deadline or the usual one; written back as read."""
        for text, wanted in (
            ("a=nats:b", RouteSpec("a", subject="b")),
            (
                "orders.place=nats:svc.orders-v2.place;deadline=250ms",
                RouteSpec("orders.place", "svc.orders-v2.place", "", 0.25),
            ),
            (
                "quotes.=http://quotes:8080/v1?x=1&y=2;deadline=5s",
                RouteSpec("quotes.", "", "http://quotes:8080/v1?x=1&y=2", 5.0),
            ),
            ("a=https://[::1]:8443/", RouteSpec("a", url="https://[::1]:8443/")),
        ):
            self.assertEqual(parse_route(text), wanted)
            self.assertEqual(str(wanted), text)
        self.assertEqual(parse_route("a=nats:b;deadline=2s"), RouteSpec("a", subject="b"))

    def test_wrong_ones(self) -> None:
        """Everything else is refused with a reason that names the message type and nothing of the target."""
        for text, word in (
            ("", "a route is"),
            ("a", "a route is"),
            ("=nats:b", "no message type"),
            (".=nats:b", "no message type"),
            ("a..b=nats:b", "no message type"),
            ("*=nats:b", "no message type"),
            ("_other=nats:b", "no message type"),
            (f"{'a' * 129}=nats:b", "no message type"),
            ("\u0661=nats:b", "no message type"),
            ("a=b", "a goes neither"),
            ("a=nats:", "a goes neither"),
            ("a=nats:b.>", "a goes neither"),
            ("a=nats:b.*", "a goes neither"),
            ("a=nats:$JS.API.STREAM.DELETE.x", "a goes neither"),
            ("a=nats:signals.raw", "the stream of signals"),
            ("a=nats:dlq.signals.raw", "the stream of signals"),
            ("a=http://u:pw@h/", "a goes neither"),
            ("a=http://h/#x", "a goes neither"),
            ("a=http://h:0/", "a goes neither"),
            ("a=http://h:70000/", "a goes neither"),
            ("a=ftp://h/", "a goes neither"),
            ("a=http://h/\u00e4", "a goes neither"),
            ("a=nats:b;deadline=", "the deadline of a"),
            ("a=nats:b;deadline=0s", "the deadline of a"),
            ("a=nats:b;deadline=2m", "the deadline of a"),
            ("a=nats:b;timeout=2s", "a route is"),
            ("a=nats:b;deadline=2s;deadline=3s", "a route is"),
        ):
            found = parse_route(text)
            assert isinstance(found, Wrong), text
            self.assertIn(word, found.reason, text)
            self.assertNotIn("pw", found.reason)

    def test_several(self) -> None:
        """Items and blanks separate routes; a message type has one."""
        found = parse_routes(("a=nats:b c=nats:d", "\n e.=nats:f "))
        assert not isinstance(found, Wrong)
        self.assertEqual([spec.message_type for spec in found], ["a", "c", "e."])
        self.assertEqual(parse_routes(("a=nats:b", "a=nats:c")), Wrong("a has two routes"))
        self.assertEqual(parse_routes(()), ())

    @given(st.text(max_size=60))
    def test_nothing_raises(self, text: str) -> None:
        """Whatever is written, the answer is a value; what is a route can be written and read again."""
        for made in (text, f"a={text}", f"a=nats:{text}", f"a=http://{text}", f"a=nats:b;deadline={text}"):
            found = parse_route(made)
            if isinstance(found, RouteSpec):
                self.assertEqual(parse_route(str(found)), found)
            is_http_url(made)


class TableTest(SynchronousTestCase):
    """Which route holds."""

    def test_the_longest_holds(self) -> None:
        """The type itself comes before prefixes, a longer prefix before a shorter one; a prefix ends at its dot."""
        table = RouteTable({"a.": 1, "a.b.": 2, "a.b": 3, "a.b.c": 4, "x": 5})
        for message_type, wanted in (
            ("a.b.c", 4),
            ("a.b", 3),
            ("a.b.d", 2),
            ("a.b.c.d", 2),
            ("a.b.", 2),
            ("a.c", 1),
            ("a.bc", 1),
            ("a.bc.d", 1),
            ("a", None),
            ("ab.c", None),
            ("x", 5),
            ("x.y", None),
            ("", None),
            (".", None),
        ):
            self.assertEqual(table.find(message_type), wanted, message_type)
        self.assertEqual(table.group("a.b.d"), "a.b.")
        self.assertEqual(table.group("b"), OTHER)
        self.assertEqual(table.names, ("a.", "a.b.", "a.b", "a.b.c", "x"))

    def test_empty(self) -> None:
        """An empty table has nothing for anybody."""
        self.assertIsNone(RouteTable[int]({}).find("a"))

    @given(
        st.sets(st.from_regex(r"[ab](\.[ab]){0,3}\.?", fullmatch=True), max_size=8),
        st.from_regex(r"[ab](\.[ab]){0,4}\.?", fullmatch=True),
    )
    def test_as_defined(self, names: set[str], message_type: str) -> None:
        """The lookup finds what a look at every route would."""
        table = RouteTable({name: name for name in names})
        prefixes = [name for name in names if name.endswith(".") and message_type.startswith(name)]
        wanted = message_type if message_type in names else max(prefixes, key=len, default=None)
        self.assertEqual(table.find(message_type), wanted)


class TraceTest(SynchronousTestCase):
    """The traceparent that services get."""

    def test_forms(self) -> None:
        """A whole one is handed on, a bare id gets a span and no mark of sampling, everything else none."""
        whole = f"00-{TRACE}-00f067aa0ba902b7-01"
        for trace_id, wanted in (
            (whole, whole),
            (TRACE, f"00-{TRACE}-0102030405060708-00"),
            ("", None),
            ("0" * 32, None),
            (TRACE.upper(), None),
            (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
            (f"00-{TRACE}-{'0' * 16}-01", None),
            (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
            (f"{whole}-x", None),
            ("request-17", None),
        ):
            self.assertEqual(traceparent_of(trace_id, SPAN), wanted, trace_id)
        self.assertIsNone(traceparent_of(TRACE, bytes(8)))
