"""
What all hosts know together of claims, in Redis: one script, one round trip for each operation.

Decides the names of keys and what stands in them. Never decides what is done when Redis does not answer: every
Deferred may fail with Unavailable or RedisRefused.

Keys are scoped by the stream and its creation time, so that facts of one stream say nothing of another of its name,
and by a generation that forget() renews. Under the scope stand: a bucket for each source (the time at which it will
be full again, on the server's clock), nonces (`u` used or `h` held, and whose: a fingerprint), identities (`a`
accepted or `t` taken, and by which fingerprint) and second keys (the identity that holds them). All expire by
themselves. A claim under way holds its nonce only, for LEASE_MS: to a host that holds another request under it that is
a replay at once, while the same request on two hosts at a time is Fresh on both, since the stream tells them apart by
their message id, and a host that died must not keep its request from being sent again.
"""

from typing import Any, Final, Protocol
from uuid import uuid4

from twisted.internet.defer import Deferred

from gatewayd.ingress.admission import Admitted, Claim, Conflict, Duplicate, Fresh, Limit, Limited, Replayed, digest
from gatewayd.stores.script import Script

LEASE_MS: Final = 5000
"""Twice the time within which every webhook is answered."""

_PREFIX: Final = "gatewayd"
_FRESH: Final = Fresh()
_DUPLICATE: Final = Duplicate()


class Scripts(Protocol):
    """What runs scripts: a RedisLink."""

    def call(self, *arguments: bytes | str | int) -> Deferred[Any]:
        """See RedisLink.call."""

    def run(
        self, script: Script, keys: "tuple[bytes | str, ...]", arguments: "tuple[bytes | str | int, ...]"
    ) -> Deferred[Any]:
        """See RedisLink.run."""


class RedisFacts:
    """The operations. Nothing may be asked before recognise() has said of which stream."""

    def __init__(self, link: Scripts, *, nonce_lifetime_s: float, identity_lifetime_s: float) -> None:
        self._link = link
        self._nonce_ms = round(nonce_lifetime_s * 1000)
        self._identity_ms = round(identity_lifetime_s * 1000)
        self._admit = Script.of("admission_admit")
        self._accept = Script.of("admission_accept")
        self._release = Script.of("admission_release")
        self._charge = Script.of("admission_charge")
        self._scope = ""
        self._generation = ""

    @property
    def known(self) -> bool:
        """True when the stream is known that facts are about."""
        return self._scope != ""

    def recognise(self, stream: str, created: str) -> None:
        """The stream's name and when it was created, as its server writes it."""
        scope = digest(stream.encode(), created.encode()).hex()[:16]
        self._scope = f"{_PREFIX}:{scope}"
        self._generation = f"{self._scope}:g"

    def ask(self, claim: Claim) -> Deferred[Admitted]:
        """What every host knows of the claim; Fresh: its nonce is held for it now."""
        interval, burst = _bucket(claim.limit)
        keys = (self._generation, f"{self._scope}:b:{claim.source}", *self._keys(claim))
        arguments = (interval, burst, claim.fingerprint, claim.identity, LEASE_MS, self._nonce_ms, self._identity_ms)
        return self._link.run(self._admit, keys, arguments).addCallback(_read, claim.limit)

    def accept(self, claim: Claim, age_s: float = 0.0) -> Deferred[Any]:
        """The claim's event went into the stream `age_s` seconds ago."""
        age_ms = round(age_s * 1000)
        left = max(0, self._nonce_ms - age_ms), max(0, self._identity_ms - age_ms)
        keys = (self._generation, *self._keys(claim))
        return self._link.run(self._accept, keys, (claim.fingerprint, claim.identity, *left))

    def release(self, claim: Claim, holder: bytes | None) -> Deferred[Any]:
        """A Fresh claim came to nothing; `holder` is the fingerprint that was found to have its identity."""
        nonce, identity, *_ = self._keys(claim)
        arguments = (claim.fingerprint, holder or b"", self._identity_ms)
        return self._link.run(self._release, (self._generation, nonce, identity), arguments)

    def charge(self, source: str, limit: Limit) -> Deferred[Any]:
        """Take a token for a request that was answered without asking."""
        return self._link.run(self._charge, (f"{self._scope}:b:{source}",), _bucket(limit))

    def forget(self) -> Deferred[Any]:
        """Make everything that was remembered until now unknown, to every host."""
        lifetime_ms = 2 * max(self._identity_ms, self._nonce_ms)
        return self._link.call("SET", self._generation, uuid4().hex[:8], "PX", lifetime_ms)

    def _keys(self, claim: Claim) -> tuple[str, ...]:
        scope = self._scope
        nonce, identity = f"{scope}:n:{claim.nonce.hex()}", f"{scope}:i:{claim.identity.hex()}"
        return (nonce, identity) if claim.key is None else (nonce, identity, f"{scope}:k:{claim.key.hex()}")


def _bucket(limit: Limit) -> tuple[str, str]:
    return f"{1e6 / limit.rps:.3f}", f"{limit.burst:.3f}"


def _read(reply: bytes, limit: Limit) -> Admitted:
    """The script's answer. Of the rate of all hosts only that it is above the limit is known."""
    kind = reply[:1]
    if kind == b"f":
        return _FRESH
    if kind == b"d":
        return _DUPLICATE
    if kind == b"l":
        return Limited(limit.rps, limit.rps, int(reply[1:]) / 1e6)
    if kind == b"c":
        return Conflict(reply[1:])
    return Replayed(same=kind == b"s")
