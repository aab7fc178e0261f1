"""The main job as a stranger does it: start it with nothing, paste the command, see the signal in the stream."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gatewayd.times import parse_rfc3339
from tests.clients import SECRET, generic_body, stamped, tradingview_body
from tests.gateway import Gateway
from tests.servers import NatsServer
from tests.streams import delete_stream, read_stream, run

pytest_plugins = ("tests.reporting",)
WEBHOOK = "/webhook/tradingview"


def bash(script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a person pastes it."""
    kept = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=30, env={**kept, **environ}, check=False
    )


class TestFirstRun:
    """Development mode with no setting at all."""

    def test_the_command_in_the_log_stores_a_signal(self, make_gateway: Callable[..., Gateway]) -> None:
        """The first text with curl in the log works as it is pasted, as often as it is pasted."""
        gateway = make_gateway()
        assert gateway.start(wait="/readyz") < 10
        commands = [line["msg"] for line in gateway.log_lines() if "curl " in line["msg"]]
        assert commands[0].startswith("curl ")
        assert "\n" not in commands[0]
        first = bash(commands[0])
        assert first.returncode == 0, first.stderr
        answer = json.loads(first.stdout)
        assert (answer["status"], answer["duplicate"]) == ("accepted", False)
        time.sleep(1.1)  # the body's time has whole seconds: the next one is another event
        second = json.loads(bash(commands[0]).stdout)
        assert second["status"] == "accepted"
        assert second["corr_id"] != answer["corr_id"]

        client = json.loads((gateway.state / "nats" / "client.json").read_text())
        stored = read_stream(client["url"], user=client["user"], password=client["password"])
        assert [message.subject for message in stored] == ["signals.raw", "signals.normalized"] * 2
        normalised = json.loads(stored[1].data)
        assert normalised["corr_id"] == answer["corr_id"] == stored[1].headers["Corr-ID"]
        assert (normalised["instrument"], normalised["side"], normalised["price"]) == ("EURUSD", "buy", 1.0945)

    def test_secrets_are_private(self, make_gateway: Callable[..., Gateway]) -> None:
        """What development mode makes is readable by its user only, and is in no log."""
        gateway = make_gateway()
        gateway.start(wait="/readyz")
        secret_file, client_file = gateway.state / "hmac-secret", gateway.state / "nats" / "client.json"
        for path in (secret_file, client_file):
            assert path.stat().st_mode & 0o077 == 0
        for secret in (secret_file.read_text().strip(), json.loads(client_file.read_text())["password"]):
            assert secret not in gateway.log_text()

    def test_the_secret_and_the_stream_survive_a_restart(self, make_gateway: Callable[..., Gateway]) -> None:
        """What was accepted before a kill -9 is a duplicate after it, under the same secret and corr_id."""
        gateway = make_gateway()
        gateway.start(wait="/readyz")
        secret = (gateway.state / "hmac-secret").read_bytes().strip()
        body = tradingview_body(time.time())
        first = gateway.ask("POST", WEBHOOK, body, stamped(body, time.time(), secret=secret))
        gateway.kill()
        gateway.start(wait="/readyz")
        again = gateway.ask("POST", WEBHOOK, body, stamped(body, time.time(), secret=secret))
        assert (first[0], again[0]) == (202, 202)
        assert json.loads(again[2])["duplicate"] is True
        assert json.loads(first[2])["corr_id"] == json.loads(again[2])["corr_id"]

    def test_no_orphan(self, make_gateway: Callable[..., Gateway]) -> None:
        """kill -9 of gatewayd takes its nats-server along."""
        gateway = make_gateway()
        gateway.start(wait="/readyz")
        (up,) = [line for line in gateway.log_lines() if line["event"] == "embedded.up"]
        gateway.kill()
        deadline = time.monotonic() + 5
        while Path(f"/proc/{up['pid']}/stat").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{up['pid']}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
            time.sleep(0.02)
        else:
            assert time.monotonic() < deadline, "the embedded server outlived gatewayd"


