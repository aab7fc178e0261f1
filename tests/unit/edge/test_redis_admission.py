"""Admission on Redis: what several hosts know together, and what each decides alone while Redis does not answer."""

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Unavailable
from gatewayd.ingress.admission import (
    Accepted,
    Admitted,
    Cancelled,
    Claim,
    Conflict,
    Duplicate,
    Fresh,
    Limit,
    Limited,
    Replayed,
    Taken,
)
from gatewayd.stores.fallback import BATCH, PAUSE_S, RETRY_S
from gatewayd.stores.redis import RedisAdmission
from gatewayd.stores.redisfacts import LEASE_MS
from tests.contracts.admission import IDENTITY_S, NONCE_S, REFUSED, claim
from tests.fakes.redis_link import AgeingClock, SynchronousLink
from tests.stores import on_redis
from tests.valkey import Client, ValkeyServer

pytest_plugins = ("tests.valkey",)


class SilentLink:
    """A link whose calls are answered when a test says so."""

    connected = True

    def __init__(self) -> None:
        self.calls: list[Deferred[Any]] = []
        self.scripts: list[str] = []

    def watch(self, told: Any) -> None:
        """Nothing changes here."""

    def call(self, *arguments: Any) -> Deferred[Any]:
        """See RedisLink.call."""
        self.calls.append(Deferred())
        return self.calls[-1]

    def run(self, script: Any, keys: Any = (), arguments: Any = ()) -> Deferred[Any]:
        """See RedisLink.run."""
        self.scripts.append(script.name)
        return self.call()


class HostsCase(SynchronousTestCase):
    """Two hosts on one server, each with a link of its own."""

    client: Client

    @pytest.fixture(autouse=True)
    def connect(self, valkey: ValkeyServer) -> Iterator[None]:
        """A connection for each test, to an empty server."""
        with valkey.client() as self.client:
            yield

    def setUp(self) -> None:
        self.clock = AgeingClock(self.client)
        self.alone = 0
        self.links = [SynchronousLink(self.client) for _ in range(2)]
        self.one, self.other = (on_redis(self.clock, link, unanswered=self.count_alone) for link in self.links)

    def count_alone(self) -> None:
        self.alone += 1

    def admitted(self, host: RedisAdmission, made: Claim) -> Admitted:
        return self.successResultOf(maybeDeferred(host.admit, made))

    def accept(self, host: RedisAdmission, made: Claim) -> None:
        self.assertEqual(self.admitted(host, made), Fresh())
        host.settle(made, Accepted())

    def pay(self, seconds: float = 10.0) -> None:
        """Time passes in short steps, as for a reactor."""
        for _ in range(round(seconds / PAUSE_S)):
            super(AgeingClock, self.clock).advance(PAUSE_S)


