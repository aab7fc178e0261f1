"""
The webhook paths: what is refused at the head of a request, and the way from a complete one to its answer.

Decides, in the published order, everything that needs no body: path and method, maintenance, the bus, readiness,
overload, the address's limit, size and media type. Never looks into a body: the pipeline does.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.answers import Answers
from gatewayd.bus.publication import Cause, Unpublished
from gatewayd.committed import Committed, Running
from gatewayd.errors import Refused
from gatewayd.health import Health
from gatewayd.http.message import Request, Response
from gatewayd.ingress.addresses import AddressBuckets, contains
from gatewayd.ingress.admission import refuse_limited
from gatewayd.ingress.events import ENVELOPE_BYTES
from gatewayd.ingress.headers import refuse_media_type
from gatewayd.ingress.pipeline import Within
from gatewayd.ingress.shedding import OVERLOAD
from gatewayd.ingress.sources import GENERIC_PATH, UNKNOWN_SOURCE, Rules, Source
from gatewayd.ingress.turns import Turns
from gatewayd.interfaces import IEventBus, ILeaf
from gatewayd.times import Monotonic, format_wall

MAX_BODY_BYTES: Final = 1_048_576
FLOOD: Final = 2
"""An address that sends so many times its limit is not only refused: its connections rest."""

T = TypeVar("T")


@implementer(ILeaf)
class WebhookResource:
    """POST /webhook/<source>. One for all sources: the rules in force say which there are."""

    def __init__(
        self,
        *,
        rules: Callable[[], Rules],
        health: Health,
        bus: IEventBus,
        buckets: AddressBuckets,
        answers: Answers,
        turns: Turns,
        clock: IReactorTime,
    ) -> None:
        self._rules = rules
        self._health = health
        self._bus = bus
        self._buckets = buckets
        self._answers = answers
        self._turns = turns
        self._down: tuple[object, Refused] | None = None
        self._clock = clock

    def begin(self, request: Request) -> Response | int:
        """See ILeaf."""
        rules = self._rules()
        source = rules.paths.get(request.path)
        # Bytes that a body may have: 1 MiB, or what the server takes beside the event's own parts.
        bound = min(MAX_BODY_BYTES, self._bus.max_message - ENVELOPE_BYTES)
        refused = self._refuse_head(request, source, rules, bound)
        if refused is None:
            return bound
        response = self._answers.refuse(request, refused, "" if source is None else source.name)
        # Over a proxy's connection many clients come, and probes.
        response.rest = refused.rest and request.client_ip == request.peer != ""
        return response

    def _refuse_head(self, request: Request, source: Source | None, rules: Rules, bound: int) -> Refused | None:
        """The first refusal that the head alone decides, in the published order."""
        if source is None and request.path != GENERIC_PATH:
            return Refused("GW-017", status=404)
        if request.method != b"POST":
            return Refused("GW-017", status=405, headers=((b"Allow", b"POST"),))
        if b"x-forwarded-for" in request.headers:
            request.client_ip = rules.proxies.client(request.peer, request.values(b"x-forwarded-for"))
        refused = self._health.refuse_webhook(self._bus.state)
        if refused is not None:
            return self._explain(refused)
        if self._turns.refuses():
            return OVERLOAD
        refused = self._refuse_address(request, rules)
        if refused is not None:
            return refused
        if source is not None and not source.keys:
            return Refused("GW-018", {"reason": "source_not_configured"})
        length = request.headers.get(b"content-length", b"0")
        if len(length) > 10 or int(length) > bound:
            return Refused("GW-008", {"max_size": bound})
        return refuse_media_type(request)

    def _explain(self, refused: Refused) -> Refused:
        """For the log only: when the bus last did what it is for. While it is down, many are told the same."""
        if refused.code != "GW-005":
            return refused
        last = self._bus.last_success
        if self._down is None or self._down[0] != (last, refused.details):
            shown = {**refused.logged, "last_success": None if last is None else format_wall(last)}
            self._down = (last, refused.details), replace(refused, logged=shown)
        return self._down[1]

    def _refuse_address(self, request: Request, rules: Rules) -> Refused | None:
        if contains(rules.exempt, request.client_ip):
            return None
        limited = self._buckets.take(request.client_ip, rules.address_limit, Monotonic(self._clock.seconds()))
        if limited is None:
            return None
        return refuse_limited(limited, UNKNOWN_SOURCE, rest=limited.rate > FLOOD * limited.limit)

    def answer(self, request: Request) -> Response | Running[Response]:
        """See ILeaf."""
        return self._turns.run(request, self._rules().paths.get(request.path))


def make_within(clock: IReactorTime) -> Within:
    """The bound on an await that the pipeline is handed; like what it bounds it cannot be cancelled."""

    def within(waiting: Awaitable[T], seconds: float) -> Awaitable[T | Unpublished]:
        outcome: Committed[T | Unpublished] = Committed()
        timer = clock.callLater(seconds, lambda: outcome.callback(Unpublished(Cause.TIMEOUT)))

        def settle(result: T | Failure) -> None:
            if not outcome.called:
                timer.cancel()
                outcome.callback(result)  # a Failure goes the way of errback()

        Deferred.fromCoroutine(_awaited(waiting)).addBoth(settle)
        return outcome

    return within


async def _awaited(waiting: Awaitable[T]) -> T:
    return await waiting
