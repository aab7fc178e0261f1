"""
/healthz, /readyz and /metrics.

Decides who may ask and how often; what is answered is health's and the registry's. Never waits for anything, so that
the answers hold under any load.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from zope.interface import implementer

from gatewayd.address_gate import AddressGate
from gatewayd.answers import Answers, random_corr_id
from gatewayd.errors import Refused
from gatewayd.exposition import Exposition
from gatewayd.health import Health
from gatewayd.http.message import Request, Response
from gatewayd.ingress.addresses import contains
from gatewayd.ingress.admission import refuse_limited
from gatewayd.ingress.sources import Rules
from gatewayd.interfaces import IEventBus, ILeaf

_METHODS: Final = frozenset({b"GET", b"HEAD"})
_NOT_ALLOWED: Final = Refused("GW-017", status=405, headers=((b"Allow", b"GET, HEAD"),))
_PARTS: Final = frozenset({b"", b"part=webhook"})


class Gate:
    """
    Who asks, and how often: the same for every probe of a listener. `limits` are the probes' own for each address.
    `trusts_all` is for a listener that only those reach who may know everything: no limit, and nothing is held back.
    """

    def __init__(
        self, rules: Callable[[], Rules], answers: Answers, limits: AddressGate, *, trusts_all: bool = False
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._trusts_all = trusts_all
        self.answers = answers

    def refuse(self, request: Request) -> Refused | None:
        """405 for another method; fills in the client's address."""
        if request.method not in _METHODS:
            return _NOT_ALLOWED
        proxies = self._rules().proxies
        request.client_ip = proxies.client(request.peer, request.values(b"x-forwarded-for"))
        return None

    def may_read(self, request: Request) -> bool:
        """Whether METRICS_ALLOW_CIDRS has the client. A proxy that is not trusted could be asking for anybody."""
        if self._trusts_all:
            return True
        rules = self._rules()
        believed = rules.proxies.trusted(request.peer, request.values(b"x-forwarded-for"))
        return believed and contains(rules.metrics_readers, request.client_ip)

    def limit(self, request: Request) -> Refused | None:
        """GW-004 for an address that asks too often."""
        limited = None if self._trusts_all else self._limits.refuse(request)
        return None if limited is None else refuse_limited(limited, "probes")


@implementer(ILeaf)
class HealthProbe:
    """/healthz or /readyz (`ready`)."""

    def __init__(self, gate: Gate, health: Health, bus: IEventBus, *, ready: bool) -> None:
        self._gate = gate
        self._health = health
        self._bus = bus
        self._ready = ready

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        refused = self._gate.refuse(request) or self._gate.limit(request)
        return 0 if refused is None else self._gate.answers.refuse(request, refused)

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
    """/metrics for those who may read it; for others there is nothing at this path."""

    def __init__(self, gate: Gate, exposition: Exposition) -> None:
        self._gate = gate
        self._exposition = exposition

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
