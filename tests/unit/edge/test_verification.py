"""Every check of a signed request, through both encodings, and their order."""

from collections.abc import Callable, Coroutine
from itertools import combinations
from typing import Any, NamedTuple

from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.edge_metrics import EdgeMetrics
from gatewayd.errors import Unavailable
from gatewayd.ingress.admission import Limit
from gatewayd.sessions.cache import SessionCache
from gatewayd.sessions.endings import (
    AUTHENTICATION_FAILED,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    LIMITED,
    NOT_FRESH,
    REPLAYED,
    RESOURCE_EXHAUSTED,
    REVOKED,
    SESSION_MALFORMED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNAVAILABLE_NOW,
    UNSUPPORTED_VERSION,
    Ending,
)
from gatewayd.sessions.envelope import read_json, read_protobuf
from gatewayd.sessions.limits import Limits
from gatewayd.sessions.reservations import Reservations
from gatewayd.sessions.snapshots import write_key
from gatewayd.sessions.values import Envelope, Session
from gatewayd.sessions.verification import Verification
from gatewayd.times import Monotonic, Wall
from tests.edge_requests import NOW_MS, SESSION, as_json, as_protobuf, base64url, request, session
from tests.fakes.session_redis import FakeLink, Store

WINDOW_MS = 300_000
PLENTY = Limit(1000.0, 1000.0)


class World(SynchronousTestCase):
    """The checks on a store in which one session is active."""

    def setUp(self) -> None:
        self.store = Store()
        self.link = FakeLink(self.store)
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.wall_ms = NOW_MS
        self.registry = CollectorRegistry()
        self.metrics = EdgeMetrics(self.registry)
        self.cache = SessionCache(
            self.link,
            clock=self.clock,
            key_prefix="gateway:session:",
            on_revoked=lambda name: None,
            on_size=self.metrics.sessions.set,
        )
        self.cache.poller_seen(self.now())
        self.limits = Limits(session=PLENTY, user=PLENTY, message_type=PLENTY, group=str)
        reservations = Reservations(
            self.link, clock=self.clock, key_prefix="gateway:replay:", window_ms=WINDOW_MS, timeout_s=0.25
        )
        self.verification = Verification(
            self.cache,
            reserve=reservations.reserve,
            limits=self.limits,
            window_ms=WINDOW_MS,
            now=self.now,
            wall=lambda: Wall(self.wall_ms / 1000),
            replayed=self.metrics.replay_rejected.inc,
        )
        self.put(session())

    def now(self) -> Monotonic:
        return Monotonic(self.clock.seconds())

    def put(self, of: Session) -> None:
        self.store.values[f"gateway:session:{of.device_session_id}"] = write_key(of)

    def begin(self, envelope: Envelope) -> Deferred[Session | Ending]:
        """The checks begin."""
        checks: Coroutine[Deferred[Any], Any, Session | Ending] = self.verification.verify(envelope)
        return Deferred.fromCoroutine(checks)

    def verify(self, envelope: Envelope | Ending) -> Session | Ending:
        """What becomes of a request, at once."""
        return envelope if isinstance(envelope, Ending) else self.successResultOf(self.begin(envelope))

    def count(self, name: str) -> float:
        """What a metric stands at."""
        return self.registry.get_sample_value(name) or 0.0


class Row(NamedTuple):
    """One row of the table: what is wrong, and what is said of it."""

    name: str
    arrange: Callable[["TableTests"], object]
    others: dict[str, Any]
    status: int
    message: str


def nothing(_: "TableTests") -> None:
    """The world as it is."""


def limited(world: "TableTests") -> None:
    """The session's tokens are gone."""
    world.limits.use(session=Limit(0.5, 1.0), user=PLENTY, message_type=PLENTY)
    world.limits.take(session(), "user.command", world.now())


