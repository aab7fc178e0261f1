"""
One webhook from complete request to answer, on a bus that does what servers do.

The bus is the double that passes the bus's contract; the store is the product's own.
"""

import json
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.answers import Answers
from gatewayd.bus.publication import Cause, Message, Unpublished
from gatewayd.config import load
from gatewayd.http.message import Request, Response
from gatewayd.ingress.admission import digest
from gatewayd.ingress.events import Events
from gatewayd.ingress.pipeline import Pipeline
from gatewayd.ingress.resource import make_within
from gatewayd.ingress.sources import make_rules
from gatewayd.ingress.strict import DECIMAL_COMMA, EMPTY_BODY, NOT_UTF_8, TRAILING_COMMA, TRUNCATED
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.times import Monotonic, Wall, format_wall
from tests.clients import SECRET, generic_body, stamped, tradingview_body
from tests.fakes.bus import DoubleBus

NOW = 1_700_000_000.0
PARTNER = b"a-secret-of-the-partner-that-nobody-else-has"
DOWN = Unpublished(Cause.DISCONNECTED, "gone")
LATE = Unpublished(Cause.TIMEOUT, "no acknowledgement")


class Counts:
    """What the pipeline counted."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def authenticated(self, source: str, scheme: str, key: int) -> None:
        self.seen.append(("authenticated", source, scheme, key))

    def duplicate(self, source: str) -> None:
        self.seen.append(("duplicate", source))

    def dead_letter(self, code: str) -> None:
        self.seen.append(("dead_letter", code))

    def dead_letter_lost(self) -> None:
        self.seen.append(("dead_letter_lost",))


class World(SynchronousTestCase):
    """A pipeline with its parts, and a client."""

    def setUp(self) -> None:
        self.settings: dict[str, str] = {}
        self.clock = Clock()
        self.clock.advance(1000)
        self.now = NOW
        self.bus = DoubleBus()
        self.counts = Counts()
        self.reported: list[str] = []
        self.shedding = False
        self.begin()

    def begin(self) -> None:
        """Make the pipeline (again: as after a restart of the process, with an empty memory)."""
        environ = {
            "API_KEY_HMAC_SECRET": SECRET.decode(),
            "API_KEY_HMAC_SECRET_PARTNER": PARTNER.decode(),
            "ALLOWED_SOURCES": "tradingview,custom,test,partner",
            "RATE_LIMIT_RPS": "1000",
            "NATS_URL": "nats://127.0.0.1",
            "HOME": "/nowhere",
            **self.settings,
        }
        loaded = load(environ, None, lambda path: path.read_bytes())
        assert loaded.settings is not None, loaded.problems
        self.rules = make_rules(loaded.settings)
        self.admission = MemoryAdmission(
            lambda: Monotonic(self.clock.seconds()),
            nonce_lifetime_s=660,
            identity_lifetime_s=3600,
            entries_bound=1000,
        )
        self.pipeline = Pipeline(
            rules=lambda: self.rules,
            admission=self.admission,
            bus=self.bus,
            events=Events("signals.raw", "signals.normalized", loaded.settings.signal_schema_version),
            refuse=Answers(lambda: Wall(self.now)).refuse,
            within=make_within(self.clock),
            elapsed=lambda request: self.clock.seconds() - request.received_at,
            shed=lambda: self.shedding,
            report=self.reported.append,
            counters=self.counts,
        )

    def request(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = "tradingview", **how: Any
    ) -> Request:
        """A request with these headers, or with those of a good client."""
        made = headers if headers is not None else stamped(body, self.now, **how)
        lines = {name.lower().encode(): value.encode() for name, value in made.items()}
        return Request(
            b"POST",
            f"/webhook/{path}".encode(),
            lines,
            peer="192.0.2.1",
            received_at=Monotonic(self.clock.seconds()),
            received_wall=Wall(self.now),
            body=body,
        )

    def begin_request(self, request: Request) -> Deferred[Response]:
        return Deferred.fromCoroutine(self.pipeline.accept(request, self.rules.paths.get(request.path)))

    def send(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = "tradingview", **how: Any
    ) -> Response:
        """The answer to a request that must not have to wait."""
        return self.successResultOf(self.begin_request(self.request(body, headers, path, **how)))

    def subjects(self) -> list[str]:
        return [stored.subject for stored in self.bus.messages.values()]


def members(response: Response) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(response.body)
    return read


BODY = tradingview_body(NOW)


class AcceptTests(World):
    """What is accepted, and what is stored of it."""

    def test_accepted(self) -> None:
        """A signed webhook is answered 202 and is in the stream, raw before normalised, in one publication."""
        answer = self.send(BODY)
        assert answer.status == 202
        assert members(answer)["duplicate"] is False
        assert self.subjects() == ["signals.raw", "signals.normalized"]
        assert len(self.bus.publications) == 1
        assert (answer.source, answer.instrument, answer.validation_status) == ("tradingview", "EURUSD", "accepted")
        assert self.counts.seen == [("authenticated", "tradingview", "v1", 1)]

    def test_retry_is_a_duplicate_with_the_same_corr_id(self) -> None:
        """The same body with a fresh nonce: 202, duplicate, the first corr_id, nothing published."""
        first, again = self.send(BODY), self.send(BODY)
        assert again.status == 202
        assert members(again)["duplicate"] is True
        assert members(again)["corr_id"] == members(first)["corr_id"]
        assert (b"Idempotent-Replayed", b"true") in again.headers
        assert len(self.bus.messages) == 2

    def test_identity_is_not_the_scheme(self) -> None:
        """The same body under the other scheme is the same event."""
        first = self.send(BODY, scheme="sha256")
        again = self.send(BODY, scheme="v1")
        assert members(again)["corr_id"] == members(first)["corr_id"]
        assert members(again)["duplicate"] is True

    def test_sources_do_not_share_identities(self) -> None:
        """The same body of two sources is two events."""
        body = json.dumps({"instrument": "X", "timestamp": format_wall(NOW), "payload": {"price": 1}}).encode()
        answers = [self.send(body, path="custom"), self.send(body, path="test")]
        assert [members(answer)["duplicate"] for answer in answers] == [False, False]
        assert members(answers[0])["corr_id"] != members(answers[1])["corr_id"]

    def test_after_a_restart_the_stream_knows(self) -> None:
        """With an empty memory JetStream says duplicate, the stored message says of what: 202, same corr_id."""
        first = self.send(BODY)
        self.begin()
        again = self.send(BODY)
        assert (again.status, members(again)["duplicate"]) == (202, True)
        assert members(again)["corr_id"] == members(first)["corr_id"]
        assert len(self.bus.messages) == 2
        assert len(self.bus.reads) == 1

    def test_a_ghost_is_found_by_the_retry(self) -> None:
        """Stored although the answer was 503: the retry gets its 202, and nothing is stored twice."""
        self.bus.fail(LATE, ghost=True)
        assert self.send(BODY).status == 503
        again = self.send(BODY)
        assert (again.status, members(again)["duplicate"]) == (202, True)
        assert len(self.bus.messages) == 2

    def test_the_same_request_after_a_failure_is_processed(self) -> None:
        """After a 503 the identical request, nonce and all, may try again."""
        headers = stamped(BODY, NOW)
        self.bus.fail(DOWN)
        assert self.send(BODY, headers).status == 503
        assert self.send(BODY, headers).status == 202

    def test_the_same_request_after_acceptance_is_refused(self) -> None:
        """An exact replay is 401 GW-002 and names the event that it was."""
        headers = stamped(BODY, NOW)
        first = self.send(BODY, headers)
        again = self.send(BODY, headers)
        assert (again.status, again.code) == (401, "GW-002")
        details = members(again)["details"]
        assert (details["reason"], details["original_corr_id"]) == ("nonce_used", members(first)["corr_id"])

    def test_a_nonce_of_another_request(self) -> None:
        """Another body with a used nonce is 401 GW-002 and names nothing."""
        self.send(BODY, nonce="nonce-one")
        again = self.send(tradingview_body(NOW, 2), nonce="nonce-one")
        assert (again.status, again.code) == (401, "GW-002")
        assert "original_corr_id" not in members(again)["details"]


class KeyTests(World):
    """Explicit idempotency keys."""

    def test_raw_goes_first(self) -> None:
        """With a signed key the normalised event waits for raw's acknowledgement."""
        self.bus.hold()
        waiting = self.begin_request(self.request(BODY, key="order-17"))
        assert self.subjects() == ["signals.raw"]
        self.bus.release()
        answer = self.successResultOf(waiting)
        assert members(answer)["idempotency_key"] == "order-17"
        assert self.subjects() == ["signals.raw", "signals.normalized"]

    def test_conflict_from_memory(self) -> None:
        """Another body under the key is 409 with the first event's corr_id."""
        first = self.send(BODY, key="order-17")
        other = self.send(tradingview_body(NOW, 2), key="order-17")
        assert (other.status, other.code) == (409, "GW-006")
        assert members(other)["details"]["original_corr_id"] == members(first)["corr_id"]
        assert members(other)["details"]["idempotency_key"] == "order-17"
        assert len(self.bus.messages) == 2

    def test_conflict_from_the_stream(self) -> None:
        """With an empty memory the stored message decides, and the key's normalised event stays the first one's."""
        self.send(BODY, key="order-17")
        self.begin()
        other = self.send(tradingview_body(NOW, 2), key="order-17")
        assert (other.status, other.code) == (409, "GW-006")
        assert len(self.bus.messages) == 2
        reads = len(self.bus.reads)
        assert self.send(tradingview_body(NOW, 2), key="order-17").status == 409
        assert len(self.bus.reads) == reads, "the verdict is remembered"

    def test_half_a_pair_is_completed(self) -> None:
        """Raw stored, normalised not (a crash between the two): the retry publishes the missing half."""
        self.bus.fail(LATE, ghost=True)
        self.send(BODY, key="order-17")
        assert self.subjects() == ["signals.raw"]
        self.begin()
        answer = self.send(BODY, key="order-17")
        assert (answer.status, members(answer)["duplicate"]) == (202, True)
        assert self.subjects() == ["signals.raw", "signals.normalized"]

    def test_half_a_pair_is_completed_after_a_conflict(self) -> None:
        """A conflict seen in between does not make the holder's half a whole: its retry still completes the pair."""
        self.bus.fail(LATE, ghost=True)
        self.send(BODY, key="order-17")
        self.begin()
        assert self.send(tradingview_body(NOW, 2), key="order-17").status == 409
        answer = self.send(BODY, key="order-17")
        assert (answer.status, members(answer)["duplicate"]) == (202, True)
        assert self.subjects() == ["signals.raw", "signals.normalized"]

    def test_a_message_that_is_gone(self) -> None:
        """Of a stored message that is gone a key says nothing: 409; a body can only be itself: 202."""
        self.send(BODY, key="order-17")
        self.send(tradingview_body(NOW, 2))
        self.begin()
        self.bus.messages.clear()
        assert self.send(BODY, key="order-17").status == 409
        assert self.send(tradingview_body(NOW, 2)).status == 202

    def test_unsigned_key_is_no_identity(self) -> None:
        """Under sha256= the body stays the identity; the key only guards against another body."""
        self.send(BODY, scheme="sha256", key="order-17")
        again = self.send(BODY, scheme="sha256", key="order-18")
        assert members(again)["duplicate"] is True
        assert self.send(tradingview_body(NOW, 2), scheme="sha256", key="order-17").status == 409

    def test_an_unreadable_duplicate_is_not_guessed(self) -> None:
        """When the server does not say what it stored, the answer is 503 and the next attempt asks again."""
        self.send(BODY, key="order-17")
        self.begin()
        self.bus.refuse_reads(LATE)
        assert self.send(BODY, key="order-17").code == "GW-005"
        self.bus.refuse_reads(None)
        assert self.send(BODY, key="order-17").status == 202


