"""
IAdmission in dictionaries: what this process remembers.

Decides nothing that ingress.admission does not say; keeps it in bounds. Never does I/O: every answer is there at
once, or comes from a twin that is under way.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from zope.interface import implementer

from gatewayd.ingress.admission import (
    Accepted,
    Admitted,
    Bucket,
    Claim,
    Conflict,
    Duplicate,
    Failed,
    Fresh,
    Limit,
    Limited,
    Outcome,
    Replayed,
    Taken,
    fingerprint,
)
from gatewayd.interfaces import IAdmission
from gatewayd.times import Monotonic

_FRESH: Final = Fresh()
_DUPLICATE: Final = Duplicate()
_ENTRIES_OF_A_CLAIM: Final = 3


class Expiring:
    """
    Keys with one value each and one common lifetime, in the order of their time.

    `values` is to be read only. Entries are added once and never changed, so that a bucket a second holds the keys that
    expire together: 8 bytes a key, no scan, no timer (a heap or a dictionary of expiry times costs 80 and more).
    """

    __slots__ = ("_buckets", "_lifetime_s", "values")

    def __init__(self, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self.values: dict[bytes, bytes] = {}
        self._buckets: deque[tuple[int, list[bytes]]] = deque()

    def get(self, key: bytes, now: Monotonic) -> bytes | None:
        """The value, when it is there and has not expired."""
        if self._buckets and self._buckets[0][0] <= now:
            self.expire(now)
        return self.values.get(key)

    def add(self, key: bytes, value: bytes, now: Monotonic, age_s: float = 0.0) -> None:
        """Remember the value for the lifetime less `age_s`; a key that is there already keeps its value and time."""
        if key in self.values:
            return
        expires = int(now + self._lifetime_s - age_s) + 1
        if expires <= now:
            return
        if not self._buckets or self._buckets[-1][0] < expires:
            self._buckets.append((expires, []))
        # An entry that is older than the youngest bucket (filled in at start) may live up to that bucket's end.
        self.values[key] = value
        self._buckets[-1][1].append(key)

    def expire(self, now: Monotonic) -> None:
        """Forget what has expired."""
        while self._buckets and self._buckets[0][0] <= now:
            for key in self._buckets.popleft()[1]:
                del self.values[key]

    def evict(self) -> bool:
        """Forget the oldest entry; False when there is none."""
        while self._buckets:
            keys = self._buckets[0][1]
            if keys:
                del self.values[keys.pop()]
                return True
            self._buckets.popleft()
        return False

    def clear(self) -> int:
        """Forget everything; how many entries that were."""
        count = len(self.values)
        self.values.clear()
        self._buckets.clear()
        return count


class _Flight:
    """A Fresh claim under way, and the twins that wait for it, in the order they came (None while there are none)."""

    __slots__ = ("claim", "twins")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.twins: deque[_Twin] | None = None  # an empty deque is 600 bytes, and few claims have twins


class _Twin:
    """A claim that waits for the flight it is queued behind."""

    __slots__ = ("claim", "flight", "waiting")

    def __init__(self, claim: Claim, leave: Callable[["_Twin"], None]) -> None:
        self.claim = claim
        self.flight: _Flight | None = None
        self.waiting: Deferred[Admitted] = Deferred(lambda _: leave(self))


@implementer(IAdmission)
class MemoryAdmission:
    """
    The default store: this process only, lost with it (the stream is asked again then).

    `entries_bound` bounds nonces, identities and keys together; at the bound the oldest entry of the largest table goes
    (`evictions`). Requests under way and their twins are bounded by the channel's connections: one each.
    """

    def __init__(
        self, now: Callable[[], Monotonic], *, nonce_lifetime_s: float, identity_lifetime_s: float, entries_bound: int
    ) -> None:
        self._now = now
        self._bound = entries_bound
        self._nonces = Expiring(nonce_lifetime_s)  # nonce -> fingerprint of the request
        self._identities = Expiring(identity_lifetime_s)  # identity -> fingerprint of its request
        self._taken = Expiring(identity_lifetime_s)  # identity -> fingerprint that holds it, perhaps with half its pair
        self._keys = Expiring(identity_lifetime_s)  # second claims: key -> identity of the event that holds it
        self._tables = (self._nonces, self._identities, self._taken, self._keys)
        self._buckets: dict[str, Bucket] = {}  # by source: configured names only
        self._flights: dict[bytes, _Flight] = {}  # by identity, and by second key, of the claim under way
        self._flying: dict[bytes, tuple[bytes, int]] = {}  # nonce -> fingerprint, and how many claims hold or wait
        self.evictions = 0
        self.hits = 0

    def take(self, source: str, limit: Limit) -> Limited | None:
        """See IAdmission."""
        return self._take(source, limit, self._now())

    def _take(self, source: str, limit: Limit, now: Monotonic) -> Limited | None:
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = Bucket()
        return bucket.take(limit, now)

    def admit(self, claim: Claim) -> Admitted | Deferred[Admitted]:
        """See IAdmission."""
        now = self._now()
        limited = self._take(claim.source, claim.limit, now)
        if limited is not None:
            return limited
        decided = self._decide(claim, now)
        if isinstance(decided, _Flight):
            twin = _Twin(claim, self._leave)
            self._queue(twin, decided)
            return twin.waiting
        if decided is _FRESH:
            self._hold(claim)
        return decided

    def _decide(self, claim: Claim, now: Monotonic) -> Admitted | _Flight:
        """Everything of admit() after the token: an answer, or the flight to wait for. Changes nothing but memory."""
        used_by = self._nonces.get(claim.nonce, now)
        if used_by is not None:
            return Replayed(same=used_by == claim.fingerprint)
        flying = self._flying.get(claim.nonce)
        if flying is not None and flying[0] != claim.fingerprint:
            return Replayed(same=False)
        held = self._held(claim, now)
        if held is not None:
            return held
        flight = self._flights.get(claim.identity)
        if flight is None and claim.key is not None:
            flight = self._flights.get(claim.key)
        return _FRESH if flight is None else flight

    def _held(self, claim: Claim, now: Monotonic) -> Admitted | None:
        """What is remembered of the claim's key and identity."""
        if claim.key is not None:
            holder = self._keys.get(claim.key, now)
            if holder is not None and holder != claim.identity:
                self.hits += 1
                return Conflict(holder)
        known = self._identities.get(claim.identity, now)
        holder = known or self._taken.get(claim.identity, now)
        if holder is None or (known is None and holder == claim.fingerprint):
            return None  # of what is taken only this is known: it stands for no other body
        self.hits += 1
        if holder != claim.fingerprint:
            return Conflict(claim.identity)
        self._accept(claim, now)
        return _DUPLICATE

    def _hold(self, claim: Claim) -> None:
        flight = _Flight(claim)
        self._flights[claim.identity] = flight
        if claim.key is not None:
            self._flights[claim.key] = flight
        self._hold_nonce(claim)

    def _queue(self, twin: _Twin, flight: _Flight) -> None:
        twin.flight = flight
        if flight.twins is None:
            flight.twins = deque()
        flight.twins.append(twin)
        self._hold_nonce(twin.claim)

    def _leave(self, twin: _Twin) -> None:
        """A waiting twin's client went away."""
        if twin.flight is not None and twin.flight.twins is not None:
            twin.flight.twins.remove(twin)
            self._release_nonce(twin.claim)

    def _hold_nonce(self, claim: Claim) -> None:
        holders = self._flying.get(claim.nonce)
        self._flying[claim.nonce] = (claim.fingerprint, 1 if holders is None else holders[1] + 1)

    def _release_nonce(self, claim: Claim) -> None:
        own, count = self._flying[claim.nonce]
        if count == 1:
            del self._flying[claim.nonce]
        else:
            self._flying[claim.nonce] = (own, count - 1)

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """See IAdmission."""
        flight = self._flights.pop(claim.identity)
        if claim.key is not None:
            del self._flights[claim.key]
        self._release_nonce(claim)
        now = self._now()
        if isinstance(outcome, Accepted):
            self._accept(claim, now)
        elif isinstance(outcome, Taken) and outcome.body is not None:
            self._make_room()
            self._taken.add(claim.identity, fingerprint(claim.kind, claim.identity, outcome.body), now)
        while flight.twins:
            twin = flight.twins.popleft()
            twin.flight = None
            self._release_nonce(twin.claim)
            self._answer_twin(claim, outcome, twin, now)

    def _answer_twin(self, first: Claim, outcome: Outcome, twin: _Twin, now: Monotonic) -> None:
        """
        A twin of the same body shares the first's answer. Every other twin enters anew: it finds what was remembered,
        or waits behind the twin that has just become the first, or becomes it.
        """
        if twin.claim.fingerprint == first.fingerprint:
            if isinstance(outcome, Failed):
                twin.waiting.callback(outcome)
                return
            if isinstance(outcome, Accepted):
                # Without a look at the nonce: the same request, sent twice, shares one nonce and one outcome.
                self._accept(twin.claim, now)
                twin.waiting.callback(_DUPLICATE)
                return
        decided = self._decide(twin.claim, now)
        if isinstance(decided, _Flight):
            self._queue(twin, decided)
            return
        if decided is _FRESH:
            self._hold(twin.claim)
        twin.waiting.callback(decided)

    def _accept(self, claim: Claim, now: Monotonic) -> None:
        self._make_room()
        self._identities.add(claim.identity, claim.fingerprint, now)
        self._nonces.add(claim.nonce, claim.fingerprint, now)
        if claim.key is not None:
            self._keys.add(claim.key, claim.identity, now)

    def _make_room(self) -> None:
        """Evict until one claim's three entries fit the bound."""
        while self.entries() > self._bound - _ENTRIES_OF_A_CLAIM:
            max(self._tables, key=_size).evict()
            self.evictions += 1

    def remember_nonce(self, nonce: bytes, used_by: bytes, age_s: float) -> None:
        """See IAdmission."""
        self._make_room()
        self._nonces.add(nonce, used_by, self._now(), age_s)

    def forget(self) -> int:
        """See IAdmission."""
        return sum(table.clear() for table in self._tables)

    def entries(self) -> int:
        """See IAdmission."""
        nonces, identities = self._nonces.values, self._identities.values
        return len(nonces) + len(identities) + len(self._taken.values) + len(self._keys.values)


def _size(table: Expiring) -> int:
    return len(table.values)
