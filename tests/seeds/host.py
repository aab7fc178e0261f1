"""
One host for the runbooks' commands: a unit at-gateway, a unit nats-server, a container nats-container, a journal.

The processes behind the names are real: gatewayd as `twistd -n gatewayd`, and nats-server with accounts as the shipped
configuration has them. The host reads the unit's environment file at every start, as systemd does.
"""

import json
import os
import shlex
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.gateway import ROOT, Gateway
from tests.seeds.wrapped import SOCKET
from tests.servers import NatsServer

UNIT = "at-gateway"
PASSWORD = "the-password-of-the-test-host"
ACCOUNTS = f"""
accounts {{
  TRADING {{ jetstream: enabled, users: [{{ user: gateway, password: "{PASSWORD}" }}] }}
  SYSTEM {{ users: [{{ user: system, password: "{PASSWORD}" }}] }}
}}
system_account: SYSTEM
"""
ASKED = ("systemctl", "journalctl", "docker", "telnet", "pgrep")
SUBSTITUTES = {
    "sudo": 'exec "$@"',
    "sleep": 'exec /bin/sleep "$(( $1 < 1 ? $1 : 1 ))"',
    "uuidgen": "exec cat /proc/sys/kernel/random/uuid",
}


class _Unit(Gateway):
    """gatewayd with the command line of its unit, whose configuration file has the unit's old name."""

    config: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        return super().command(f"--config={self.config}", *arguments)


class Host:
    """The host in `root`; `settings` are the unit's environment file to begin with."""

    def __init__(self, root: Path, settings: Mapping[str, str]) -> None:
        self.root = root
        self.nats = NatsServer(root / "nats", ACCOUNTS)
        self.config = root / "at_gateway.toml"
        self.environment_file = root / UNIT
        self.gateway = _Unit(root / "gateway", {})
        root.mkdir(parents=True, exist_ok=True)
        self.config.write_text("")
        self.gateway.config = self.config
        fixed = {"NATS_URL": self.nats.url, "NATS_USER": "gateway", "NATS_PASSWORD": PASSWORD}
        self.environment_file.write_text("".join(f"{name}={text}\n" for name, text in {**fixed, **settings}.items()))
        self._programs = root / "bin"
        self._socket = root / "host.sock"
        self._server = socketserver.ThreadingUnixStreamServer(str(self._socket), self._answer_of())
        self._lock = threading.Lock()

    def start(self) -> "Host":
        """Start everything."""
        self._write_programs()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.nats.start()
        self._start_gateway()
        return self

    def close(self) -> None:
        """End everything."""
        self._server.shutdown()
        self._server.server_close()
        self.gateway.close()
        self.nats.close()

    def bash(self, script: str, timeout_s: float = 60.0) -> str:
        """Run what a person types into a shell; what it printed, both streams in order."""
        done = subprocess.run(
            ["bash"],
            input=script,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self._environment(),
        )
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self._programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.root),  # where curl finds its settings
            "PYTHONPATH": str(ROOT),
            "NATS_URL": self.nats.url,
            "NATS_USER": "gateway",
            "NATS_PASSWORD": PASSWORD,
            "STATE_DIRECTORY": str(self.gateway.state),
            "GATEWAYCTL_ENV_FILE": str(self.environment_file),
            "GATEWAYCTL_UNIT": UNIT,
            SOCKET: str(self._socket),
        }

    def _write_programs(self) -> None:
        """The host's programs; gatewayctl of this checkout; and curl told where the gateway really listens."""
        self._programs.mkdir()
        python = shlex.quote(sys.executable)
        programs = {name: f'exec {python} -m tests.seeds.wrapped {name} "$@"' for name in (*ASKED, "nats")}
        programs["gatewayctl"] = f"""exec {python} -c 'from gatewayd.cli import main; main()' "$@\""""
        programs["twistd"] = f'exec {python} {shlex.quote(str(Path(sys.executable).with_name("twistd")))} "$@"'
        for name, text in SUBSTITUTES.items():
            if name != "uuidgen" or shutil.which(name) is None:
                programs[name] = text
        for name, text in programs.items():
            path = self._programs / name
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        (self.root / ".curlrc").write_text(f"connect-to = localhost:8001:127.0.0.1:{self.gateway.port}\n")

    def _start_gateway(self) -> None:
        lines = self.environment_file.read_text().splitlines()
        pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
        self.gateway.settings = {name: shlex.split(text)[0] if text else "" for name, text in pairs}
        self.gateway.start(wait="/readyz" if self.nats.running else "/healthz")

    def _answer_of(self) -> type[socketserver.StreamRequestHandler]:
        host = self

        class Answer(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                program, *arguments = json.loads(self.rfile.readline())
                try:
                    status, said = 0, host.do(program, arguments)
                except (KeyError, RuntimeError, AssertionError) as error:
                    status, said = 1, f"{program}: {error!r}\n"
                self.wfile.write(json.dumps({"status": status, "said": said}).encode())

        return Answer

    def do(self, program: str, arguments: Sequence[str]) -> str:
        """What one of the wrapped programs does here; what it says."""
        with self._lock:
            match [program, *arguments]:
                case ["systemctl", "restart", "at-gateway" | "at-gateway.service"]:
                    self.gateway.stop()
                    self._start_gateway()
                case ["systemctl", "restart", "nats-server"]:
                    self.nats.stop()
                    self.nats.start()
                case ["docker", "stop", "nats-container"]:
                    self.nats.stop()
                case ["docker", "start", "nats-container"]:
                    self.nats.start()
                case ["journalctl", "-u", "at-gateway", "-o", "cat", *_]:
                    return self.gateway.log_text()
                case ["pgrep", "-f", text]:
                    command = Path(f"/proc/{self.gateway.pid}/cmdline").read_bytes()
                    return f"{self.gateway.pid}\n" if text.encode() in command else ""
                case ["telnet", "nats-server", "4222"]:
                    with socket.create_connection(("127.0.0.1", self.nats.port), 5) as connection:
                        return f"Connected to nats-server.\n{connection.makefile().readline()}"
                case _:
                    raise KeyError(" ".join([program, *arguments]))
        return ""
