"""Events and dead letters as messages."""

import json
from email.parser import BytesParser
from email.policy import HTTP

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Message
from gatewayd.ingress.admission import Kind, digest, fingerprint, identity
from gatewayd.ingress.events import DeadLetter, Envelope, Events, parse_facts, parse_nonce, raw_id, refused_digest
from gatewayd.ingress.normalise import Signal
from gatewayd.times import Wall
from tests.contracts.admission import claim

BODY = b'{"ticker":"eurusd", "action":"buy","price":1.04300e-05,"time":"2024-01-15T10:30:00Z"} '
SIGNAL = Signal("EURUSD", b"1.04300e-05", "buy", None, Wall(1705314600.0), None)
ENVELOPE = Envelope("req_0123456789abcdef0123", Wall(1705314601.25), "sha256", None, None)


def headers_of(message: Message) -> dict[str, str]:
    """The header block, read by an independent parser."""
    parsed = BytesParser(policy=HTTP).parsebytes(message.headers + b"\r\n")
    assert len(parsed.keys()) == message.headers.count(b"\r\n")
    return {name: str(value) for name, value in parsed.items()}


class PairTests(SynchronousTestCase):
    """Raw and normalised."""

    def setUp(self) -> None:
        self.events = Events("signals.raw", "signals.normalized", "1.1.0")
        self.claim = claim(BODY, source="tradingview")
        self.raw, self.normalised = self.events.pair(self.claim, SIGNAL, BODY, ENVELOPE)

    def test_raw_holds_the_body_byte_for_byte(self) -> None:
        """The payload is what was sent, also its blanks and the form of its numbers."""
        assert self.raw.subject == b"signals.raw"
        assert self.raw.body == (
            b'{"corr_id":"req_0123456789abcdef0123","source":"tradingview",'
            b'"received_at":"2024-01-15T10:30:01.250Z","payload":' + BODY + b"}"
        )
        assert json.loads(self.raw.body)["payload"]["ticker"] == "eurusd"

    def test_normalised(self) -> None:
        """Every member of the schema, the price as it was sent."""
        assert self.normalised.subject == b"signals.normalized"
        assert b'"price":1.04300e-05,' in self.normalised.body
        assert json.loads(self.normalised.body) == {
            "corr_id": "req_0123456789abcdef0123",
            "source": "tradingview",
            "instrument": "EURUSD",
            "price": 1.043e-05,
            "side": "buy",
            "strength": None,
            "timestamp": "2024-01-15T10:30:00.000Z",
            "normalized_at": "2024-01-15T10:30:01.250Z",
            "schema_version": "1.1.0",
        }

    def test_known_extras(self) -> None:
        """Key, strategy and strength are there when they are known, escaped as JSON needs."""
        envelope = Envelope("req_1", Wall(1705314601.0), "v1", 'a"b\\', b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")
        signal = Signal("ES1!", b"1", None, b"0.5", Wall(1705314600.0), 'say "hi"\n')
        raw, normalised = self.events.pair(self.claim, signal, BODY, envelope)
        members = json.loads(normalised.body)
        assert (members["idempotency_key"], members["strategy"]) == ('a"b\\', 'say "hi"\n')
        assert (members["side"], members["strength"]) == (None, 0.5)
        assert headers_of(raw)["Idempotency-Key"] == 'a"b\\'
        assert headers_of(raw)["traceparent"].startswith("00-aaaa")

    def test_old_schema(self) -> None:
        """1.0.0 has none of the later members."""
        envelope = Envelope("req_1", Wall(1705314601.0), "v1", "key", None)
        signal = Signal("EURUSD", b"1", "sell", None, Wall(1705314600.0), "strategy")
        _, normalised = Events("signals.raw", "signals.normalized", "1.0.0").pair(self.claim, signal, BODY, envelope)
        assert set(json.loads(normalised.body)) == {
            "corr_id",
            "source",
            "instrument",
            "price",
            "side",
            "strength",
            "timestamp",
            "normalized_at",
        }

    def test_headers(self) -> None:
        """Both carry the same headers but for their ids, which are D with a part."""
        raw, normalised = headers_of(self.raw), headers_of(self.normalised)
        assert raw.pop("Nats-Msg-Id") == f"gw:{self.claim.identity.hex()}:raw" == raw_id(self.claim.identity).decode()
        assert normalised.pop("Nats-Msg-Id") == f"gw:{self.claim.identity.hex()}:norm"
        assert raw == normalised
        assert raw["Corr-ID"] == "req_0123456789abcdef0123"
        assert (raw["Source"], raw["Instrument"], raw["Schema-Version"]) == ("tradingview", "EURUSD", "1.1.0")

    def test_facts_read_back(self) -> None:
        """What Gw-Facts says can be read back, and gives the nonce its request."""
        headers = headers_of(self.normalised)
        facts = parse_facts(headers["Gw-Facts"])
        assert facts is not None
        assert (facts.kind, facts.body, facts.nonce) == (Kind.BODY, self.claim.body, self.claim.nonce)
        assert (facts.scheme, facts.accepted_at) == ("sha256", 1705314601.25)
        found = parse_nonce(headers["Nats-Msg-Id"], headers["Gw-Facts"])
        assert found is not None
        assert found[:2] == (self.claim.nonce, self.claim.fingerprint)

    def test_facts_of_a_keyed_event(self) -> None:
        """A keyed event's nonce belongs to its key and body together."""
        keyed = claim(BODY, key="order-17")
        _, normalised = self.events.pair(keyed, SIGNAL, BODY, ENVELOPE)
        headers = headers_of(normalised)
        found = parse_nonce(headers["Nats-Msg-Id"], headers["Gw-Facts"])
        assert found is not None
        assert found[1] == keyed.fingerprint == fingerprint(Kind.KEY, keyed.identity, digest(BODY))

    def test_foreign_messages(self) -> None:
        """Without our header, or with one that is not in our form, a message is foreign."""
        good = headers_of(self.normalised)["Gw-Facts"]
        for text in (None, "", "2" + good[1:], good[:-1], good + " ", good.replace("body", "none")):
            assert parse_facts(text) is None, text
        assert parse_nonce(f"gw:{'a' * 32}:raw", good) is None
        assert parse_nonce(None, good) is None


class DeadLetterTests(SynchronousTestCase):
    """Refused bodies."""

    def letter(self, **members: object) -> DeadLetter:
        fields = {
            "refused": refused_digest("custom", b"[]"),
            "code": "GW-003",
            "source": "custom",
            "received_at": Wall(1705314601.0),
            "parsed": True,
            "reasons": ["price: required"],
            **members,
        }
        return DeadLetter(**fields)  # type: ignore[arg-type]

    def test_message(self) -> None:
        """The received bytes, and headers that say why; no claim on any identity."""
        letter = self.letter(code="GW-013", parsed=False, position=(2, 7), reasons=["\u00e9t\u00e9\r\nX: y"])
        message = letter.message(b"\xff{")
        assert (message.subject, message.body) == (b"dlq.signals.raw", b"\xff{")
        headers = headers_of(message)
        assert headers["Nats-Msg-Id"] == f"gw:{letter.refused.hex()}:GW-013:dlq"
        assert headers["Dlq-Code"] == "GW-013"
        assert headers["Dlq-Position"] == "2,7"
        assert json.loads(headers["Dlq-Reasons"]) == ["\u00e9t\u00e9\r\nX: y"]
        assert headers["Corr-ID"] == letter.corr_id == "req_" + letter.refused.hex()[:20]
        assert "Gw-Facts" not in headers

    def test_the_key_that_came_with_it(self) -> None:
        """An Idempotency-Key is kept, and whether it says which event this is."""
        signed = headers_of(self.letter(key="order-17", key_is_identity=True).message(b"{}"))
        assert (signed["Idempotency-Key"], signed["Dlq-Identity"]) == ("order-17", "key")
        unsigned = headers_of(self.letter(key="order-17").message(b"{}"))
        assert (unsigned["Idempotency-Key"], "Dlq-Identity" in unsigned) == ("order-17", False)
        assert "Dlq-Identity" not in headers_of(self.letter(key_is_identity=True).message(b"{}"))

    def test_parsed_bodies_have_their_own_subject(self) -> None:
        """An object that is no signal is filed apart from what is no object."""
        assert self.letter().message(b"{}").subject == b"dlq.signals.normalized"

    def test_many_reasons_are_bounded(self) -> None:
        """A header stays readable and small, and says how many reasons are not in it."""
        headers = headers_of(self.letter(reasons=["x" * 100] * 100).message(b"{}"))
        assert len(headers["Dlq-Reasons"]) <= 2048
        assert json.loads(headers["Dlq-Reasons"])[-1] == "and 97 more"

    def test_rejected_raw(self) -> None:
        """The raw event of a refused object is marked, and claims nothing."""
        events = Events("signals.raw", "signals.normalized", "1.1.0")
        message = events.rejected(self.letter(), b'{"a":1}')
        headers = headers_of(message)
        assert message.subject == b"signals.raw"
        assert headers["Rejected"] == "GW-003"
        assert headers["Nats-Msg-Id"].endswith(":GW-003:raw")
        assert "Gw-Facts" not in headers
        assert json.loads(message.body)["payload"] == {"a": 1}


class IdentityTests(SynchronousTestCase):
    """Which requests are the same event."""

    def test_parts_do_not_run_together(self) -> None:
        """A separator inside a value does not make two events one."""
        assert digest(b"a|b", b"c") != digest(b"a", b"b|c")
        assert identity(b"a", Kind.BODY, b"bc") != identity(b"ab", Kind.BODY, b"c")
        assert identity(b"a", Kind.BODY, b"x") != identity(b"a", Kind.KEY, b"x")

    @given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
    def test_digest_is_injective_in_its_parts(self, one: list[bytes], other: list[bytes]) -> None:
        """Equal digests mean equal parts."""
        assert (digest(*one) == digest(*other)) == (one == other)
