"""
One run of the ledger: a nats-server, a gatewayd, the load client in a thread of its own, and what is done to them.

Decides when something is done, and holds what it is done with. Never judges: the checker does, with what this collects.
"""

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.clients import SECRET
from tests.faultproxy import FaultProxy
from tests.gateway import Gateway
from tests.ledger.checker import check
from tests.ledger.client import Client, Ledger, Line, read_ledger
from tests.ledger.plan import Kind, Step, make_plan, only
from tests.ledger.probe import Probe
from tests.ledger.report import GATEWAY, Counted, Fault, Report
from tests.servers import NatsServer
from tests.sockets import Passed, listening_tcp
from tests.streams import Read, read_stream

SETTINGS: Final = {
    "API_KEY_HMAC_SECRET": SECRET.decode(),
    "RATE_LIMIT_RPS": "100000",
    "RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8",
    "NATS_STREAM_MAX_BYTES": "1GiB",
}
SYNC_EACH_LINE_UP_TO: Final = 5000
"""Runs up to this size sync their ledger after every line, larger ones after every 256."""

_SAMPLE: Final = re.compile(r"(gateway_\w+)(?:\{([^}]*)\})? ([0-9.e+-]+)")


@dataclass(frozen=True)
class Options:
    """
    What a run is. `deadline_s` bounds the client's part of it; `kinds` are the steps that are sent (None: all);
    `proxied` puts the fault proxy between gatewayd and NATS; `gateways` processes share one stream; `inherited`: each
    is started with a listening socket that outlives it. `settings` are gatewayd's beside the usual ones ("" takes one
    of them out), `prefix` comes before its command.
    """

    count: int
    seed: int
    connections: int = 32
    deadline_s: float = 60.0
    sync_every: int = 0
    eager: int = 0
    pace_rps: float = 0.0
    kinds: frozenset[Kind] | None = None
    proxied: bool = False
    probed: bool = False
    gateways: int = 1
    inherited: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()


@dataclass(frozen=True)
class Vitals:
    """One process at one time."""

    pid: int
    descriptors: int
    rss_mib: float


def vitals_of(gateway: Gateway) -> Vitals:
    """How it stands now."""
    return Vitals(gateway.pid, len(os.listdir(f"/proc/{gateway.pid}/fd")), gateway.rss_mib())


class Strike:
    """Something to do once this share of the plan's steps is over, and `delay_s` after it."""

    def __init__(self, share: float, delay_s: float, act: "Callable[[Run], object]") -> None:
        self.share = share
        self.delay_s = delay_s
        self.act = act
        self.reached = threading.Event()


