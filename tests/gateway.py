"""
A real gatewayd for system tests and measurements: `twistd -n gatewayd` in a process of its own, on free ports.

start() returns when the public port answers. The log is in a file, so that a reader that is slow holds nothing up.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers import free_port
from tests.sockets import Passed

ROOT = Path(__file__).parents[1]


class Gateway:
    """
    One gatewayd process after another with one environment and one state directory.

    `settings` are environment variables on top of a bare environment; `prefix` is put before the command (taskset, for
    one). `port` is kept through every start. `passed` are sockets that it is started with, as by systemd; `port` is
    then that of the first.
    """

    def __init__(
        self,
        root: Path,
        settings: Mapping[str, str],
        *,
        prefix: Sequence[str] = (),
        port: int = 0,
        passed: Passed | None = None,
    ) -> None:
        self.root = root
        self.port = port or free_port()
        self.prefix = list(prefix)
        self.passed = passed
        self.state = root / "state"
        self.log_path = root / "gatewayd.log"
        self.settings = dict(settings)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """http://127.0.0.1:port."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What the process is started with."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.root),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "STATE_DIRECTORY": str(self.state),
            "PORT": str(self.port),
            **self.settings,
        }

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        twistd = Path(sys.executable).with_name("twistd")
        return [*self.prefix, sys.executable, str(twistd), "-n", "--pidfile=", "gatewayd", *arguments]

    def start(self, *, wait: str = "/healthz", timeout_s: float = 15.0) -> float:
        """Start it; returns the seconds until `wait` was answered 200 ("" does not wait)."""
        self.root.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                **self._spawned(), cwd=self.root, stdout=log, stderr=log, start_new_session=True
            )
        while wait and time.monotonic() - began < timeout_s:
            if self.process.poll() is not None:
                raise RuntimeError(f"gatewayd ended with {self.process.returncode}:\n{self.log_text()[-4000:]}")
            try:
                if self.get(wait)[0] == 200:
                    return time.monotonic() - began
            except OSError:
                pass
            time.sleep(0.02)
        if wait:
            raise RuntimeError(f"gatewayd did not answer {wait} in {timeout_s} s:\n{self.log_text()[-4000:]}")
        return time.monotonic() - began

    def _spawned(self) -> dict[str, Any]:
        if self.passed is not None:
            return self.passed.spawned(self.command(), self.environment())
        return {"args": self.command(), "env": self.environment()}

    @property
    def pid(self) -> int:
        """The running process."""
        assert self.process is not None
        return self.process.pid

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        """One GET on a connection of its own: status, headers in lower case, body."""
        return self.ask("GET", path, b"", headers or {})

    def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float = 10.0
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body or None, dict(headers))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        """The members of /healthz."""
        members: dict[str, Any] = json.loads(self.get("/healthz")[2])
        return members

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, by its pid."""
        os.kill(self.pid, number)

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and the exit status (negative: ended by that signal)."""
        assert self.process is not None
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """End whatever is left."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def log_text(self) -> str:
        """All that was logged, by every process so far."""
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """The lines of the log that are JSON objects, as they are; a line that is none fails."""
        return [json.loads(line) for line in self.log_text().splitlines()]

    def await_line(self, *, after: int = 0, timeout_s: float = 5.0, **members: Any) -> dict[str, Any]:
        """The last line of the log that has these members, once more than `after` lines have them."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            text = self.log_text()
            lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
            found = [line for line in lines if members.items() <= line.items()]
            if len(found) > after:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"no line in the log with {members}")

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
