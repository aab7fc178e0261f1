"""
A whole edge for system tests: a gatewayd with its five settings, a Valkey with a password, a nats-server.

Decides nothing: it starts what is real, and plays the services beside the gateway, those that write sessions and events
into Redis.
"""

import http.client
import json
import secrets
import signal
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatewayd.sessions.signing import verify
from tests.clients import SECRET
from tests.edge_requests import session, snapshot_fields
from tests.followers import FOLLOWERS, Follower, Got, Place
from tests.gateway import Gateway
from tests.servers import NatsServer, free_port
from tests.valkey import ValkeyServer

PASSWORD = "the-password-of-the-edge-redis"
SESSIONS, EVENTS = "session_events", "client_events"


def write_signer(path: Path) -> Path:
    """A new key for the gateway to sign with, as the documents say to make one."""
    private = Ed25519PrivateKey.generate()
    path.touch(0o600)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def edge_settings(root: Path, redis: str, **more: str) -> dict[str, str]:
    """The five, with the key in `root`, listeners on free ports, and whatever is given beside them."""
    root.mkdir(parents=True, exist_ok=True)
    key = root / "signer.pem"
    if not key.exists():
        write_signer(key)
    return {
        "GATEWAY_REDIS_MASTER_ADDR": redis,
        "GATEWAY_REDIS_PASSWORD": PASSWORD,
        "GATEWAY_SESSION_EVENTS_REDIS_STREAM": SESSIONS,
        "GATEWAY_CLIENT_EVENTS_REDIS_STREAM": EVENTS,
        "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": str(key),
        "GATEWAY_AUTHENTICATED_GRPC_ADDR": f"127.0.0.1:{free_port()}",
        "GATEWAY_ADMIN_HTTP_ADDR": f"127.0.0.1:{free_port()}",
        "API_KEY_HMAC_SECRET": SECRET.decode(),
        "RATE_LIMIT_RPS": "100000",
        "RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8",
        **more,
    }


class Configured(Gateway):
    """A gatewayd that reads settings.toml beside its root, too."""

    @property
    def file(self) -> Path:
        """The file."""
        return self.root.parent / "settings.toml"

    def command(self, *arguments: str) -> list[str]:
        """See Gateway."""
        return super().command("--config", str(self.file), *arguments)


