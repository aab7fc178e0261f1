"""
The clients in docs/clients as users have them, against our listener: Python, Node and a browser.

The gateway's side checks the clients' signatures and signs with a key of its own, so that both ends are found out.
"""

import json
import os
import shutil
import sys
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from gatewayd.http.message import JSON, TEXT, Request, Response
from gatewayd.push.api import PushStream
from gatewayd.push.connections import Connections
from gatewayd.push.frames import EventSigner
from gatewayd.push.opening import PATH, Opening
from gatewayd.push.websocket import Services
from gatewayd.sessions.encodings import write_base64url
from gatewayd.sessions.endings import AUTHENTICATION_FAILED, NO_ROUTE, OVERFLOWED, REVOKED, Ending
from gatewayd.sessions.envelope import read_json, write_json
from gatewayd.sessions.signing import event_input, request_input, response_input, verify
from gatewayd.sessions.values import Envelope, Reply
from tests.buses import reactor_clock, reactor_loop, until
from tests.fakes.connection import Leaf
from tests.fakes.subscribing import FakeHub
from tests.wire.listeners import Served, serving

pytest_plugins = ("tests.reporting",)

CLIENTS = Path(__file__).parents[3] / "docs" / "clients"
GATEWAY_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CLIENT_KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([8]) * 32)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Plays a user of the page: gives its public key away, connects, waits for what the page shows, and tells it.
USER = """<!doctype html><iframe src="/browser.html" width="900" height="900"></iframe><script type="module">
const frame = document.querySelector("iframe");
const sleep = () => new Promise((resume) => setTimeout(resume, 30));
const tell = (path, said) => fetch(path, { method: "POST", body: said });
try {
  await new Promise((resolve) => frame.addEventListener("load", resolve));
  const find = (id) => frame.contentDocument.getElementById(id);
  const shown = (text) => [...find("log").children].filter((line) => line.textContent.startsWith(text)).length;
  const see = async (text, times = 1) => { while (shown(text) < times) await sleep(); };
  while (find("public").textContent === "\u2026") await sleep();
  await tell("/key", find("public").textContent);
  [find("url").value, find("session").value] = ["GATEWAY", "session-1"];
  const transports = ["websocket", "sse"];
  for (const [index, transport] of transports.entries()) {
    find("transport").value = transport;
    find("form").requestSubmit();
    await see("gateway.server_time", 2 * index + 1);
    await tell("/opened", transport);
    await see("trade one", index + 1);
    if (transport === "websocket") {
      find("command").requestSubmit();
      await see("reply ok");
      find("command-type").value = "no.such";
      find("command").requestSubmit();
      await see("refused: no_route");
    }
    await tell("/cut", transport);
    await see("gateway.server_time", 2 * index + 2);
    await tell("/reopened", transport);
    await see("trade two", index + 1);
  }
  await tell("/revoke", "");
  await see("ended: revoked");
  await tell("/done", [...find("log").children].map((line) => line.textContent).join("\\n"));
} catch (error) {
  await tell("/failed", String(error.stack ?? error));
}
</script>"""


class SigningHub(FakeHub):
    """A hub that believes nobody without the right signature, and signs with `key`."""

    def __init__(self, key: Ed25519PrivateKey = GATEWAY_KEY) -> None:
        super().__init__(EventSigner(key.sign, event_input))
        self.public_key = CLIENT_KEY.public_key().public_bytes_raw()
        self.positions: list[str] = []

    def opened(self, envelope: Envelope, outlet: object) -> PushStream | Ending:
        if not verify(self.public_key, envelope.signature, request_input(envelope)):
            return AUTHENTICATION_FAILED
        self.positions.append(envelope.payload.decode())
        return super().opened(envelope, outlet)

    def answer_commands(self) -> None:
        """Answer what was asked: `user.command` with ok, anything else has no route."""
        while self.executing:
            envelope, executing = self.commands.pop(0), self.executing.pop(0)
            assert verify(self.public_key, envelope.signature, request_input(envelope))
            if envelope.message_type != "user.command":
                executing.callback(NO_ROUTE)
                continue
            signed = response_input("v1", envelope.request_id, 1, "ok", envelope.payload_hash)
            made = GATEWAY_KEY.sign(signed)
            executing.callback(Reply("v1", envelope.request_id, 1, "ok", envelope.payload, envelope.payload_hash, made))

    def cut(self) -> None:
        """Lose every stream without a word, as networks do."""
        for stream in tuple(self.streams):
            stream.outlet.cut()


