"""
IAdmission for several hosts: this host's memory in front, and what all hosts know behind it, in Redis.

Decides what is asked of Redis, what is only told to it, and what holds when it does not answer: this host's memory,
at once. Nothing is refused for want of Redis, for the stream still decides what is a duplicate; nonces of other hosts
are not known then, and each host grants a source's whole rate. Never waits for Redis longer than the link does.

Claims under way and their twins are this process's affair: memory holds a claim while Redis is asked, and settles it
when Redis knows better. Memory keeps nothing of what other hosts accepted, whose lifetimes it does not know.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.errors import Unavailable
from gatewayd.ingress.admission import (
    Accepted,
    Admitted,
    Cancelled,
    Claim,
    Duplicate,
    Fresh,
    Limit,
    Limited,
    Outcome,
    Replayed,
    Taken,
    fingerprint,
)
from gatewayd.interfaces import IAdmission
from gatewayd.stores.fallback import Arrears
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.stores.redisfacts import RedisFacts
from gatewayd.stores.redisreplies import RedisRefused

_log = Logger()
_CANCELLED: Final = Cancelled()
_EXPECTED: Final = (Unavailable, RedisRefused)


class Link(Protocol):
    """Whether Redis answers."""

    @property
    def connected(self) -> bool:
        """True while a call would be sent."""

    def watch(self, told: Callable[[bool], object]) -> None:
        """Have `told` called whenever that changes."""


@implementer(IAdmission)
class RedisAdmission:
    """`unanswered` is called for each claim that memory decided alone although Redis is configured."""

    def __init__(
        self,
        front: MemoryAdmission,
        facts: RedisFacts,
        arrears: Arrears,
        link: Link,
        *,
        stream: str,
        unanswered: Callable[[], object],
    ) -> None:
        self._front = front
        self._facts = facts
        self._arrears = arrears
        self._link = link
        self._stream = stream
        self._unanswered = unanswered
        self._must_forget = False
        self._forgetting = False
        self._missed = False
        self._hits = 0
        link.watch(self._changed)

    @property
    def sharing(self) -> bool:
        """True while Redis is asked; False: this host's memory decides alone."""
        return self._link.connected and self._facts.known and not self._must_forget

    @property
    def alone(self) -> bool:
        """True while this host's memory decides alone, or did so for the claim that Redis was asked of last."""
        return self._missed or not self.sharing

    @property
    def hits(self) -> int:
        """Duplicates and conflicts that were known, here or there."""
        return self._front.hits + self._hits

    @property
    def evictions(self) -> int:
        """Entries that memory dropped at its bound."""
        return self._front.evictions

    def recognise(self, created: str) -> None:
        """When the stream that facts are about was created; before this is known Redis is not asked."""
        self._arrears.clear()
        self._facts.recognise(self._stream, created)
        self._changed(self._link.connected)

    def _changed(self, connected: bool) -> None:
        """The link came up or went down."""
        self._missed = self._missed and not connected
        if not connected or not self._facts.known:
            self._arrears.rest()
        elif self._must_forget:
            self._forget()
        else:
            self._arrears.pay()

    # ---- IAdmission ----

    def take(self, source: str, limit: Limit) -> Limited | None:
        """See IAdmission; of the tokens that other hosts took only admit() knows."""
        limited = self._front.take(source, limit)
        if limited is None:
            self._charge(source, limit)
        return limited

    def admit(self, claim: Claim) -> Admitted | Deferred[Admitted]:
        """See IAdmission."""
        admitted = self._front.admit(claim)
        if isinstance(admitted, Deferred):
            return admitted.addCallback(lambda told: self._admitted(told, claim, waited=True))
        return self._admitted(admitted, claim, waited=False)

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """See IAdmission."""
        self._front.settle(claim, outcome)
        if isinstance(outcome, Accepted):
            self._remember(claim)
        elif isinstance(outcome, Taken) and outcome.body is not None:
            self._release(claim, fingerprint(claim.kind, claim.identity, outcome.body))
        else:
            self._release(claim)

    def remember_nonce(self, nonce: bytes, used_by: bytes, age_s: float) -> None:
        """See IAdmission; every host reads them back for itself."""
        self._front.remember_nonce(nonce, used_by, age_s)

    def forget(self) -> int:
        """See IAdmission; the number is this host's."""
        self._arrears.clear()
        self._must_forget = self._facts.known
        self._changed(self._link.connected)
        return self._front.forget()

    def entries(self) -> int:
        """See IAdmission; this host's."""
        return self._front.entries()

    # ---- asking ----

    def _admitted(self, admitted: Admitted, claim: Claim, *, waited: bool) -> Admitted | Deferred[Admitted]:
        """
        What memory says stands, but Redis is asked where others may know more: whether anybody knows what is new here,
        and whether the nonce of a duplicate was used elsewhere (not for a twin that waited: it shares an outcome).
        """
        if isinstance(admitted, Limited):
            return admitted
        if isinstance(admitted, Fresh) or (isinstance(admitted, Duplicate) and not waited):
            if self.sharing:
                asked = self._facts.ask(claim)
                return asked.addCallbacks(
                    self._answered, self._failed, (claim, admitted), errbackArgs=(claim, admitted)
                )
            self._unanswered()
            if self._must_forget:
                self._changed(self._link.connected)
        else:
            self._charge(claim.source, claim.limit)
        if isinstance(admitted, Duplicate):
            self._remember(claim)
        return admitted

    def _answered(self, known: Admitted, claim: Claim, admitted: Admitted) -> Admitted:
        """Redis says `known`, memory said `admitted`: Fresh or Duplicate."""
        self._missed = False
        if isinstance(admitted, Duplicate):
            if isinstance(known, Replayed | Limited):
                return known
            if not isinstance(known, Duplicate):
                self._remember(claim)  # Redis has lost it
            return admitted
        if not isinstance(known, Fresh):
            self._hits += not isinstance(known, Limited)
            self._front.settle(claim, _CANCELLED)  # a twin that waits asks for itself
        return known

    def _failed(self, failure: Failure, claim: Claim, admitted: Admitted) -> Admitted | Failure:
        if isinstance(failure.value, _EXPECTED):
            self._missed = True
            self._unanswered()
            if isinstance(admitted, Duplicate):
                self._remember(claim)
            return admitted
        if isinstance(admitted, Fresh):
            self._front.settle(claim, _CANCELLED)
            if isinstance(failure.value, CancelledError):
                self._release(claim)  # it may have been granted, to nobody
        return failure

    # ---- telling ----

    def _remember(self, claim: Claim) -> None:
        if self.sharing:
            self._facts.accept(claim).addErrback(self._owe, claim, self._arrears.era)
        else:
            self._arrears.add(claim)

    def _owe(self, failure: Failure, claim: Claim, era: int) -> None:
        if isinstance(failure.value, RedisRefused):
            return  # it would be refused again; the link has logged it
        if not isinstance(failure.value, Unavailable):
            _report(failure)
        elif era == self._arrears.era:
            self._arrears.add(claim)
            if self.sharing:
                self._arrears.pay()

    def _release(self, claim: Claim, holder: bytes | None = None) -> None:
        if self.sharing:
            self._facts.release(claim, holder).addErrback(_let_go)

    def _charge(self, source: str, limit: Limit) -> None:
        if self.sharing:
            self._facts.charge(source, limit).addErrback(_let_go)

    def _forget(self) -> None:
        """Have everything forgotten by everybody; until that has been said Redis is not asked, and each claim tries."""

        def ended(result: Any) -> None:
            self._forgetting = False
            if isinstance(result, Failure):
                _let_go(result)
            else:
                self._must_forget = False
                self._arrears.pay()

        if not self._forgetting:
            self._forgetting = True
            self._facts.forget().addBoth(ended)


def _let_go(failure: Failure) -> None:
    """A lease and a token pass by themselves; the link has counted the error."""
    if not isinstance(failure.value, _EXPECTED):
        _report(failure)


def _report(failure: Failure) -> None:
    _log.failure("Redis could not be told", failure, event="redis.telling_failed")