class FailureTests(World):
    """What is not known to be stored."""

    def test_causes(self) -> None:
        """Each cause has its code, its reason and Retry-After."""
        for cause, code, reason in (
            (Cause.DISCONNECTED, "GW-005", None),
            (Cause.TIMEOUT, "GW-005", None),
            (Cause.REJECTED, "GW-005", None),
            (Cause.BUFFER, "GW-010", "buffer"),
            (Cause.STREAM_FULL, "GW-010", "stream_full"),
        ):
            self.bus.fail(Unpublished(cause, "the server's words"))
            answer = self.send(BODY)
            assert (answer.status, answer.code) == (503, code)
            assert members(answer)["details"].get("reason") == reason
            assert (b"Retry-After", b"1") in answer.headers
            assert b"words" not in answer.body
        assert self.bus.messages == {}

    def test_shedding(self) -> None:
        """Above the consumer's lag nothing is published, and the claim is free again."""
        self.shedding = True
        answer = self.send(BODY)
        assert (answer.code, members(answer)["details"]["reason"]) == ("GW-010", "lag")
        self.shedding = False
        assert self.send(BODY).status == 202

    def test_twins(self) -> None:
        """A hundred identical requests at once: one publication, one corr_id, one of them not a duplicate."""
        headers = stamped(BODY, NOW)
        self.bus.hold()
        waiting = [self.begin_request(self.request(BODY, headers)) for _ in range(100)]
        assert len(self.bus.publications) == 1
        self.bus.release()
        answers = [members(self.successResultOf(each)) for each in waiting]
        assert len({answer["corr_id"] for answer in answers}) == 1
        assert [answer["duplicate"] for answer in answers].count(False) == 1

    def test_twins_share_a_failure(self) -> None:
        """When the first fails they all get its 503, under one corr_id."""
        clock = Clock()
        self.bus = DoubleBus(clock, delay_s=1.0)
        self.begin()
        self.bus.fail(LATE)
        waiting = [self.begin_request(self.request(BODY)) for _ in range(5)]
        clock.advance(1.0)
        answers = [self.successResultOf(each) for each in waiting]
        assert {answer.code for answer in answers} == {"GW-005"}
        assert len({answer.corr_id for answer in answers}) == 1

    def test_a_client_that_goes_away_after_the_write(self) -> None:
        """From the first publication on a request runs to its outcome: the retry is a duplicate."""
        self.bus.hold()
        gone = self.begin_request(self.request(BODY))
        gone.cancel()
        self.bus.release()
        assert self.successResultOf(gone).status == 202
        assert members(self.send(BODY))["duplicate"] is True

    def test_a_twin_that_goes_away(self) -> None:
        """A waiting twin that is cancelled disturbs nobody."""
        self.bus.hold()
        first = self.begin_request(self.request(BODY))
        twin = self.begin_request(self.request(BODY))
        twin.cancel()
        self.failureResultOf(twin)
        self.bus.release()
        assert self.successResultOf(first).status == 202

    def test_a_slow_verdict_is_answered_in_time(self) -> None:
        """However slow the server is, the answer is there before the sender gives up."""
        self.send(BODY)
        clock = self.clock
        messages, ids = self.bus.messages, self.bus._ids
        self.bus = DoubleBus(clock, delay_s=1.9, timeout_s=10.0)
        self.bus.messages, self.bus._ids, self.bus._last = messages, ids, 2
        self.begin()
        waiting = self.begin_request(self.request(BODY))
        clock.advance(1.9)
        self.assertNoResult(waiting)
        clock.advance(0.41)
        assert self.successResultOf(waiting).code == "GW-005"


