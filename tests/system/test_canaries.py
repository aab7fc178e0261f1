"""
No secret leaves the process: every one that the settings know is a canary, and after everything that a gateway meets
none of them stands in a log, an answer, a metric, the stream, the state directory or a tool's output.
"""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nkeys
import pytest

from gatewayd.settings_table import SOURCE_TABLE, TABLE, secret_name
from tests.canaries import canary, leaks, plant
from tests.clients import generic_body, raw_request, stamped, tradingview_body
from tests.gateway import ROOT, Gateway
from tests.servers import NatsServer, make_certificates
from tests.streams import read_stream
from tests.unit.http.test_hostile import ROWS as HTTP_ROWS
from tests.unit.http.test_hostile import stream
from tests.wire.test_hostile import ROWS, ask

BROKEN = """
import gatewayd.ingress.pipeline as pipeline

def verify(signatures, keys, schemes, signed, before=pipeline.verify):
    if signed.nonce == b"break-it-now":
        raise RuntimeError(f"{keys!r} {[vars(key) if hasattr(key, '__dict__') else key for key in keys]} KNOWN")
    return before(signatures, keys, schemes, signed)

pipeline.verify = verify
"""
"""Put before everything in one process: an internal error whose text holds what it had to do with."""

NAMES = (
    "shared",
    "older",
    "partner",
    "desk",
    "before",
    "later",
    "password",
    "url",
    "token",
    "seed",
    "creds",
    "key",
    "redis",
    "edge",
)


class World:
    """A gatewayd full of canaries, what it runs on, and everything that it said."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.canaries = {name: canary(name) for name in NAMES if name not in ("seed", "key")}
        self.canaries["seed"] = bytes(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)).decode()
        self.texts: dict[str, str | bytes] = {}
        secret = self.canaries
        root.mkdir(parents=True)
        self.file = root / "settings.toml"
        self.write_file()
        (root / "early").mkdir()
        (root / "early" / "sitecustomize.py").write_text(BROKEN.replace("KNOWN", secret["shared"]))
        config = f'authorization {{ user: gw, password: "{secret["url"]}" }}'
        self.server = NatsServer(root / "nats", config).start()
        self.url = self.server.url_with(f"gw:{secret['url']}")
        self.gateway = Listening(
            root / "gateway",
            {
                "API_KEY_HMAC_SECRET": f"{secret['shared']},{secret['older']}",
                "API_KEY_HMAC_SECRET_PARTNER": secret["partner"],
                "ALLOWED_SOURCES": "tradingview,custom,test,partner,desk",
                "NATS_URL": self.url,
                "LOG_LEVEL": "DEBUG",
                "RATE_LIMIT_RPS": "100000",
                "PYTHONPATH": f"{root / 'early'}:{ROOT}",
            },
            self.file,
        )

    def write_file(self, secret: str = "desk", more: str = "") -> None:
        """The settings' file, with this canary as the secret of the source `desk`."""
        known = self.canaries
        lines = ("[sources.desk]", f'secret = "{known[secret]}"', f'previous_secret = "{known["before"]}"', more)
        self.file.write_text("\n".join(lines))

    def close(self) -> None:
        """End both."""
        self.gateway.close()
        self.server.close()

    def say(self, place: str, text: str | bytes) -> None:
        """Keep what was said, to be searched."""
        known = self.texts.get(place, b"")
        held = known.encode() if isinstance(known, str) else known
        self.texts[place] = held + (text.encode() if isinstance(text, str) else text) + b"\n"

    def collect(self) -> None:
        """Everything that the process leaves behind."""
        self.texts["log"] = self.gateway.log_text()
        for path in self.gateway.state.rglob("*"):
            if path.is_file():
                self.texts[f"state/{path.name}"] = path.read_bytes()
        for path in Path("/proc", str(self.gateway.pid)).glob("cmdline"):
            self.texts["command line"] = path.read_bytes()

    def check(self) -> None:
        """Nothing was found, in anything."""
        assert leaks(self.canaries, self.texts) == []