class Edge:
    """
    One edge; `settings` are put over those of edge_settings. close() ends everything that it started.

    `valkey` and `nats` are made unless they are given; both keep what they were told through a kill.
    """

    def __init__(
        self,
        root: Path,
        *,
        valkey: ValkeyServer | None = None,
        nats: NatsServer | None = None,
        **settings: str,
    ) -> None:
        self.root = root
        password = settings.get("GATEWAY_REDIS_PASSWORD", PASSWORD)
        self.valkey = valkey or ValkeyServer(root / "valkey", password=password, append_only=True)
        self.nats = nats or NatsServer(root / "nats")
        self._given = valkey, nats
        all_settings = edge_settings(root, self.valkey.address, NATS_URL=self.nats.url, **settings)
        self.gateway = Configured(root / "gateway", all_settings)
        self.configure()
        self.followers: list[Follower] = []

    def start(self) -> "Edge":
        """Start the servers and the gateway; done when it is ready."""
        if not self.valkey.running:
            self.valkey.start()
        if self._given[1] is None:
            self.nats.start()
        self.gateway.start(wait="/readyz")
        return self

    def close(self) -> None:
        """End everything."""
        for follower in self.followers:
            follower.stop()
        self.gateway.close()
        for server, given in zip((self.valkey, self.nats), self._given, strict=True):
            if given is None:
                server.close()

    @property
    def place(self) -> Place:
        """Where it is served."""
        address = self.gateway.settings["GATEWAY_AUTHENTICATED_GRPC_ADDR"]
        return Place(self.gateway.port, int(address.rpartition(":")[2]))

    def configure(self, **settings: str | list[str]) -> None:
        """What its settings' file says, beside the environment; reload() puts it in force."""
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
        self.gateway.file.write_text("".join(lines))

    def reload(self, event: str = "config.reloaded") -> dict[str, Any]:
        """SIGHUP; the line that says what came of it."""
        before = len([line for line in self.gateway.log_lines() if line["event"] == event])
        self.gateway.signal(signal.SIGHUP)
        return self.gateway.await_line(event=event, after=before)

    # The services beside it.

    def snapshot(self, name: str, user: str = "user-1", *, revoked: bool = False, **changed: str | bytes) -> bytes:
        """Write a session's snapshot; `changed` replaces members. Gives the entry's id."""
        fields = {**snapshot_fields(session(name, user=user, revoked=revoked)), **changed}
        return self.add(SESSIONS, fields)

    @staticmethod
    def fields(name: str, user: str) -> list[str]:
        """An active session's snapshot as XADD takes it."""
        return [part for item in snapshot_fields(session(name, user=user)).items() for part in item]

    def sessions(self, *names: str, user: str = "user-1") -> None:
        """Sessions of one user, known to the gateway when this returns."""
        for name in names:
            self.snapshot(name, user)
        with self.valkey.client() as client:
            self._await_keys(client, names)

    def _await_keys(self, client: Any, names: tuple[str, ...], timeout_s: float = 10.0) -> None:
        """Wait until the gateway has written the keys of these sessions."""
        deadline = time.monotonic() + timeout_s
        while client.call("EXISTS", *(f"gateway:session:{name}" for name in names)) < len(names):
            assert time.monotonic() < deadline, names
            time.sleep(0.01)

    def push(
        self, payload: bytes = b"x", *, user: str = "user-1", event_type: str = "trade.filled", **more: str
    ) -> str:
        """Publish one event; gives its event_id."""
        event_id = more.pop("event_id", "") or secrets.token_hex(8)
        fields = {"user_id": user, "event_type": event_type, "event_id": event_id, "payload_bytes": payload, **more}
        self.add(EVENTS, fields)
        return event_id

    def add(self, stream: str, fields: Mapping[str, str | bytes]) -> bytes:
        """XADD."""
        entry: bytes = self.valkey.call("XADD", stream, "*", *(part for item in fields.items() for part in item))
        return entry

    # Its clients.

    def follow(self, transport: str, name: str, **options: Any) -> Follower:
        """A follower that has its stream open."""
        follower = FOLLOWERS[transport](self.place, name, **options)
        self.followers.append(follower)
        return follower.start().opened()

    def follow_all(self, name: str, **options: Any) -> dict[str, Follower]:
        """One of each kind, on sessions `name`-grpc and so on, which are made; all have their streams open."""
        names = {transport: f"{name}-{transport}" for transport in FOLLOWERS}
        self.sessions(*names.values(), user=options.pop("user", "user-1"))
        return {transport: self.follow(transport, each, **options) for transport, each in names.items()}

    # What it says of itself.

    def admin(self, path: str) -> tuple[int, bytes]:
        """A GET on the admin listener."""
        port = int(self.gateway.settings["GATEWAY_ADMIN_HTTP_ADDR"].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with its labels."""
        lines = self.admin("/metrics")[1].decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def warnings(self) -> str:
        """What /readyz warns of; it is 200."""
        status, _, body = self.gateway.get("/readyz")
        assert status == 200, body
        return " ".join(json.loads(body).get("warnings", []))

    def public_keys(self) -> list[bytes]:
        """The keys that it says it signs with, the present one first."""
        status, _, body = self.gateway.get("/.well-known/gatewayd/keys")
        assert status == 200
        return [urlsafe_b64decode(key["x"] + "=") for key in json.loads(body)["keys"]]

    def verified(self, got: Got) -> bool:
        """True when one of its published keys has signed this."""
        return any(verify(key, got.signature, got.signed) for key in self.public_keys())
