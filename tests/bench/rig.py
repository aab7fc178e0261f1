"""
A nats-server, gatewayds and their peers, and checked runs of load on them.

Every server that is measured runs on one processor; nats-server and the load run on the others. A run counts only when
nothing but 202 was answered and two messages were stored for each.
"""

import json
import os
import platform
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.clients import SECRET
from tests.gateway import ROOT, Gateway
from tests.servers import NatsServer, free_port
from tests.streams import run

GATEWAY_CPU, OTHER_CPUS = "0", ",".join(str(cpu) for cpu in range(1, os.cpu_count() or 1)) or "0"
OLD_SECRET = "an-older-secret-that-is-still-valid-while-it-is-renewed"
SECRETS = f"{OLD_SECRET},{SECRET.decode()}"
"""Two secrets, of which the load uses the second: the usual state during a rotation."""
ENTRIES = 200_000
MAX_BODY = 2**20
RATE = 1_000_000
SETTINGS = {
    "API_KEY_HMAC_SECRET": SECRETS,
    "RATE_LIMIT_RPS": str(RATE),
    "ADMISSION_ENTRIES": str(ENTRIES),
    "NATS_STREAM_MAX_BYTES": "3GiB",
}
_WEBHOOK = b"/webhook/tradingview"


def pin(pid: int, cpus: str) -> None:
    """Keep a process on these processors."""
    os.sched_setaffinity(pid, {int(cpu) for cpu in cpus.split(",")})


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def machine() -> str:
    """What it ran on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(": ")[2] if models else platform.machine()
    python = f"Python {platform.python_version()}"
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} processors ({model}), Linux {platform.release()}, {python}."


class OtherGateway(Gateway):
    """A gatewayd that is installed beside another Python, instead of this tree."""

    python = ""

    def environment(self) -> dict[str, str]:
        environment = super().environment()
        del environment["PYTHONPATH"]
        return environment

    def command(self, *arguments: str) -> list[str]:
        twistd = Path(self.python).with_name("twistd")
        return [*self.prefix, self.python, str(twistd), "-n", "--pidfile=", "gatewayd", *arguments]


class Target:
    """One running server under measurement."""

    def __init__(self, name: str, port: int, pid: int, log: Path) -> None:
        self.name = name
        self.port = port
        self.pid = pid
        self.log = log
        self.accepted = 0

    def scrape_ms(self) -> float:
        """One GET of /metrics, in milliseconds."""
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            answer.read()
        return (time.perf_counter() - began) * 1e3

    def check_log(self) -> None:
        """One line for each webhook that was accepted."""
        deadline = time.monotonic() + 5
        while (lines := self.log.read_bytes().count(_WEBHOOK)) < self.accepted and time.monotonic() < deadline:
            time.sleep(0.1)
        if lines < self.accepted:
            raise SystemExit(f"{self.name}: {lines} access lines for {self.accepted} accepted webhooks")


class Stand:
    """A nats-server and what is measured on it."""

    def __init__(self, root: Path, settings: Mapping[str, str] | None = None, *, sync_always: bool = False) -> None:
        self.root = root
        self.settings = {**SETTINGS, **(settings or {})}
        self.server = NatsServer(root / "nats", sync_always=sync_always).start()
        pin(self.server.pid, OTHER_CPUS)
        self.targets: list[Target] = []
        self._gateways: list[Gateway] = []
        self._peers: list[subprocess.Popen[bytes]] = []

    def make_gateway(self, name: str, python: str = "", more: Mapping[str, str] | None = None) -> Gateway:
        """A gatewayd that is not started yet: this tree's, or the one installed beside `python`; `more` settings."""
        settings = {**self.settings, "NATS_URL": self.server.url, **(more or {})}
        kind = OtherGateway if python else Gateway
        made = kind(self.root / f"gateway{len(self._gateways)}", settings, prefix=["taskset", "-c", GATEWAY_CPU])
        if isinstance(made, OtherGateway):
            made.python = python
        self._gateways.append(made)
        return made

    def add_gateway(self, name: str, python: str = "", more: Mapping[str, str] | None = None) -> Target:
        """Start a gatewayd; the first makes the stream."""
        gateway = self.make_gateway(name, python, more)
        gateway.start(wait="/readyz", timeout_s=60)
        return self._add(Target(name, gateway.port, gateway.pid, gateway.log_path))

    def add_peer(self, name: str, command: Sequence[str]) -> Target:
        """Start a peer with the settings that gatewayd has."""
        log, port = self.root / f"peer{len(self._peers)}.log", free_port()
        environment = {
            "PATH": os.environ["PATH"],
            "PORT": str(port),
            "NATS_URL": self.server.url,
            "SECRETS": SECRETS,
            "LOG": str(log),
            "MAX_BODY": str(MAX_BODY),
            "ENTRIES": str(ENTRIES),
            "RATE": str(RATE),
            "GOMAXPROCS": "1",
        }
        peer = subprocess.Popen(["taskset", "-c", GATEWAY_CPU, *command], env=environment, stdin=subprocess.DEVNULL)
        self._peers.append(peer)
        self.await_ready(name, peer, f"http://127.0.0.1:{port}/readyz")
        return self._add(Target(name, port, peer.pid, log))

    def await_ready(self, name: str, peer: "subprocess.Popen[bytes]", url: str) -> None:
        """Until it answers there."""
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(url):
                    return
            except OSError as error:
                if peer.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{name} did not start") from error
                time.sleep(0.05)

    def _add(self, target: Target) -> Target:
        self.targets.append(target)
        return target

    def close(self) -> None:
        """End everything."""
        for gateway in self._gateways:
            gateway.close()
        for peer in self._peers:
            peer.kill()
            peer.wait()
        self.server.close()

    def closed(
        self,
        target: Target,
        connections: int,
        seconds: float,
        *,
        each: bool = False,
        size: int = 0,
        may_refuse: bool = False,
    ) -> dict[str, Any]:
        """
        One run of closed load: every connection sends when it was answered.

        `may_refuse` takes 503 for an answer too, which is what a disk that is too slow for the load comes to.
        """
        more = [*(["--each"] if each else []), f"--size={size}"]
        return self._run(target, "load", connections, seconds, SECRET.decode(), *more, may_refuse=may_refuse)

    def open(self, target: Target, rate: float, seconds: float) -> dict[str, Any]:
        """One run of open load over 64 connections: so many a second, whatever became of them."""
        seen = self._run(target, "openload", 64, seconds, rate, SECRET.decode())
        if seen["unsent"]:
            print(f"{target.name}: {seen['unsent']} unsent at {rate:.0f}/s", flush=True)
        return {**seen, **{f"p{name}_ms": seen[f"accepted_p{name}_ms"] for name in ("50", "99", "999")}}

    def _run(self, target: Target, module: str, *arguments: object, may_refuse: bool = False) -> dict[str, Any]:
        load = subprocess.Popen(
            [
                *("taskset", "-c", OTHER_CPUS, sys.executable, "-m", f"tests.bench.{module}"),
                *(str(target.port), *map(str, arguments)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert load.stdin is not None
        assert load.stdout is not None
        load.stdout.readline()
        messages, cpu = self.stored(), cpu_seconds(target.pid)
        load.stdin.write("go\n")
        load.stdin.flush()
        seen: dict[str, Any] = json.loads(load.stdout.readline())
        load.wait()
        cpu = cpu_seconds(target.pid) - cpu
        accepted = seen["statuses"].get("202", 0)
        stored = self.stored() - messages
        refused = sum(seen["statuses"].values()) - accepted
        tolerated = may_refuse and refused == seen["statuses"].get("503", 0)
        # What was refused because its acknowledgement was late may have been stored all the same.
        clean = 0 <= stored - 2 * accepted <= 2 * refused and (tolerated or not refused)
        if not clean or not accepted or seen["lost"]:
            saw = f"{seen['statuses']}, {seen['lost']} connections lost, {stored} messages stored"
            raise SystemExit(f"{target.name}: not a clean run: {saw}")
        target.accepted += accepted
        return {
            **seen,
            "accepted": accepted,
            "refused": refused,
            "per_second": accepted / seen["seconds"],
            "busy": cpu / seen["seconds"],
            "cpu_us": cpu / accepted * 1e6,
            "rss_mib": rss_mib(target.pid),
        }

    def stored(self) -> int:
        """Messages in the stream."""
        return run(_count(self.server.url))


class Bench(Stand):
    """A server and one gatewayd that its user starts."""

    def __init__(self, root: Path, settings: Mapping[str, str]) -> None:
        super().__init__(root, settings)
        self.gateway = self.make_gateway("gateway")

    def round(self, connections: int, seconds: float) -> dict[str, Any]:
        """One run of closed load."""
        target = Target("gatewayd", self.gateway.port, self.gateway.pid, self.gateway.log_path)
        return self.closed(target, connections, seconds)


async def _count(url: str) -> int:
    import nats

    client = await nats.connect(url)
    try:
        info = await client.jetstream().stream_info("trading-events")
        return int(info.state.messages)
    finally:
        await client.close()
