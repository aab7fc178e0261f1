"""The README's commands and programs, run as they stand there; only ports and the places of files are replaced."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients import SECRET, stamped
from tests.documents import ROOT, read, run_of, shown_of, steady
from tests.gateway import Gateway
from tests.servers import NatsServer, free_port
from tests.streams import read_stream
from tests.valkey import ValkeyServer

pytest_plugins = ("tests.reporting",)

FULL = bool(os.environ.get("GATEWAYD_TEST_FULL"))
PROGRAMS = """
gatewayctl() { "$PYTHON" -c 'from gatewayd.cli import main; main()' "$@"; }
twistd() { "$PYTHON" "$(dirname "$PYTHON")/twistd" "$@"; }
"""


def bash(script: str, cwd: Path, **environ: str) -> str:
    """Run a script as a person pastes it, with this checkout's programs; what it printed. Fails where it fails."""
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{PROGRAMS}\n{script}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(cwd),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            **environ,
        },
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def addressed(text: str, gateway: Gateway) -> str:
    """The README's text with the port of this test's gateway."""
    assert "http://127.0.0.1:8001" in text
    return text.replace("http://127.0.0.1:8001", gateway.url)


class TestTryIt:
    """From nothing to a signal in the stream."""

    def test_make_run_is_what_the_tests_run(self) -> None:
        """`make run` is the command line of every system test."""
        assert run_of("make") == "make run\n"
        command = " ".join(Gateway(ROOT, {}).command()[1:])
        assert command.endswith("twistd -n --pidfile= gatewayd")
        assert "$(BIN)/twistd -n --pidfile= gatewayd" in read("Makefile")

    def test_first_run(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """The curl command gives the answer that is shown; then the stream has what is shown."""
        gateway = make_gateway()
        gateway.start(wait="/readyz")
        home = tmp_path / "home"
        (home / ".local/state").mkdir(parents=True)
        (home / ".local/state/gatewayd").symlink_to(gateway.state)
        answer = bash(addressed(run_of("trial"), gateway), tmp_path, HOME=str(home))
        assert steady(answer) == steady(shown_of("trial"))
        assert steady(bash(run_of("tail"), tmp_path, HOME=str(home))) == steady(shown_of("tail"))
        client = json.loads((gateway.state / "nats/client.json").read_text())
        raw, normalised = read_stream(client["url"], user=client["user"], password=client["password"])
        assert steady(raw.data.decode()) == steady(shown_of("raw"))
        assert steady(normalised.data.decode()) == steady(shown_of("normalised"))


class TestInstall:
    """On a host."""

    def test_install(self, tmp_path: Path, not_run: Callable[[str], None]) -> None:
        """A new venv has a daemon that starts, its plugin cache, gatewayctl, and a nats-server to embed."""
        script = run_of("install")
        start = "venv/bin/twistd -n gatewayd\n"
        assert script.endswith(start)
        if not FULL:
            not_run("installing needs a package index; GATEWAYD_TEST_FULL=1 does it")
            return
        for name in ("gatewayd", "twisted"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tmp_path / name)
        script = script.replace(start, "venv/bin/twistd gatewayd --check-config\n")
        kept = {name: os.environ[name] for name in os.environ if name.startswith("PIP_") or name.endswith("_proxy")}
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", str(tmp_path)), **kept},
        )
        assert done.returncode == 0, done.stderr
        assert "ENV=development" in done.stdout
        assert list(tmp_path.glob("venv/lib/python3*/site-packages/twisted/plugins/dropin.cache"))
        assert all((tmp_path / "venv/bin" / name).exists() for name in ("gatewayctl", "nats-server", "twistd"))

    def test_production(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """The commands check the settings, make stream and consumer, and start a daemon that takes webhooks."""
        password = "a-password-of-this-test"
        server = NatsServer(tmp_path / "nats", f'authorization {{ user: gateway, password: "{password}" }}').start()
        etc, state = tmp_path / "etc", tmp_path / "state"
        etc.mkdir()
        (etc / "nats-password").write_text(password)
        places = {"/etc/gatewayd": etc, "/var/lib/gatewayd": state, "nats://127.0.0.1:4222": server.url}
        script = run_of("production")
        for name, place in places.items():
            assert name in script
            script = script.replace(name, str(place))
        *before, start = script.splitlines()
        assert start == "twistd -n --pidfile= gatewayd"
        try:
            said = bash("\n".join([*before, "env > exported"]), tmp_path)
            assert "API_KEY_HMAC_SECRET=<set: 1 secret, 43 bytes>  # API_KEY_HMAC_SECRET_FILE" in said
            assert "ENV=production  # environment" in said
            assert password not in said
            exported = dict(line.split("=", 1) for line in (tmp_path / "exported").read_text().splitlines())
            names = ("ENV", "NATS_URL", "NATS_USER", "NATS_PASSWORD_FILE", "API_KEY_HMAC_SECRET_FILE")
            gateway = make_gateway(**{name: exported[name] for name in (*names, "STATE_DIRECTORY")})
            gateway.start(wait="/readyz")
            assert json.loads(gateway.get("/readyz")[2])["warnings"] == []
            body, secret = b'{"instrument":"EURUSD"}', (etc / "hmac-secret").read_bytes().strip()
            status = gateway.ask("POST", "/webhook/custom", body, stamped(body, time.time(), secret=secret))[0]
            assert status == 422
        finally:
            server.close()

    def test_settings_file(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """The sample of a settings file is taken as it stands, each value from where it says."""
        for name in ("hmac-secret", "hmac-secret-custom"):
            (tmp_path / name).write_text(f"{name}-that-is-long-enough-for-one")
        text = shown_of("toml").replace("/etc/gatewayd", str(tmp_path))
        (tmp_path / "gatewayd.toml").write_text(text)
        said = bash("twistd gatewayd --config gatewayd.toml --check-config", tmp_path)
        for line in ("ALLOWED_SOURCES=tradingview,custom", "sources.custom.schemes=v1", "sources.custom.rps=20"):
            assert line in said
        assert "sources.custom.secret=<set: 1 secret" in said


class TestSigning:
    """The examples for clients."""

    def test_bash(self, gateway: Gateway, nats: NatsServer, tmp_path: Path) -> None:
        """The script is accepted, without a key and with one, each signed."""
        script = addressed(run_of("bash"), gateway)
        without = json.loads(bash(script, tmp_path, API_KEY_HMAC_SECRET=SECRET.decode()))
        keyed = script.replace("\nkey=\n", "\nkey=order-17\n")
        assert keyed != script
        with_key = json.loads(bash(keyed, tmp_path, API_KEY_HMAC_SECRET=SECRET.decode()))
        assert (without["status"], with_key["status"]) == ("accepted", "accepted")
        assert with_key["idempotency_key"] == "order-17"
        stored = read_stream(nats.url)
        assert [message.headers.get("Idempotency-Key") for message in stored] == [None, None, "order-17", "order-17"]
        assert {message.headers["Source"] for message in stored} == {"custom"}

    def test_gatewayctl(self, gateway: Gateway, tmp_path: Path) -> None:
        """A body in a file is signed and sent; with the wrong secret it is refused."""
        (tmp_path / "body.json").write_text(shown_of("bodies").splitlines()[1] + "\n")
        script = addressed(run_of("gatewayctl"), gateway)
        assert json.loads(bash(script, tmp_path, API_KEY_HMAC_SECRET=SECRET.decode()))["status"] == "accepted"
        assert json.loads(bash(script, tmp_path, API_KEY_HMAC_SECRET="x" * 40))["code"] == "GW-001"

    def test_python(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """The program sends one event again until it is stored, and does not insist on a refusal."""
        check_program(make_gateway, tmp_path, [sys.executable, "-I"], "send.py", run_of("python"))

    def test_node(self, make_gateway: Callable[..., Gateway], tmp_path: Path, not_run: Callable[[str], None]) -> None:
        """The same in Node, where it is installed."""
        program = run_of("node")
        assert 'from "node:crypto"' in program
        node = shutil.which("node")
        if node is None:
            not_run("node is not installed")
            return
        check_program(make_gateway, tmp_path, [node], "send.mjs", program)

    def test_what_is_sent_again(self) -> None:
        """Both programs try again after the same answers."""
        codes = "429, 500, 502, 503, 504"
        assert f"not in ({codes})" in run_of("python")
        assert f"![{codes}].includes" in run_of("node")


def check_program(
    make_gateway: Callable[..., Gateway], root: Path, command: Sequence[str], name: str, program: str
) -> None:
    """Started while NATS is away, it has one event stored once NATS is there; with a wrong secret it tries once."""
    server = NatsServer(root / "nats")
    gateway = make_gateway(NATS_URL=server.url, API_KEY_HMAC_SECRET=SECRET.decode())
    gateway.start()
    (root / name).write_text(addressed(program, gateway))

    def run(secret: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*command, name],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "API_KEY_HMAC_SECRET": secret},
        )

    def answered(count: int, last: int) -> list[int]:
        """The statuses so far, once there are that many and the last is that one: a line comes after its answer."""
        deadline = time.monotonic() + 15
        while True:
            found = [line["status"] for line in gateway.log_lines() if line.get("path") == "/webhook/custom"]
            if len(found) >= count and found[-1] == last:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    sender = run(SECRET.decode())
    try:
        answered(1, 503)
        server.start()
        out, err = sender.communicate(timeout=20)
        assert (sender.returncode, err) == (0, "")
        assert "accepted" in out
        statuses = answered(2, 202)
        assert statuses.count(202) == 1
        raw, normalised = read_stream(server.url)
        assert raw.headers["Idempotency-Key"] == normalised.headers["Idempotency-Key"]
        assert json.loads(normalised.data)["price"] == 1.0945

        stranger = run("another-secret-that-nobody-knows-here")
        err = stranger.communicate(timeout=20)[1]
        assert stranger.returncode != 0
        assert "GW-001" in err
        assert answered(len(statuses) + 1, 401)[len(statuses) :] == [401]
    finally:
        sender.kill()
        sender.wait()
        server.close()


class TestEdge:
    """The edge gateway."""

    def test_edge(self, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
        """The variables start a gateway with an edge; what is published comes to the client that follows."""
        password = "a-password-of-this-test"
        server = ValkeyServer(tmp_path / "valkey", password=password).start()
        (tmp_path / "redis-password").write_text(password)
        script = run_of("edge-start").replace("127.0.0.1:6379", server.address)
        *before, start = script.splitlines()
        assert (server.address in script, start) == (True, "twistd -n --pidfile= gatewayd")
        bash("\n".join([*before, "twistd gatewayd --check-config", "env > exported"]), tmp_path)
        exported = dict(line.split("=", 1) for line in (tmp_path / "exported").read_text().splitlines())
        settings = {name: text for name, text in exported.items() if name.startswith("GATEWAY_")}
        for name in ("GATEWAY_REDIS_PASSWORD_FILE", "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH"):
            settings[name] = str(tmp_path / settings[name])
        grpc = {"GATEWAY_AUTHENTICATED_GRPC_ADDR": f"127.0.0.1:{free_port()}"}
        gateway = make_gateway(**settings, **grpc)
        gateway.start(wait="/readyz")
        environ = {**settings, **grpc, "PORT": str(gateway.port)}
        try:
            with ThreadPoolExecutor(1) as thread:
                following = thread.submit(bash, run_of("edge-follow"), tmp_path, **environ)
                while 'edge_push_streams{transport="grpc"} 1.0' not in gateway.get("/metrics")[2].decode():
                    assert not following.done(), following.result()
                    time.sleep(0.05)
                bash(run_of("edge-publish"), tmp_path, **environ)
                lines = following.result(20).splitlines()
        finally:
            server.close()
        assert lines[-2].split()[1] == "gateway.server_time"
        assert lines[-1].split()[1] == "trade.filled"
        assert lines[-1].endswith(' {"price":1.0945}')


class TestRefusals:
    """What a refusal looks like."""

    @pytest.mark.parametrize("accept", ["*/*", "application/problem+json"])
    def test_refusal(self, gateway: Gateway, accept: str) -> None:
        """The refusal that is shown is the one that is sent; as a problem it has the same members, and more."""
        body = b'{"ticker":"EURUSD","action":"buy"}'
        headers = {**stamped(body, time.time()), "Accept": accept}
        status, received, answer = gateway.ask("POST", "/webhook/tradingview", body, headers)
        assert status == 422
        if accept == "*/*":
            assert steady(answer.decode()) == steady(shown_of("refusal"))
            return
        assert received["content-type"] == accept
        shown = json.loads(shown_of("refusal"))
        assert {"type", "title", "status", "detail", *shown} == set(json.loads(answer))
