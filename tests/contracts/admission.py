"""
The contract of IAdmission, as a suite. An implementation's test case mixes it in and says how to make a store.

`make` is given the monotonic clock; lifetimes are NONCE_S for nonces and IDENTITY_S for identities and keys.
"""

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from gatewayd.errors import Refused
from gatewayd.ingress.admission import (
    Accepted,
    Admitted,
    Cancelled,
    Claim,
    Conflict,
    Duplicate,
    Failed,
    Fresh,
    Kind,
    Limit,
    Limited,
    Replayed,
    Taken,
    digest,
    fingerprint,
    identity,
)
from gatewayd.interfaces import IAdmission

NONCE_S = 660
IDENTITY_S = 3600
PLENTY = Limit(1000.0, 1000.0)
REFUSED = Failed(Refused("GW-005"))


def claim(
    body: bytes = b"{}",
    nonce: str = "nonce-one",
    *,
    key: str | None = None,
    signed_key: bool = True,
    source: str = "custom",
    limit: Limit = PLENTY,
) -> Claim:
    """The claim that a request of this body, nonce and key makes; `signed_key` false as under sha256=."""
    name = source.encode()
    kind = Kind.KEY if key is not None and signed_key else Kind.BODY
    who = identity(name, kind, body if kind is Kind.BODY else str(key).encode())
    return Claim(
        source=source,
        kind=kind,
        identity=who,
        body=digest(body),
        fingerprint=fingerprint(kind, who, digest(body)),
        nonce=digest(name, nonce.encode()),
        key=digest(name, b"claim", key.encode()) if key is not None and not signed_key else None,
        limit=limit,
    )