class Listening(Gateway):
    """A gatewayd that reads a settings' file too."""

    def __init__(self, root: Path, settings: dict[str, str], file: Path) -> None:
        super().__init__(root, settings)
        self.file = file

    def command(self, *arguments: str) -> list[str]:
        """See Gateway."""
        return super().command("--config", str(self.file), *arguments)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests of this module."""
    made = World(tmp_path_factory.mktemp("canaries") / "w")
    try:
        made.gateway.start(wait="/readyz")
        yield made
    finally:
        made.close()


def post(world: World, body: bytes, headers: dict[str, str], path: str = "/webhook/tradingview") -> int:
    """One webhook; its whole answer is kept."""
    status, answered, text = world.gateway.ask("POST", path, body, headers)
    world.say("answers", f"{status} {answered}")
    world.say("answers", text)
    return status


def test_the_search_finds_what_is_there() -> None:
    """Each form of a canary, and a piece of eight bytes of it, is found; in other texts nothing is."""
    secret = canary("planted")
    for form, text in plant(secret):
        assert any(f"({form})" in line for line in leaks({"planted": secret}, {"text": text})), (form, text)
    assert leaks({"planted": secret}, {"text": canary("other") * 3, "bytes": bytes(range(256)) * 4}) == []


def test_every_secret_is_a_canary(world: World) -> None:
    """A secret that the tables of settings learn needs a canary here."""
    secrets = {row.name for row in (*TABLE.values(), *SOURCE_TABLE.values()) if row.secret}
    assert secrets == {
        "API_KEY_HMAC_SECRET",
        "NATS_PASSWORD",
        "NATS_TOKEN",
        "NATS_NKEY_SEED",
        "REDIS_URL",
        "GATEWAY_REDIS_PASSWORD",
        "secret",
        "previous_secret",
    }
    assert secret_name("partner") in world.gateway.settings


def test_hostile_webhooks(world: World) -> None:
    """The whole table of hostile webhooks, signed with a canary, and good ones under every secret."""
    secret = world.canaries["shared"]
    for number, row in enumerate(ROWS):
        signing = row.get("secret", "%SECRET%").replace("%SECRET%", secret)
        status, members = ask(world.gateway, {**row, "secret": signing}, number)
        world.say("answers", f"{status} {json.dumps(members)}")
    now = time.time()
    for scheme in ("v1", "sha256"):
        for number, (path, name) in enumerate(
            (
                ("/webhook/tradingview", "shared"),
                ("/webhook/tradingview", "older"),
                ("/webhook/partner", "partner"),
                ("/webhook/desk", "desk"),
                ("/webhook/desk", "before"),
            )
        ):
            source = path.rpartition("/")[2]
            body = tradingview_body(now, 7 + number, scheme=scheme)
            if source != "tradingview":
                body = generic_body(now, source, price=number + 1, scheme=scheme)
            headers = stamped(body, now, scheme=scheme, secret=world.canaries[name].encode())
            assert post(world, body, headers, path) == 202, name


def test_hostile_bytes(world: World) -> None:
    """The whole table of broken HTTP."""
    for row in HTTP_ROWS:
        with socket.create_connection(("127.0.0.1", world.gateway.port), timeout=5) as client, suppress(OSError):
            client.sendall(stream(row))
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                world.say("answers", data)


def test_a_client_that_puts_its_secret_in_the_wrong_place(world: World) -> None:
    """As a path, a query, a header's value, a nonce, a user agent: refused, and not repeated, neither by the log."""
    secret = world.canaries["shared"]
    now = time.time()
    body = tradingview_body(now, 99)
    good = stamped(body, now, secret=secret.encode())
    for headers in (
        {**good, "X-Signature": secret},
        {**good, "X-Signature": f"v1={secret}"},
        {**good, "X-Nonce": secret, "X-Signature": "v1=" + "0" * 64},
        {**good, "X-Correlation-ID": secret, "X-Signature": "v1=" + "0" * 64},
        {**good, "Authorization": f"Bearer {secret}", "X-Signature": "v1=" + "0" * 64},
        {**good, "User-Agent": secret, "Content-Type": secret},
        {**good, "X-API-Version": secret},
        {**good, "Idempotency-Key": secret, "X-Idempotency-Key": "other"},
    ):
        assert post(world, body, headers) in (400, 401, 415)
    for path in (f"/webhook/{secret}", f"/webhook/tradingview?token={secret}", f"/{secret}", f"/metrics?a={secret}"):
        post(world, body, good, path)
    with socket.create_connection(("127.0.0.1", world.gateway.port), timeout=5) as client:
        client.sendall(raw_request("/webhook/tradingview", body, good, host=secret + "/"))
        world.say("answers", client.recv(65536))


