"""
No secret of the edge leaves the process: Redis' password, the key that it signs with, and what clients put in the wrong
place are canaries, and after everything that clients, Redis and operators do wrong none of them stands anywhere.
"""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.canaries import canary, leaks
from tests.edge_requests import as_json, members
from tests.edge_world import EVENTS, SESSIONS, Edge
from tests.followers import FOLLOWERS, SERVICE, ask, execute
from tests.gateway import Gateway
from tests.websockets import Client, frame, text, upgrade

JSON = {"Content-Type": "application/json"}
BAD_VALUES = ("", "x", "\0", "\ud7ff", "A" * 5000, 0, -1, 1e308, None, True, [], {}, [[[[]]]], "=" * 86, "A" * 43)


class World:
    """An edge full of canaries, and everything that it said."""

    def __init__(self, root: Path) -> None:
        self.canaries = {name: canary(name) for name in ("redis", "other", "client", "path")}
        secret = self.canaries["redis"]
        self.edge = Edge(root, GATEWAY_REDIS_PASSWORD=secret, LOG_LEVEL="DEBUG", METRICS_ALLOW_CIDRS="all")
        self.key = Path(self.edge.gateway.settings["GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH"])
        self.canaries["key"] = self.key.read_text().splitlines()[1][22:]  # what comes before is the same for every key
        self.raw = load_pem_private_key(self.key.read_bytes(), None).private_bytes_raw()  # type: ignore[union-attr]
        self.texts: dict[str, bytes] = {}

    def say(self, place: str, said: object) -> None:
        """Keep what was said, to be searched."""
        self.texts[place] = (
            self.texts.get(place, b"") + (said if isinstance(said, bytes) else str(said).encode()) + b"\n"
        )

    def post(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = "/edge/v1/events", *, keep: bool = True
    ) -> int:
        """One POST; the beginning of its answer is kept."""
        with socket.create_connection(("127.0.0.1", self.edge.place.http), 5) as client:
            lines = "".join(f"{name}: {value}\r\n" for name, value in (JSON | (headers or {})).items())
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
            client.sendall(head.encode() + body)
            answer = client.recv(65536)
        if keep:
            self.say("answers", answer)
        return int(answer[9:12])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests of this module."""
    made = World(tmp_path_factory.mktemp("edge-canaries"))
    try:
        made.edge.start()
        yield made
    finally:
        made.edge.close()


def test_hostile_envelopes(world: World) -> None:
    """Every member of an envelope in every wrong form, over HTTP, WebSocket and gRPC: refused as was foreseen."""
    world.edge.sessions("hostile", user="hostile-user")
    good = members(ask("hostile"))
    bodies = [json.dumps({**good, name: value}).encode() for name in good for value in BAD_VALUES]
    bodies += [b"", b"[]", b"[" * 5000, b'{"a":1e999}', b"\xff", b"{" + json.dumps(good)[1:].encode() + b"x"]
    statuses = {world.post(body) for body in bodies}
    assert statuses <= {200, 400, 401, 409, 429}
    for body in bodies[::7]:
        with socket.create_connection(("127.0.0.1", world.edge.place.http), 5) as connection:
            client = Client(connection)
            client.open(upgrade(), text(body))
            world.say("answers", client.receive().payload)
    with grpc.insecure_channel(f"127.0.0.1:{world.edge.place.grpc}") as channel:
        for body in (b"", b"\xff" * 100, b"\x0a\x02v1", b"\x0a\xff\xff\xff\xff\x0f", *bodies[::20]):
            for method in ("ExecuteCommand", "SubscribeEvents", "Nothing"):
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(f"{SERVICE}/{method}")(body, timeout=5)
                assert refused.value.code() in {  # type: ignore[attr-defined]
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.UNIMPLEMENTED,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.UNAUTHENTICATED,
                }, (body, refused.value)
                world.say("answers", refused.value)


def test_a_client_that_puts_a_secret_in_the_wrong_place(world: World) -> None:
    """In a path, a header, an envelope, a frame, a stream's entry: refused or taken, and not repeated by the log."""
    secret, redis = world.canaries["client"], world.canaries["redis"]
    world.edge.sessions("careless", user="careless-user")
    for one in (secret, redis):
        world.post(as_json(ask("careless", message_type=one)))
        world.post(as_json(ask(one)))
        told_back = as_json(ask("careless", request_id=one, payload=one.encode(), trace_id=one))
        assert world.post(told_back, keep=False) == 200  # to who sent it, both ids are named again
        world.post(as_json(ask("careless")), {"Origin": f"https://{one}", "User-Agent": one, "Cookie": one})
        world.post(one.encode(), {"Content-Type": "text/plain", "Authorization": f"Bearer {one}"})
        world.post(b"{}", path=f"/edge/v1/events?token={one}")
        world.post(json.dumps({"email": one}).encode(), path="/api/v1/public/auth/send-email-code")
        world.say("answers", execute(world.edge.place, ask("careless", message_type=one, payload=one.encode())))
        world.edge.add(EVENTS, {"user_id": one, "event_type": one, "event_id": one, "payload_bytes": one})
        world.edge.add(EVENTS, {one: one})
        world.edge.add(SESSIONS, {"device_session_id": "careless-2", "client_public_key": one, "status": one})
        with socket.create_connection(("127.0.0.1", world.edge.place.http), 5) as connection:
            client = Client(connection)
            client.open(upgrade(sec_websocket_protocol=one))
            world.say("answers", client.head)
        with socket.create_connection(("127.0.0.1", world.edge.place.http), 5) as connection:
            client = Client(connection)
            client.open(upgrade(), text(one) + frame(2, one.encode()))
            world.say("answers", client.receive().payload)