TABLE = (
    Row("missing", nothing, {"request_id": ""}, INVALID_ARGUMENT, "request_id is missing or malformed"),
    Row("version", nothing, {"protocol_version": "v2"}, FAILED_PRECONDITION, "unsupported protocol version"),
    Row("silent", lambda w: w.clock.advance(5.1), {}, UNAVAILABLE, "the gateway cannot check sessions now"),
    Row("unreachable", lambda w: setattr(w.link, "down", Unavailable("away")), {}, UNAVAILABLE,
        "the gateway cannot check sessions now"),
    Row("broken session", lambda w: w.store.values.update({f"gateway:session:{SESSION}": b"?"}), {}, UNAVAILABLE,
        "the gateway cannot read this session"),
    Row("revoked", lambda w: w.put(session(revoked=True)), {}, FAILED_PRECONDITION, "device session is revoked"),
    Row("hash", nothing, {"payload_hash": bytes(32)}, INVALID_ARGUMENT,
        "payload_hash is not the SHA-256 of payload_bytes"),
    Row("unknown", lambda w: w.store.values.clear(), {}, UNAUTHENTICATED, "authentication failed"),
    Row("signature", nothing, {"seed": 2}, UNAUTHENTICATED, "authentication failed"),
    Row("stale", nothing, {"at_ms": NOW_MS - WINDOW_MS - 1}, FAILED_PRECONDITION,
        "request timestamp is outside the freshness window"),
    Row("future", nothing, {"at_ms": NOW_MS + WINDOW_MS + 1}, FAILED_PRECONDITION,
        "request timestamp is outside the freshness window"),
    Row("replay", lambda w: w.use_up(), {}, FAILED_PRECONDITION, "request replay detected"),
    Row("limit", limited, {}, RESOURCE_EXHAUSTED, "authenticated request rate limit exceeded"),
)  # fmt: skip
"""In the order of the checks."""

NOT_TOGETHER = {
    ("broken session", "revoked"),
    ("broken session", "unknown"),
    ("revoked", "unknown"),
    ("stale", "future"),
}
"""Pairs that one world cannot have."""


class TableTests(World):
    """The answers that clients rely on."""

    def use_up(self) -> None:
        """The request's id was used before."""
        key = f"gateway:replay:{base64url(SESSION.encode())}:{base64url(b'request-1')}"
        self.store.values[key] = b"1"

    def ask(self, *rows: Row) -> list[Session | Ending]:
        """What becomes of a request that is wrong in these ways, in each encoding; each in a new world."""
        answers = []
        for write, read in ((as_protobuf, read_protobuf), (as_json, read_json)):
            self.setUp()
            for row in rows:
                row.arrange(self)
            others: dict[str, Any] = {}
            for row in rows:
                others |= row.others
            answers.append(self.verify(read(write(request(**others)))))
        return answers

    def test_good(self) -> None:
        """A good request gives its session."""
        for answer in self.ask():
            self.assertEqual(answer, session())

    def test_rows(self) -> None:
        """Each row of the table, in both encodings."""
        for row in TABLE:
            for answer in self.ask(row):
                assert isinstance(answer, Ending), row.name
                self.assertEqual((answer.grpc_status, answer.message), (row.status, row.message), row.name)

    def test_order(self) -> None:
        """A request that is wrong in two ways gets the answer of the earlier check."""
        for first, second in combinations(TABLE, 2):
            if (first.name, second.name) not in NOT_TOGETHER:
                for answer in self.ask(first, second):
                    assert isinstance(answer, Ending)
                    names = (first.name, second.name)
                    self.assertEqual((answer.grpc_status, answer.message), (first.status, first.message), names)

    def test_window(self) -> None:
        """A timestamp at the window's very edge passes, on either side."""
        for at_ms in (NOW_MS - WINDOW_MS, NOW_MS + WINDOW_MS):
            self.setUp()
            self.assertEqual(self.verify(request(at_ms=at_ms)), session())
        self.assertIs(self.verify(request(at_ms=2**63 - 1)), NOT_FRESH)

    def test_same_answers(self) -> None:
        """The refusals are the table's own, so that transports can tell them apart by identity."""
        self.assertIs(self.verify(request(protocol_version="v2")), UNSUPPORTED_VERSION)
        self.assertIs(self.verify(request(seed=2)), AUTHENTICATION_FAILED)
        self.store.values[f"gateway:session:{SESSION}"] = b""
        self.clock.advance(4.0)
        self.cache.poller_seen(self.now())
        self.clock.advance(4.0)
        self.assertIs(self.verify(request()), SESSION_MALFORMED)