class RefusalTests(World):
    """Who and what is refused, and what is kept of it."""

    def test_nothing_of_an_unauthenticated_request_is_kept(self) -> None:
        """A wrong signature stores nothing, burns no nonce and costs the source no token."""
        headers = stamped(BODY, NOW, secret=b"wrong", nonce="nonce-one")
        assert self.send(BODY, headers).code == "GW-001"
        assert self.bus.publications == []
        assert self.admission.entries() == 0
        assert self.send(BODY, nonce="nonce-one").status == 202

    def test_malformed_body(self) -> None:
        """Not JSON: 400 with the place, and a dead letter of the exact bytes."""
        body = b'{"ticker": "EURUSD",}'
        answer = self.send(body)
        assert (answer.status, answer.code) == (400, "GW-013")
        assert members(answer)["details"]["line"] == 1
        (letter,) = self.bus.messages.values()
        assert (letter.subject, letter.body) == ("dlq.signals.raw", body)
        assert letter.headers["Corr-ID"] == answer.corr_id == "req_" + digest(b"tradingview", body).hex()[:20]
        assert self.counts.seen == [("dead_letter", "GW-013")]

    def test_a_dead_letter_says_where_and_why(self) -> None:
        """
        Byte for byte what was received, with the line (by LF), the column (in characters) and the likely cause: behind
        CR LF, behind characters of several bytes, at the very end, and where the text is no text.
        """
        for body, position, cause in (
            (b'{\r\n "ticker": "EURUSD",\r\n}\r\n', "2,20", TRAILING_COMMA),
            ('{"name": "\u65e5\u672c\U0001f600", "price": 1,5}'.encode(), "1,28", DECIMAL_COMMA),
            (b'{"ticker": "EURUSD"\n', "2,1", TRUNCATED),
            (b'{"ticker": "EURUSD"', "1,20", TRUNCATED),
            (b"", "1,1", EMPTY_BODY),
            ('{\n"n": "\u00e9'.encode() + b"\xff\x00}", "2,8", NOT_UTF_8),
        ):
            self.bus = DoubleBus()
            self.begin()
            assert members(self.send(body))["details"]["likely_cause"] == cause
            (letter,) = self.bus.messages.values()
            assert letter.body == body
            assert letter.headers["Dlq-Position"] == position, body
            assert json.loads(letter.headers["Dlq-Reasons"])[-1] == cause

    def test_a_dead_letter_keeps_its_key(self) -> None:
        """A signed key says which event a refused body would have been; an unsigned one is only kept."""
        for scheme, identity in (("v1", "key"), ("sha256", None)):
            self.bus = DoubleBus()
            self.begin()
            assert self.send(b"[1]", key="order-17", scheme=scheme).code == "GW-003"
            (letter,) = self.bus.messages.values()
            assert letter.headers["Idempotency-Key"] == "order-17"
            assert letter.headers.get("Dlq-Identity") == identity

    def test_an_object_that_is_no_signal(self) -> None:
        """422 with one entry for each fault; kept as a dead letter, and raw, marked as rejected."""
        body = b'{"ticker":"EURUSD","price":"1.0"}'
        answer = self.send(body)
        assert (answer.status, answer.code) == (422, "GW-003")
        paths = {fault["path"] for fault in members(answer)["details"]["validation_errors"]}
        assert paths == {"price", "time"}
        assert self.subjects() == ["dlq.signals.normalized", "signals.raw"]
        assert self.bus.messages[2].headers["Rejected"] == "GW-003"
        assert "Gw-Facts" not in self.bus.messages[2].headers
        assert self.send(body).status == 422
        assert len(self.bus.messages) == 2, "the same refused body is kept once"

    def test_empty_objects_and_arrays_are_not_kept_raw(self) -> None:
        """There is nothing to review in {} and []."""
        self.send(b"{}")
        self.send(b"[]")
        assert self.subjects() == ["dlq.signals.normalized", "dlq.signals.raw"]

    def test_a_dead_letter_that_cannot_be_stored(self) -> None:
        """The refusal stands: the sender cannot cure it by sending again."""
        self.bus.fail(DOWN)
        assert self.send(b"[").status == 400
        assert self.counts.seen == [("dead_letter_lost",)]

    def test_a_refused_body_costs_a_token(self) -> None:
        """After authentication a refused body is not free."""
        self.settings = {"RATE_LIMIT_RPS": "1"}
        self.begin()
        assert self.send(b"[1]").status == 422
        answer = self.send(b"[2]")
        assert (answer.status, answer.code) == (429, "GW-004")
        assert len(self.bus.messages) == 1

    def test_source_limit(self) -> None:
        """Above the source's limit: 429 with the real wait; other sources go on."""
        self.settings = {"RATE_LIMIT_SOURCES": "tradingview:2"}
        self.begin()
        statuses = [self.send(tradingview_body(NOW, price)).status for price in (1, 2, 3)]
        assert statuses == [202, 202, 429]
        limited = self.send(tradingview_body(NOW, 4))
        assert members(limited)["details"]["source"] == "tradingview"
        assert dict(limited.headers)[b"RateLimit-Limit"] == b"2"
        assert self.send(generic_body(NOW), path="generic").status == 202
        self.clock.advance(0.5)
        assert self.send(tradingview_body(NOW, 3)).status == 202

    def test_transient_refusals_for_a_sender_that_gives_up(self) -> None:
        """Where the source's profile says so a limit is answered 503, which such senders repeat."""
        self.settings = {"RATE_LIMIT_RPS": "1"}
        self.begin()
        impatient = replace(self.rules.paths[b"/webhook/tradingview"], transient_as_503=True)
        self.rules = replace(self.rules, paths={b"/webhook/tradingview": impatient})
        self.send(BODY)
        answer = self.send(tradingview_body(NOW, 2))
        assert (answer.status, answer.code) == (503, "GW-004")

    def test_sources_on_the_generic_path(self) -> None:
        """The body names its source; an unknown one is 400, one of another secret 401."""
        assert self.send(generic_body(NOW, "custom"), path="generic").status == 202
        unknown = self.send(generic_body(NOW, "nobody"), path="generic")
        assert (unknown.status, unknown.code) == (400, "GW-007")
        assert members(unknown)["details"]["source_provided"] == "nobody"
        assert self.send(generic_body(NOW, "partner"), path="generic").code == "GW-001"
        assert self.send(generic_body(NOW, "partner"), path="generic", secret=PARTNER).status == 202
        assert self.send(generic_body(NOW, "custom"), path="generic", secret=PARTNER).code == "GW-001"

    def test_source_of_the_path(self) -> None:
        """On a source's own path the body may leave it out, and must not name another."""
        assert self.send(generic_body(NOW, "test"), path="custom").code == "GW-007"
        assert self.send(generic_body(NOW, "custom"), path="custom").status == 202

    def test_a_source_fault_comes_before_the_signals(self) -> None:
        """An unknown source is told so whatever else is wrong with its body."""
        body = json.dumps({"source": "nobody", "instrument": 5}).encode()
        assert self.send(body, path="generic").code == "GW-007"

    def test_old_bodies(self) -> None:
        """Under sha256= the body's own time must be recent, and the refusal says what to do; under v1= it need not."""
        old, ahead = tradingview_body(NOW - 3601), tradingview_body(NOW + 31)
        for body, reason in ((old, "body_time_too_old"), (ahead, "body_time_in_future")):
            answer = self.send(body, scheme="sha256")
            assert (answer.status, answer.code) == (401, "GW-002")
            assert members(answer)["details"]["reason"] == reason
            assert "max_body_age" in members(answer)["details"]["advice"]
            assert self.send(body, scheme="v1").status == 202
        assert self.send(tradingview_body(NOW - 3599), scheme="sha256").status == 202

    def test_schemes_that_are_switched_off(self) -> None:
        """A scheme that is not switched on does not count."""
        self.settings = {"SIGNATURE_SCHEMES": "v1"}
        self.begin()
        assert self.send(BODY, scheme="sha256").code == "GW-001"
        assert self.send(BODY, scheme="v1").status == 202

    def test_a_fault_of_ours(self) -> None:
        """A body that cannot become an event by our own fault is 500 GW-009, logged, and kept."""

        class Broken(Events):
            def pair(self, *_: object) -> tuple[Message, Message]:
                raise ZeroDivisionError

        self.pipeline._events = Broken("signals.raw", "signals.normalized", "1.1.0")
        answer = self.send(BODY)
        assert (answer.status, answer.code) == (500, "GW-009")
        assert self.reported == ["events"]
        assert self.subjects() == ["dlq.signals.normalized"]
