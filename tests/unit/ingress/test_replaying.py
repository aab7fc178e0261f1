"""What dead letters become, and what is left to do of a replay."""

from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.bus.publication import Message, Stored
from gatewayd.config import load
from gatewayd.ingress import replaying
from gatewayd.ingress.admission import KEY, Kind, digest, identity
from gatewayd.ingress.events import Events, parse_facts
from gatewayd.ingress.letters import Letter
from gatewayd.ingress.replaying import (
    Complete,
    Publish,
    Sightings,
    State,
    Taken,
    Target,
    There,
    Unfit,
    claim_message,
    done_message,
    event_messages,
    parse_record,
    plan,
    resume,
    step,
)
from gatewayd.ingress.resource import MAX_BODY_BYTES
from gatewayd.ingress.sources import make_rules
from gatewayd.times import Wall

GOOD = b'{"ticker":"EURUSD","action":"buy","price":1.0900,"time":"2024-01-15T10:30:00Z"}'
GENERIC = b'{"source":"%b","instrument":"EURUSD","timestamp":"2024-01-15T10:30:00Z","payload":{"price":1.09}}'
AT = Wall(1_768_471_800.1234)
EVENTS = Events("signals.raw", "signals.normalized", "1.1.0")


def rules_of(**settings: str) -> Any:
    environ = {
        "ALLOWED_SOURCES": "tradingview,custom,partner",
        "API_KEY_HMAC_SECRET": "s" * 40,
        "API_KEY_HMAC_SECRET_PARTNER": "p" * 40,
        "NATS_URL": "nats://127.0.0.1",
        "HOME": "/nowhere",
        **settings,
    }
    loaded = load(environ, None, lambda path: path.read_bytes())
    assert loaded.settings is not None, loaded.problems
    return make_rules(loaded.settings)


RULES = rules_of()


def letter(source: str = "tradingview", key: str | None = None, *, keyed: bool = False) -> Letter:
    return Letter(
        12, "dlq.signals.raw", Wall(AT - 90), "GW-013", source, "req_letter", "", (), None, key, keyed, len(GOOD)
    )


def target_of(body: bytes = GOOD, **more: Any) -> Target:
    found = plan(letter(**more), body, RULES)
    assert isinstance(found, Target), found
    return found


def headers_of(message: Message) -> dict[str, str]:
    """The header block, read by an independent parser."""
    parsed = BytesParser(policy=HTTP).parsebytes(message.headers + b"\r\n")
    return {name: str(value) for name, value in parsed.items()}


def stored(message: Message, sequence: int) -> Stored:
    return Stored(sequence, message.subject.decode(), headers_of(message), message.body, AT)


class PlanTests(SynchronousTestCase):
    """What a body becomes."""

    def test_the_body_is_the_identity(self) -> None:
        """The ids are those that a webhook with this body would have had."""
        target = target_of()
        who = identity(b"tradingview", Kind.BODY, GOOD).hex()
        self.assertEqual(target.ids, (f"gw:{who}:raw", f"gw:{who}:norm"))
        self.assertEqual(target.corr_id, "req_" + who[:20])

    def test_a_signed_key_is_the_identity(self) -> None:
        """A key that was signed says which event it is; an unsigned one is only handed on."""
        signed = target_of(key="order-17", keyed=True)
        self.assertEqual(signed.claim.identity, identity(b"tradingview", Kind.KEY, b"order-17"))
        self.assertIs(signed.claim.kind, KEY)
        unsigned = target_of(key="order-17")
        self.assertEqual((unsigned.claim.identity, unsigned.key), (target_of().claim.identity, "order-17"))

    def test_what_stays(self) -> None:
        """A code and reasons for what is no signal under these rules."""
        for body, source, code in (
            (b'{"a":1,}', "tradingview", "GW-013"),
            (b"[]", "tradingview", "GW-003"),
            (b"{}", "tradingview", "GW-003"),
            (b"x" * (MAX_BODY_BYTES + 1), "tradingview", "GW-008"),
            (GOOD, "stranger", "GW-007"),
            (GENERIC % b"custom", "partner", "GW-007"),
            (GENERIC % b"stranger", "_other", "GW-007"),
            (GENERIC % b"partner", "_other", "GW-001"),
            (GOOD, "_other", "GW-003"),
        ):
            found = plan(letter(source), body, RULES)
            assert isinstance(found, Unfit), (source, body[:50])
            self.assertEqual((found.code, bool(found.reasons)), (code, True), (source, body[:50]))
        self.assertEqual(plan(letter(), b'{\n"a":1,}', RULES).position, (2, 6))  # type: ignore[union-attr]

    def test_the_same_bound_as_for_a_webhook(self) -> None:
        """No body is replayed that a webhook could not have."""
        self.assertEqual(replaying.MAX_BODY_BYTES, MAX_BODY_BYTES)

    def test_who_it_is(self) -> None:
        """The source is the letter's, on its own path or the generic one; else the body's, where it may be."""
        self.assertEqual(target_of(GENERIC % b"tradingview").claim.source, "tradingview")
        self.assertEqual(target_of(GENERIC % b"custom", source="_other").claim.source, "custom")
        edited = plan(letter("_other"), GENERIC % b"partner", RULES, edited=True)
        assert isinstance(edited, Target)
        self.assertEqual(edited.claim.source, "partner")

    def test_rules_that_changed(self) -> None:
        """The rules in force now decide, the schema's version among them."""
        body = GOOD.replace(b"EURUSD", b"BTCUSDT.P")
        self.assertIsInstance(plan(letter(), body, RULES), Target)
        self.assertIsInstance(plan(letter(), body, rules_of(SIGNAL_SCHEMA_VERSION="1.0.0")), Unfit)


