"""A nats-server and a gatewayd on one processor each, and rounds of closed load on them, each of them checked."""

import json
import os
import subprocess
import sys
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