class CostTests(World):
    """What an outsider can learn."""

    def asked(self, envelope: Envelope) -> tuple[Session | Ending, list[str]]:
        """The answer, and what Redis was asked for it."""
        self.store.seen.clear()
        return self.verify(envelope), list(self.store.seen)

    def test_unknown_as_wrong(self) -> None:
        """
        Whether a session is unknown, known, or known and in use here: a request that its key has not signed gets the
        same answer after the same questions to Redis.
        """
        for others in ({"seed": 2}, {"payload_hash": bytes(32)}):
            known = self.asked(request(**others))
            self.verify(request("warm"))
            in_use = self.asked(request(**others))
            unknown = self.asked(request(device_session_id="another", **others))
            self.assertEqual(known, in_use)
            self.assertEqual(known, unknown)
            self.assertEqual(known[1], ["MGET"])

    def test_nobodys_key(self) -> None:
        """Of an unknown session no signature is right."""
        for seed in range(1, 20):
            self.assertIs(self.verify(request(device_session_id="another", seed=seed)), AUTHENTICATION_FAILED)

    def test_nothing_is_used_up(self) -> None:
        """A request that is not authenticated neither uses up an id nor a token; a stale one neither."""
        self.limits.use(session=Limit(0.1, 1.0), user=PLENTY, message_type=PLENTY)
        self.verify(request(seed=2))
        self.verify(request(at_ms=1))
        self.assertEqual(self.verify(request()), session())

    def test_revoked_with_wrong_signature(self) -> None:
        """A revocation found by the last look counts, and Redis going away in it is said."""
        self.assertEqual(self.verify(request()), session())
        self.put(session(revoked=True))
        self.assertIs(self.verify(request("request-2", seed=2)), REVOKED)
        self.setUp()
        self.assertEqual(self.verify(request()), session())
        self.link.down = Unavailable("away")
        self.assertIs(self.verify(request("request-2", seed=2)), UNAVAILABLE_NOW)


class SignedMembers(World):
    """Each member under the signature."""

    def test_mutations(self) -> None:
        """A signed request with any member changed after signing does not pass."""
        good = request()
        changed: dict[str, Any] = {
            "protocol_version": "v3",
            "device_session_id": "device-session-2",
            "message_type": "user.commands",
            "timestamp_ms": NOW_MS + 1,
            "request_id": "request-2",
            "payload": b"payloae",
            "payload_hash": bytes(32),
            "signature": good.signature[:-1] + bytes([good.signature[-1] ^ 1]),
        }
        self.put(session("device-session-2", seed=2))
        for name, value in changed.items():
            self.assertIsInstance(self.verify(replace(good, **{name: value})), Ending, name)
        self.assertEqual(self.verify(replace(good, trace_id="another")), session())

    def test_another_sessions_key(self) -> None:
        """A key of another session, of the same user too, signs nothing for this one."""
        self.put(session("device-session-2", seed=2))
        self.assertIs(self.verify(request(seed=2)), AUTHENTICATION_FAILED)
        envelope = request(device_session_id="device-session-2", seed=2)
        self.assertEqual(self.verify(envelope), session("device-session-2", seed=2))

    def test_small_order_key(self) -> None:
        """A session with a key under which anybody can sign is none."""
        weak = Session(SESSION, "user-1", b"\1" + bytes(31))
        self.put(weak)
        forged = replace(request(), signature=weak.client_public_key + bytes(32))
        self.assertIs(self.verify(forged), SESSION_MALFORMED)


