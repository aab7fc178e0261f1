"""The nats-server.conf that is shipped: started as it is, but for ports and directory."""

import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import READY, free_port, nats_server_binary

SHIPPED = Path(__file__).parents[2] / "etc" / "nats-server.conf"
PASSWORD, SYSTEM_PASSWORD = "gatewayPw-1", "systemPw_2"


@dataclass
class Running:
    port: int
    monitor_port: int


class Connection:
    """NATS's text protocol, one request at a time."""

    def __init__(self, port: int, user: str, password: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.file = self.socket.makefile("rb")
        self.info = json.loads(self.file.readline().removeprefix(b"INFO "))
        login = json.dumps({"user": user, "pass": password, "verbose": False, "headers": True})
        self.socket.sendall(b"CONNECT %b\r\nPING\r\n" % login.encode())
        self.greeting = self.file.readline().strip()

    def request(self, subject: str, payload: bytes = b"") -> bytes:
        self.socket.sendall(
            b"SUB _INBOX.x 1\r\nUNSUB 1 1\r\nPUB %b _INBOX.x %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)
        )
        head = self.file.readline().split()
        assert head[0] == b"MSG", head
        return self.file.read(int(head[-1]) + 2)[:-2]

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("nats")
    running = Running(free_port(), free_port())
    text = SHIPPED.read_text()
    for shipped, here in (
        ("127.0.0.1:4222", f"127.0.0.1:{running.port}"),
        ("127.0.0.1:8222", f"127.0.0.1:{running.monitor_port}"),
        ("/var/lib/nats", str(root / "store")),
    ):
        assert f'"{shipped}"' in text
        text = text.replace(f'"{shipped}"', f'"{here}"')
    (root / "nats.conf").write_text(text)
    process = subprocess.Popen(
        [nats_server_binary(), "-c", str(root / "nats.conf")],
        env={**os.environ, "NATS_PASSWORD": PASSWORD, "NATS_SYSTEM_PASSWORD": SYSTEM_PASSWORD},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if READY in line:
            break
    else:
        pytest.fail("".join(lines))
    yield running
    process.kill()
    process.wait(10)
    process.stderr.close()


def test_users_and_accounts(server: Running) -> None:
    """Only the two users get in; the gateway's has JetStream, the system's answers `nats server ping`."""
    gateway = Connection(server.port, "gateway", PASSWORD)
    assert gateway.greeting == b"PONG"
    assert "error" not in json.loads(gateway.request("$JS.API.INFO"))
    gateway.close()
    system = Connection(server.port, "system", SYSTEM_PASSWORD)
    assert system.greeting == b"PONG"
    assert json.loads(system.request("$SYS.REQ.SERVER.PING"))["server"]["name"] == "gatewayd-nats"
    system.close()
    for user, password in (("gateway", SYSTEM_PASSWORD), ("gateway", ""), ("", ""), ("system", PASSWORD)):
        stranger = Connection(server.port, user, password)
        assert stranger.greeting.startswith(b"-ERR 'Authorization Violation'")
        stranger.close()


def test_durability_and_size(server: Running) -> None:
    """Acknowledgements follow fsync, and an event of more than 1 MiB is stored."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.monitor_port}/jsz?config=1", timeout=5) as answer:
        assert json.load(answer)["config"]["sync_always"] is True
    gateway = Connection(server.port, "gateway", PASSWORD)
    assert gateway.info["max_payload"] == 2 * 1024 * 1024
    stream = {"name": "trading-events", "subjects": ["signals.>"], "storage": "file"}
    assert "error" not in json.loads(
        gateway.request("$JS.API.STREAM.CREATE.trading-events", json.dumps(stream).encode())
    )
    acknowledgement = json.loads(gateway.request("signals.raw", b"x" * (1024 * 1024 + 4096)))
    assert acknowledgement["seq"] == 1
    gateway.close()


def test_passwords_come_from_the_environment() -> None:
    """Without its passwords the server does not start, and none stands in the file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    run = subprocess.run(
        [nats_server_binary(), "-t", "-c", str(SHIPPED)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert run.returncode != 0
    assert "NATS_PASSWORD" in run.stderr + run.stdout