# As the at-gateway runbook prints them, under "Common Curl Commands" and "Dual-Key Rotation".
SIGNED_TRADINGVIEW = """
TIMESTAMP=$(date -u +"%Y-%m-%dT%H:%M:%SZ")
NONCE=$(uuidgen)
BODY='{"ticker":"EURUSD","action":"buy","price":1.0945,"time":"'$TIMESTAMP'"}'
SIGNATURE=$(echo -n "$BODY" | openssl dgst -sha256 -hmac "$API_KEY_HMAC_SECRET" | cut -d' ' -f2)

curl -X POST http://localhost:8001/webhook/tradingview \\
  -H "Content-Type: application/json; charset=utf-8" \\
  -H "X-Timestamp: $TIMESTAMP" \\
  -H "X-Nonce: $NONCE" \\
  -H "X-Signature: sha256=$SIGNATURE" \\
  -d "$BODY"
"""
GENERIC = """
TIMESTAMP=$(date -u +"%Y-%m-%dT%H:%M:%SZ")
NONCE=$(uuidgen)
BODY='{"source":"test","instrument":"BTCUSD","timestamp":"'$TIMESTAMP'","payload":{"price":45000}}'
SIGNATURE=$(echo -n "$BODY" | openssl dgst -sha256 -hmac "$API_KEY_HMAC_SECRET" | cut -d' ' -f2)

curl -X POST http://localhost:8001/webhook/generic \\
  -H "Content-Type: application/json; charset=utf-8" \\
  -H "X-Timestamp: $TIMESTAMP" \\
  -H "X-Nonce: $NONCE" \\
  -H "X-Signature: sha256=$SIGNATURE" \\
  -d "$BODY"
"""
ROTATION = """
curl -X POST http://localhost:8001/webhook/tradingview \\
  -H "Content-Type: application/json" \\
  -H "X-Timestamp: $(date -u +"%Y-%m-%dT%H:%M:%SZ")" \\
  -H "X-Nonce: $(uuidgen)" \\
  -H "X-Signature: sha256=$(echo -n '{}' | openssl dgst -sha256 -hmac 'KEY' | cut -d' ' -f2)" \\
  -d '{}'
"""


def as_written(script: str, gateway: Gateway) -> str:
    """The page's script, on this test's port; where the machine has no uuidgen, the kernel's generator stands in."""
    stand_in = "uuidgen() { cat /proc/sys/kernel/random/uuid; }; export -f uuidgen\n"
    return stand_in + script.replace("localhost:8001", f"localhost:{gateway.port}")


class TestSeedCommands:
    """The runbook's own commands."""

    def test_signed_requests(self, gateway: Gateway, nats: NatsServer) -> None:
        """Both curls are accepted as written, and their signals are in the stream."""
        for script, source in ((SIGNED_TRADINGVIEW, "tradingview"), (GENERIC, "test")):
            done = bash(as_written(script, gateway), API_KEY_HMAC_SECRET=SECRET.decode())
            assert json.loads(done.stdout)["status"] == "accepted", done.stdout
            assert read_stream(nats.url)[-1].headers["Source"] == source

    def test_rotation(self, make_gateway: Callable[..., Gateway], nats: NatsServer) -> None:
        """Old key, both keys, new key: an accepted key is told from a refused one by 422 and 401."""

        def codes(secrets: str) -> list[str]:
            gateway = make_gateway(secrets.replace(",", "-"), NATS_URL=nats.url, API_KEY_HMAC_SECRET=secrets)
            gateway.start(wait="/readyz")
            answers = [bash(as_written(ROTATION.replace("KEY", key), gateway)) for key in ("old-secret", "new-secret")]
            gateway.stop()
            return [json.loads(answer.stdout)["code"] for answer in answers]

        assert codes("old-secret") == ["GW-003", "GW-001"]
        assert codes("old-secret,new-secret") == ["GW-003", "GW-003"]
        assert codes("new-secret") == ["GW-001", "GW-003"]

    def test_quick_verification(self, gateway: Gateway, not_run: Callable[[str], None]) -> None:
        """The health and metrics commands of the runbook's first page."""
        if shutil.which("jq") is None:
            not_run("jq is not installed")
            return
        body = tradingview_body(time.time())
        assert gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))[0] == 202
        script = """
        curl -f http://localhost:8001/healthz | jq '.ok and (.nats == "connected")'
        curl -s http://localhost:8001/metrics | grep 'gateway_webhooks_received_total.*2xx' | tail -1
        curl -s http://localhost:8001/metrics | grep 'gateway_nats_publish_total.*success' | tail -1
        """
        lines = bash(as_written(script, gateway)).stdout.splitlines()
        assert lines[0] == "true"
        assert re.fullmatch(r'gateway_webhooks_received_total{source="\w+",status="2xx"} [\d.]+', lines[1])
        assert re.fullmatch(r'gateway_nats_publish_total{status="success",subject="[\w.]+"} [\d.]+', lines[2]), lines


