"""
Every command of the at-gateway runbook and readme, run on a host with a real gatewayd and nats-server.

A line runs as it is written there, unless docs/seed-commands.md shows it and has another form; then that one runs.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, blocks
from tests.seeds.host import Host
from tests.streams import read_stream

pytest_plugins = ("tests.reporting",)

PAGE = "docs/seed-commands.md"
BLOCKS: list[dict[str, Any]] = json.loads((ROOT / "tests/vectors/runbook_commands.json").read_text())
FORMS: Mapping[str, tuple[str, str]] = {
    name: (text, blocks(PAGE, "run")[name]) for name, text in blocks(PAGE, "shown").items()
}
SAMPLE = "Environment Reference / Sample .env.production"
SETUP = ("Python Environment", "Infrastructure", SAMPLE)


def script_of(at: str) -> str:
    """The commands under a heading, in the form that works."""
    found = next(block for block in BLOCKS if block["at"] == at)
    text = "".join(f"{line}\n" for line in found["lines"])
    for shown, run in FORMS.values():
        if shown in text:
            text = text.replace(shown, run)
            continue
        for line, form in zip(shown.splitlines(keepends=True), run.splitlines(keepends=True), strict=False):
            text = text.replace(line, form) if not line.endswith("\\\n") else text
    return text


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a consumer, on which one signal was taken and one request was refused."""
    host = Host(tmp_path_factory.mktemp("host"), {"API_KEY_HMAC_SECRET": "old-secret"}).start()
    try:
        host.bash("gatewayctl consumer ensure")
        yield host
    finally:
        host.close()


def signed(host: Host) -> str:
    """The appendix's signed request, as an operator sends it."""
    return host.bash(
        f"API_KEY_HMAC_SECRET=old-secret\n{script_of('Common Curl Commands / Signed TradingView Request')}"
    )


def run(host: Host, at: str, *wanted: str) -> str:
    """Run what stands under a heading; each of the wanted texts is found after the one before it."""
    said = host.bash(script_of(at))
    place = 0
    for pattern in wanted:
        found = re.compile(pattern, re.MULTILINE).search(said, place)
        assert found, f"{pattern!r} is not in what is left of:\n{said}"
        place = found.end()
    return said