class Run:
    """One run under `root`, a new directory; close() ends every process of it."""

    def __init__(self, root: Path, options: Options, strikes: Sequence[Strike] = ()) -> None:
        self.options = options
        steps = make_plan(options.count, options.seed, time.time())
        self.plan: Sequence[Step] = steps if options.kinds is None else only(steps, options.kinds)
        self.faults: list[Fault] = []
        self.removed: list[Read] = []  # what was taken out of the stream on purpose
        self.measured: dict[str, float] = {}
        self.took_s = 0.0
        self.secret = SECRET
        self.server = NatsServer(root / "nats")
        self.proxy: FaultProxy | None = None
        self.gateways: list[Gateway] = []
        self.baseline: Vitals | None = None
        self.probe: Probe | None = None
        self._root = root
        self._life = 1
        self._strikes = strikes
        self._sending: Future[None] | None = None
        self._client: Client | None = None
        sync_every = options.sync_every or (1 if options.count <= SYNC_EACH_LINE_UP_TO else 256)
        self._ledger = Ledger(root / "ledger.jsonl", sync_every)

    @property
    def gateway(self) -> Gateway:
        """The first gatewayd, in most runs the only one."""
        return self.gateways[0]

    @property
    def way(self) -> FaultProxy:
        """The proxy of a run that has one."""
        assert self.proxy is not None
        return self.proxy

    @property
    def nats_url(self) -> str:
        """Where the stream is."""
        return self.server.url

    @property
    def sending(self) -> bool:
        """True until the client has ended."""
        return self._sending is not None and not self._sending.done()

    def close(self) -> None:
        """End every process."""
        if self.probe is not None:
            self.probe.stop()
        for gateway in self.gateways:
            gateway.close()
            if gateway.passed is not None:
                gateway.passed.close()
        if self.proxy is not None:
            self.proxy.close()
        self.server.close()

    def start(self) -> None:
        """Start the processes."""
        options = self.options
        self.server.start()
        if options.proxied:
            self.proxy = FaultProxy(self.server.port)
        url = self.server.url if self.proxy is None else self.proxy.url
        asked = {**SETTINGS, "NATS_URL": url, **options.settings}
        settings = {name: value for name, value in asked.items() if value}
        for number in range(options.gateways):
            place = self._root / ("gateway" if number == 0 else f"gateway-{number + 1}")
            self.gateways.append(self._make_gateway(place, settings))
            self.gateways[-1].start(wait="/readyz")
        self.baseline = vitals_of(self.gateway)
        if options.probed:
            self.probe = Probe(self.gateway.port, self._root / "probe.jsonl")

    def _make_gateway(self, place: Path, settings: Mapping[str, str]) -> Gateway:
        if not self.options.inherited:
            return Gateway(place, settings, prefix=self.options.prefix)
        listening = listening_tcp()
        return Gateway(
            place,
            {**settings, "GATEWAY_PUBLIC_HTTP_ADDR": "systemd:domain=INET:name=public"},
            prefix=self.options.prefix,
            port=int(listening.getsockname()[1]),
            passed=Passed(("public", listening)),
        )

    def send(self) -> None:
        """Send everything, and do meanwhile what is to be done."""
        self.start()
        ports = {gateway.port: number for number, gateway in enumerate(self.gateways)}
        client = self._client = Client(
            list(ports),
            self.plan,
            self._ledger,
            connections=self.options.connections,
            deadline_s=self.options.deadline_s,
            seed=self.options.seed,
            life=lambda port: self._life + ports[port],
            on_progress=self._progress,
            eager=self.options.eager,
            pace_rps=self.options.pace_rps,
            inherited=self.options.inherited,
            secret=lambda: self.secret,
        )
        with ThreadPoolExecutor(1) as thread:
            began = time.monotonic()
            self._sending = thread.submit(asyncio.run, client.run())
            self._sending.add_done_callback(self._release)
            for strike in self._strikes:
                strike.reached.wait()
                if self.sending:
                    time.sleep(strike.delay_s)
                    strike.act(self)
            self._sending.result()
            self.took_s = time.monotonic() - began
        self._ledger.close()
        if self.probe is not None:
            self.probe.stop()

    def lines(self) -> list[Line]:
        """The ledger."""
        return read_ledger(self._ledger.path)

    def reconcile(self) -> Report:
        """Compare what the ledger says with what the stream, the counters and the log say now."""
        there = read_stream(self.nats_url)
        stored = [*self.removed, *(replace(one, sequence=one.sequence + len(self.removed)) for one in there)]
        counted = [self._counted(number) for number in range(len(self.gateways))]
        report = check(self.plan, self.lines(), stored, self.faults, counted)
        for text in self._logged():
            report.note("logged", text)
        report.figures["seconds"] = round(self.took_s, 2)
        return report

    # What is done with it.

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Write down that this is done to NATS, or to GATEWAY, for as long as the block lasts."""
        at = time.time()
        try:
            yield
        finally:
            self.faults.append(Fault(name, at, time.time()))

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No request is under way, and none is begun, while the block lasts."""
        assert self._client is not None
        self._client.paused = True
        try:
            while self._client.busy and self.sending:
                time.sleep(0.005)
            yield
        finally:
            self._client.paused = False

    def kill_gateway(self, meanwhile: Callable[[], object] = lambda: None, wait_s: float = 15.0) -> bool:
        """kill -9, `meanwhile`, and start again; see start_gateway."""
        with self.fault(GATEWAY):
            self.gateway.kill()
            meanwhile()
            return self.start_gateway(wait_s)

    def start_gateway(self, wait_s: float = 15.0) -> bool:
        """
        Start the next process in the place of one that has ended; returns when it is there (its port is open, or, with
        a socket that always is, /healthz is answered), or after `wait_s`; True when it is.
        """
        if self.options.inherited:
            time.sleep(0.1)  # what the last process answered has been read
        self._life += 1  # nothing listens now: a connection that opens from here on is the next process's
        self.gateway.start(wait="")
        self.baseline = None
        ends_at = time.monotonic() + wait_s
        while not (there := self._is_there()) and time.monotonic() < ends_at:
            time.sleep(0.005)
        return there

    def _is_there(self) -> bool:
        try:
            if self.options.inherited:
                return self.gateway.ask("GET", "/healthz", b"", {}, timeout_s=0.2)[0] == 200
            socket.create_connection(("127.0.0.1", self.gateway.port), 1).close()
        except OSError:
            return False
        return True

    def await_ready(self, timeout_s: float = 10.0) -> None:
        """Returns once the gateway says that NATS is there again and webhooks are taken."""
        ends_at = time.monotonic() + timeout_s
        while time.monotonic() < ends_at:
            try:
                if self.gateway.get("/readyz")[0] == 200 and self.gateway.health()["nats"] != "disconnected":
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError("gatewayd is not ready again:\n" + self.gateway.log_text()[-4000:])

    def _release(self, _: Future[None]) -> None:
        """Let nothing wait for a client that has ended."""
        for strike in self._strikes:
            strike.reached.set()

    def _progress(self, steps: int) -> None:
        for strike in self._strikes:
            if steps >= strike.share * len(self.plan):
                strike.reached.set()

    def _counted(self, number: int) -> Counted:
        """The counters of the last process at this place."""
        sums: dict[tuple[str, str], int] = {}
        for name, labels, value in _SAMPLE.findall(self.gateways[number].get("/metrics")[2].decode()):
            status = re.search(r'status="(\w+)"', labels)
            place = name, status[1] if status else ""
            sums[place] = sums.get(place, 0) + int(float(value))
        received = "gateway_webhooks_received_total"
        return Counted(
            life=self._life + number,
            classes={status: sums.get((received, status), 0) for status in ("2xx", "4xx", "5xx")},
            duplicates=sums.get(("gateway_duplicates_total", ""), 0),
            conflicts=sums.get(("gateway_idempotency_conflicts_total", ""), 0),
            letters_lost=sums.get(("gateway_dlq_lost_total", ""), 0),
            internal_errors=sums.get(("gateway_internal_errors_total", ""), 0),
        )

    def _logged(self) -> list[str]:
        """What must not be in a log."""
        lines = [line for gateway in self.gateways for line in gateway.log_text().splitlines()]
        found = [line for line in lines if not (line.startswith("{") and line.endswith("}"))]
        found += [line for line in lines if "Traceback" in line or "Unhandled" in line]
        found += ["a secret" for line in lines if SECRET.decode() in line]
        return [text[:300] for text in found]