class TestLife:
    """Signals and starts."""

    def test_sigterm(self, gateway: Gateway) -> None:
        """SIGTERM ends it in order, with SIGTERM's status, and its log says so."""
        assert gateway.stop() in (0, -signal.SIGTERM)
        stopped = [line["service"] for line in gateway.log_lines() if line["event"] == "service.stopped"]
        assert stopped.index("requests") < stopped.index("NATS") < stopped.index("public listener")

    def test_sigusr2(self, gateway: Gateway) -> None:
        """A signal that has no meaning yet is said to have none, and ends nothing."""
        gateway.signal(signal.SIGUSR2)
        gateway.await_line(event="signal.unavailable")
        assert gateway.health()["ok"] is True

    def test_unreachable_nats_is_not_a_failed_start(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """Without NATS it starts, answers 503 GW-005 with Retry-After, and takes webhooks once NATS is there."""
        server = NatsServer(tmp_path / "late")
        gateway = make_gateway(NATS_URL=server.url, API_KEY_HMAC_SECRET=SECRET.decode())
        assert gateway.start() < 5
        body = tradingview_body(time.time())
        status, headers, answer = gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))
        assert (status, json.loads(answer)["code"], headers["retry-after"]) == (503, "GW-005", "1")
        assert gateway.health()["nats"] == "disconnected"
        assert gateway.get("/readyz")[0] == 503
        assert gateway.await_line(code="GW-005", corr_id=json.loads(answer)["corr_id"])["nats_status"] == "disconnected"
        server.start()
        try:
            deadline = time.monotonic() + 5
            while gateway.get("/readyz")[0] != 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))[0] == 202
            server.kill()
            time.sleep(0.2)
            answer = gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))[2]
            line = gateway.await_line(code="GW-005", corr_id=json.loads(answer)["corr_id"])
            last_success = parse_rfc3339(line["last_success"])
            assert last_success is not None
            assert abs(last_success - time.time()) < 10
        finally:
            server.close()

    def test_bad_settings_end_the_start(self, make_gateway: Callable[..., Gateway]) -> None:
        """Every problem has one line, all at once, and the status is not zero."""
        gateway = make_gateway(RATE_LIMIT_RPS="many", IDEMPOTENCY_TTL_SEC="-1", LOG_LEVEL="LOUD")
        gateway.start(wait="")
        assert gateway.process is not None
        assert gateway.process.wait(10) == 1
        lines = gateway.log_text().splitlines()
        assert len(lines) == 3
        for line, name in zip(sorted(lines), ("IDEMPOTENCY_TTL_SEC", "LOG_LEVEL", "RATE_LIMIT_RPS"), strict=True):
            assert line.startswith(f"gatewayd: {name}=")

    def test_the_servers_binary_may_stand_in_the_file(
        self, make_gateway: Callable[..., Gateway], tmp_path: Path
    ) -> None:
        """A nats-server named in the settings' file is the one that is started, or named when it cannot be."""
        file = tmp_path / "gatewayd.toml"
        file.write_text('nats_server_bin = "/nonexistent/nats-server"\n')
        gateway = make_gateway()
        done = subprocess.run(
            gateway.command("--config", str(file)),
            env=gateway.environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            cwd="/",
        )
        assert done.returncode == 1
        assert "NATS_SERVER_BIN=/nonexistent/nats-server is not an executable file" in done.stdout

    def test_a_taken_port_is_named(self, gateway: Gateway, make_gateway: Callable[..., Gateway]) -> None:
        """A second gatewayd on the same port ends at once and names it."""
        second = make_gateway("second", port=gateway.port, API_KEY_HMAC_SECRET=SECRET.decode())
        second.start(wait="")
        assert second.process is not None
        assert second.process.wait(10) == 1
        assert f"127.0.0.1:{gateway.port} is taken (EADDRINUSE)" in second.log_text()

    def test_check_config(self, make_gateway: Callable[..., Gateway]) -> None:
        """--check-config shows the settings without a secret and opens nothing."""
        gateway = make_gateway(API_KEY_HMAC_SECRET=SECRET.decode(), RATE_LIMIT_RPS="7")
        done = subprocess.run(
            gateway.command("--check-config"),
            env=gateway.environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        assert "RATE_LIMIT_RPS=7" in done.stdout
        assert SECRET.decode() not in done.stdout + done.stderr

    def test_in_the_background(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """Daemonised, with a pid file and a log file, it serves and ends like in the foreground."""
        gateway = make_gateway()
        gateway.root.mkdir(parents=True)
        pid_file, log_file = tmp_path / "gatewayd.pid", tmp_path / "named.log"
        command = [part for part in gateway.command() if part not in ("-n", "--pidfile=")]
        at = command.index("gatewayd")
        command[at:at] = [f"--pidfile={pid_file}", f"--logfile={log_file}"]
        subprocess.run(command, env=gateway.environment(), cwd=gateway.root, timeout=20, check=True)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if gateway.get("/readyz")[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.05)
        pid = int(pid_file.read_text())
        try:
            assert gateway.health()["ok"] is True
        finally:
            os.kill(pid, signal.SIGTERM)
        while pid_file.exists() and time.monotonic() < deadline + 10:
            time.sleep(0.05)
        assert not pid_file.exists()
        lines = [json.loads(line) for line in log_file.read_text().splitlines()]
        assert {"ready", "service.stopped"} <= {line["event"] for line in lines}


class TestStream:
    """The stream and its consumer while gatewayd runs."""

    def readiness(self, gateway: Gateway, text: str, *, there: bool) -> None:
        """Wait until /readyz warns of something, or does so no more."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            warnings = " ".join(json.loads(gateway.get("/readyz")[2])["warnings"])
            if (text in warnings) is there:
                return
            time.sleep(0.05)
        raise AssertionError(f"{text!r} in the warnings: still {not there}")

    def test_the_consumer_is_looked_at_again(self, gateway: Gateway) -> None:
        """A missing consumer is a warning until it is made."""
        self.readiness(gateway, "no consumer gateway-consumer", there=True)
        ctl = [sys.executable, "-c", "from gatewayd.cli import main; main()", "consumer", "ensure"]
        subprocess.run(ctl, env=gateway.environment(), check=True, capture_output=True, timeout=20)
        self.readiness(gateway, "no consumer gateway-consumer", there=False)

    def test_a_stream_that_is_deleted_is_made_again(self, gateway: Gateway, nats: NatsServer) -> None:
        """Without a restart; what was remembered of the old one is not held against the new one."""
        body = tradingview_body(time.time())
        assert gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))[0] == 202
        run(delete_stream(nats.url))
        gateway.await_line(event="stream.replaced")
        answer = gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))
        assert (answer[0], json.loads(answer[2])["duplicate"]) == (202, False)
        assert len(read_stream(nats.url)) == 2


class TestReload:
    """SIGHUP."""

    def reloaded(self, gateway: Gateway, event: str) -> str:
        """Send SIGHUP and wait for what the log says of it."""
        before = sum(line["event"] == event for line in gateway.log_lines())
        gateway.signal(signal.SIGHUP)
        return str(gateway.await_line(after=before, event=event)["msg"])

    def test_secrets_from_a_file(self, make_gateway: Callable[..., Gateway], nats: NatsServer, tmp_path: Path) -> None:
        """Old, both, new: senders change over without a failure or a restart; a broken file changes nothing."""
        old, new = b"the-old-secret-of-this-test-is-long", b"the-new-secret-of-this-test-is-long"
        secrets = tmp_path / "secrets"
        secrets.write_bytes(old)
        gateway = make_gateway(NATS_URL=nats.url, API_KEY_HMAC_SECRET_FILE=str(secrets))
        gateway.start(wait="/readyz")

        def statuses() -> list[int]:
            body = generic_body(time.time(), price=time.monotonic_ns())
            asked = [stamped(body, time.time(), secret=secret) for secret in (old, new)]
            return [gateway.ask("POST", "/webhook/generic", body, headers)[0] for headers in asked]

        assert statuses() == [202, 401]
        secrets.write_bytes(old + b"," + new)
        assert "API_KEY_HMAC_SECRET" in self.reloaded(gateway, "config.reloaded")
        assert statuses() == [202, 202]
        secrets.write_bytes(b"")
        self.reloaded(gateway, "config.reload_refused")
        assert statuses() == [202, 202]
        secrets.write_bytes(new)
        self.reloaded(gateway, "config.reloaded")
        assert statuses() == [401, 202]
        metrics = gateway.get("/metrics")[2].decode()
        assert 'gateway_config_reloads_total{result="ok"} 2.0' in metrics
        assert 'gateway_config_reloads_total{result="failed"} 1.0' in metrics
        assert 'gateway_auth_total{key="2",scheme="v1",source="test"} 2.0' in metrics

    def test_maintenance_by_file(self, gateway: Gateway) -> None:
        """The file switches maintenance on within a second or two, and off again; probes answer all the while."""
        gateway.state.mkdir()
        (gateway.state / "maintenance.json").write_text('{"until": null}')
        body = tradingview_body(time.time())

        def wait_for(status: int) -> dict[str, str]:
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                answer = gateway.ask("POST", WEBHOOK, body, stamped(body, time.time()))
                if answer[0] == status:
                    return answer[1]
                time.sleep(0.05)
            raise AssertionError(f"never {status}")

        assert wait_for(503)["retry-after"] == "300"
        assert gateway.health()["status"] == "maintenance"
        (gateway.state / "maintenance.json").unlink()
        wait_for(202)