def test_redis_and_keys_that_are_wrong(world: World) -> None:
    """Another password in Redis, and files around the key that are broken, at a reload and at a start."""
    edge, known = world.edge, world.canaries
    with edge.valkey.client() as client, ExitStack() as restored:
        restored.callback(client.call, "CONFIG", "SET", "requirepass", known["redis"])
        client.call("CONFIG", "SET", "requirepass", known["other"])
        client.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        deadline = time.monotonic() + 5
        while "WRONGPASS" not in edge.warnings():
            assert time.monotonic() < deadline, edge.warnings()
            time.sleep(0.05)
        world.say("answers", edge.warnings())
    whole = world.key.read_text()
    broken = (whole.replace("\n", "\n!", 1), whole.replace("PRIVATE KEY", "RSA KEY"), whole[:60])
    for content in broken:
        world.key.write_text(content)
        edge.reload("config.reload_refused")
    starting = []
    for number, content in enumerate(broken):
        file = edge.root / f"broken-{number}.pem"
        file.write_text(content)
        settings = edge.gateway.settings | {"GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": str(file)}
        starting.append(Gateway(edge.root / f"broken-{number}", settings))
        starting[-1].start(wait="")
    for gateway in starting:
        assert gateway.process is not None
        assert gateway.process.wait(20) == 1
        world.say("log of a start that failed", gateway.log_text())
    world.key.write_text(whole)
    edge.reload()
    check, environ = edge.gateway.command("--check-config"), edge.gateway.environment()
    done = subprocess.run(check, env=environ, capture_output=True, timeout=30, check=False)
    world.say("check", done.stdout + done.stderr)


def test_nothing_has_leaked(world: World) -> None:
    """After all of it, and with everything still in service."""
    edge = world.edge
    edge.sessions("last")
    for transport in FOLLOWERS:
        for got in edge.follow(transport, "last").events:
            world.say("events", got)
    for path in ("/healthz", "/readyz", "/metrics", "/.well-known/gatewayd/keys"):
        world.say(path, edge.gateway.get(path)[2])
        with suppress(OSError):
            world.say(f"admin {path}", edge.admin(path)[1])
    log = edge.gateway.log_text()
    world.say("log", log)
    world.say("command line", Path(f"/proc/{edge.gateway.pid}/cmdline").read_bytes())
    for file in edge.gateway.state.rglob("*"):
        if file.is_file():
            world.say(f"state/{file.name}", file.read_bytes())
    assert len(log) > 50_000
    assert "Traceback" not in log
    assert [line for line in edge.gateway.log_lines() if line["level"] == "critical" or "failure" in line] == []
    assert leaks(world.canaries, world.texts) == []
    assert not [place for place, said in world.texts.items() if world.raw in said or world.raw.hex().encode() in said]
