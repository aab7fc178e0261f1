"""Which halves there are in a stretch of the stream, and what completes them."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Message, Stored
from gatewayd.ingress.admission import accepted_corr_id
from gatewayd.ingress.events import Events
from gatewayd.ingress.halves import GRACE_S, Damaged, Half, Halves, Restored, restore
from gatewayd.ingress.normalise import Signal
from gatewayd.ingress.sources import Rules
from gatewayd.times import Wall
from tests.clients import generic_body, stamped, tradingview_body
from tests.fakes.bus import headers_of
from tests.unit.ingress.test_pipeline import NOW, World

FACTS = f"1 body {'0' * 32} {'1' * 32} v1 1700000000000"
FAR = Wall(10_000_000.0)


def headers(number: int, word: str, facts: str = FACTS) -> dict[str, str]:
    found = {"Nats-Msg-Id": f"gw:{number:032x}:{word}"}
    return {**found, "Gw-Facts": facts} if facts else found


def numbers(halves: list[Half]) -> list[int]:
    return [int.from_bytes(half.identity, "big") for half in halves]


# A pair with a raw at least; foreign messages; rejected raws. `True` puts the normalised one in, too.
EVENTS = st.lists(st.tuples(st.sampled_from(["raw", "norm", "both"]), st.booleans()), max_size=30)


class HalvesTest(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(EVENTS, st.randoms(use_true_random=False), st.integers(0, 40))
    def test_any_order_leads_to_the_right_set(self, events: list[tuple[str, bool]], random: Any, foreign: int) -> None:
        """Whatever lies between and before what: exactly the raws alone and the normalised alone are found."""
        shown = [(number, word) for number, (kind, _) in enumerate(events) for word in _words(kind)]
        shown += [(1000 + number, "foreign") for number in range(foreign)]
        random.shuffle(shown)
        halves = Halves()
        for place, (number, word) in enumerate(shown):
            if word == "foreign":
                theirs = random.choice(
                    [{}, headers(0, "raw", ""), headers(0, "norm", "2 x"), {"Nats-Msg-Id": "gw:1:GW-003:raw"}]
                )
                halves.see(theirs, 1 + place, Wall(float(place)))
            else:
                halves.see(headers(number, word), 1 + place, Wall(float(place)))
        lone = {word: {n for n, (kind, _) in enumerate(events) if kind == word} for word in ("raw", "norm")}
        incomplete = halves.incomplete(FAR)
        self.assertEqual(set(numbers(incomplete)), lone["raw"])
        self.assertEqual([half.sequence for half in incomplete], sorted(half.sequence for half in incomplete))
        self.assertEqual(set(numbers(halves.take_orphans(FAR))), lone["norm"])
        self.assertEqual(halves.take_orphans(FAR), [])
        for half in incomplete:
            halves.drop(half)
        self.assertEqual(len(halves), 0)

    @settings(max_examples=200, deadline=None)
    @given(EVENTS, st.randoms(use_true_random=False))
    def test_what_was_completed_is_no_orphan(self, events: list[tuple[str, bool]], random: Any) -> None:
        """The normalised message of a completed raw comes later in the stream: it is neither half nor orphan."""
        halves, place = Halves(), 0
        for number, (kind, _) in enumerate(events):
            for word in _words(kind):
                place += 1
                halves.see(headers(number, word), place, Wall(0.0))
        completed = halves.incomplete(FAR)
        halves.take_orphans(FAR)
        for half in completed:
            halves.drop(half)
        later = [half for (_, come), half in zip(events, completed, strict=False) if come]
        random.shuffle(later)
        for half in later:
            place += 1
            halves.see({"Nats-Msg-Id": f"gw:{half.identity.hex()}:norm", "Gw-Facts": FACTS}, place, Wall(1.0))
        self.assertEqual((len(halves), halves.take_orphans(FAR)), (0, []))

    def test_a_young_half_is_left_alone(self) -> None:
        """It may be under way; once the grace is over it is judged, and the wait until then is said."""
        halves = Halves()
        halves.see(headers(1, "raw"), 1, Wall(100.0))
        halves.see(headers(2, "norm"), 2, Wall(101.0))
        self.assertEqual(halves.incomplete(Wall(100.0 + GRACE_S - 0.1)), [])
        self.assertEqual(halves.ripens_in(Wall(101.0)), GRACE_S - 1.0)
        self.assertEqual(numbers(halves.incomplete(Wall(100.0 + GRACE_S))), [1])
        self.assertEqual(halves.take_orphans(Wall(100.0 + GRACE_S)), [])
        self.assertEqual(halves.ripens_in(Wall(100.0 + GRACE_S)), 1.0)
        self.assertEqual(numbers(halves.take_orphans(Wall(101.0 + GRACE_S))), [2])
        self.assertIsNone(halves.ripens_in(FAR))

    def test_a_half_from_the_future_is_old(self) -> None:
        """A server's clock that stepped back by hours does not put the repair off by hours."""
        halves = Halves()
        halves.see(headers(1, "raw"), 1, Wall(5000.0))
        self.assertEqual(numbers(halves.incomplete(Wall(1000.0))), [1])

    def test_the_beginning_of_a_stretch_makes_no_orphans(self) -> None:
        """The raw one may lie before it; from the stream's own beginning on, nothing lies before."""
        for first, found in ((500, [2]), (1, [1, 2])):
            halves = Halves(lead_s=10.0)
            halves.see(headers(1, "norm"), first, Wall(100.0))
            halves.see(headers(2, "norm"), first + 1, Wall(110.0))
            self.assertEqual(numbers(halves.take_orphans(FAR)), found)

    def test_the_bound(self) -> None:
        """Beyond it the oldest are handed out at once; what is completed is remembered up to the bound, too."""
        halves = Halves(limit=10)
        for number in range(25):
            halves.see(headers(number, "norm" if number % 5 == 0 else "raw"), number + 1, Wall(100.0))
        raws, orphans = halves.overflow()
        self.assertEqual((numbers(raws), numbers(orphans)), ([1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14], [0, 5, 10]))
        for half in raws:
            halves.drop(half)
        self.assertEqual(len(halves), 10)
        self.assertEqual(halves.overflow(), ([], []))
        for number in range(15, 25):
            halves.drop(Half(number.to_bytes(16, "big"), number + 1, Wall(100.0)))
        halves.see(headers(1, "norm"), 26, Wall(100.0))  # forgotten: it looks like an orphan
        halves.see(headers(24, "norm"), 27, Wall(100.0))
        self.assertEqual(numbers(halves.take_orphans(FAR)), [15, 20, 1])


