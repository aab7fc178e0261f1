"""Admission's stores as tests make them, on the lifetimes of their contract."""

from collections.abc import Callable
from typing import Any

from gatewayd.stores.fallback import Arrears
from gatewayd.stores.memory import MemoryAdmission
from gatewayd.stores.redis import RedisAdmission
from gatewayd.stores.redisfacts import RedisFacts
from gatewayd.times import Monotonic
from tests.contracts.admission import IDENTITY_S, NONCE_S


def memory(clock: Any, entries_bound: int = 1000) -> MemoryAdmission:
    """The store in dictionaries."""
    return MemoryAdmission(
        lambda: Monotonic(clock.seconds()),
        nonce_lifetime_s=NONCE_S,
        identity_lifetime_s=IDENTITY_S,
        entries_bound=entries_bound,
    )


def on_redis(
    clock: Any,
    link: Any,
    entries_bound: int = 1000,
    *,
    owed_bound: int = 1000,
    created: str | None = "2026-01-01T00:00:00Z",
    unanswered: Callable[[], object] = bool,
) -> RedisAdmission:
    """The store on Redis, of one host, which knows its stream if `created` is given."""
    facts = RedisFacts(link, nonce_lifetime_s=NONCE_S, identity_lifetime_s=IDENTITY_S)
    arrears = Arrears(facts.accept, clock, bound=owed_bound, lifetime_s=IDENTITY_S)
    front = memory(clock, entries_bound)
    store = RedisAdmission(front, facts, arrears, link, stream="trading-events", unanswered=unanswered)
    if created is not None:
        store.recognise(created)
    return store
