"""The admin listener on real sockets."""

import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_twisted
from prometheus_client import CollectorRegistry
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher

from gatewayd.address_gate import AddressGate
from gatewayd.admin import Admin
from gatewayd.answers import Answers
from gatewayd.bus.publication import BusState
from gatewayd.exposition import Exposition
from gatewayd.health import Health, Phase
from gatewayd.http.addresses import Address, Kind
from gatewayd.http.message import Response
from gatewayd.ingress.sources import make_rules
from gatewayd.interfaces import ILeaf
from gatewayd.lifecycle import StartFailed
from gatewayd.maintenance import Maintenance
from gatewayd.metrics import Metrics
from gatewayd.probes import Gate, HealthProbe, MetricsProbe
from gatewayd.times import Monotonic, Wall
from tests.buses import reactor_clock, reactor_loop
from tests.fakes.bus import DoubleBus
from tests.fakes.connection import Leaf
from tests.servers import free_port, make_certificates
from tests.unit.settings_case import HOME, load_from

WALL = Wall(1.7e9)
STRICT = {"METRICS_ALLOW_CIDRS": "none", "RATE_LIMIT_ADDRESS_RPS": "1"}


def admin_at(addresses: str, **more: str) -> Admin:
    """An admin listener with the probes and the metrics, as a gateway has them."""
    loaded = load_from({**HOME, "GATEWAY_ADMIN_HTTP_ADDR": addresses, **STRICT, **more})
    assert loaded.settings is not None, loaded.problems
    clock, settings, rules = reactor_clock(), loaded.settings, make_rules(loaded.settings)
    answers = Answers(lambda: WALL)
    metrics = Metrics(CollectorRegistry(), version="1", subjects=("s",), consumer="c")
    maintenance = Maintenance(lambda: WALL, on=False, until=None, retry_after_s=300.0)
    health = Health(
        maintenance=maintenance,
        now=lambda: Monotonic(clock.seconds()),
        wall=lambda: WALL,
        version="1",
        warnings=lambda: ["the key is weak"],
    )
    health.phase = Phase.READY
    bus = DoubleBus(clock)
    bus.state = BusState.CONNECTED
    limits = AddressGate(lambda: rules, lambda: Monotonic(clock.seconds()))
    gate = Gate(lambda: rules, answers, limits, trusts_all=True)
    paths: dict[bytes, ILeaf] = {
        b"/healthz": HealthProbe(gate, health, bus, ready=False),
        b"/readyz": HealthProbe(gate, health, bus, ready=True),
        b"/metrics": MetricsProbe(gate, Exposition(metrics.registry, lambda: None, lambda call: call())),
    }
    return Admin(
        clock,
        reactor_loop(),
        settings,
        paths,
        refuse=answers.refuse,
        failed=lambda request, failure: Response(500),
        finished=lambda request, response, *, written: None,
        wall=lambda: WALL,
    )


@asynccontextmanager
async def opened(addresses: str, **more: str) -> AsyncIterator[Admin]:
    """The same, listening."""
    admin = admin_at(addresses, **more)
    admin.open()
    try:
        yield admin
    finally:
        await admin.close()
    assert admin.site.open == 0


async def get(connection: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
    """One GET."""

    def run() -> tuple[int, bytes]:
        connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()

    return await deferToThread(run)


class Unix(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def first_port(admin: Admin) -> int:
    """The port that its first address got."""
    return admin.port_of(Address(Kind.TCP, "127.0.0.1", 0))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_paths(kind: str, tmp_path: Path) -> None:
    """Metrics and probes for whoever comes: no list, no limit, every warning; and what later parts add."""
    address = ":0" if kind == "tcp" else f"unix:{tmp_path}/admin.sock"
    async with opened(address) as admin:
        connection = (
            Unix(tmp_path / "admin.sock")
            if kind == "unix"
            else http.client.HTTPConnection("127.0.0.1", first_port(admin), timeout=5)
        )
        for _ in range(5):
            status, body = await get(connection, "/metrics", X_Forwarded_For="203.0.113.7")
            assert status == 200
            assert b"gatewayd_build_info" in body
            assert (await get(connection, "/healthz"))[0] == 200
        status, body = await get(connection, "/readyz")
        assert (status, json.loads(body)["warnings"]) == (200, ["the key is weak"])
        assert (await get(connection, "/webhook/test"))[0] == 404
        admin.paths[b"/admin/v1/later"] = Leaf(methods=(b"GET",))
        assert (await get(connection, "/admin/v1/later"))[0] == 202
        connection.close()


@pytest_twisted.ensureDeferred
async def test_a_taken_port() -> None:
    """A port that is taken is named, with the setting; nothing stays open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        admin = admin_at(f"127.0.0.1:{port}")
        with pytest.raises(StartFailed, match=rf"GATEWAY_ADMIN_HTTP_ADDR: 127\.0\.0\.1:{port} is taken"):
            admin.open()
        await admin.close()


@pytest_twisted.ensureDeferred
async def test_no_address() -> None:
    """Without the setting nothing listens."""
    async with opened("") as admin:
        assert admin.warnings() == []


@pytest_twisted.ensureDeferred
async def test_tls_of_its_own(tmp_path: Path) -> None:
    """The public certificate is not the admin's: plain TCP stays plain, an ssl: address has its own files."""
    files = make_certificates(tmp_path)
    public = {"GATEWAY_TLS_CERT": str(files.cert), "GATEWAY_TLS_KEY": str(files.key)}
    port = free_port()
    async with opened(f"127.0.0.1:0,ssl:{port}:privateKey={files.key}:certKey={files.cert}", **public) as admin:
        plain = http.client.HTTPConnection("127.0.0.1", first_port(admin), timeout=5)
        assert (await get(plain, "/healthz"))[0] == 200
        plain.close()
        secured = http.client.HTTPSConnection(
            "localhost", port, timeout=5, context=ssl.create_default_context(cafile=str(files.ca))
        )
        assert (await get(secured, "/healthz"))[0] == 200
        secured.close()


@pytest_twisted.ensureDeferred
async def test_who_can_reach_it() -> None:
    """What more than this host reaches is warned of, in the log at the start and in /readyz as long as it lasts."""
    lines: list[LogEvent] = []
    globalLogPublisher.addObserver(lines.append)
    try:
        async with opened("0.0.0.0:0,:0,[::1]:0,localhost:0") as admin:
            (warning,) = admin.warnings()
            assert "0.0.0.0" in warning
            assert "GATEWAY_ADMIN_HTTP_ADDR" in warning
    finally:
        globalLogPublisher.removeObserver(lines.append)
    assert [line["warning"] for line in lines if line.get("event") == "admin.reachable"] == [warning]
    for address in ("192.0.2.1:1", "admin.example:1", "[::]:1"):
        assert len(admin_at(address).warnings()) == 1, address