class RememberedContract:
    """What every IAdmission promises of what it remembers, also where several hosts share it."""

    clock: Clock
    slack_s = 0.0
    """How much later than it says there may be a token, where two clocks count."""
    early_s = 0.5
    """How long before its end a lifetime is tried: more than a test may take where time goes on meanwhile."""

    def make_clock(self) -> Clock:
        """The clock that the store's lifetimes are on."""
        return Clock()

    def make(self, clock: Clock, entries_bound: int = 1000) -> Any:
        """A new, empty store on this clock."""
        raise AssertionError("an implementation says how")

    def setUp(self) -> None:
        self.clock = self.make_clock()
        self.clock.advance(1000)
        self.store = self.make(self.clock)

    def admitted(self, made: Claim) -> Admitted:
        """The answer to a claim that must not have to wait."""
        return self.successResultOf(maybeDeferred(self.store.admit, made))  # type: ignore[attr-defined,no-any-return]

    def accept(self, made: Claim) -> None:
        assert isinstance(self.admitted(made), Fresh)
        self.store.settle(made, Accepted())

    def test_provides_the_interface(self) -> None:
        """The store has every method of IAdmission, with its arguments."""
        assert verifyObject(IAdmission, self.store)

    def test_first_is_fresh(self) -> None:
        """A claim nobody has made is Fresh."""
        assert self.admitted(claim()) == Fresh()

    def test_accepted_body_is_a_duplicate_under_a_new_nonce(self) -> None:
        """The same body again, with a fresh nonce, is a Duplicate."""
        self.accept(claim())
        assert self.admitted(claim(nonce="nonce-two")) == Duplicate()

    def test_accepted_request_again_is_replayed(self) -> None:
        """The identical request after it was accepted is Replayed, by itself."""
        self.accept(claim())
        assert self.admitted(claim()) == Replayed(same=True)

    def test_nonce_of_another_request_is_replayed(self) -> None:
        """A nonce belongs to the request that used it."""
        self.accept(claim())
        assert self.admitted(claim(b'{"a":1}')) == Replayed(same=False)

    def test_nonce_is_per_source(self) -> None:
        """Two sources may use the same nonce."""
        self.accept(claim())
        assert self.admitted(claim(b'{"a":1}', source="test")) == Fresh()

    def test_duplicate_keeps_its_nonce(self) -> None:
        """A duplicate's nonce is used: the identical request again is Replayed."""
        self.accept(claim())
        assert self.admitted(claim(nonce="nonce-two")) == Duplicate()
        assert self.admitted(claim(nonce="nonce-two")) == Replayed(same=True)

    def test_same_key_other_body_conflicts(self) -> None:
        """A signed key stands for one body; the conflict names its event."""
        first = claim(b'{"a":1}', key="order-17")
        self.accept(first)
        assert self.admitted(claim(b'{"a":2}', "nonce-two", key="order-17")) == Conflict(first.identity)

    def test_same_key_same_body_is_a_duplicate(self) -> None:
        """A signed key with its own body is a Duplicate."""
        self.accept(claim(b'{"a":1}', key="order-17"))
        assert self.admitted(claim(b'{"a":1}', "nonce-two", key="order-17")) == Duplicate()

    def test_same_nonce_and_key_other_body_is_another_request(self) -> None:
        """Nonce and key alone do not make it the same request."""
        self.accept(claim(b'{"a":1}', key="order-17"))
        assert self.admitted(claim(b'{"a":2}', key="order-17")) == Replayed(same=False)

    def test_unsigned_key_is_a_second_claim(self) -> None:
        """An unsigned key guards against another body under it; the body stays the identity."""
        first = claim(b'{"a":1}', key="order-17", signed_key=False)
        self.accept(first)
        other = claim(b'{"a":2}', "nonce-two", key="order-17", signed_key=False)
        assert self.admitted(other) == Conflict(first.identity)
        same = claim(b'{"a":1}', "nonce-three", key="order-18", signed_key=False)
        assert self.admitted(same) == Duplicate()

    def test_failed_claim_is_released(self) -> None:
        """After a failure the identical request is Fresh again."""
        first = claim(key="order-17", signed_key=False)
        assert self.admitted(first) == Fresh()
        self.store.settle(first, REFUSED)
        assert self.admitted(claim(key="order-17", signed_key=False)) == Fresh()

    def test_taken_identity_conflicts_from_memory(self) -> None:
        """
        Once the stream said that a key stands for another body, the store knows it of every other body. Of the body
        that holds the key it knows nothing: its pair may be half stored, so the stream is asked.
        """
        first = claim(b'{"a":1}', key="order-17")
        assert self.admitted(first) == Fresh()
        self.store.settle(first, Taken(digest(b'{"a":2}')))
        again = self.admitted(claim(b'{"a":1}', "nonce-two", key="order-17"))
        assert again == Conflict(first.identity)
        holder = claim(b'{"a":2}', "nonce-three", key="order-17")
        assert self.admitted(holder) == Fresh()
        self.store.settle(holder, Accepted())
        assert self.admitted(claim(b'{"a":2}', "nonce-four", key="order-17")) == Duplicate()

    def test_limit_comes_first_and_costs_nothing_else(self) -> None:
        """Above the limit nothing but the token is looked at: the refused request's nonce stays free."""
        one = Limit(1.0, 1.0)
        self.accept(claim(limit=one))
        limited = self.admitted(claim(b'{"a":1}', "nonce-two", limit=one))
        assert isinstance(limited, Limited)
        assert 0 < limited.wait_s <= 1.0
        self.clock.advance(limited.wait_s + self.slack_s)
        assert self.admitted(claim(b'{"a":1}', "nonce-two", limit=one)) == Fresh()

    def test_take_uses_the_same_bucket(self) -> None:
        """A body refused after authentication costs a token of its source."""
        one = Limit(1.0, 1.0)
        assert self.store.take("custom", one) is None
        assert isinstance(self.admitted(claim(limit=one)), Limited)

    def test_lifetimes_are_never_shorter(self) -> None:
        """A nonce is refused until its lifetime is over and free within a second after; so is an identity."""
        self.accept(claim())
        self.clock.advance(NONCE_S - self.early_s)
        assert self.admitted(claim()) == Replayed(same=True)
        self.clock.advance(self.early_s + 1.01)
        assert self.admitted(claim(nonce="nonce-two")) == Duplicate()
        self.clock.advance(IDENTITY_S - NONCE_S - self.early_s - 1.01)
        assert self.admitted(claim(nonce="nonce-three")) == Duplicate()
        self.clock.advance(self.early_s + 1.1)
        assert self.admitted(claim(nonce="nonce-four")) == Fresh()

    def test_remembered_nonces_age(self) -> None:
        """A nonce read back from the stream lives for what is left of its lifetime."""
        old = claim()
        self.store.remember_nonce(old.nonce, old.fingerprint, NONCE_S - 10)
        assert self.admitted(claim()) == Replayed(same=True)
        self.clock.advance(11.1)
        assert self.admitted(claim()) == Fresh()


