"""SIGHUP under load: secrets, sources, limits, the log's level and certificates change, and nobody notices."""

import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509

from tests.clients import generic_body, stamped
from tests.gateway import Gateway
from tests.senders import Noted, Sender, sending
from tests.servers import NatsServer, free_port, make_certificates
from tests.streams import read_stream

OLD = b"the-secret-that-everybody-has-known-for-years"
NEW = b"the-secret-that-takes-its-place-from-today-on"
ROOM = {"RATE_LIMIT_RPS": "100000", "RATE_LIMIT_EXEMPT_CIDRS": "127.0.0.0/8"}
PAUSE_S = 0.4
"""How long senders go on between two changes."""


def ends(noted: Sequence[Noted]) -> Counter[tuple[int, str]]:
    """How many requests ended how; there must be some."""
    assert len(noted) > 3
    return Counter((one.status, one.code) for one in noted)


class Reloads:
    """SIGHUPs of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.count = 0

    def reload(self, event: str = "config.reloaded") -> tuple[float, float]:
        """SIGHUP; the times at which it was sent and at which it was done."""
        known = sum(line["event"] == event for line in self.gateway.log_lines())
        at = time.time()
        self.gateway.signal(signal.SIGHUP)
        self.line = self.gateway.await_line(event=event, after=known)
        return at, time.time()


class Configured(Gateway):
    """A gateway with a settings file."""

    def command(self, *arguments: str) -> list[str]:
        """With --config."""
        return super().command("--config", str(self.file), *arguments)

    @property
    def file(self) -> Path:
        """The settings file."""
        return self.root / "gatewayd.toml"


class TestRotation:
    """One gateway, some senders that never stop."""

    def test_secrets(self, make_gateway: Callable[..., Gateway], nats: NatsServer, tmp_path: Path) -> None:
        """old -> old and new -> new: no failure while both are valid, 401 GW-001 for the old one afterwards."""
        file = tmp_path / "secrets"
        file.write_bytes(OLD)
        gateway = make_gateway(NATS_URL=nats.url, API_KEY_HMAC_SECRET_FILE=str(file), **ROOM)
        gateway.start(wait="/readyz")
        reloads = Reloads(gateway)
        old = [Sender(gateway.port, OLD) for _ in range(4)]
        new = [Sender(gateway.port, NEW) for _ in range(4)]
        began = time.time()
        with sending(*old) as senders:
            time.sleep(PAUSE_S)
            file.write_bytes(NEW + b"," + OLD)
            reloads.reload()
            for sender in new:
                senders.add(sender)
            time.sleep(PAUSE_S)
            file.write_bytes(NEW)
            asked, done = reloads.reload()
            time.sleep(PAUSE_S)
        for sender in old:
            assert set(ends(sender.between(began, asked))) == {(202, "")}
            assert set(ends(sender.between(done))) == {(401, "GW-001")}
        for sender in new:
            assert set(ends(sender.noted)) == {(202, "")}
        accepted = [one.corr_id for sender in [*old, *new] for one in sender.noted if one.status == 202]
        stored = [one.headers["Corr-ID"] for one in read_stream(nats.url) if one.subject == "signals.raw"]
        assert sorted(stored) == sorted(accepted)
        for secret in (OLD, NEW):
            assert secret.decode() not in gateway.log_text()
        print(f"\n{len(accepted)} accepted over the rotation, refused: 0 while both secrets were valid")

    def test_everything_else(self, tmp_path: Path, nats: NatsServer) -> None:
        """A source, its limit and the log's level change; a broken file changes nothing, and says so."""
        gateway = Configured(tmp_path / "gateway", {"NATS_URL": nats.url, "API_KEY_HMAC_SECRET": NEW.decode(), **ROOM})
        gateway.root.mkdir()
        gateway.file.write_text('allowed_sources = "tradingview,test"\n')
        try:
            gateway.start(wait="/readyz")
            self._change_everything(gateway)
        finally:
            gateway.close()

    def _change_everything(self, gateway: Gateway) -> None:
        assert isinstance(gateway, Configured)
        reloads = Reloads(gateway)
        steady = [Sender(gateway.port, NEW) for _ in range(4)]

        def ask(source: str) -> int:
            body = generic_body(time.time(), source, price=time.monotonic())
            return gateway.ask("POST", f"/webhook/{source}", body, stamped(body, time.time(), secret=NEW))[0]

        with sending(*steady):
            assert (ask("late"), ask("test")) == (404, 202)
            gateway.file.write_text(
                'allowed_sources = "tradingview,test,late"\nrate_limit_sources = "test:0.01"\nlog_level = "WARNING"\n'
            )
            reloads.reload()
            assert ask("late") == 202
            assert [ask("test") for _ in range(3)].count(429) >= 2
            logged = sum(line["event"] == "request" for line in gateway.log_lines())
            time.sleep(PAUSE_S)
            assert sum(line["event"] == "request" for line in gateway.log_lines()) <= logged + 1  # one was on its way

            gateway.file.write_text('allowed_sources = "tradingview"\nlog_level = "loud"\n')
            reloads.reload("config.reload_refused")
            assert "log_level" in reloads.line["msg"].lower()
            assert reloads.line["level"] == "error"
            assert ask("late") == 202
            gateway.file.write_text('allowed_sources = "tradingview')
            reloads.reload("config.reload_refused")
            metrics = gateway.get("/metrics")[2].decode()
            assert 'gateway_config_reloads_total{result="failed"} 2.0' in metrics
            assert 'gateway_config_reloads_total{result="ok"} 1.0' in metrics
            gateway.file.write_text('allowed_sources = "tradingview"\n')
            reloads.reload()
            assert ask("late") == 404
        for sender in steady:
            assert set(ends(sender.noted)) == {(202, "")}
        assert "Traceback" not in gateway.log_text()

    def test_certificates(self, make_gateway: Callable[..., Gateway], nats: NatsServer, tmp_path: Path) -> None:
        """A new certificate is shown to new connections; a file that is not there keeps it, and is named."""
        files, second = make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "second")
        port, tls_port = free_port(), free_port()
        gateway = make_gateway(
            port=port,
            NATS_URL=nats.url,
            API_KEY_HMAC_SECRET=NEW.decode(),
            GATEWAY_PUBLIC_HTTP_ADDR=f"127.0.0.1:{port},ssl:{tls_port}:privateKey={files.key}:certKey={files.cert}",
            **ROOM,
        )
        gateway.start(wait="/readyz")
        reloads = Reloads(gateway)
        before = serial(tls_port, files.ca)
        running = connect(tls_port, files.ca)
        files.cert.write_bytes(second.cert.read_bytes())
        files.key.unlink()
        reloads.reload("config.reload_refused")
        assert str(files.key) in reloads.line["msg"]
        assert serial(tls_port, files.ca) == before
        files.key.write_bytes(second.key.read_bytes())
        reloads.reload()
        assert serial(tls_port, second.ca) != before
        running.sendall(b"GET /healthz HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        assert running.recv(1000).startswith(b"HTTP/1.1 200")
        running.close()
        assert "PRIVATE KEY" not in gateway.log_text()


def connect(port: int, authority: Path) -> ssl.SSLSocket:
    """A TLS connection."""
    context = ssl.create_default_context(cafile=str(authority))
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost")


def serial(port: int, authority: Path) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with connect(port, authority) as stream:
        found = stream.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number