def _words(kind: str) -> list[str]:
    return ["raw", "norm"] if kind == "both" else [kind]


class RestoreTest(World):
    """A raw message alone gives the normalised message that its own request published."""

    def restored(self, sequence: int = 1, rules: Rules | None = None, version: str = "1.1.0") -> Restored | Damaged:
        stored = self.bus.messages[sequence]
        half = Half(bytes.fromhex(stored.headers["Nats-Msg-Id"].split(":")[1]), sequence, stored.time)
        events = Events("signals.raw", "signals.normalized", version)
        return restore(half, stored, events, rules or self.rules, self.reported.append)

    def published(self) -> Message:
        return self.bus.publications[-1][-1]

    def check(self, body: bytes, path: str = "tradingview", traceparent: str = "", **how: Any) -> None:
        made = stamped(body, self.now, **how)
        made |= {"traceparent": traceparent} if traceparent else {}
        assert self.send(body, made, path).status == 202
        sequence = max(self.bus.messages) - 1
        restored = self.restored(sequence)
        assert isinstance(restored, Restored)
        self.assertEqual((restored.message, restored.dead), (self.published(), None))

    def test_bytes_of_the_original(self) -> None:
        """Headers and body are equal for every format, scheme and header that an event can have."""
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        self.now += 0.1234567
        self.check(tradingview_body(NOW, 1.1))
        self.check(tradingview_body(NOW, 1.2, strategy='say "ä"\n', strength=0.5), scheme="sha256")
        self.check(tradingview_body(NOW, 1.3, action="close"), key='a"key\\', traceparent=trace)
        self.check(tradingview_body(NOW, 1.4), scheme="sha256", key="unsigned-key")
        self.check(generic_body(NOW), "generic", key="k")
        self.check(generic_body(NOW, "tradingview", price=3), "generic")  # the format of another source
        self.check(generic_body(NOW, "custom", price=4, side="sell") + b" \n", "custom")

    def test_of_two_readings_the_one_that_was_accepted(self) -> None:
        """A body that is good in both formats is read as it was: by the instrument in the raw message."""
        both = {**json.loads(tradingview_body(NOW)), **json.loads(generic_body(NOW, "tradingview", price=3))}
        body = json.dumps(both).encode()
        self.check(body, "tradingview", key="one")
        self.check(body, "generic", key="two")

    def dead(self, code: str, rules: Rules | None = None, version: str = "1.1.0") -> dict[str, str]:
        restored = self.restored(1, rules, version)
        assert isinstance(restored, Restored)
        self.assertEqual((restored.dead, restored.message.subject), (code, b"dlq.signals.normalized"))
        found = headers_of(restored.message)
        self.assertEqual(found["Dlq-Code"], code)
        self.assertRegex(found["Nats-Msg-Id"], f"^gw:[0-9a-f]{{32}}:{code}:dlq$")
        return found

    def test_a_source_that_is_gone(self) -> None:
        """Its raw event becomes a dead letter: the body, byte for byte, its key and when it came."""
        body = generic_body(NOW, "custom")
        self.send(body, path="custom", key="a-key")
        self.settings["ALLOWED_SOURCES"] = "tradingview,partner"
        self.begin()
        found = self.dead("GW-009")
        self.assertEqual((found["Source"], found["Received-At"]), ("custom", "2023-11-14T22:13:20.000Z"))
        self.assertEqual((found["Idempotency-Key"], found["Dlq-Identity"]), ("a-key", "key"))
        self.assertIn("custom", found["Dlq-Reasons"])
        restored = self.restored()
        assert isinstance(restored, Restored)
        self.assertEqual(restored.message.body, body)

    def test_a_schema_that_has_changed(self) -> None:
        """A body that the schema in force refuses becomes a dead letter with the faults."""
        self.send(tradingview_body(NOW, ticker="BTCUSD.P1"))
        self.settings["SIGNAL_SCHEMA_VERSION"] = "1.0.0"
        self.begin()
        self.assertIn("ticker", self.dead("GW-003", version="1.0.0")["Dlq-Reasons"])

    def test_a_reader_that_fails(self) -> None:
        """A fault of ours is reported and makes a dead letter; nothing is raised."""
        self.send(tradingview_body(NOW))
        read: Callable[..., Signal] = lambda *_: 1 / 0  # type: ignore[assignment, return-value]  # noqa: E731
        object.__setattr__(self.rules.sources["tradingview"], "read", read)
        self.dead("GW-009")
        self.assertEqual(self.reported, ["read"])

    def test_damaged(self) -> None:
        """Nothing is made of a message whose payload is not the one that its facts were written for."""
        self.send(tradingview_body(NOW))
        stored = self.bus.messages[1]
        for body in (b"", b"{}", stored.body[:-1], stored.body.replace(b"buy", b"sell"), b"x" + stored.body):
            self.bus.messages[1] = Stored(1, stored.subject, stored.headers, body, stored.time)
            self.assertIsInstance(self.restored(), Damaged)

    def test_corr_id(self) -> None:
        """A half knows the corr_id that its sender was told."""
        half = Half(b"\x01" * 16, 1, Wall(0.0))
        self.assertEqual(half.corr_id, accepted_corr_id(b"\x01" * 16))