class MessageTests(SynchronousTestCase):
    """Records and events."""

    def test_a_claim_is_enough_to_finish(self) -> None:
        """The claim holds body, identity and time, and leads to the same target."""
        for target in (
            target_of(),
            target_of(key="order-17", keyed=True),
            target_of(GENERIC % b"custom", source="_other"),
        ):
            message = claim_message(target, AT, 0)
            self.assertEqual((message.subject, message.body), (b"dlq.replayed.12", target.body))
            self.assertEqual(headers_of(message)["Nats-Expected-Last-Subject-Sequence"], "0")
            record = parse_record(stored(message, 40))
            assert record is not None
            self.assertEqual((record.letter, record.sequence, record.state), (12, 40, State.CLAIMED))
            self.assertEqual((record.corr_id, record.at), (target.corr_id, 1_768_471_800.123))
            self.assertEqual(resume(record, message.body, RULES), target)
            self.assertIsInstance(resume(record, GOOD.replace(b"buy", b"sell"), RULES), Unfit)

    def test_the_end(self) -> None:
        """The last record says where the events are, and replaces the claim."""
        message = done_message(target_of(), AT, 40, (41, 42))
        self.assertEqual(headers_of(message)["Nats-Expected-Last-Subject-Sequence"], "40")
        record = parse_record(stored(message, 43))
        assert record is not None
        self.assertEqual((record.state, record.stored, message.body), (State.DONE, (41, 42), b""))

    def test_what_is_no_record(self) -> None:
        """Another's message on the subject is not taken for one."""
        good = stored(claim_message(target_of(), AT, 0), 1)
        self.assertIsNone(parse_record(Stored(1, "dlq.replayed.x", good.headers, b"", AT)))
        self.assertIsNone(parse_record(Stored(1, "dlq.replayed.12", {}, b"", AT)))

    def test_events(self) -> None:
        """Both are ours by their facts, name the letter, and are refused once the claim has been moved on."""
        target = target_of()
        raw, normalised = event_messages(target, EVENTS, AT, 40)
        for message, msg_id in zip((raw, normalised), target.ids, strict=True):
            headers = headers_of(message)
            facts = parse_facts(headers["Gw-Facts"])
            assert facts is not None
            self.assertEqual((facts.body, facts.scheme, facts.accepted_at), (digest(GOOD), "replay", 1_768_471_800.123))
            self.assertEqual((headers["Nats-Msg-Id"], headers["Replayed-From"]), (msg_id, "12"))
            self.assertEqual(headers["Nats-Expected-Last-Subject-Sequence"], "40")
            self.assertEqual(headers["Nats-Expected-Last-Subject-Sequence-Subject"], "dlq.replayed.12")
        self.assertTrue(raw.body.endswith(b',"payload":' + GOOD + b"}"))

    def test_two_letters_have_two_nonces(self) -> None:
        """What is read back as a nonce is that of one letter only, and of no webhook."""
        other = Letter(13, "dlq.signals.raw", AT, "GW-013", "tradingview", "", "", (), None, None, False, 0)
        found = plan(other, GOOD, RULES)
        assert isinstance(found, Target)
        self.assertNotEqual(found.claim.nonce, target_of().claim.nonce)


class StepTests(SynchronousTestCase):
    """What is left to do."""

    def seen(self, target: Target, *messages: tuple[Message, int]) -> Sightings:
        seen = Sightings(target.ids)
        for message, sequence in messages:
            seen.see(headers_of(message), sequence)
        return seen

    def test_by_what_is_there(self) -> None:
        """Nothing, raw alone, both, normalised alone."""
        target = target_of()
        raw, normalised = event_messages(target, EVENTS, AT, 40)
        self.assertEqual(step(target, self.seen(target)), Publish())
        self.assertEqual(step(target, self.seen(target, (raw, 41))), Complete(41))
        self.assertEqual(step(target, self.seen(target, (raw, 41), (normalised, 42))), There(41, 42))
        self.assertEqual(step(target, self.seen(target, (normalised, 42))), There(0, 42))
        self.assertEqual(step(target, self.seen(target, (raw, 41), (raw, 50))), Complete(41))

    def test_others_do_not_count(self) -> None:
        """Messages with other ids, and the refusal's own raw event, are not the event."""
        target = target_of()
        seen = self.seen(target, (event_messages(target_of(GOOD + b" "), EVENTS, AT, 40)[0], 41))
        seen.see({"Nats-Msg-Id": "gw:" + "a" * 32 + ":GW-003:raw"}, 42)
        seen.see({}, 43)
        self.assertEqual(step(target, seen), Publish())

    def test_a_key_that_stands_for_another_body(self) -> None:
        """The sender has corrected its signal under the same key: the letter is superseded."""
        target = target_of(key="order-17", keyed=True)
        other = target_of(GOOD.replace(b"buy", b"sell"), key="order-17", keyed=True)
        raw, normalised = event_messages(other, EVENTS, AT, 40)
        self.assertEqual(step(target, self.seen(target, (raw, 41), (normalised, 42))), Taken(41))
        self.assertEqual(step(other, self.seen(other, (raw, 41), (normalised, 42))), There(41, 42))