def test_an_internal_error(world: World) -> None:
    """The traceback of a bug whose text holds a secret is logged without it; the client learns nothing."""
    now = time.time()
    body = tradingview_body(now, 123)
    headers = {**stamped(body, now, secret=world.canaries["shared"].encode()), "X-Nonce": "break-it-now"}
    assert post(world, body, headers) == 500
    line = world.gateway.await_line(event="request.failed")
    assert "RuntimeError" in line["failure"]
    assert "[redacted]" in line["failure"]


def test_reloads(world: World) -> None:
    """SIGHUP with another secret, and with files that are broken around one."""
    before = len([line for line in world.gateway.log_lines() if str(line["event"]).startswith("config.reload")])
    secret = world.canaries["later"]
    broken = (
        f'[sources.desk]\nsecret = "{secret}',  # no end of the text
        f'[sources.desk]\nsecret = {{ value = "{secret}" }}\n',
        f'[sources.desk]\nsecret = "{secret}"\nsecret_file = "/nonexistent/{secret}"\n',
        f"{secret} = {secret}\n",
        f'[sources.desk]\nsecret = "{secret}"\nrps = "x"\n',
        f'nats_nkey_seed = "{secret}"\n',
    )
    for number, text in enumerate(broken, 1):
        world.file.write_text(text)
        world.gateway.signal(signal.SIGHUP)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            lines = [line for line in world.gateway.log_lines() if str(line["event"]).startswith("config.reload")]
            if len(lines) >= before + number:
                break
            time.sleep(0.02)
        assert lines[-1]["event"] == "config.reload_refused", (number, lines[-1])
    world.write_file("later")
    world.gateway.signal(signal.SIGHUP)
    world.gateway.await_line(event="config.reloaded")
    now = time.time()
    body = generic_body(now, "desk", price=4242)
    assert post(world, body, stamped(body, now, secret=world.canaries["later"].encode()), "/webhook/desk") == 202


