"""
A client of the probes: how long /healthz, /readyz and /metrics take while something else goes on.

Run as `python -m tests.bench.probing PORT SECONDS`; prints one JSON object. Every probe is asked in turn, every 20 ms,
once on a connection that stays and once on one of its own, as load balancers do either.
"""

import http.client
import json
import sys
import time

from tests.bench.load import quantile

PATHS = ("/healthz", "/readyz", "/metrics")
EVERY_S = 0.02


def ask(connection: http.client.HTTPConnection, path: str) -> float:
    """Seconds until the whole answer was there."""
    began = time.perf_counter()
    connection.request("GET", path)
    connection.getresponse().read()
    return time.perf_counter() - began


def main() -> None:
    """See the module."""
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    took: dict[str, list[float]] = {path: [] for path in PATHS}
    print("ready", flush=True)
    sys.stdin.readline()
    ends = time.perf_counter() + seconds
    turn = 0
    while (now := time.perf_counter()) < ends:
        path = PATHS[turn // 2 % len(PATHS)]
        if turn % 2:
            took[path].append(ask(kept, path))
        else:
            own = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            took[path].append(ask(own, path))
            own.close()
        turn += 1
        time.sleep(max(0.0, now + EVERY_S - time.perf_counter()))
    shown = {
        path[1:]: {
            "asked": len(values),
            **{f"p{share}_ms": quantile(values, share / 100) for share in (50, 99)},
            "max_ms": quantile(values, 1.0),
        }
        for path, values in took.items()
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
