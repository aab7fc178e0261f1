"""
What Redis has yet to be told: the claims that were accepted while it did not answer.

Decides how many are kept (at the bound the oldest is dropped, and counted: the stream still knows its event), and how
fast they are told once Redis is back: in batches, so that webhooks hardly notice. Never decides when that is.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.errors import Unavailable
from gatewayd.ingress.admission import Claim
from gatewayd.stores.redisreplies import RedisRefused

_log = Logger()

BATCH: Final = 64
PAUSE_S: Final = 0.02
"""64 claims every 20 ms: 3,200 a second, about a tenth of a core."""
RETRY_S: Final = 1.0
"""The pause after a batch that failed."""


class Arrears:
    """
    Claims with the time of their acceptance, oldest first. `accept` tells Redis of one, with its age in seconds;
    what is older than `lifetime_s` is worth nothing any more. `era` changes with clear().
    """

    def __init__(
        self, accept: Callable[[Claim, float], Deferred[Any]], clock: IReactorTime, *, bound: int, lifetime_s: float
    ) -> None:
        self._accept = accept
        self._clock = clock
        self._bound = bound
        self._lifetime_s = lifetime_s
        self._claims: deque[tuple[float, Claim]] = deque()
        self._timer: Any = None
        self._paying = False
        self._telling = False
        self._told = 0
        self.dropped = 0
        self.era = 0

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, claim: Claim) -> None:
        """It was accepted just now."""
        if len(self._claims) >= self._bound:
            self._claims.popleft()
            self.dropped += 1
        self._claims.append((self._clock.seconds(), claim))

    def clear(self) -> None:
        """Forget them: they were about another stream."""
        self._claims.clear()
        self.era += 1

    def rest(self) -> None:
        """Tell nothing for now."""
        self._paying = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pay(self) -> None:
        """Tell whatever there is, until rest(); what fails is told again."""
        self._paying = True
        self._wait(PAUSE_S)

    def _wait(self, seconds: float) -> None:
        if self._paying and self._claims and not self._telling and self._timer is None:
            self._timer = self._clock.callLater(seconds, self._pay_batch)

    def _pay_batch(self) -> None:
        self._timer, self._telling = None, True
        now = self._clock.seconds()
        batch: list[tuple[float, Claim]] = []
        while self._claims and len(batch) < BATCH:
            since, claim = self._claims.popleft()
            if now - since < self._lifetime_s:
                batch.append((since, claim))
        telling = [self._accept(claim, now - since) for since, claim in batch]
        DeferredList(telling, consumeErrors=True).addCallback(self._paid, batch, self.era)

    def _paid(self, results: list[tuple[bool, Any]], batch: list[tuple[float, Claim]], era: int) -> None:
        self._telling = False
        unpaid = [entry for (ok, result), entry in zip(results, batch, strict=True) if not ok and _passes(result)]
        self._told += len(batch) - len(unpaid)
        if era == self.era:
            self._claims.extendleft(reversed(unpaid))
        if not self._claims:
            _log.info(
                "Redis has been told of {told} events that were accepted without it; {dropped} were too many to keep",
                event="redis.caught_up",
                told=self._told,
                dropped=self.dropped,
            )
            self._told = self.dropped = 0
        self._wait(RETRY_S if unpaid else PAUSE_S)


def _passes(failure: Failure) -> bool:
    """True when it is worth telling again; a command that was refused would be refused again, and has been logged."""
    if isinstance(failure.value, Unavailable):
        return True
    if not isinstance(failure.value, RedisRefused):
        _log.failure("Redis could not be told of an accepted event", failure, event="redis.telling_failed")
    return False