def test_tools(world: World) -> None:
    """--check-config and gatewayctl, with the same environment: what they print."""
    environment = world.gateway.environment()
    of_nats = ("dlq", "list"), ("dlq", "show", "1"), ("stream", "check")
    commands = [
        world.gateway.command("--check-config"),
        *(
            [sys.executable, "-c", "from gatewayd.cli import main; main()", *arguments]
            for arguments in (
                ("config", "show"),
                ("sign", "--data", "{}", "--source", "partner", "--scheme", "sha256"),
                ("send", "--url", world.gateway.url),
                *of_nats,
            )
        ),
    ]
    running = [
        subprocess.Popen(command, env=environment, cwd=world.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    for command, process in zip(commands, running, strict=True):
        said, _ = process.communicate(timeout=60)
        assert said or command[-1] == "list", command
        world.say(" ".join(command[-3:]), said)


@pytest.mark.parametrize("wrong", ["password", "token", "seed", "creds", "url"])
def test_nats_that_refuses_us(world: World, make_gateway: Callable[..., Gateway], tmp_path: Path, wrong: str) -> None:
    """Every way to prove who we are, to a server that does not know us: tried, said, and not repeated."""
    secret = world.canaries[wrong]
    (tmp_path / "creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{secret}\n------END NATS USER JWT------\n"
        f"-----BEGIN USER NKEY SEED-----\n{world.canaries['seed']}\n------END USER NKEY SEED------\n"
    )
    settings = {
        "password": {"NATS_USER": "gw", "NATS_PASSWORD": secret},
        "token": {"NATS_TOKEN": secret},
        "seed": {"NATS_NKEY_SEED": secret},
        "creds": {"NATS_CREDENTIALS_FILE": str(tmp_path / "creds")},
        "url": {},
    }[wrong]
    url = world.server.url_with(f"nobody:{secret}") if wrong == "url" else world.server.url
    gateway = make_gateway(NATS_URL=url, API_KEY_HMAC_SECRET=world.canaries["shared"], LOG_LEVEL="DEBUG", **settings)
    gateway.start()
    gateway.await_line(event="nats_connect_failed")
    for path in ("/healthz", "/readyz", "/metrics"):
        world.say("answers", gateway.get(path)[2])
    gateway.stop()
    world.say(f"log of a wrong {wrong}", gateway.log_text())


def test_tls_keys(world: World, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """The private key of the listener: a start with it, and one with a file that is broken around it."""
    files = make_certificates(tmp_path)
    text = Path(files.key).read_text()
    world.canaries["key"] = text.splitlines()[1]
    settings = {"NATS_URL": world.url, "API_KEY_HMAC_SECRET": world.canaries["shared"], "LOG_LEVEL": "DEBUG"}
    good = make_gateway("good", **settings, GATEWAY_TLS_CERT=str(files.cert), GATEWAY_TLS_KEY=str(files.key))
    good.start(wait="")
    good.await_line(event="listener.open")
    (tmp_path / "broken.pem").write_text(text.replace("\n", "\n!", 2))
    broken = make_gateway(
        "broken", **settings, GATEWAY_TLS_CERT=str(files.cert), GATEWAY_TLS_KEY=f"{tmp_path}/broken.pem"
    )
    broken.start(wait="")
    assert broken.process is not None
    assert broken.process.wait(20) != 0
    with suppress(OSError, http.client.HTTPException):
        world.say("answers", good.get("/healthz")[2])  # in plain text, to a TLS port
    good.stop()
    world.say("log of a TLS listener", good.log_text())
    world.say("log of a broken key", broken.log_text())


def test_redis_passwords(world: World, make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    """The passwords of Redis: what the check shows of them, and a start with nobody where Redis should be."""
    settings = {
        "NATS_URL": world.url,
        "API_KEY_HMAC_SECRET": world.canaries["shared"],
        "LOG_LEVEL": "DEBUG",
        "REDIS_URL": f"redis://:{world.canaries['redis']}@127.0.0.1:1/0",
        "GATEWAY_REDIS_MASTER_ADDR": "127.0.0.1:1",
        "GATEWAY_REDIS_PASSWORD": world.canaries["edge"],
        "GATEWAY_SESSION_EVENTS_REDIS_STREAM": "session_events",
        "GATEWAY_CLIENT_EVENTS_REDIS_STREAM": "client_events",
        "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": str(tmp_path / "none.pem"),
    }
    for name, more in (("good", {}), ("wrong", {"GATEWAY_REDIS_DB": "x", "GATEWAY_REDIS_USERNAME": "u"})):
        gateway = make_gateway(name, **settings, **more)
        gateway.root.mkdir(parents=True, exist_ok=True)
        checked = subprocess.run(
            gateway.command("--check-config"), env=gateway.environment(), capture_output=True, timeout=30, check=False
        )
        assert (checked.returncode == 0) == (name == "good")
        world.say(f"check of {name} settings of Redis", checked.stdout + checked.stderr)
        gateway.start(wait="")
        assert gateway.process is not None
        with suppress(subprocess.TimeoutExpired):
            gateway.process.wait(3.0)
        gateway.stop()
        world.say(f"log with {name} settings of Redis", gateway.log_text())
        assert gateway.log_text()


def test_nothing_has_leaked(world: World) -> None:
    """After all of it: the log, every answer, the metrics, the stream, the state directory, the tools."""
    for path in ("/healthz", "/readyz", "/metrics"):
        world.say(path, world.gateway.get(path)[2])
    messages: list[Any] = read_stream(world.url)
    assert len(messages) > 50
    world.say("stream", "\n".join(f"{message.subject} {message.headers}" for message in messages))
    world.say("stream", b"\n".join(message.data for message in messages))
    world.say("nats-server", "\n".join(world.server.lines))
    world.collect()
    assert len(world.texts) > 15
    assert len(world.texts["log"]) > 100_000
    world.check()
