"""
One run of the ledger: a nats-server, a gatewayd, the load client in a thread of its own, and the faults.

Decides when something is killed and when it is started again. Never judges: the checker does, with what this collects.
"""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.clients import SECRET
from tests.gateway import Gateway
from tests.ledger.checker import check
from tests.ledger.client import Client, Ledger, read_ledger
from tests.ledger.plan import Step, make_plan
from tests.ledger.report import Counted, Fault, Report
from tests.servers import NatsServer
from tests.streams import read_stream

SETTINGS: Final = {
    "API_KEY_HMAC_SECRET": SECRET.decode(),
    "RATE_LIMIT_RPS": "100000",
    "RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8",
    "NATS_STREAM_MAX_BYTES": "1GiB",
}
NATS_DOWN_S: Final = 1.0
SYNC_EACH_LINE_UP_TO: Final = 5000
"""Runs up to this size sync their ledger after every line, larger ones after every 256."""

_SAMPLE: Final = re.compile(r"(gateway_\w+)(?:\{([^}]*)\})? ([0-9.e+-]+)")


@dataclass(frozen=True)
class Options:
    """What a run is; `deadline_s` bounds the client's part of it."""

    count: int
    seed: int
    connections: int = 32
    faults: bool = False
    deadline_s: float = 60.0
    sync_every: int = 0


class _Mark:
    """A place in the plan that a fault waits for, and how long after it the fault strikes."""

    def __init__(self, name: str, steps: int, delay_s: float) -> None:
        self.name = name
        self.steps = steps
        self.delay_s = delay_s
        self.reached = threading.Event()


def _marks(options: Options, steps: int) -> list[_Mark]:
    if not options.faults:
        return []
    random = Random(options.seed + 1)
    names = random.sample(["nats-server", "gatewayd"], 2)
    places = random.uniform(0.15, 0.45), random.uniform(0.55, 0.85)
    return [
        _Mark(name, int(place * steps), random.uniform(0.0, 0.03)) for name, place in zip(names, places, strict=True)
    ]


class Run:
    """One run under `root`, a new directory; close() ends every process of it."""

    def __init__(self, root: Path, options: Options) -> None:
        self.options = options
        self.plan: Sequence[Step] = make_plan(options.count, options.seed, time.time())
        self.faults: list[Fault] = []
        self.took_s = 0.0
        self._life = 1
        self._server = NatsServer(root / "nats")
        self._gateway = Gateway(root / "gateway", {**SETTINGS, "NATS_URL": self._server.url})
        self._marks = _marks(options, len(self.plan))
        sync_every = options.sync_every or (1 if options.count <= SYNC_EACH_LINE_UP_TO else 256)
        self._ledger = Ledger(root / "ledger.jsonl", sync_every)

    @property
    def nats_url(self) -> str:
        """Where the stream is."""
        return self._server.url

    def close(self) -> None:
        """End both processes."""
        self._gateway.close()
        self._server.close()

    def send(self) -> None:
        """Send everything, and kill meanwhile what is to be killed."""
        self._server.start()
        self._gateway.start(wait="/readyz")
        client = Client(
            self._gateway.port,
            self.plan,
            self._ledger,
            connections=self.options.connections,
            deadline_s=self.options.deadline_s,
            seed=self.options.seed,
            life=lambda: self._life,
            on_progress=self._progress,
        )
        with ThreadPoolExecutor(1) as thread:
            began = time.monotonic()
            sending = thread.submit(asyncio.run, client.run())
            sending.add_done_callback(self._release)
            for mark in self._marks:
                mark.reached.wait()
                if not sending.done():
                    self._strike(mark)
            sending.result()
            self.took_s = time.monotonic() - began
        self._ledger.close()

    def reconcile(self) -> Report:
        """Compare what the ledger says with what the stream, the counters and the log say now."""
        stored = read_stream(self.nats_url)
        report = check(self.plan, read_ledger(self._ledger.path), stored, self.faults, [self._counted()])
        for text in self._logged():
            report.note("logged", text)
        report.figures["seconds"] = round(self.took_s, 2)
        return report

    def _release(self, _: Future[None]) -> None:
        """Let no fault wait for a client that has ended."""
        for mark in self._marks:
            mark.reached.set()

    def _progress(self, steps: int) -> None:
        for mark in self._marks:
            if steps == mark.steps:
                mark.reached.set()

    def _strike(self, mark: _Mark) -> None:
        time.sleep(mark.delay_s)
        at = time.time()
        if mark.name == "gatewayd":
            self._gateway.kill()
            self._life += 1  # nothing listens now: a connection that opens from here on is the next process's
            self._gateway.start(wait="")
            self._wait_for_port(self._gateway.port)
        else:
            self._server.kill()
            time.sleep(NATS_DOWN_S)
            self._server.start()
        self.faults.append(Fault(mark.name, at, time.time()))

    def _wait_for_port(self, port: int) -> None:
        ends_at = time.monotonic() + 15
        while time.monotonic() < ends_at:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.005)
            else:
                return
        raise RuntimeError("gatewayd's port did not open again:\n" + self._gateway.log_text()[-4000:])

    def _counted(self) -> Counted:
        """The counters of the last process."""
        sums: dict[tuple[str, str], int] = {}
        for name, labels, value in _SAMPLE.findall(self._gateway.get("/metrics")[2].decode()):
            status = re.search(r'status="(\w+)"', labels)
            place = name, status[1] if status else ""
            sums[place] = sums.get(place, 0) + int(float(value))
        received = "gateway_webhooks_received_total"
        return Counted(
            life=self._life,
            classes={status: sums.get((received, status), 0) for status in ("2xx", "4xx", "5xx")},
            duplicates=sums.get(("gateway_duplicates_total", ""), 0),
            conflicts=sums.get(("gateway_idempotency_conflicts_total", ""), 0),
            letters_lost=sums.get(("gateway_dlq_lost_total", ""), 0),
            internal_errors=sums.get(("gateway_internal_errors_total", ""), 0),
        )

    def _logged(self) -> list[str]:
        """What must not be in a log."""
        lines = self._gateway.log_text().splitlines()
        found = [line for line in lines if "Traceback" in line or not (line.startswith("{") and line.endswith("}"))]
        found += ["a secret" for line in lines if SECRET.decode() in line]
        return [text[:300] for text in found]
