"""
The store that the settings choose for admission: this process's memory, or Redis behind it.

Decides which parts there are, and their order. Nothing of Redis is imported for a gatewayd without REDIS_URL.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred

from gatewayd.interfaces import IAdmission
from gatewayd.lifecycle import Ticker
from gatewayd.metrics import Metrics
from gatewayd.settings import Settings
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.stores.redisplace import RedisPlace
from gatewayd.times import Monotonic
from gatewayd.world import Part

NAME: Final = "Redis (REDIS_URL)"
OWED_BOUND: Final = 65_536
"""Accepted claims that are kept for Redis while it is away: a nonce's lifetime at 100 a second, some 16 MB."""


@dataclass(frozen=True, slots=True)
class Store:
    """
    What composing needs of a store: `admission`, its `services` in the order in which they start, what /readyz warns
    of, /healthz's members, `refresh` for the gauges of a scrape, and `recognise`, which is told when the stream was
    created, whenever that is another time than before. `redis` is the RedisMetrics of this process, None where no other
    link was made yet.
    """

    admission: IAdmission
    refresh: Callable[[], object]
    services: Sequence[Service] = ()
    warnings: Callable[[], list[str]] = list
    states: Callable[[], Mapping[str, str]] = dict
    recognise: Callable[[str], object] = len
    redis: Any = None


def choose_store(settings: Settings, reactor: Any, now: Callable[[], Monotonic], metrics: Metrics) -> Store:
    """The store; with REDIS_URL, StartFailed when Redis cannot be spoken to at all (a package, a certificate)."""
    memory = MemoryAdmission(
        now,
        nonce_lifetime_s=settings.nonce_lifetime_s,
        identity_lifetime_s=settings.idempotency_ttl_sec,
        entries_bound=settings.admission_entries,
    )
    if settings.redis_url is not None:
        return _on_redis(settings, settings.redis_url, reactor, memory, metrics)
    return Store(memory, lambda: _show(memory.entries(), memory.hits, memory.evictions, metrics))


def _show(entries: int, hits: int, evictions: int, metrics: Metrics) -> None:
    metrics.cache_entries.set(entries)
    metrics.advance("hits", hits)
    metrics.advance("evictions", evictions)


def _on_redis(settings: Settings, where: RedisPlace, reactor: Any, memory: MemoryAdmission, metrics: Metrics) -> Store:
    from gatewayd.stores.fallback import Arrears
    from gatewayd.stores.redis import RedisAdmission
    from gatewayd.stores.redisfacts import RedisFacts
    from gatewayd.stores.redislink import RedisLink
    from gatewayd.stores.redismemory import LOOK_S, RedisMemory
    from gatewayd.stores.redismetrics import RedisMetrics, fallback_gauge

    place = replace(where, ca=settings.redis_tls_ca)
    counted = RedisMetrics(metrics.registry)
    link = RedisLink(place, reactor, counted, name=NAME)
    lifetime_s = float(settings.idempotency_ttl_sec)
    facts = RedisFacts(link, nonce_lifetime_s=settings.nonce_lifetime_s, identity_lifetime_s=lifetime_s)
    arrears = Arrears(facts.accept, reactor, bound=OWED_BOUND, lifetime_s=max(lifetime_s, settings.nonce_lifetime_s))
    unanswered = metrics.store_errors.labels("admission").inc
    admission = RedisAdmission(memory, facts, arrears, link, stream=settings.nats_stream, unanswered=unanswered)
    fallback = fallback_gauge(metrics.registry)
    watched = RedisMemory(link, counted.evicted)

    def warnings() -> list[str]:
        alone = (
            f"{NAME} at {place} does not answer ({link.last_error or 'not connected yet'}): used nonces and rates hold "
            "for this host alone until it does; duplicates are recognised all the same."
        )
        return [*([alone] if admission.alone else []), *watched.warnings()]

    def refresh() -> None:
        _show(admission.entries(), admission.hits, admission.evictions, metrics)
        fallback.set(admission.alone)

    def stop() -> Deferred[None]:
        arrears.rest()
        return link.stop()

    return Store(
        admission,
        refresh,
        (
            Part("Redis", lambda: link.start(required=False), stop),
            Ticker(reactor, LOOK_S, watched.look, "Redis' memory", at_once=True),
        ),
        warnings,
        lambda: {"redis": "error" if admission.alone else "ok"},
        admission.recognise,
        counted,
    )
