"""What writing /metrics costs: ours against prometheus_client's, interleaved. `python -m tests.bench.exposition`."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from gatewayd.exposition import Exposition
from gatewayd.metrics import Metrics

ROUNDS = 7


def least(calls: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
    """CPU ms of one call of each, the least of some interleaved series."""
    spent: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            before = time.process_time()
            for _ in range(times):
                call()
            took = (time.process_time() - before) / times * 1e3
            spent[name] = min(took, spent.get(name, took))
    return spent


def main() -> None:
    """A gateway with the default sources, and one with so many that there are a thousand series."""
    for sources in (3, 37):
        registry = CollectorRegistry()
        metrics = Metrics(registry, version="1", subjects=("signals.raw", "signals.normalized"), consumer="c")
        metrics.know((f"source{number}", 2) for number in range(sources))
        for number in range(sources):
            metrics.webhook(f"source{number}", 202, 0.0042 * number)
        exposition = Exposition(registry, lambda: None, lambda call: None)
        text = exposition.render(openmetrics=False)
        series = sum(not line.startswith(b"#") for line in text.splitlines())
        spent = least(
            {
                "ours": lambda exposition=exposition: exposition.render(openmetrics=False),
                "prometheus_client": lambda registry=registry: generate_latest(registry),
            },
            20,
        )
        shown = "".join(f"{name:>20}{took:>8.3f} ms" for name, took in spent.items())
        print(f"{series:>6} series, {len(text):>7} bytes{shown}")


if __name__ == "__main__":
    main()
