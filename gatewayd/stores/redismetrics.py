"""
The metric families of Redis, once for every link of the process, on the registry that is handed in.

Decides names and labels: kinds of errors come from a fixed list. Never decides what is counted.
"""

from typing import Final

from prometheus_client import CollectorRegistry

from gatewayd.cells import Counters, GaugeCell, Gauges
from gatewayd.stores.redisreplies import KINDS


def fallback_gauge(registry: CollectorRegistry) -> GaugeCell:
    """1 while admission, which is to ask Redis, goes by this process's memory."""
    return Gauges(registry, "gateway_admission_fallback", "1 while memory admits without Redis.").labels()


class RedisMetrics:
    """What the links to Redis count. Every kind is there at 0 from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._connected = Gauges(registry, "redis_connected", "1 while every link to Redis answers.").labels()
        errors = Counters(registry, "redis_errors_total", "Errors of Redis, by what they were.", ("kind",))
        evicted = "redis_evicted_keys_total", "Keys that Redis dropped for want of memory since this process started."
        self._evicted = Counters(registry, *evicted).labels()
        self._errors: Final = {kind: errors.labels(kind) for kind in KINDS}
        self._links: dict[str, bool] = {}

    def error(self, kind: str) -> None:
        """One error of a kind in redisreplies.KINDS."""
        self._errors[kind].value += 1

    def evicted(self, count: int) -> None:
        """So many keys more were evicted."""
        self._evicted.value += count

    def connected(self, link: str, answers: bool) -> None:
        """A link came up or went down."""
        self._links[link] = answers
        self._connected.set(all(self._links.values()))
