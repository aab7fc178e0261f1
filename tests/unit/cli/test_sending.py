"""gatewayctl send, without a network: signals, attempts, tallies."""

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cli.caller import Answer, Target, Unreached, parse_target
from gatewayd.cli.console import Failed
from gatewayd.cli.sending import Sender, make_signal, percentile
from gatewayd.ingress.normalise import Generic, Signal, read_generic, read_tradingview
from tests.unit.cli.invocation import World, gatewayctl

ACCEPTED = Answer(202, None, {"status": "accepted", "corr_id": "req_1", "duplicate": False})
DUPLICATE = Answer(202, None, {"status": "accepted", "corr_id": "req_1", "duplicate": True})
UNAVAILABLE = Answer(503, 2.0, {"code": "GW-005", "error": "nats_unavailable"})
REFUSED = Answer(401, None, {"code": "GW-001", "error": "invalid_signature"})
LOST = Unreached("http://127.0.0.1:8001/webhook/test: Connection refused")


class Gateway:
    """Answers as told, the last answer for ever, and keeps what it was sent."""

    def __init__(self, answers: Sequence[Answer | Unreached], retries: int = 3) -> None:
        self.world = World()
        self.said: list[str] = []
        self.sent: list[tuple[bytes, str]] = []
        self._answers = list(answers)
        nonce = self.world.surroundings.nonce
        self.sender = Sender(
            self.post, lambda body: {"X-Nonce": nonce()}, retries, self.world.surroundings, self.said.append
        )

    def post(self, body: bytes, headers: dict[str, str]) -> Answer | Unreached:
        """One exchange."""
        self.sent.append((body, headers["X-Nonce"]))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class TestSender(SynchronousTestCase):
    def test_accepted_at_once(self) -> None:
        """One attempt, one tally."""
        gateway = Gateway([ACCEPTED])
        self.assertTrue(gateway.sender.send(b"{}"))
        self.assertEqual((gateway.sender.tally.accepted, len(gateway.sent), gateway.world.slept), (1, 1, []))

    def test_after_a_503_the_same_body_goes_out_with_a_fresh_nonce(self) -> None:
        """As often as --retries, after the wait that the gateway asked for."""
        gateway = Gateway([UNAVAILABLE, UNAVAILABLE, DUPLICATE])
        self.assertTrue(gateway.sender.send(b"{}"))
        self.assertEqual(gateway.sent, [(b"{}", "nonce-0001"), (b"{}", "nonce-0002"), (b"{}", "nonce-0003")])
        self.assertEqual(gateway.world.slept, [2.0, 2.0])
        tally = gateway.sender.tally
        self.assertEqual((tally.accepted, tally.duplicates, tally.retries, tally.sent), (0, 1, 2, 1))

    def test_a_lost_connection_is_an_unknown_outcome_too(self) -> None:
        """It is tried again after a growing pause; in the end the gateway counts as not reached."""
        gateway = Gateway([LOST])
        self.assertFalse(gateway.sender.send(b"{}"))
        self.assertEqual(gateway.world.slept, [0.5, 1.0, 2.0])
        self.assertEqual((gateway.sender.tally.unreached, gateway.sender.tally.last), (1, None))
        self.assertEqual(gateway.said[0], f"gatewayctl: {LOST.text}; sent again in 0.5 s")
        self.assertEqual(len(gateway.said), 4)

    def test_a_refusal_is_not_sent_again(self) -> None:
        """4xx, also 429, is an answer: it is counted by its code."""
        for answer, code in (
            (REFUSED, "GW-001"),
            (Answer(429, 1.0, {"code": "GW-004"}), "GW-004"),
            (Answer(404), "HTTP 404"),
        ):
            gateway = Gateway([answer])
            self.assertTrue(gateway.sender.send(b"{}"))
            self.assertEqual((dict(gateway.sender.tally.refused), len(gateway.sent)), ({code: 1}, 1))

    def test_a_long_wait_is_not_waited(self) -> None:
        """A gateway in maintenance for an hour is not waited for."""
        gateway = Gateway([Answer(503, 3600.0, {"code": "GW-011"})])
        self.assertTrue(gateway.sender.send(b"{}"))
        self.assertEqual((gateway.world.slept, dict(gateway.sender.tally.refused)), ([], {"GW-011": 1}))

    def test_no_retries(self) -> None:
        """--retries 0 is one attempt."""
        gateway = Gateway([UNAVAILABLE], retries=0)
        self.assertTrue(gateway.sender.send(b"{}"))
        self.assertEqual((len(gateway.sent), gateway.sender.tally.retries), (1, 0))