class Program(ProcessProtocol):
    """A client in a process of its own; what it wrote, and how it ended."""

    def __init__(self) -> None:
        self.out = self.errors = b""
        self.status: int | None = None

    def outReceived(self, data: bytes) -> None:
        self.out += data

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure) -> None:  # type: ignore[override]
        self.status = 0 if reason.check(ProcessDone) else reason.value.exitCode or -1  # type: ignore[union-attr]

    def lines(self, event_type: str) -> list[dict[str, Any]]:
        """The events of a type that were written."""
        found = [json.loads(line) for line in self.out.decode().splitlines(keepends=True) if line.endswith("\n")]
        return [each for each in found if each["event_type"] == event_type]


@asynccontextmanager
async def running(command: list[str], environ: Mapping[str, str]) -> AsyncIterator[Program]:
    """A process that is ended with the block."""
    program = Program()
    variables = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ}
    process = reactor_clock().spawnProcess(program, command[0], command, variables)
    try:
        yield program
    finally:
        if program.status is None:
            process.signalProcess("KILL")
        await until(lambda: program.status is not None, 10)


@asynccontextmanager
async def gateway(hub: FakeHub, origin: str = "") -> AsyncIterator[Served]:
    """The edge's public paths; the keys are public to every page."""
    connections = Connections(reactor_clock(), reactor_loop().call_soon)  # type: ignore[arg-type]
    services = Services(hub.subscribe, hub.execute, read_json, write_json)
    origins = frozenset({origin.encode()} - {b""})
    leaf = Opening(services=services, connections=connections, origins=lambda: origins, gate=lambda request: None)
    published = write_base64url(GATEWAY_KEY.public_key().public_bytes_raw())
    keys = json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": published}]}).encode()
    anybody = ((b"Access-Control-Allow-Origin", b"*"),)
    told = Leaf(lambda request: Response(200, keys, JSON, anybody, corr_id="req_1"), methods=(b"GET",), bound=0)
    async with serving({PATH: leaf, b"/.well-known/gatewayd/keys": told}, on_loop=True) as served:
        yield served
        await connections.stop(2.0)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """What the programs are told, but for the gateway's address."""
    path = tmp_path / "client.pem"
    path.write_bytes(CLIENT_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return {"DEVICE_SESSION_ID": "session-1", "CLIENT_KEY_FILE": str(path)}


async def follow(command: list[str], environ: dict[str, str]) -> None:
    """A program follows, loses its connection, resumes, drops what it has, and ends when its session is revoked."""
    hub = SigningHub()
    async with gateway(hub) as served:
        url = f"http://127.0.0.1:{served.port.getHost().port}"
        async with running(command, {**environ, "GATEWAY_URL": url, "POSITION": "ea.0-7"}) as program:
            await until(lambda: len(program.lines("gateway.server_time")) == 1, 15, "opened")
            hub.publish(hub.event("trade", b"\0one\xff", "ea.1-0"))
            await until(lambda: len(program.lines("trade")) == 1, 5, "one event")
            hub.cut()
            await until(lambda: len(hub.ever) == 2, 15, "came again")
            for position in ("ea.1-0", "ea.2-0", "ea.10-0", "ea.9-0"):
                hub.publish(hub.event("trade", b"x", position))
            await until(lambda: len(program.lines("trade")) >= 3, 5, "resumed")
            assert b64decode(program.lines("trade")[0]["payload"]) == b"\0one\xff"
            assert [each["position"] for each in program.lines("trade")] == ["ea.1-0", "ea.2-0", "ea.10-0"]
            assert hub.positions == ["ea.0-7", "ea.1-0"]
            (stream,) = hub.streams
            stream.close(OVERFLOWED)
            await until(lambda: len(hub.ever) == 3, 15, "came again after its overflow")
            assert hub.positions[2] == "ea.10-0"
            (stream,) = hub.streams
            stream.close(REVOKED)
            await until(lambda: program.status is not None, 10, "ended")
            assert (program.status, program.errors) == (1, b"revoked: device session is revoked\n")


async def distrust(command: list[str], environ: dict[str, str]) -> None:
    """A program believes nothing that another key signed, and gives up where it is refused."""
    hub = SigningHub(OTHER_KEY)
    async with gateway(hub) as served:
        told = {**environ, "GATEWAY_URL": f"http://127.0.0.1:{served.port.getHost().port}"}
        async with running(command, told) as program:
            await until(lambda: program.status is not None, 15)
            assert (program.status, program.out) == (1, b"")
            assert b"the gateway's signature is wrong" in program.errors
        hub.public_key = OTHER_KEY.public_key().public_bytes_raw()
        async with running(command, told) as program:
            await until(lambda: program.status is not None, 15)
            assert (program.status, program.errors) == (1, b"authentication: authentication failed\n")


@pytest_twisted.ensureDeferred
async def test_python(environ: dict[str, str]) -> None:
    """The Python client does what it says."""
    command = [sys.executable, "-u", str(CLIENTS / "python_client.py")]
    await follow(command, environ)
    await distrust(command, environ)


@pytest_twisted.ensureDeferred
async def test_node(environ: dict[str, str], not_run: Callable[[str], None]) -> None:
    """The Node client does what it says, by server-sent events and by WebSocket."""
    node = shutil.which("node")
    if node is None:
        not_run("node is not installed")
        return
    command = [node, "--experimental-websocket", "--no-warnings", str(CLIENTS / "node_client.mjs")]
    for transport in ("sse", "websocket"):
        await follow(command, {**environ, "TRANSPORT": transport})
        await distrust(command, {**environ, "TRANSPORT": transport})


@pytest_twisted.ensureDeferred
async def test_browser(tmp_path: Path, not_run: Callable[[str], None]) -> None:
    """The page works in a browser, on another origin than the gateway: transports, commands, resume, revocation."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        not_run("no Chromium is installed")
        return
    hub, told = SigningHub(), dict[str, str]()

    def tell(request: Request) -> Response:
        told[request.path.decode()] = request.body.decode()
        if request.path == b"/key":
            hub.public_key = b64decode(request.body)
        elif request.path in (b"/opened", b"/reopened"):
            first = request.path == b"/opened"
            at = f"ea.{len(told['/key']) + len(hub.ever)}-0"
            hub.publish(hub.event("trade", b"one" if first else b"two", at))
        elif request.path == b"/cut":
            hub.cut()
        elif request.path == b"/revoke":
            for stream in tuple(hub.streams):
                stream.close(REVOKED)
        return Response(200, b"", TEXT, corr_id="req_1")

    pages = {b"/browser.html": b"text/html", b"/edge_client.mjs": b"text/javascript"}
    leaves: dict[bytes, Any] = {
        path: Leaf(_page((CLIENTS / path[1:].decode()).read_bytes(), kind), methods=(b"GET",), bound=0)
        for path, kind in pages.items()
    }
    for name in ("key", "opened", "cut", "reopened", "revoke", "done", "failed"):
        leaves[f"/{name}".encode()] = Leaf(tell)
    async with serving(leaves, on_loop=True) as site:
        page = f"http://127.0.0.1:{site.port.getHost().port}"
        async with gateway(hub, page) as served:
            user = USER.replace("GATEWAY", f"http://127.0.0.1:{served.port.getHost().port}").encode()
            leaves[b"/user.html"] = Leaf(_page(user, b"text/html; charset=utf-8"), methods=(b"GET",), bound=0)
            options = [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path}",
                "--no-first-run",
            ]
            async with running([browser, *options, f"{page}/user.html"], {"HOME": str(tmp_path)}) as program:

                def ended() -> bool:
                    hub.answer_commands()
                    return "/done" in told or "/failed" in told or program.status is not None

                await until(ended, 60, "the page's last word")
        await until(lambda: site.site.open == 0, 10)
    shown = told.get("/done", f"{told} {program.status} {program.errors[-2000:]!r}").splitlines()
    words = [line for line in shown if not line.startswith("gateway.server_time")]
    assert words == [
        *("trade one", "reply ok {}", "refused: no_route: no route for this message type", "trade two"),
        *("trade one", "trade two", "ended: revoked: device session is revoked"),
    ]
    assert {stream.outlet.transport for stream in hub.ever} == {"websocket", "sse"}
    assert [bool(position) for position in hub.positions] == [False, True, True, True]


def _page(body: bytes, kind: bytes) -> Callable[[Request], Response]:
    return lambda request: Response(200, body, kind, corr_id="req_1")
