"""
The servers of the push bench, and the ways to publish to them.

The server under measurement runs on one processor; Valkey, nats-server and the clients on the others. A publisher says
its events' moments itself, right before it writes them; each has a connection that is open already.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatewayd.sessions.encodings import write_base64
from tests.bench import pushnames as names
from tests.bench.rig import GATEWAY_CPU, OTHER_CPUS, Stand, pin
from tests.gateway import ROOT
from tests.servers import NatsServer, free_port
from tests.valkey import ValkeyServer

PAYLOAD_BYTES: Final = 200
ECHO: Final = "bench.echo"
_PASSWORD: Final = "password-of-the-bench"
_STREAMS: Final = {"GATEWAY_SESSION_EVENTS_REDIS_STREAM": "sessions", "GATEWAY_CLIENT_EVENTS_REDIS_STREAM": "events"}
_UNLIMITED: Final = {
    "GATEWAY_SESSION_RPS": "1000000",
    "GATEWAY_USER_RPS": "1000000",
    "GATEWAY_MESSAGE_TYPE_RPS": "1000000",
    "MAX_CONNECTIONS_PER_ADDRESS": "100000",
    "GATEWAY_REDIS_OPERATION_TIMEOUT": "5s",  # a machine with other work is slow, and no stream is to be refused
    "GATEWAY_REPLAY_REDIS_RESERVE_TIMEOUT": "5s",
}
SIGNALS: Final = {"GATEWAY_SIGNALS_GRANTS": "*: *"}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads together, in nanosecond steps (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def rss_kib(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


class Load:
    """A process of clients; every method of theirs is one of its commands."""

    def __init__(self, kind: str, port: int, name: str = "gatewayd") -> None:
        self._name = f"{name}, {kind}"
        self._process = subprocess.Popen(
            ["taskset", "-c", OTHER_CPUS, sys.executable, "-m", "tests.bench.pushload", kind, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def begin(self, act: str, **given: object) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"act": act, **given}) + "\n")
        self._process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """What became of it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"wrong": "the clients have ended"}
        if "wrong" in answer:
            raise SystemExit(f"{self._name}: not a clean run: {answer['wrong']}")
        return answer

    def ask(self, act: str, **given: object) -> dict[str, Any]:
        """Send a command and wait."""
        self.begin(act, **given)
        return self.end()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Publisher:
    """A server's own way to an event for everybody."""

    def publish(self, first: int, count: int, size_bytes: int = PAYLOAD_BYTES) -> None:
        """Publish `count` events at once, numbered from `first`."""
        raise NotImplementedError

    def settle(self) -> None:
        """Read what was answered."""

    def reach(self, streams: int) -> None:
        """So many streams are open."""


def _payload(mark: bytes, size_bytes: int) -> bytes:
    return mark.ljust(size_bytes, b"x")


