"""
What the state directory tells a running gatewayd, and what it tells others there.

Decides when the maintenance file counts, and what is written for the tools of the same host: where the embedded server
of this run is, and a command to try the gateway with. Never decides what maintenance means.
"""

import os
from pathlib import Path
from typing import Final

import msgspec
from twisted.logger import Logger

from gatewayd import state_files
from gatewayd.bus.embedded import EmbeddedServer
from gatewayd.development import trial_command
from gatewayd.http.addresses import Kind
from gatewayd.listeners import Listeners
from gatewayd.maintenance import Maintenance
from gatewayd.settings import Settings

_log: Final = Logger()


class MaintenanceFile:
    """The switch in the state directory: look() is called once a second."""

    def __init__(self, state_directory: Path, maintenance: Maintenance) -> None:
        self._path = state_directory / state_files.MAINTENANCE
        self._maintenance = maintenance

    def look(self) -> None:
        """Take the file's word, or that there is none."""
        try:
            content: bytes | None = self._path.read_bytes()
        except FileNotFoundError:
            content = None
        except OSError:
            content = b""  # it is there; that it cannot be read must not switch maintenance off
        before = self._maintenance.window()
        self._maintenance.read_file(content)
        now = self._maintenance.window()
        if (before is None) != (now is None):
            word = "off" if now is None else "on"
            _log.info("maintenance is {word}", event="maintenance.switched", word=word)


def publish_client_file(state_directory: Path, embedded: EmbeddedServer) -> None:
    """Where tools find the embedded server of this run; readable by this user only."""
    content = msgspec.json.encode({"url": embedded.url, "user": embedded.user, "password": embedded.password})
    descriptor = os.open(state_directory / state_files.CLIENT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def say_trial(settings: Settings, listeners: Listeners) -> None:
    """In development: one command to try it with, the first text in the log that begins with curl."""
    tcp = [address for address in settings.gateway_public_http_addr if address.kind is Kind.TCP]
    secret_file = settings.state_directory / state_files.SECRET
    if settings.production or not tcp or not secret_file.exists() or settings.gateway_tls_cert is not None:
        return
    port = listeners.port_of(tcp[0])
    host = tcp[0].host if tcp[0].host not in ("", "0.0.0.0") else "127.0.0.1"  # noqa: S104 - compared
    _log.info("{command}", event="trial", command=trial_command(f"http://{host}:{port}", secret_file))
