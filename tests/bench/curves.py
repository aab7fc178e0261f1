"""
How the figures move: with connections, body size, fsync, remembered keys, recent pairs at the start, and time.

Each function runs what it needs and returns rows; nothing is printed or judged here.
"""

import asyncio
import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats

from tests.bench.rig import ENTRIES, OTHER_CPUS, Stand
from tests.gateway import ROOT
from tests.streams import run

CONNECTIONS = (1, 4, 16, 64, 256, 1000)
SIZES = (200, 1024, 10_240, 102_400, 1_000_000)
PAIRS = (0, 30_000)
KEYS = (0, 20_000, ENTRIES, 1_000_000)

Row = dict[str, Any]


def by_connections(stand: Stand, seconds: float) -> list[Row]:
    """Closed load from more and more connections."""
    return [
        {"name": target.name, "connections": connections, **stand.closed(target, connections, seconds, may_refuse=True)}
        for connections in CONNECTIONS
        for target in stand.targets
    ]


def by_size(stand: Stand, seconds: float) -> list[Row]:
    """Larger and larger bodies from 16 connections."""
    return [
        {"name": target.name, "size": size, **stand.closed(target, 16, seconds, size=size, may_refuse=True)}
        for size in SIZES
        for target in stand.targets
    ]


def by_sync(make: Callable[..., Stand], seconds: float) -> list[Row]:
    """64 connections on a server that syncs every message to its disk before it acknowledges."""
    stand = make(sync_always=True)
    try:
        return [{"name": target.name, **stand.closed(target, 64, seconds, may_refuse=True)} for target in stand.targets]
    finally:
        stand.close()


def by_keys() -> list[Row]:
    """The memory store alone, in a process of its own for each size."""
    rows = []
    for entries in KEYS:
        command = ["taskset", "-c", OTHER_CPUS, sys.executable, "-m", "tests.bench.keys", str(entries)]
        rows.append(json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout))
    return rows


async def _fill(url: str, pairs: int) -> None:
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


def by_pairs(root: Path, pairs: tuple[int, ...] = PAIRS) -> list[Row]:
    """Seconds from the start of a gatewayd to ready on a stream with so many recent pairs, and the memory then."""
    rows = []
    for count in pairs:
        stand = Stand(root / f"start{count}")
        try:
            gateway = stand.make_gateway("gatewayd")
            gateway.start(wait="/readyz")
            gateway.stop()
            run(_fill(stand.server.url, count))
            took = gateway.start(wait="/readyz", timeout_s=60)
            rows.append({"pairs": count, "ready_s": took, "rss_mib": gateway.rss_mib()})
        finally:
            stand.close()
    return rows


def scrapes(stand: Stand) -> list[Row]:
    """The time of one GET of /metrics, the median of some."""
    return [
        {"name": target.name, "ms": statistics.median(target.scrape_ms() for _ in range(20))}
        for target in stand.targets
    ]


def growth(stand: Stand, seconds: float, every_s: float = 5.0) -> list[Row]:
    """Memory after each `every_s` of open load at 1,000/s on the first target."""
    target = stand.targets[0]
    rows = []
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        seen = stand.open(target, 1000, min(every_s, seconds - elapsed + 0.5))
        rows.append(
            {"seconds": time.monotonic() - began, **{name: seen[name] for name in ("accepted", "rss_mib", "p99_ms")}}
        )
    return rows
