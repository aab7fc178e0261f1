"""Restarts under load: through a socket that outlives the process, and without one."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pytest

from gatewayd.times import parse_rfc3339
from tests.clients import SECRET
from tests.gateway import Gateway
from tests.ledger.checker import check
from tests.ledger.client import ANSWER_TIMEOUT_S, Client, Ledger, Line, read_ledger
from tests.ledger.plan import Kind, Step, make_plan, only
from tests.ledger.report import GATEWAY, Fault, Report
from tests.servers import NatsServer, free_port
from tests.sockets import Passed, listening_tcp
from tests.streams import read_stream

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
RESTARTS = 20 if FULL else 3
RATE_RPS = 200.0
EVERY_S = 1.2
"""Between two restarts, from ready to SIGTERM: no sender's request meets two of them."""

# One connection each, since one that is idle for seconds may be closed just when its client sends. No conflicts: one
# under a key that is not signed is judged by what the process that gets it has in its memory.
KINDS = frozenset({Kind.VALID, Kind.DUPLICATE, Kind.REPLAY, Kind.BROKEN})
SETTINGS = {
    "API_KEY_HMAC_SECRET": SECRET.decode(),
    "RATE_LIMIT_RPS": "100000",
    "RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8",
    "NATS_STREAM_MAX_BYTES": "1GiB",
}


class _Plan(list[Step]):
    """Steps without end, for a client: none begins once it is `over`."""

    over = False

    def __iter__(self) -> Iterator[Step]:
        return takewhile(lambda _: not self.over, super().__iter__())


@dataclass
class Restarts:
    """Restarts of one gatewayd while a client sends `RATE_RPS` webhooks a second over kept connections."""

    gateway: Gateway
    nats: NatsServer
    count: int
    connections: int
    lines: list[Line] = field(default_factory=list)
    away: list[tuple[float, float, float]] = field(default_factory=list)
    """Wall times of each: SIGTERM, the end of the process, the next one ready."""

    def run(self, root: Path) -> Report:
        """Send and restart; what the ledger, reconciled with the stream, says of it."""
        plan = _Plan(only(make_plan(3000 * (self.count + 1), 7, time.time()), KINDS))
        ledger = Ledger(root / "ledger.jsonl", 256)
        client = Client(
            [self.gateway.port],
            plan,
            ledger,
            connections=self.connections,
            deadline_s=30.0 * (self.count + 1),
            seed=7,
            life=lambda _: 1,
            on_progress=lambda _: None,
            pace_rps=RATE_RPS,
        )
        self.gateway.start(wait="/readyz")
        with closing(ledger), ThreadPoolExecutor(1) as thread:
            sending = thread.submit(asyncio.run, client.run())
            for _ in range(self.count):
                time.sleep(EVERY_S)
                self._restart()
            time.sleep(EVERY_S)
            assert not sending.done()
            plan.over = True
            sending.result()
        self.lines = read_ledger(ledger.path)
        plan.over = False
        sent = {line.plan for line in self.lines}
        return self._judge([step for step in plan if step.id in sent])

    def _restart(self) -> None:
        asked_at = time.time()
        assert self.gateway.stop() == -15
        ended_at = time.time()
        self.gateway.start(wait="/readyz", timeout_s=30.0)
        self.away.append((asked_at, ended_at, time.time()))

    def _judge(self, plan: list[Step]) -> Report:
        # The client waits 6 s at most: what it gave up on a machine that was too busy to start a process is explained.
        slow = [Fault(GATEWAY, at, ready_at) for at, _, ready_at in self.away if ready_at - at > ANSWER_TIMEOUT_S / 2]
        report = check(plan, self.lines, read_stream(self.nats.url), slow)
        report.found["late"].clear()
        for line in self.gateway.log_text().splitlines():
            if "Traceback" in line or not line.startswith("{"):
                report.note("logged", line[:300])
        print(self.table(report))
        return report

    def count_ended(self) -> Counter[str]:
        """How many attempts ended how: by status, or by how they got none."""
        return Counter(str(line.status or line.code) for line in self.lines)

    def starts_s(self) -> list[float]:
        """How long each process took from its first line to being ready."""
        lines = self.gateway.log_lines()
        times = [
            parse_rfc3339(line["timestamp"])
            for line in lines
            if line["event"] == "ready" or "starting up" in line["msg"]
        ]
        return [ready - began for began, ready in zip(times[::2], times[1::2], strict=True)]

    def table(self, report: Report) -> str:
        """For people."""
        ended = self.count_ended()
        answered = [line.latency_ms for line in self.lines if line.status]
        rows = {
            "restarts": self.count,
            "requests": len(self.lines),
            "202": ended["202"],
            "4xx, as planned": sum(times for word, times in ended.items() if word.startswith("4")),
            "503": ended["503"],
            "other 5xx": sum(times for word, times in ended.items() if word.startswith("5")) - ended["503"],
            "refused": ended["refused"],
            "cut": ended["reset"] + ended["timeout"],
            "lost": len(report.found["lost"]),
            "doubled": len(report.found["doubled"]) + len(report.found["repeated_id"]),
            "longest answer ms": round(max(answered)),
            "longest stop ms": round(max(ended - asked for asked, ended, _ in self.away) * 1000),
            "longest start ms": round(max(ready - ended for _, ended, ready in self.away) * 1000),
        }
        return "\n" + "\n".join(f"{name:20} {value}" for name, value in rows.items())