class TogetherTests(HostsCase):
    def test_one_round_trip(self) -> None:
        """A claim costs one call before it is answered, and one that is not waited for when it is settled."""
        made = claim()
        self.assertEqual(self.admitted(self.one, made), Fresh())
        self.assertEqual(self.links[0].calls, 1)
        self.one.settle(made, Accepted())
        self.assertEqual(self.links[0].calls, 2)

    def test_accepted_elsewhere(self) -> None:
        """What one host accepted is a duplicate, a replay or a conflict on the other."""
        first = claim(b'{"a":1}', key="k")
        self.accept(self.one, first)
        self.assertEqual(self.admitted(self.other, claim(b'{"a":1}', key="k")), Replayed(same=True))
        self.assertEqual(self.admitted(self.other, claim(b'{"b":1}')), Replayed(same=False))
        self.assertEqual(self.admitted(self.other, claim(b'{"a":1}', "n2", key="k")), Duplicate())
        self.assertEqual(self.admitted(self.other, claim(b'{"a":2}', "n3", key="k")), Conflict(first.identity))
        self.assertEqual((self.one.hits, self.other.hits), (0, 4))

    def test_lifetimes_are_the_first_hosts(self) -> None:
        """A host that learnt of an event from another one does not know it any longer than that."""
        self.accept(self.one, claim())
        self.clock.advance(IDENTITY_S - 10)
        self.assertEqual(self.admitted(self.other, claim(nonce="n2")), Duplicate())
        self.clock.advance(11.5)
        self.assertEqual(self.admitted(self.other, claim(nonce="n3")), Fresh())

    def test_a_nonce_under_way_elsewhere(self) -> None:
        """Another request under it is a replay; the same request is Fresh, since the stream tells them apart."""
        self.assertEqual(self.admitted(self.one, claim()), Fresh())
        self.assertEqual(self.admitted(self.other, claim(b'{"a":1}')), Replayed(same=False))
        self.assertEqual(self.admitted(self.other, claim()), Fresh())

    def test_a_host_that_died(self) -> None:
        """The nonce of a claim that nobody settled is free after the lease."""
        self.admitted(self.one, claim())
        self.clock.advance(LEASE_MS / 1000 + 0.1)
        self.assertEqual(self.admitted(self.other, claim(b'{"a":1}')), Fresh())

    def test_released_elsewhere(self) -> None:
        """The nonce of a claim that came to nothing is free for all at once."""
        for outcome in (REFUSED, Cancelled(), Taken(None)):
            made = claim()
            self.assertEqual(self.admitted(self.one, made), Fresh())
            self.one.settle(made, outcome)
            other = claim(b'{"a":1}')
            self.assertEqual(self.admitted(self.other, other), Fresh(), outcome)
            self.other.settle(other, REFUSED)

    def test_taken_elsewhere(self) -> None:
        """That a key stands for another body is known to all, and of that body nothing."""
        made, holder = claim(b'{"a":1}', key="k"), claim(b'{"a":2}', "n2", key="k")
        self.admitted(self.one, made)
        self.one.settle(made, Taken(holder.body))
        self.assertEqual(self.admitted(self.other, claim(b'{"a":1}', "n3", key="k")), Conflict(made.identity))
        self.assertEqual(self.admitted(self.other, holder), Fresh())

    def test_twins_of_a_known_event(self) -> None:
        """Twins that wait while Redis is asked each get their own answer when the event is known there."""
        self.accept(self.other, claim())
        silent = SilentLink()
        host = on_redis(self.clock, silent)
        first = host.admit(claim(nonce="n2"))
        twins = [host.admit(claim(nonce=f"n{number}")) for number in (3, 4)]
        for number, waiting in enumerate((first, *twins)):
            self.assertNoResult(waiting)
            silent.calls[number].callback(b"d")
            self.assertEqual(self.successResultOf(waiting), Duplicate())

    def test_one_rate(self) -> None:
        """Two hosts grant one source's rate between them, whichever is asked and however it was spent."""
        limit = Limit(10.0, 5.0)
        hosts = (self.one, self.other) * 5
        granted = [self.admitted(host, claim(b"%d" % n, f"n{n}", limit=limit)) for n, host in enumerate(hosts)]
        self.assertEqual(sum(isinstance(answer, Fresh) for answer in granted), 5)
        wait_s = max(answer.wait_s for answer in granted if isinstance(answer, Limited))
        self.assertLess(wait_s, 0.11)
        self.clock.advance(wait_s + 0.01)
        self.assertIsNone(self.one.take("custom", limit))
        self.assertIsInstance(self.admitted(self.other, claim(b"x", "nx", limit=limit)), Limited)

    def test_a_request_that_comes_close_to_another(self) -> None:
        """A source that keeps to its rate is not refused because two of its requests meet on the way to Redis."""
        limit = Limit(10.0, 1.0)
        self.admitted(self.one, claim(b"0", "n0", limit=limit))
        (bucket,) = self.client.call("KEYS", "*:b:custom")
        now = self.client.call("TIME")
        self.client.call("SET", bucket, int(now[0]) * 10**6 + int(now[1]) + 4000)
        self.assertEqual(self.admitted(self.other, claim(b"1", "n1", limit=limit)), Fresh())
        self.assertIsInstance(
            self.admitted(on_redis(self.clock, self.links[1]), claim(b"2", "n2", limit=limit)), Limited
        )

    def test_the_servers_clock_steps_back(self) -> None:
        """A bucket that seems to be full in an hour only is begun anew: nobody waits an hour."""
        limit = Limit(10.0, 5.0)
        self.admitted(self.one, claim(limit=limit))
        (bucket,) = self.client.call("KEYS", "*:b:custom")
        ahead = int(self.client.call("GET", bucket)) + 3600 * 10**6
        self.client.call("SET", bucket, ahead)
        self.assertEqual(self.admitted(self.other, claim(b"1", "n1", limit=limit)), Fresh())

    def test_nothing_stays_for_ever(self) -> None:
        """Every key expires, none later than an identity."""
        self.accept(self.one, claim(b'{"a":1}', key="k", signed_key=False))
        self.one.take("custom", Limit(10.0, 5.0))
        keys = self.client.call("KEYS", "*")
        self.assertEqual(len(keys), 4)
        for key in keys:
            self.assertTrue(0 < self.client.call("PTTL", key) <= IDENTITY_S * 1000, key)

    def test_another_stream(self) -> None:
        """Facts are about one stream of one creation: for the next one all is new, also after a restart."""
        self.accept(self.one, claim())
        self.other.recognise("2026-02-02T00:00:00Z")
        self.assertEqual(self.admitted(self.other, claim()), Fresh())

    def test_forget(self) -> None:
        """What one host says must be forgotten no host knows any more; what comes after is remembered."""
        self.accept(self.one, claim())
        self.one.forget()
        self.accept(self.other, claim())
        self.assertEqual(self.admitted(self.one, claim()), Replayed(same=True))