class TestSignals(SynchronousTestCase):
    def test_each_in_its_sources_format(self) -> None:
        """TradingView's own form for that source, the generic one for any other."""
        surroundings = World().surroundings
        signal = msgspec.json.decode(make_signal("tradingview", "EURUSD", "a-1", surroundings))
        self.assertEqual(
            (signal["ticker"], signal["time"], signal["price"]), ("EURUSD", "2026-01-15T10:10:00.000Z", 1.0945)
        )
        signal = msgspec.json.decode(make_signal("custom", "XAUUSD", "a-1", surroundings))
        self.assertEqual(
            (signal["source"], signal["instrument"], signal["payload"]["action"]), ("custom", "XAUUSD", "buy")
        )

    def test_the_gateway_reads_them(self) -> None:
        """The gateway's own readers make a signal of each."""
        surroundings = World().surroundings
        read = read_tradingview(make_signal("tradingview", "EURUSD", "a-1", surroundings))
        assert isinstance(read, Signal)
        self.assertEqual((read.instrument, read.price), ("EURUSD", b"1.0945"))
        generic = read_generic(make_signal("custom", "XAUUSD", "a-1", surroundings), "custom")
        assert isinstance(generic, Generic)
        self.assertEqual((generic.source, generic.signal.instrument), ("custom", "XAUUSD"))

    def test_distinct(self) -> None:
        """The test id makes every body another one."""
        surroundings = World().surroundings
        self.assertEqual(len({make_signal("test", "EURUSD", f"a-{n}", surroundings) for n in range(100)}), 100)


class TestPercentile(SynchronousTestCase):
    def test_nearest_rank(self) -> None:
        """The nearest-rank method on small lists."""
        self.assertEqual(percentile([3.0], 0.99), 3.0)
        self.assertEqual(percentile([4.0, 1.0, 3.0, 2.0], 0.5), 2.0)
        self.assertEqual(percentile([float(n) for n in range(1, 101)], 0.99), 99.0)

    @given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
    def test_enough_are_not_above(self, values: list[float], share: float) -> None:
        """At least that share of the values is not above it, and it is one of them."""
        found = percentile(values, share)
        self.assertIn(found, values)
        self.assertGreaterEqual(sum(value <= found for value in values), share * len(values) - 1e-6)


class TestTarget(SynchronousTestCase):
    def test_the_path_is_the_sources_unless_the_url_has_one(self) -> None:
        """A gateway's URL gets the source's path, a whole address is taken as it is."""
        self.assertEqual(
            parse_target("http://127.0.0.1:8001", "test"), Target(False, "127.0.0.1", 8001, "/webhook/test")
        )
        self.assertEqual(
            parse_target("https://gw.example/", "custom"), Target(True, "gw.example", 443, "/webhook/custom")
        )
        self.assertEqual(parse_target("http://[::1]/in?x=1", "test"), Target(False, "::1", 80, "/in?x=1"))
        self.assertEqual(str(parse_target("http://[::1]:1", "a")), "http://[::1]:1/webhook/a")

    def test_what_is_no_address(self) -> None:
        """Other schemes, credentials, blanks and broken ports are refused, and never repeated."""
        for url in (
            "",
            "gw",
            "ftp://gw",
            "http://",
            "http://u:canary@gw",
            "http://gw:x",
            "http://gw:70000",
            "http://g w",
            "http://gw/a b",
            "http://[::1",
        ):
            with self.assertRaises(Failed) as caught:
                parse_target(url, "test")
            self.assertNotIn("canary", "".join(caught.exception.lines))


class TestCommandLine(SynchronousTestCase):
    def test_wrong_before_anything_is_sent(self) -> None:
        """Options of a wrong form end with exit code 2; the port here would not answer."""
        environ = {"API_KEY_HMAC_SECRET": "canary-secret", "PORT": "9"}
        for words in (
            ("--url", "http://u:canary@gw"),
            ("--idempotency-key", "two words"),
            ("--count", "0"),
            ("--rate", "0"),
            ("--source", "no/source"),
            ("--url", "https://127.0.0.1:9", "--ca", "/nonexistent"),
        ):
            ended = gatewayctl("send", *words, environ=environ)
            self.assertEqual((ended.code, ended.out), (2, ""), words)
            self.assertNotIn("canary", ended.err.replace("http://u:canary@gw", ""))
        self.assertEqual(gatewayctl("send", environ={**environ, "PORT": "http"}).code, 2)