class AdmissionContract(RememberedContract):
    """What every IAdmission promises besides of what is under way in its own process."""

    def waiting(self, made: Claim) -> Deferred[Admitted]:
        """The Deferred of a claim that must wait."""
        d: Deferred[Admitted] = self.store.admit(made)
        self.assertNoResult(d)  # type: ignore[attr-defined]
        return d

    def test_the_holder_of_a_taken_key_may_wait_as_a_twin(self) -> None:
        """A twin whose body turns out to hold the key becomes Fresh: the stream is asked for its pair."""
        first, holder = claim(b'{"a":1}', key="k-1"), claim(b'{"a":2}', "nonce-two", key="k-1")
        assert self.admitted(first) == Fresh()
        waiting = self.waiting(holder)
        self.store.settle(first, Taken(holder.body))
        assert self.successResultOf(waiting) == Fresh()  # type: ignore[attr-defined]

    def test_twins_share_one_outcome(self) -> None:
        """A hundred identical requests at once: one is Fresh, the others are Duplicates when it is accepted."""
        first = claim()
        assert self.admitted(first) == Fresh()
        twins = [self.waiting(claim()) for _ in range(99)]
        self.store.settle(first, Accepted())
        assert {type(self.successResultOf(twin)) for twin in twins} == {Duplicate}  # type: ignore[attr-defined]
        assert self.admitted(claim()) == Replayed(same=True)

    def test_twins_share_a_failure(self) -> None:
        """A twin of the same body gets the first one's refusal, and the next attempt is Fresh."""
        first = claim()
        assert self.admitted(first) == Fresh()
        twin = self.waiting(claim(nonce="nonce-two"))
        self.store.settle(first, REFUSED)
        assert self.successResultOf(twin) == REFUSED  # type: ignore[attr-defined]
        assert self.admitted(claim(nonce="nonce-two")) == Fresh()

    def test_twin_takes_the_place_of_a_cancelled_first(self) -> None:
        """When the first is cancelled the first twin becomes Fresh and the others wait for it."""
        first = claim()
        assert self.admitted(first) == Fresh()
        second, third = claim(nonce="nonce-two"), claim(nonce="nonce-three")
        waiting_second, waiting_third = self.waiting(second), self.waiting(third)
        self.store.settle(first, Cancelled())
        assert self.successResultOf(waiting_second) == Fresh()  # type: ignore[attr-defined]
        self.assertNoResult(waiting_third)  # type: ignore[attr-defined]
        self.store.settle(second, Accepted())
        assert self.successResultOf(waiting_third) == Duplicate()  # type: ignore[attr-defined]
        assert self.admitted(claim()) == Duplicate()

    def test_conflicting_twin_waits_for_the_verdict(self) -> None:
        """Another body under a key that is under way conflicts only when the first was stored."""
        first, other = claim(b'{"a":1}', key="k-1"), claim(b'{"a":2}', "nonce-two", key="k-1")
        assert self.admitted(first) == Fresh()
        waiting = self.waiting(other)
        self.store.settle(first, Accepted())
        assert self.successResultOf(waiting) == Conflict(first.identity)  # type: ignore[attr-defined]

    def test_conflicting_twin_becomes_fresh_when_the_first_fails(self) -> None:
        """Another body under a key whose first request failed may have the key."""
        first, other = claim(b'{"a":1}', key="k-1"), claim(b'{"a":2}', "nonce-two", key="k-1")
        assert self.admitted(first) == Fresh()
        waiting = self.waiting(other)
        self.store.settle(first, REFUSED)
        assert self.successResultOf(waiting) == Fresh()  # type: ignore[attr-defined]

    def test_nonce_in_flight_belongs_to_its_request(self) -> None:
        """Another request with a nonce that is under way is Replayed at once, also when a twin holds it."""
        first = claim()
        assert self.admitted(first) == Fresh()
        self.waiting(claim(nonce="nonce-two"))
        assert self.admitted(claim(b'{"a":1}')) == Replayed(same=False)
        assert self.admitted(claim(b'{"a":1}', "nonce-two")) == Replayed(same=False)

    def test_cancelled_twin_gives_its_place_up(self) -> None:
        """A twin whose client went away is asked nothing more, and its nonce is free."""
        first = claim()
        assert self.admitted(first) == Fresh()
        twin = self.waiting(claim(nonce="nonce-two"))
        twin.cancel()
        self.failureResultOf(twin, CancelledError)  # type: ignore[attr-defined]
        self.store.settle(first, REFUSED)
        assert self.admitted(claim(b'{"a":1}', "nonce-two")) == Fresh()

    def test_burst_then_rate(self) -> None:
        """A bucket gives its burst at once and then its rate."""
        limit = Limit(0.5, 5.0)
        assert [self.store.take("s", limit) is None for _ in range(6)] == [True] * 5 + [False]
        self.clock.advance(2.0)
        assert [self.store.take("s", limit) is None for _ in range(2)] == [True, False]
        self.clock.advance(60)
        assert [self.store.take("s", limit) is None for _ in range(6)] == [True] * 5 + [False]

    def test_forget_drops_what_is_remembered_and_keeps_what_is_under_way(self) -> None:
        """Another stream: memory is empty, requests under way are not disturbed."""
        self.accept(claim())
        flying = claim(b'{"a":1}', "nonce-two")
        assert self.admitted(flying) == Fresh()
        assert self.store.forget() == 2
        assert self.store.entries() == 0
        assert self.admitted(claim(nonce="nonce-three")) == Fresh()
        self.waiting(claim(b'{"a":1}', "nonce-four"))
        self.store.settle(flying, Accepted())


class BoundedContract(AdmissionContract):
    """What a store promises that remembers in this process only."""

    def test_bound_evicts_the_oldest(self) -> None:
        """At the bound the oldest entry goes; a lost entry only means that the stream is asked again."""
        self.store = self.make(self.clock, entries_bound=20)
        for number in range(50):
            self.accept(claim(b"%d" % number, f"nonce-{number}"))
            self.clock.advance(1.0)
        assert self.store.entries() <= 20
        assert self.admitted(claim(b"49", "nonce-49")) == Replayed(same=True)
        assert self.admitted(claim(b"0", "nonce-0")) == Fresh()

    def test_no_number_of_nonces_makes_it_forget_the_first(self) -> None:
        """Twenty thousand accepted requests later, within its time, the first one is still a replay."""
        self.store = self.make(self.clock, entries_bound=100_000)
        for number in range(20_000):
            self.accept(claim(b"%d" % number, f"nonce-{number}", limit=Limit(1e6, 1e6)))
        self.clock.advance(NONCE_S - 1)
        assert self.admitted(claim(b"0", "nonce-0", limit=Limit(1e6, 1e6))) == Replayed(same=True)
