"""
What becomes of more webhooks than can be served, what a refusal costs, and how fast the probes answer meanwhile.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.rig import OTHER_CPUS, Bench
from tests.clients import SECRET
from tests.gateway import ROOT

TIMES = (1.0, 1.5, 2.0, 3.0)
CONNECTIONS = 3000
EXEMPT = {"RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8"}


class Child:
    """A process of the load's side that says when it is ready, and one line of JSON at its end."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            ["taskset", "-c", OTHER_CPUS, sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def wait_ready(self) -> None:
        """Until it has made what it sends."""
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def go(self) -> None:
        """Have it begin."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it saw."""
        assert self.process.stdout is not None
        seen: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.process.wait()
        return seen


def offer(bench: Bench, rate: float, seconds: float) -> dict[str, Any]:
    """One run of open load, with the probes asked beside it."""
    load = Child("tests.bench.openload", bench.gateway.port, CONNECTIONS, seconds, rate, SECRET.decode())
    probes = Child("tests.bench.probing", bench.gateway.port, seconds)
    load.wait_ready()
    probes.wait_ready()
    time.sleep(0.5)  # every connection of the load is accepted
    cpu = bench.gateway.cpu_seconds()
    load.go()
    probes.go()
    seen = load.result()
    return {**seen, "cpu": (bench.gateway.cpu_seconds() - cpu) / seen["seconds"], "probes": probes.result()}


def answer_cost(bench: Bench, seconds: float) -> tuple[str, float]:
    """CPU us of one answer under closed load from 64 connections, and what was answered."""
    load = Child("tests.bench.load", bench.gateway.port, 64, seconds, SECRET.decode())
    load.wait_ready()
    cpu = bench.gateway.cpu_seconds()
    load.go()
    statuses = load.result()["statuses"]
    cpu = bench.gateway.cpu_seconds() - cpu
    return ",".join(statuses), cpu / sum(statuses.values()) * 1e6


def print_curve(seconds: float) -> None:
    """Goodput, latencies and probes against what is offered."""
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), EXEMPT)
        try:
            bench.gateway.start(wait="/readyz")
            bench.round(64, 1.0)
            peak = statistics.median(bench.round(64, seconds)["per_second"] for _ in range(3))
            print(f"peak {peak:.0f} accepted/s from 64 connections, closed load")
            titles = ("offered/s", "of peak", "202/s", "goodput", "p50 ms", "p99 ms", "refused/s", "unsent/s", "CPU")
            print("".join(f"{title:>10}" for title in (*titles, "healthz", "readyz", "metrics")) + "  (p99 ms)")
            for times in TIMES:
                seen = offer(bench, times * peak, seconds)
                refused = sum(count for status, count in seen["statuses"].items() if status != "202")
                row = (
                    f"{times * peak:.0f}",
                    f"{times:.1f}",
                    f"{seen['in_time'] / seconds:.0f}",
                    f"{seen['in_time'] / seconds / peak:.0%}",
                    f"{seen['accepted_p50_ms']:.0f}",
                    f"{seen['accepted_p99_ms']:.0f}",
                    f"{refused / seconds:.0f}",
                    f"{seen['unsent'] / seconds:.0f}",
                    f"{seen['cpu']:.0%}",
                    *(f"{probe['p99_ms']:.0f}" for probe in seen["probes"].values()),
                )
                print("".join(f"{cell:>10}" for cell in row), flush=True)
                time.sleep(1.0)
        finally:
            bench.close()


def print_costs(seconds: float) -> None:
    """What an answer of each early kind costs, against an acceptance."""
    kinds: dict[str, dict[str, str]] = {
        "accepted": EXEMPT,
        "NATS down": EXEMPT,
        "maintenance": {**EXEMPT, "MAINTENANCE_MODE": "true"},
        "no source's signature": {**EXEMPT, "API_KEY_HMAC_SECRET": "another-secret-that-nobody-signs-with"},
    }
    accepted = 0.0
    for name, settings in kinds.items():
        with tempfile.TemporaryDirectory() as directory:
            bench = Bench(Path(directory), settings)
            try:
                bench.gateway.start(wait="/readyz")
                if name == "NATS down":
                    bench.server.close()
                    time.sleep(0.5)
                answer_cost(bench, 1.0)
                statuses, cost = answer_cost(bench, seconds)
            finally:
                bench.close()
        accepted = accepted or cost
        print(f"{name:<28}{statuses:>10}{cost:>8.1f} us CPU{cost / accepted:>8.2f}", flush=True)


def main(seconds: float) -> None:
    """Both tables."""
    print_costs(seconds)
    print_curve(seconds)
