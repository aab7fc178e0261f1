"""
How much CPU one accepted webhook costs, and what comes with it. `python -m tests.bench [--quick]`.

gatewayd on one processor; nats-server (file storage) and the load on the others. Interleaved rounds, medians; every
run is checked: two stored messages for each 202, and nothing but 202. The access log is on, into a file. Not a test:
figures depend on the machine, only their ratios travel.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.clients import SECRET
from tests.gateway import ROOT, Gateway
from tests.servers import NatsServer
from tests.streams import run

GATEWAY_CPU, OTHER_CPUS = "0", ",".join(str(cpu) for cpu in range(1, os.cpu_count() or 1)) or "0"
SETTINGS = {
    "API_KEY_HMAC_SECRET": SECRET.decode(),
    "RATE_LIMIT_RPS": "1000000",
    "NATS_STREAM_MAX_BYTES": "2GiB",
}


def pin(pid: int, cpus: str) -> None:
    """Keep a process on these processors."""
    os.sched_setaffinity(pid, {int(cpu) for cpu in cpus.split(",")})


class Bench:
    """A server and a gatewayd, and rounds of load on them."""

    def __init__(self, root: Path, settings: Mapping[str, str]) -> None:
        self.server = NatsServer(root / "nats").start()
        pin(self.server.pid, OTHER_CPUS)
        prefix = ["taskset", "-c", GATEWAY_CPU]
        self.gateway = Gateway(root / "gateway", {**SETTINGS, "NATS_URL": self.server.url, **settings}, prefix=prefix)

    def close(self) -> None:
        """End both."""
        self.gateway.close()
        self.server.close()

    def round(self, connections: int, seconds: float) -> dict[str, Any]:
        """One run of load: what the client saw, what it cost, and what was stored."""
        load = subprocess.Popen(
            [
                *("taskset", "-c", OTHER_CPUS, sys.executable, "-m", "tests.bench.load"),
                *(str(self.gateway.port), str(connections), str(seconds), SECRET.decode()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert load.stdin is not None
        assert load.stdout is not None
        load.stdout.readline()
        messages, cpu = self.stored(), self.gateway.cpu_seconds()
        load.stdin.write("go\n")
        load.stdin.flush()
        seen: dict[str, Any] = json.loads(load.stdout.readline())
        load.wait()
        cpu = self.gateway.cpu_seconds() - cpu
        accepted = seen["statuses"].get("202", 0)
        if list(seen["statuses"]) != ["202"] or self.stored() - messages != 2 * accepted:
            raise SystemExit(f"not a clean run: {seen['statuses']}, {self.stored() - messages} messages stored")
        return {
            **seen,
            "connections": connections,
            "accepted": accepted,
            "per_second": accepted / seen["seconds"],
            "per_cpu_second": accepted / cpu,
            "cpu_us": cpu / accepted * 1e6,
            "rss_mib": self.gateway.rss_mib(),
        }

    def stored(self) -> int:
        """Messages in the stream."""
        return run(_count(self.server.url))


async def _count(url: str) -> int:
    import nats

    client = await nats.connect(url)
    try:
        info = await client.jetstream().stream_info("trading-events")
        return int(info.state.messages)
    finally:
        await client.close()


async def _fill(url: str, pairs: int) -> None:
    """Put pairs into the stream that look as if gatewayd had accepted them a moment ago."""
    import asyncio
    import secrets

    import nats

    client = await nats.connect(url)
    stream = client.jetstream()
    now_ms = int(time.time() * 1000)
    for start in range(0, pairs, 500):
        published = []
        for _ in range(min(500, pairs - start)):
            identity = secrets.token_hex(16)
            facts = f"1 body {secrets.token_hex(16)} {secrets.token_hex(16)} v1 {now_ms}"
            for subject, part in (("signals.raw", "raw"), ("signals.normalized", "norm")):
                headers = {"Gw-Facts": facts, "Nats-Msg-Id": f"gw:{identity}:{part}", "Source": "tradingview"}
                published.append(stream.publish(subject, b"{}" * 120, headers=headers))
        await asyncio.gather(*published)
    await client.close()


def measure_start(root: Path, pairs: int) -> dict[str, float]:
    """Seconds from the start to ready on a stream with so many recent pairs, and the memory then."""
    bench = Bench(root, {})
    try:
        bench.gateway.start(wait="/readyz")
        bench.gateway.stop()
        run(_fill(bench.server.url, pairs))
        took = bench.gateway.start(wait="/readyz", timeout_s=60)
        return {"pairs": pairs, "ready_s": took, "rss_mib": bench.gateway.rss_mib()}
    finally:
        bench.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    rounds, seconds = (1, 3.0) if options.quick else (options.rounds, options.seconds)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        bench = Bench(root / "load", {})
        try:
            bench.gateway.start(wait="/readyz")
            at_rest = bench.gateway.rss_mib()
            bench.round(64, 1.0)  # warm
            results = [bench.round(connections, seconds) for _ in range(rounds) for connections in (64, 1)]
            log_lines = bench.gateway.log_text().count("Incoming request")
        finally:
            bench.close()
        starts = [measure_start(root / f"start{pairs}", pairs) for pairs in ((0,) if options.quick else (0, 30_000))]
    columns = {
        "accepted/s": ("per_second", 0),
        "per CPU s": ("per_cpu_second", 0),
        "CPU us": ("cpu_us", 1),
        "p50 ms": ("p50_ms", 2),
        "p99 ms": ("p99_ms", 2),
        "RSS MiB": ("rss_mib", 1),
    }
    print("connections" + "".join(f"{title:>12}" for title in columns))
    for connections in (64, 1):
        rows = [row for row in results if row["connections"] == connections]
        middles = ((statistics.median(row[name] for row in rows), digits) for name, digits in columns.values())
        print(f"{connections:>11}" + "".join(f"{middle:>12.{digits}f}" for middle, digits in middles))
    print(f"memory at rest {at_rest:.1f} MiB; {log_lines} access lines written")
    for start in starts:
        print(f"ready after {start['ready_s']:.2f} s on {start['pairs']} recent pairs ({start['rss_mib']:.1f} MiB)")


if __name__ == "__main__":
    main()