class Posting(Publisher):
    """POST /publish, as the peers have it; many in one write."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._answers = self._socket.makefile("rb")
        self._unanswered = 0

    def publish(self, first: int, count: int, size_bytes: int = PAYLOAD_BYTES) -> None:
        """See Publisher."""
        head = b"POST /publish HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size_bytes
        parts = []
        for number in range(first, first + count):
            parts += [head, _payload(names.mark_of(number, time.monotonic_ns()), size_bytes)]
        self._unanswered += count
        self._socket.sendall(b"".join(parts))

    def settle(self) -> None:
        """See Publisher."""
        while self._unanswered:
            self._unanswered -= 1
            length = 0
            chunked = False
            while (line := self._answers.readline().lower()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
                chunked = chunked or line.startswith(b"transfer-encoding:")
            self._answers.read(5 if chunked else length)


class Signalling(Publisher):
    """A normalised signal in NATS, as gatewayd itself stores it: for every stream that selects signals."""

    def __init__(self, server: NatsServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._answers = self._socket.makefile("rb")
        self._answers.readline()
        self._socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')

    def publish(self, first: int, count: int, size_bytes: int = PAYLOAD_BYTES) -> None:
        """See Publisher."""
        parts = []
        for number in range(first, first + count):
            mark = names.mark_of(number, time.monotonic_ns())
            head = b"NATS/1.0\r\nNats-Msg-Id: %b\r\nSource: bench\r\nInstrument: EURUSD\r\n\r\n" % mark
            whole = len(head) + size_bytes
            parts.append(b"HPUB signals.normalized %d %d\r\n%b" % (len(head), whole, head))
            parts.append(_payload(b"", size_bytes) + b"\r\n")
        self._socket.sendall(b"".join(parts))

    def settle(self) -> None:
        """See Publisher: nothing is answered before a PING."""
        self._socket.sendall(b"PING\r\n")
        while self._answers.readline() != b"PONG\r\n":
            pass


class Adding(Publisher):
    """XADD to the client events stream: an event for each user of the streams that are open."""

    def __init__(self, valkey: ValkeyServer) -> None:
        self._client = valkey.client()
        self._unanswered = 0
        self._users: list[str] = []

    def reach(self, streams: int) -> None:
        """How many streams there are."""
        users = range(-(-streams // names.STREAMS_A_USER))
        self._users = [names.user_of(f"shared-{number * names.SESSIONS_A_USER}") for number in users]

    def publish(self, first: int, count: int, size_bytes: int = PAYLOAD_BYTES) -> None:
        """See Publisher."""
        for number in range(first, first + count):
            mark = names.mark_of(number, time.monotonic_ns())
            for user in self._users:
                fields = ("user_id", user, "event_type", "bench", "event_id", mark)
                self._client.send("XADD", "events", "*", *fields, "payload_bytes", _payload(b"", size_bytes))
                self._unanswered += 1

    def settle(self) -> None:
        """See Publisher."""
        while self._unanswered:
            self._unanswered -= 1
            self._client.read()


class Pushing:
    """One running server under measurement, and its clients."""

    def __init__(self, name: str, kind: str, pid: int, port: int, publisher: Publisher) -> None:
        self.name = name
        self.pid = pid
        self.port = port
        self.publisher = publisher
        self.streams = 0
        self.number = 0
        self.load = Load(kind, port, name)

    def open(self, count: int, message_type: str = "all.subscribe") -> dict[str, float]:
        """So many streams more: how fast, and what each of them keeps in memory when it is idle."""
        before = rss_kib(self.pid)
        opened = self.load.ask("open", count=count, message_type=message_type)
        time.sleep(0.3)
        self.streams += count
        self.publisher.reach(self.streams)
        return {"opened_s": count / opened["seconds"], "idle_kib": (rss_kib(self.pid) - before) / count}

    def event(self, count: int = 1, size_bytes: int = PAYLOAD_BYTES) -> dict[str, Any]:
        """So many events at once to all streams that are read."""
        self.load.ask("expect", events=count)
        self.load.begin("go_on")
        cpu, began = cpu_seconds(self.pid), time.monotonic_ns()
        self.publisher.publish(self.number, count, size_bytes)
        self.number += count
        seen = self.load.end()
        self.publisher.settle()
        cpu = cpu_seconds(self.pid) - cpu
        seconds = (seen["ended_ns"] - began) / 1e9
        return {**seen, "cpu_us": cpu / seen["deliveries"] * 1e6, "per_second": seen["deliveries"] / seconds}

    def events(self, count: int, per_second: float, size_bytes: int) -> dict[str, Any]:
        """So many events one after the other at this rate."""
        self.load.ask("expect", events=count)
        self.load.begin("go_on")
        began = time.monotonic()
        for turn in range(count):
            time.sleep(max(0.0, began + turn / per_second - time.monotonic()))
            self.publisher.publish(self.number, 1, size_bytes)
            self.number += 1
        seen = self.load.end()
        self.publisher.settle()
        return seen

    def close(self) -> None:
        """Leave; the server goes on."""
        self.load.close()


class EdgeStand(Stand):
    """A Stand with a Valkey, so that its gatewayds may have the edge on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.valkey = ValkeyServer(root / "valkey", password=_PASSWORD).start()
        pin(self.valkey.pid, OTHER_CPUS)
        self._answering: list[socket.socket] = []
        self._key = root / "signer.pem"
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._key.write_bytes(key)
        self._key.chmod(0o600)

    def add_sessions(self, count: int, *, own: bool = False) -> None:
        """Snapshots of the sessions that so many streams are opened with."""
        sessions = dict.fromkeys(names.session_of(stream, own=own) for stream in range(count))
        public = write_base64(names.CLIENT_KEY.public_key().public_bytes_raw())
        with self.valkey.client() as client:
            for session in sessions:
                client.send(*self._snapshot(session), "client_public_key", public, "status", "active")
            for _ in sessions:
                client.read()

    def _snapshot(self, session: str) -> tuple[str, ...]:
        return ("XADD", "sessions", "*", "device_session_id", session, "user_id", names.user_of(session))

    def revoke(self, session: str) -> int:
        """Write the snapshot that ends a session; when, in monotonic nanoseconds."""
        public = write_base64(names.CLIENT_KEY.public_key().public_bytes_raw())
        with self.valkey.client() as client:
            began = time.monotonic_ns()
            client.call(*self._snapshot(session), "client_public_key", public, "status", "revoked")
        return began

    def edge(self) -> dict[str, str]:
        """The settings of a gatewayd with the edge on."""
        return {
            "GATEWAY_REDIS_MASTER_ADDR": self.valkey.address,
            "GATEWAY_REDIS_PASSWORD": _PASSWORD,
            "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH": str(self._key),
            "GATEWAY_AUTHENTICATED_GRPC_ADDR": f"127.0.0.1:{free_port()}",
            "GATEWAY_COMMAND_ROUTES": f"{ECHO}=nats:{ECHO}",
            **_STREAMS,
            **_UNLIMITED,
        }

    def add_edge(self, kind: str, *, signals: bool = True) -> "Pushing":
        """Start a gatewayd with the edge on and clients of one kind; signals are published to it, or client events."""
        pid, ports = self.start_edge(signals=signals)
        publisher = Signalling(self.server) if signals else Adding(self.valkey)
        return Pushing("gatewayd", kind, pid, ports[kind], publisher)

    def start_edge(self, *, signals: bool = True) -> tuple[int, dict[str, int]]:
        """Start a gatewayd with the edge on: its process, and the port of each transport."""
        settings = {**self.edge(), **(SIGNALS if signals else {})}
        target = self.add_gateway("gatewayd", more=settings)
        time.sleep(0.5)  # the sessions are read, the signals followed
        grpc = int(settings["GATEWAY_AUTHENTICATED_GRPC_ADDR"].rpartition(":")[2])
        return target.pid, {"websocket": target.port, "sse": target.port, "grpc": grpc}

    def add_pushing_peer(self, name: str, kind: str, command: Sequence[str]) -> "Pushing":
        """Start a peer with clients of one kind; the environment tells it its directory and its port."""
        port, root = free_port(), self.root / f"peer{len(self._peers)}"
        root.mkdir()
        environment = {"PATH": os.environ["PATH"], "PORT": str(port), "DIRECTORY": str(root)}
        peer = subprocess.Popen(["taskset", "-c", GATEWAY_CPU, *command], env=environment, stdin=subprocess.DEVNULL)
        self._peers.append(peer)
        self.await_ready(name, peer, f"http://127.0.0.1:{port}/")
        return Pushing(name, kind, _worker(peer.pid), port, Posting(port))

    def answer_echoes(self) -> None:
        """The service behind the route of ECHO: from now on a thread of this process."""
        opened = socket.create_connection(("127.0.0.1", self.server.port))
        self._answering.append(opened)
        opened.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB %b 1\r\nPING\r\n' % ECHO.encode())
        Thread(target=_answer, args=(opened,), daemon=True).start()

    def close(self) -> None:
        """End everything."""
        for opened in self._answering:
            opened.shutdown(socket.SHUT_RDWR)
        for peer in self._peers:  # killed, nginx would leave its worker behind
            peer.terminate()
            peer.wait(10)
        super().close()
        self.valkey.close()


def _worker(pid: int) -> int:
    """The process that does the work: nginx' worker, or the process itself."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                return int(status.parent.name)
    return pid


def _answer(opened: socket.socket) -> None:
    """Give every request back; until the connection is closed."""
    with opened, opened.makefile("rb") as lines:
        for line in lines:
            words = line.split()
            if words[0] == b"PING":
                opened.sendall(b"PONG\r\n")
            elif words[0] in (b"HMSG", b"MSG"):
                head = int(words[-2]) if words[0] == b"HMSG" else 0
                payload = lines.read(int(words[-1]) + 2)[head:]
                opened.sendall(b"PUB %b %d\r\n%b" % (words[3], len(payload) - 2, payload))