class ReplayTests(World):
    """Each id passes once."""

    def key(self, request_id: str = "request-1") -> str:
        return f"gateway:replay:{base64url(SESSION.encode())}:{base64url(request_id.encode())}"

    def test_once(self) -> None:
        """The same id passes once, with whatever payload, and the refusals are counted."""
        self.assertEqual(self.verify(request()), session())
        self.assertIs(self.verify(request()), REPLAYED)
        self.assertIs(self.verify(request(payload=b"another")), REPLAYED)
        self.assertEqual(self.verify(request("request-2")), session())
        self.assertEqual(self.count("edge_replay_rejected_total"), 2)

    def test_per_session(self) -> None:
        """Two sessions may use one id; no id of one looks like one of the other."""
        for name, seed in (("a", 2), ("a:b", 3)):
            self.put(session(name, seed=seed))
        self.assertIsInstance(self.verify(request("b:c", device_session_id="a", seed=2)), Session)
        self.assertIsInstance(self.verify(request("c", device_session_id="a:b", seed=3)), Session)

    def test_lifetime(self) -> None:
        """An id is reserved until its time plus the window, and for a second at least."""
        for number, (age_ms, lifetime_ms) in enumerate(
            ((0, 300_000), (299_000, 1000), (299_500, 1000), (300_000, 1000), (-300_000, 600_000), (1, 299_999))
        ):
            self.verify(request(str(number), at_ms=NOW_MS - age_ms))
            self.assertEqual(self.store.lifetimes_ms[self.key(str(number))], lifetime_ms, age_ms)

    def test_redis_slow(self) -> None:
        """Without a reply in time the request does not pass, and nothing waits for it any more."""
        self.verify(request("warm"))
        self.link.held = True
        waiting = self.begin(request())
        self.clock.advance(0.24)
        self.assertNoResult(waiting)
        self.clock.advance(0.02)
        self.assertIs(self.successResultOf(waiting), UNAVAILABLE_NOW)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_revoked_meanwhile(self) -> None:
        """A session that is revoked while Redis is asked does not pass."""
        self.verify(request("warm"))
        self.link.held = True
        waiting = self.begin(request())
        self.cache.apply([session(revoked=True)])
        self.link.answer(0)
        self.assertIs(self.successResultOf(waiting), REVOKED)

    def test_client_gone(self) -> None:
        """A request that is given up leaves no timer and no question behind."""
        self.link.held = True
        for _ in range(2):
            waiting = self.begin(request())
            waiting.addErrback(lambda _: None)
            waiting.cancel()
        self.link.answer(0)
        waiting = self.begin(request())
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LimitTests(World):
    """The limits of a session, a user and a message type."""

    def use(self, **limits: Limit) -> None:
        self.limits.use(**{"session": PLENTY, "user": PLENTY, "message_type": PLENTY, **limits})

    def one_of(self, number: int, name: str = SESSION, seed: int = 1, kind: str = "user.command") -> Session | Ending:
        return self.verify(request(f"request-{number}", device_session_id=name, seed=seed, message_type=kind))

    def test_whose(self) -> None:
        """Each limit counts what it is named after."""
        self.put(session("second", seed=2))
        self.put(session("third", user="user-2", seed=3))
        one = Limit(0.001, 1.0)
        for limit, names in (
            ("session", {("second", 2, "user.command"), ("third", 3, "user.command")}),
            ("user", {("third", 3, "user.command")}),
            ("message_type", {(SESSION, 1, "another")}),
        ):
            self.limits = Limits(session=PLENTY, user=PLENTY, message_type=PLENTY, group=str)
            self.verification._limits = self.limits
            self.use(**{limit: one})
            self.assertIsInstance(self.one_of(1), Session)
            for number, (name, seed, kind) in enumerate(
                [
                    (SESSION, 1, "user.command"),
                    ("second", 2, "user.command"),
                    ("third", 3, "user.command"),
                    (SESSION, 1, "another"),
                ]
            ):
                answer = self.one_of(10 + number, name, seed, kind)
                self.assertEqual(isinstance(answer, Session), (name, seed, kind) in names, (limit, name, kind))
            self.store.values = {key: value for key, value in self.store.values.items() if ":session:" in key}

    def test_wait(self) -> None:
        """The answer says how long to wait, and after that the next one passes."""
        self.use(session=Limit(2.0, 1.0))
        self.assertEqual(self.one_of(1), session())
        refused = self.one_of(2)
        assert isinstance(refused, Ending)
        self.assertEqual(refused, replace(LIMITED, retry_after_ms=500))
        self.clock.advance(0.5)
        self.assertEqual(self.one_of(3), session())

    def test_id_is_used_up(self) -> None:
        """A limited request has used up its id: the retry needs another."""
        self.use(session=Limit(1.0, 1.0))
        self.one_of(1)
        self.one_of(2)
        self.clock.advance(2.0)
        self.assertIs(self.one_of(2), REPLAYED)
        self.assertEqual(self.one_of(3), session())

    def test_group(self) -> None:
        """What shares a route shares its bucket."""
        limits = Limits(session=PLENTY, user=PLENTY, message_type=Limit(0.1, 1.0), group=lambda name: name[:1])
        self.assertIsNone(limits.take(session(), "a.one", self.now()))
        self.assertIsNotNone(limits.take(session(), "a.two", self.now()))
        self.assertIsNone(limits.take(session(), "b", self.now()))

    def test_bound(self) -> None:
        """Past the bound new names share one bucket; once others stand unused, their place is taken."""
        limits = Limits(session=PLENTY, user=Limit(1.0, 1.0), message_type=PLENTY, group=str, bound=2)
        for user in ("a", "b", "c"):
            self.assertIsNone(limits.take(session(user=user), "x", self.now()))
        self.assertIsNotNone(limits.take(session(user="d"), "x", self.now()))
        self.clock.advance(2.0)
        for user in ("d", "e"):
            self.assertIsNone(limits.take(session(user=user), "x", self.now()))