class AloneTests(HostsCase):
    def test_unknown_stream(self) -> None:
        """Before the stream is known nothing is asked of Redis: facts of which stream?"""
        link = SynchronousLink(self.client)
        host = on_redis(self.clock, link, created=None, unanswered=self.count_alone)
        self.accept(host, claim())
        self.assertEqual((link.calls, self.alone, host.alone), (0, 1, True))
        host.recognise("2026-01-01T00:00:00Z")
        self.assertFalse(host.alone)

    def test_memory_goes_on(self) -> None:
        """Without Redis a host admits by what it knows itself, counts that, and says so."""
        self.links[0].connected = False
        self.accept(self.one, claim())
        self.assertEqual(self.admitted(self.one, claim()), Replayed(same=True))
        self.assertEqual(self.admitted(self.one, claim(nonce="n2")), Duplicate())
        self.assertTrue(self.one.alone)
        self.assertEqual(self.alone, 2)

    def test_what_was_accepted_meanwhile(self) -> None:
        """Back again, Redis is told of what was accepted without it, with its real age."""
        self.links[0].connected = False
        for number in range(3 * BATCH):
            self.accept(self.one, claim(b"%d" % number, f"n{number}"))
        self.clock.advance(NONCE_S - 100)
        self.links[0].connected = True
        self.pay(1.0)
        self.assertEqual(len(self.one._arrears), 0)
        self.assertEqual(self.admitted(self.other, claim(b"0", "n0")), Replayed(same=True))
        self.assertEqual(self.admitted(self.other, claim(b"100", "m0")), Duplicate())
        self.clock.advance(101.5)
        self.assertEqual(self.admitted(self.other, claim(b"x", "n0")), Fresh())
        self.assertEqual(self.admitted(self.other, claim(b"101", "m1")), Duplicate())

    def test_catching_up_is_bounded(self) -> None:
        """Of more than is kept the oldest are dropped; those only the stream still knows."""
        host = on_redis(self.clock, self.links[0], owed_bound=10)
        self.links[0].connected = False
        for number in range(12):
            self.accept(host, claim(b"%d" % number, f"n{number}"))
        self.links[0].connected = True
        self.pay(1.0)
        self.assertEqual(self.admitted(self.other, claim(b"1", "n1")), Fresh())
        self.assertEqual(self.admitted(self.other, claim(b"2", "n2")), Replayed(same=True))

    def test_catching_up_is_interrupted(self) -> None:
        """A batch that fails is told again: later while the link stands, at its coming up when it fell."""
        silent = SilentLink()
        host = on_redis(self.clock, silent)
        for number in range(2):
            made = claim(b"%d" % number, f"n{number}")
            waiting = host.admit(made)
            silent.calls[-1].callback(b"f")
            self.assertEqual(self.successResultOf(waiting), Fresh())
            host.settle(made, Accepted())
            silent.calls[-1].errback(Unavailable("OOM"))
        silent.scripts.clear()
        self.pay(PAUSE_S * 2)
        self.assertEqual(silent.scripts, ["admission_accept"] * 2)
        for call in silent.calls[-2:]:
            call.errback(Unavailable("OOM"))
        self.pay(RETRY_S / 2)
        self.assertEqual(len(silent.scripts), 2)
        self.pay(RETRY_S)
        self.assertEqual(len(silent.scripts), 4)
        for call in silent.calls[-2:]:
            call.callback(1)
        self.pay(RETRY_S * 2)
        self.assertEqual((len(silent.scripts), len(host._arrears)), (4, 0))

    def test_another_stream_meanwhile(self) -> None:
        """What is owed about a stream is not told of the next one, also when its telling fails later."""
        silent = SilentLink()
        host = on_redis(self.clock, silent)
        made = claim()
        waiting = host.admit(made)
        silent.calls[-1].callback(b"f")
        self.assertEqual(self.successResultOf(waiting), Fresh())
        host.settle(made, Accepted())
        silent.calls[-1].errback(Unavailable("lost"))
        self.pay(PAUSE_S * 2)
        self.assertEqual(silent.scripts, ["admission_admit"] + ["admission_accept"] * 2)
        host.recognise("2026-02-02T00:00:00Z")
        silent.calls[-1].errback(Unavailable("lost"))
        self.assertEqual(len(host._arrears), 0)
        host.settle(*self.granted(host, silent))
        host.recognise("2026-03-03T00:00:00Z")
        silent.calls[-1].errback(Unavailable("lost"))
        self.assertEqual(len(host._arrears), 0)

    def granted(self, host: RedisAdmission, silent: SilentLink) -> tuple[Claim, Accepted]:
        """A claim that was admitted, and its outcome."""
        made = claim(b'{"b":1}', "another")
        waiting = host.admit(made)
        silent.calls[-1].callback(b"f")
        self.assertEqual(self.successResultOf(waiting), Fresh())
        return made, Accepted()

    def test_no_doubled_rate(self) -> None:
        """Neither going nor coming back gives a host a second burst."""
        limit = Limit(1.0, 5.0)
        answers = []
        for number in range(12):
            self.links[0].connected = number % 2 == 0
            answers.append(self.admitted(self.one, claim(b"%d" % number, f"n{number}", limit=limit)))
        self.assertEqual(sum(isinstance(answer, Fresh) for answer in answers), 5)

    def test_a_failing_server(self) -> None:
        """Errors of the server, and foreign data under our keys, leave a claim to memory; no failure comes out."""
        self.client.call("CONFIG", "SET", "maxmemory", "1")
        try:
            self.accept(self.one, claim())
            self.assertTrue(self.one.alone)
        finally:
            self.client.call("CONFIG", "SET", "maxmemory", "0")
        made = claim(b'{"a":1}', "n1")
        scope = self.one._facts._scope
        self.client.call("RPUSH", f"{scope}:n:{made.nonce.hex()}", "foreign")
        self.accept(self.one, made)
        self.assertEqual(self.admitted(self.one, claim(b'{"a":1}', "n2")), Duplicate())
        self.assertEqual(self.alone, 2)

    def test_the_server_lost_everything(self) -> None:
        """After FLUSHALL a host still knows its own events, and tells them anew when they come again."""
        self.accept(self.one, claim())
        self.client.call("FLUSHALL")
        self.assertEqual(self.admitted(self.one, claim(nonce="n2")), Duplicate())
        self.assertEqual(self.admitted(self.other, claim(nonce="n3")), Duplicate())

    def test_forget_without_redis(self) -> None:
        """What must be forgotten while Redis is away is not believed when it is back, until that has been said."""
        self.accept(self.one, claim())
        self.links[0].connected = False
        self.one.forget()
        self.assertEqual(self.admitted(self.other, claim()), Replayed(same=True))
        self.links[0].connected = True
        self.assertEqual(self.admitted(self.one, claim()), Fresh())
        self.assertEqual(self.admitted(self.other, claim(nonce="n2", source="test")), Fresh())

    def test_forget_that_fails(self) -> None:
        """Until it has been said that all must be forgotten each claim tries to say it, and memory decides."""
        silent = SilentLink()
        host = on_redis(self.clock, silent)
        host.forget()
        self.accept(host, claim())
        self.assertEqual((len(silent.calls), silent.scripts), (1, []))
        silent.calls[-1].errback(Unavailable("OOM"))
        self.accept(host, claim(b'{"a":1}', "n1"))
        self.assertEqual((len(silent.calls), silent.scripts, host.alone), (2, [], True))
        silent.calls[-1].callback(b"OK")
        host.admit(claim(b'{"a":2}', "n2"))
        self.assertEqual(silent.scripts, ["admission_admit"])

    def test_cancelled_while_redis_is_asked(self) -> None:
        """A client that goes away while Redis is asked leaves no claim behind, here or there."""
        silent = SilentLink()
        host = on_redis(self.clock, silent)
        first, twin = host.admit(claim()), host.admit(claim(nonce="n2"))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(silent.scripts.count("admission_release"), 1)
        asked = silent.scripts.count("admission_admit")
        self.assertEqual(asked, 2, "the twin asks in its turn")
        silent.calls[silent.scripts.index("admission_release") - 1].callback(b"f")
        self.assertEqual(self.successResultOf(twin), Fresh())