class TestAsWritten:
    """One test for each heading; together they are all that stands in the two pages."""

    def test_quick_verification(self, host: Host) -> None:
        """Healthy, counters that count, and no lag that nobody reads."""
        assert '"status":"accepted"' in signed(host)
        run(host, "Quick Verification", "^true$", "2xx.* [1-9]", "success.* [0-9]", r"^Error count: \d+$", r"^\d+$")

    def test_health(self, host: Host) -> None:
        """The members that the runbook explains."""
        members = json.loads(re.search(r"\{.*\}", run(host, "/healthz Endpoint"))[0])  # type: ignore[index]
        assert members["ok"] is True
        assert members["nats"] == "connected"
        assert {"uptime_s", "version"} <= set(members)

    def test_monitoring(self, host: Host) -> None:
        """Conflicts, memory of the very process, and what is remembered."""
        said = run(
            host, "Monitoring Commands", "^gateway_idempotency_conflicts_total ", "twistd|python", "idempotency_cache"
        )
        assert re.search(rf"^ *{host.gateway.pid} +\d+ +\d+ ", said, re.MULTILINE)

    def test_maintenance(self, host: Host) -> None:
        """On: 503 GW-011 with Retry-After; off: healthy."""
        run(host, "Enable Maintenance Mode", "< HTTP/1.1 503", "(?i)< retry-after: 300", "GW-011")
        run(host, "GW-011: Maintenance Mode / Investigation", "(?i)on", "503", "GW-011")
        run(host, "Disable Maintenance Mode", '"ok":true')
        run(host, "Drill Scripts / Maintenance Mode Test", "< HTTP/1.1 503", "GW-011", '"ok":true')

    def test_nats_health(self, host: Host) -> None:
        """The server answers, and the stream and the consumer are there."""
        run(host, "NATS Health Verification", "^name: test", "^trading-events ", "gateway-consumer", r"^\d+$")

    def test_recovery(self, host: Host) -> None:
        """After restarts of both, and with the consumer made anew, it is connected."""
        run(host, "Recovery Procedure", "Connected", "INFO", "trading-events", "gateway-consumer", '^"connected"$')

    def test_rate_limits(self, host: Host) -> None:
        """Both kinds of answers, each as often as it should be; the counter; a refusal that says when to come again."""
        run(host, "Adjust Rate Limits", "200", r"\d+ 200$", r"\d+ 429$")
        run(host, "Drill Scripts / Rate Limit Test", r"\d+ 200$", r"\d+ 429$")
        host.bash("gatewayctl env set RATE_LIMIT_RPS=1 --restart")
        many = "for i in {1..40}; do curl -s -o /dev/null -d '{}' http://localhost:8001/webhook/tradingview & done\n"
        said = host.bash(f"{many}{script_of('Rate Limiting Verification')}wait\n")
        assert re.search("^gateway_rate_limit_exceeded_total{", said, re.MULTILINE)
        assert "< HTTP/1.1 429" in said
        assert re.search("(?i)^< retry-after: [1-9]", said, re.MULTILINE)
        run(
            host,
            "GW-004: Rate Limit Exceeded / Investigation",
            "gateway_rate_limit",
            '"current_rate": [0-9]',
            '"limit"',
        )
        host.bash("gatewayctl env unset RATE_LIMIT_RPS --restart")

    def test_rotation(self, host: Host) -> None:
        """Both keys are taken in the overlap, the old one is refused after it, and is back after the rollback."""
        run(host, "Dual-Key Rotation Procedure", "old key", "GW-003", "new key", "GW-003", "GW-001")
        run(host, "Rollback Plan", '"ok":true')
        assert '"status":"accepted"' in signed(host)

    def test_bad_signatures(self, host: Host) -> None:
        """Fifty of them are counted and logged with their addresses."""
        run(
            host,
            "Drill Scripts / Invalid Signature Spike",
            'gateway_validation_errors_total{type="signature"} (5[0-9])',
        )
        at = "GW-001: Invalid Signature / Investigation"
        run(host, at, "gateway_validation_errors_total", '"code": "GW-001"', r"\d+ 127.0.0.1$")

    def test_replays(self, host: Host) -> None:
        """A stale timestamp is counted, and the log says what was sent and what is allowed."""
        stale = signed_with(host, "2020-01-01T00:00:00Z")
        assert "GW-002" in stale
        at = "GW-002: Replay Window Exceeded / Investigation"
        run(
            host,
            at,
            "gateway_validation_errors_total",
            '"timestamp_provided": "2020-01-01T00:00:00Z"',
            '"window_sec": 300',
        )

    def test_outage(self, host: Host) -> None:
        """Without NATS: 503 GW-005; with it again: healthy within 2 s, without a restart."""
        pid = host.gateway.pid
        at = "Drill Scripts / NATS Outage Simulation"
        run(host, at, "< HTTP/1.1 503", "(?i)< retry-after: ", "GW-005", '"nats":')
        deadline = time.monotonic() + 2
        while not host.gateway.health()["ok"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert host.gateway.pid == pid
        at = "GW-005: NATS Unavailable / Investigation"
        run(host, at, "gateway_nats_errors_total", '"nats_status": "disconnected"', "^name: test", "^trading-events ")

    @pytest.mark.parametrize("kind", ["Signed TradingView Request", "Generic Webhook"])
    def test_curl(self, host: Host, kind: str) -> None:
        """The appendix's requests are accepted."""
        said = host.bash(f"API_KEY_HMAC_SECRET=old-secret\n{script_of(f'Common Curl Commands / {kind}')}")
        assert '"status":"accepted"' in said

    def test_cheatsheet(self, host: Host, not_run: Callable[[str], None]) -> None:
        """The client's commands do to the stream what they say; a purge and a foreign message harm nothing."""
        not_run("the nats command itself: its calls are made by the official Python client")
        text = script_of("NATS CLI Cheatsheet").replace('nats sub "signals.*"\n', 'nats sub "signals.*" &\nsleep 1\n')
        said = host.bash(text + "wait\n")
        assert "Received on 'signals.raw'\ntest message" in said
        (foreign,) = read_stream(host.nats.url, user="gateway", password=host_password(host))
        assert foreign.data == b"test message"
        assert '"status":"accepted"' in signed(host)


class TestBesides:
    """What is set up with the two pages rather than run from them."""

    def test_sample_environment(self, host: Host, tmp_path: Path) -> None:
        """The sample for production is taken as it stands, with a secret beside it."""
        text = script_of(SAMPLE)
        environment = "".join(f"export {line}\n" for line in text.splitlines())
        said = host.bash(
            f"unset NATS_USER NATS_PASSWORD\n{environment}export API_KEY_HMAC_SECRET={'x' * 40}\n"
            "twistd gatewayd --check-config\necho status $?"
        )
        assert "NATS_URL=nats://nats-cluster:4222" in said
        assert "ALLOWED_SOURCES=tradingview,custom,partner" in said
        assert said.endswith("status 0\n")

    def test_quick_start(self, not_run: Callable[[str], None]) -> None:
        """The environment is made from the lock that is shipped, and what runs in it is twistd."""
        lines = next(block["lines"] for block in BLOCKS if block["at"] == "Python Environment")
        assert "pip install -r requirements.txt" in lines
        assert (ROOT / "requirements.txt").exists()
        assert script_of("Python Environment").endswith("twistd -n gatewayd\n")
        not_run("docker compose: containers of another project")


class TestComplete:
    """Nothing of the two pages is left out."""

    def test_every_heading(self) -> None:
        """Each heading with commands stands in a test of this file."""
        text = Path(__file__).read_text()
        missing = [block["at"] for block in BLOCKS if block["at"].rsplit(" / ", 1)[-1] not in text]
        assert missing == []

    def test_every_exception(self) -> None:
        """What the page shows as another form is a command of the two pages, word for word."""
        everything = "".join(f"{line}\n" for block in BLOCKS for line in block["lines"])
        assert [name for name, (shown, _) in FORMS.items() if shown not in everything] == []


def signature_errors(host: Host) -> float:
    """How many signatures were refused so far."""
    text = host.gateway.get("/metrics")[2].decode()
    return float(next(line for line in text.splitlines() if 'errors_total{type="signature"}' in line).split()[1])


def signed_with(host: Host, timestamp: str) -> str:
    """The appendix's request with another time in its header."""
    text = script_of("Common Curl Commands / Signed TradingView Request")
    return host.bash(
        "API_KEY_HMAC_SECRET=old-secret\n" + text.replace('"X-Timestamp: $TIMESTAMP"', f'"X-Timestamp: {timestamp}"')
    )


def host_password(host: Host) -> str:
    """What the host's own clients prove themselves with."""
    return host.bash("echo -n $NATS_PASSWORD")
