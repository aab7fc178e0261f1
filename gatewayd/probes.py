"""
/healthz, /readyz and /metrics.

Decides who may ask and how often; what is answered is health's and the registry's. Never waits for anything, so that
the answers hold under any load.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from gatewayd.answers import Answers, random_corr_id
from gatewayd.errors import Refused
from gatewayd.exposition import Exposition
from gatewayd.health import Health
from gatewayd.http.message import Request, Response
from gatewayd.ingress.addresses import AddressBuckets, contains
from gatewayd.ingress.admission import refuse_limited
from gatewayd.ingress.sources import Rules
from gatewayd.interfaces import IEventBus, ILeaf
from gatewayd.times import Monotonic

_METHODS: Final = frozenset({b"GET", b"HEAD"})
_NOT_ALLOWED: Final = Refused("GW-017", status=405, headers=((b"Allow", b"GET, HEAD"),))
_PARTS: Final = frozenset({b"", b"part=webhook"})


class _Gate:
    """Who asks, and how often: the same for every probe. `trusts_all`: whoever comes may read and ask what there is."""

    def __init__(self, rules: Callable[[], Rules], answers: Answers, *, trusts_all: bool) -> None:
        self.rules = rules
        self.answers = answers
        self.trusts_all = trusts_all

    def refuse(self, request: Request) -> Refused | None:
        """405 for another method; fills in the client's address."""
        if request.method not in _METHODS:
            return _NOT_ALLOWED
        proxies = self.rules().proxies
        request.client_ip = proxies.client(request.peer, request.values(b"x-forwarded-for"))
        return None

    def may_read(self, request: Request) -> bool:
        """Whether METRICS_ALLOW_CIDRS has the client. A proxy that is not trusted could be asking for anybody."""
        if self.trusts_all:
            return True
        rules = self.rules()
        believed = rules.proxies.trusted(request.peer, request.values(b"x-forwarded-for"))
        return believed and contains(rules.metrics_readers, request.client_ip)


@implementer(ILeaf)
class HealthProbe:
    """
    /healthz or /readyz (`ready`), limited per address in a bucket of the probes' own. `trusts_all` is for a listener
    that only those reach who may know everything: no limit, and all warnings.
    """

    def __init__(
        self,
        *,
        ready: bool,
        health: Health,
        bus: IEventBus,
        rules: Callable[[], Rules],
        answers: Answers,
        buckets: AddressBuckets,
        clock: IReactorTime,
        trusts_all: bool = False,
    ) -> None:
        self._ready = ready
        self._health = health
        self._bus = bus
        self._gate = _Gate(rules, answers, trusts_all=trusts_all)
        self._buckets = buckets
        self._clock = clock

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        refused = self._gate.refuse(request) or self._limited(request)
        return 0 if refused is None else self._gate.answers.refuse(request, refused)

    def _limited(self, request: Request) -> Refused | None:
        rules = self._gate.rules()
        if self._gate.trusts_all or contains(rules.exempt, request.client_ip):
            return None
        limited = self._buckets.take(request.client_ip, rules.address_limit, Monotonic(self._clock.seconds()))
        return None if limited is None else refuse_limited(limited, "probes")

    def answer(self, request: Request) -> Response:
        """See ILeaf."""
        bus = self._bus.state
        if not self._ready:
            return Response(200, msgspec.json.encode(self._health.alive(bus)), corr_id=random_corr_id())
        if request.query not in _PARTS:
            return self._gate.answers.refuse(request, Refused("GW-017", {"parts": ["webhook"]}, status=404))
        usable, members = self._health.ready(bus, to_stranger=not self._gate.may_read(request))
        retry = () if usable else ((b"Retry-After", b"1"),)
        return Response(200 if usable else 503, msgspec.json.encode(members), headers=retry, corr_id=random_corr_id())


@implementer(ILeaf)
class MetricsProbe:
    """/metrics for those who may read it (`trusts_all`: everybody); for others there is nothing at this path."""

    def __init__(
        self, exposition: Exposition, *, rules: Callable[[], Rules], answers: Answers, trusts_all: bool = False
    ) -> None:
        self._exposition = exposition
        self._gate = _Gate(rules, answers, trusts_all=trusts_all)

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        refused = self._gate.refuse(request)
        if refused is None and not self._gate.may_read(request):
            refused = Refused("GW-017", status=404)
        return 0 if refused is None else self._gate.answers.refuse(request, refused)

    def answer(self, request: Request) -> Response:
        """See ILeaf."""
        body, kind = self._exposition.answer(b",".join(request.values(b"accept")))
        return Response(200, body, kind, corr_id=random_corr_id())
