"""
Services that commands go to, for tests: one on NATS and one that speaks HTTP, each as good or as bad as a test wants.

Both run in threads of their own and are closed by whoever made them. They keep what they were sent.
"""

import contextlib
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.servers import Certificates, NatsServer

TIMEOUT_S: Final = 10.0
HIDDEN: Final = ("content-length", "host", "connection")


@dataclass
class Asked:
    """One request as it arrived: the names of headers in lower case, but for those of HTTP's framing."""

    headers: dict[str, str]
    body: bytes
    target: str = ""
    connection: int = 0


@dataclass
class Said:
    """One answer: `status` is HTTP's; NATS has none."""

    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


Act = Callable[[Asked], Said | None]
"""What a service says; None: nothing, ever."""


def echo(asked: Asked) -> Said:
    """The payload, back."""
    return Said(asked.body)


class NatsService:
    """Answers on one subject; `act` may be changed at any time. It has the subject once start() returns."""

    def __init__(self, server: NatsServer, subject: str, act: Act = echo) -> None:
        self.act = act
        self.asked: list[Asked] = []
        self._socket = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        self._reader = self._socket.makefile("rb")
        self._subject = subject
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._write(b"CONNECT " + json.dumps({"verbose": False, "headers": True}).encode() + b"\r\n")
        self._write(b"SUB %b 1\r\nPING\r\n" % subject.encode())
        while self._reader.readline() != b"PONG\r\n":
            pass
        self._socket.settimeout(None)
        self._thread.start()

    def close(self) -> None:
        """Leave."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT_S)
        self._reader.close()
        self._socket.close()

    def _write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := self._reader.readline():
                words = line.split()
                if words[0] == b"PING":
                    self._write(b"PONG\r\n")
                elif words[0] in (b"MSG", b"HMSG"):
                    self._answer(words)

    def _answer(self, words: list[bytes]) -> None:
        data = self._reader.read(int(words[-1]) + 2)[:-2]
        head = int(words[-2]) if words[0] == b"HMSG" else 0
        lines = data[:head].decode().split("\r\n")[1:]
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines) if name}
        asked = Asked(headers, data[head:])
        self.asked.append(asked)
        said = self.act(asked)
        if said is None:
            return
        block = "".join(f"{name}: {text}\r\n" for name, text in said.headers.items())
        top = f"NATS/1.0\r\n{block}\r\n".encode()
        reply = words[3]
        self._write(b"HPUB %b %d %d\r\n%b%b\r\n" % (reply, len(top), len(top) + len(said.body), top, said.body))


class HttpService:
    """
    Listens on a port of its own. `act` makes a good answer of each request; `raw`, when set, is given the socket in its
    place, once the request was read (or, with `at_once`, before), and the connection is closed after it.
    """

    def __init__(self, act: Act = echo, *, tls: Certificates | None = None, host: str = "127.0.0.1") -> None:
        self.act = act
        self.raw: Callable[[Any], object] | None = None
        self.at_once = False
        self.asked: list[Asked] = []
        self.connections = 0
        self.problems: queue.Queue[BaseException] = queue.Queue()
        self.release = threading.Event()
        self._context = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(tls.cert, tls.key)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listening = socket.create_server((host, 0), family=family, backlog=512)
        self._host = f"[{host}]" if ":" in host else host
        self.port = int(self._listening.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """http://host:port, https with TLS."""
        return f"{'http' if self._context is None else 'https'}://{self._host}:{self.port}"

    def close(self) -> None:
        """Close the port and every connection; what went wrong in a thread is raised here."""
        self.release.set()
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for one in tuple(self._open):
            one.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        if not self.problems.empty():
            raise self.problems.get()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listening.accept()
                self.connections += 1
                self._open.add(accepted)
                self._threads.append(threading.Thread(target=self._serve, args=(accepted,), daemon=True))
                self._threads[-1].start()

    def _serve(self, accepted: socket.socket) -> None:
        number, connection = self.connections, accepted
        try:
            if self.at_once and self.raw is not None:
                self.raw(accepted)
                return
            if self._context is not None:
                connection = self._context.wrap_socket(accepted, server_side=True)
                self._open.add(connection)
            with connection.makefile("rb") as reader:
                while (asked := _read(reader, number)) is not None:
                    self.asked.append(asked)
                    if self.raw is not None:
                        self.raw(connection)
                        return
                    self._say(connection, self.act(asked))
        except OSError:
            pass  # whoever asked has gone, or the test is over
        except BaseException as problem:
            self.problems.put(problem)
        finally:
            self._open -= {accepted, connection}
            connection.close()

    def _say(self, connection: socket.socket, said: Said | None) -> None:
        if said is None:
            self.release.wait(TIMEOUT_S)
            return
        lines = "".join(f"{name}: {text}\r\n" for name, text in said.headers.items())
        head = f"HTTP/1.1 {said.status} Status\r\nContent-Length: {len(said.body)}\r\n{lines}\r\n"
        connection.sendall(head.encode() + said.body)


def _read(reader: Any, number: int) -> Asked | None:
    """One request; None at the end of the connection."""
    first = reader.readline().decode()
    if not first:
        return None
    headers: dict[str, str] = {}
    while (line := reader.readline().decode().strip()) != "":
        name, _, text = line.partition(":")
        headers[name.lower()] = text.strip()
    body = reader.read(int(headers.get("content-length", "0")))
    shown = {name: text for name, text in headers.items() if name not in HIDDEN}
    return Asked(shown, body, first.split(" ")[1], number)