@pytest.fixture
def make_restarts(tmp_path: Path, nats: NatsServer) -> Iterator[Callable[..., Restarts]]:
    """Makes runs whose processes and sockets are ended."""
    made: list[Gateway] = []

    def make(count: int, connections: int, passed: Passed | None = None, **settings: str) -> Restarts:
        port = 0 if passed is None else passed.sockets[0].getsockname()[1]
        gateway = Gateway(
            tmp_path / "gateway", {**SETTINGS, "NATS_URL": nats.url, **settings}, port=port, passed=passed
        )
        made.append(gateway)
        return Restarts(gateway, nats, count, connections)

    yield make
    for gateway in made:
        gateway.close()
        if gateway.passed is not None:
            gateway.passed.close()


class TestRestart:
    """SIGTERM under 200 requests a second, and the next process."""

    def test_through_an_inherited_socket(self, make_restarts: Callable[..., Restarts], tmp_path: Path) -> None:
        """Nothing is refused, cut, answered 5xx, lost or doubled: senders see answers that take a second."""
        passed = Passed(("public", listening_tcp()))
        restarts = make_restarts(RESTARTS, 128, passed, GATEWAY_PUBLIC_HTTP_ADDR="systemd:domain=INET:name=public")
        report = restarts.run(tmp_path)
        assert report.violations == 0, report.table()
        ended = restarts.count_ended()
        assert ended["refused"] == ended["reset"] == 0, ended
        # Probes are answered after a second, also by a process that is not ready yet; so are webhooks.
        assert ended["503"] == 0 or max(restarts.starts_s()) > 0.9, ended

    def test_without_one(self, make_restarts: Callable[..., Restarts], tmp_path: Path) -> None:
        """What was begun is answered; connections are refused while no process listens, and senders get 503 before."""
        restarts = make_restarts(3 if FULL else 1, 32)
        report = restarts.run(tmp_path)
        refused = [line for line in restarts.lines if line.code == "refused"]
        assert report.violations == len(refused), report.table()
        for line in refused:
            # A process closes its socket a little before it is gone.
            assert any(ended - 0.5 < line.sent_at < ready for _, ended, ready in restarts.away), line
        # NATS is closed before the listener is.
        assert {line.code for line in restarts.lines if line.status == 503} <= {"GW-018", "GW-005"}


class TestInherited:
    """What a process that is started with sockets does with them beside serving."""

    def test_children_get_nothing_of_them(self, make_restarts: Callable[..., Restarts]) -> None:
        """The embedded nats-server has neither the socket nor the variables: it would keep the port for ever."""
        passed = Passed(("public", listening_tcp()))
        gateway = make_restarts(0, 0, passed, GATEWAY_PUBLIC_HTTP_ADDR="systemd:domain=INET:name=public").gateway
        del gateway.settings["NATS_URL"]
        gateway.start(wait="/readyz")
        (child,) = [line["pid"] for line in gateway.log_lines() if line["event"] == "embedded.up"]
        assert b"LISTEN_" not in Path(f"/proc/{child}/environ").read_bytes()
        socket_of = f"socket:[{os.fstat(passed.sockets[0].fileno()).st_ino}]"
        assert socket_of in held(gateway.pid)
        assert socket_of not in held(child)

    def test_sockets_that_nobody_asked_for(self, make_restarts: Callable[..., Restarts]) -> None:
        """A unit's socket that no setting means is named in a warning: whoever connects to it would wait for ever."""
        gateway = make_restarts(0, 0, Passed(("public", listening_tcp()))).gateway
        gateway.port = free_port()
        gateway.start()
        warning = gateway.await_line(event="listener.unused")
        assert (warning["level"], warning["names"]) == ("warning", "public")

    def test_a_socket_that_is_not_there(self, make_restarts: Callable[..., Restarts]) -> None:
        """A start without the unit's socket fails at once, in one line that says what there is."""
        passed = Passed(("other", listening_tcp()))
        gateway = make_restarts(0, 0, passed, GATEWAY_PUBLIC_HTTP_ADDR="systemd:domain=INET:name=public").gateway
        gateway.start(wait="")
        assert gateway.process is not None
        assert gateway.process.wait(20) == 1
        assert gateway.await_line(event="process.failed")["reason"] == (
            "public listener did not start: systemd:domain=INET:name=public: no such socket was passed to this "
            "process: there is 'other'"
        )

    def test_the_end_in_a_long_start(self, make_restarts: Callable[..., Restarts], nats: NatsServer) -> None:
        """While NATS hangs probes are answered after a second; what waits at SIGTERM is the next process's."""
        passed = Passed(("public", listening_tcp()))
        gateway = make_restarts(0, 0, passed, GATEWAY_PUBLIC_HTTP_ADDR="systemd:domain=INET:name=public").gateway
        nats.sigstop()
        gateway.start(wait="/healthz")
        assert gateway.get("/readyz")[0] == 503
        gateway.stop()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(gateway.get, "/readyz")
            nats.sigcont()
            gateway.start(wait="")
            assert waiting.result(20)[0] in (200, 503)


def held(pid: int) -> list[str]:
    """What the descriptors of a process are."""
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
