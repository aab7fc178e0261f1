"""What may be asked for, and who is granted which signals."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.push.wishes import MOST_INSTRUMENTS, Asked, Grants, granted, parse_asked, parse_grants

GRANTS = parse_grants("""
# the desk
ann: tv/EURUSD, tv/GBPUSD
ann: lab
bob: *
user:with:colons: */XAUUSD
*: tv/BTCUSD
""")


def takes(user_id: str, message_type: str, source: str, instrument: str, grants: Grants = GRANTS) -> bool | None:
    """Whether a stream of this kind gets such a signal; None when there is no such stream."""
    asked = parse_asked(message_type)
    assert asked is not None
    wish = granted(asked, user_id, grants)
    return None if wish is None else wish.selection is not None and wish.selection.takes((source, instrument))


class AskedTest(SynchronousTestCase):
    """Message types."""

    def test_events(self) -> None:
        """Any other word subscribes to the user's events."""
        for message_type in ("events.subscribe", "gateway.subscribe", "signal", "allowance", "x:y,z"):
            self.assertEqual(parse_asked(message_type), Asked(True, False, None), message_type)

    def test_signals(self) -> None:
        """Signals, or both; all instruments, or those that are named."""
        self.assertEqual(parse_asked("signals.subscribe"), Asked(False, True, None))
        self.assertEqual(parse_asked("all.subscribe"), Asked(True, True, None))
        named = Asked(False, True, frozenset({"EURUSD", "BTC/USD"}))
        self.assertEqual(parse_asked("signals.subscribe:EURUSD,BTC/USD,EURUSD"), named)

    def test_nearly(self) -> None:
        """What is nearly one of these is refused: it would be silence else."""
        many = ",".join(f"I{number}" for number in range(MOST_INSTRUMENTS + 1))
        for message_type in (
            "signals.subscribe:",
            "signals.subscribe:EURUSD,",
            "signals.subscribe:EUR USD",
            "signals.subscribe:EURUSD:GBPUSD",
            "signals.subscribe:" + many,
            "signals.subscribe:" + "X" * 65,
            "signals.unsubscribe",
            "all.subscribe2",
            "all.",
        ):
            self.assertIsNone(parse_asked(message_type), message_type)


class GrantsTest(SynchronousTestCase):
    """Grants."""

    def test_own(self) -> None:
        """A user gets what a line of its own or everybody's grants, and nothing else."""
        self.assertTrue(takes("ann", "signals.subscribe", "tv", "EURUSD"))
        self.assertTrue(takes("ann", "signals.subscribe", "lab", "ANYTHING"))
        self.assertTrue(takes("ann", "signals.subscribe", "tv", "BTCUSD"))
        self.assertFalse(takes("ann", "signals.subscribe", "tv", "XAUUSD"))
        self.assertTrue(takes("bob", "all.subscribe", "any", "thing"))
        self.assertTrue(takes("user:with:colons", "signals.subscribe", "any", "XAUUSD"))
        self.assertFalse(takes("eve", "signals.subscribe", "tv", "EURUSD"))

    def test_filter(self) -> None:
        """Named instruments narrow the grant and never widen it."""
        self.assertTrue(takes("ann", "signals.subscribe:EURUSD", "tv", "EURUSD"))
        self.assertFalse(takes("ann", "signals.subscribe:EURUSD", "tv", "GBPUSD"))
        self.assertFalse(takes("ann", "signals.subscribe:EURUSD", "other", "EURUSD"))
        self.assertIsNone(takes("eve", "signals.subscribe:EURUSD", "tv", "EURUSD"))
        self.assertIsNone(takes("eve", "signals.subscribe:BTCUSD,EURUSD", "tv", "EURUSD"))

    def test_nothing_granted(self) -> None:
        """Who is granted nothing is refused, also everybody when there are no grants; events need none."""
        own = parse_grants("ann: *")
        self.assertIsNone(takes("eve", "signals.subscribe", "tv", "EURUSD", own))
        self.assertIsNone(takes("ann", "all.subscribe", "tv", "EURUSD", parse_grants("")))
        self.assertFalse(takes("eve", "events.subscribe", "tv", "EURUSD", own))
        self.assertEqual((bool(own), bool(parse_grants("\n# nothing\n"))), (True, False))

    def test_one_line(self) -> None:
        """In one line, as a variable's value, entries are parted by semicolons."""
        grants = parse_grants("ann: tv/EURUSD;bob: *")
        self.assertTrue(takes("ann", "signals.subscribe", "tv", "EURUSD", grants))
        self.assertTrue(takes("bob", "signals.subscribe", "tv", "XAUUSD", grants))

    def test_malformed(self) -> None:
        """A line that cannot be read is named by its number, without its text."""
        for line in ("ann", ": *", "ann:", "ann: tv/EUR USD", "ann: ,", "ann: t v", "ann: tv/", "ann: /X"):
            with self.assertRaisesRegex(ValueError, r"^entry 2 ") as caught:
                parse_grants("bob: *\n" + line)
            self.assertNotIn("ann", str(caught.exception).replace("grant", ""))
