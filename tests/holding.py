"""
A way to a server that stops at a mark: what a client sent up to it has arrived, the mark and what follows has not.

For killing a client between two of its messages, and for letting through later what lay in its socket.
"""

import socket
import threading
from contextlib import suppress

_SHORT_S = 0.05


class Holding:
    """
    One listening port in front of `port` of this host; every connection is forwarded both ways.

    The connection that sends `mark` for the `nth` time is held from the mark's first byte on: `held` is set, and
    release() sends the rest. Bytes before it, and all other connections, pass. A mark must come in one piece, as the
    front of a frame does.
    """

    def __init__(self, port: int, mark: bytes, nth: int = 1) -> None:
        self.held = threading.Event()
        self._port = port
        self._mark = mark
        self._left = nth
        self._released = threading.Event()
        self._closed = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(_SHORT_S)
        self.port = int(self._listening.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Of NATS, by this way."""
        return f"nats://127.0.0.1:{self.port}"

    def release(self) -> None:
        """Let through what is held, and wait until the server has got it."""
        self._released.set()
        for thread in self._threads[1:]:
            thread.join(5)

    def close(self) -> None:
        """End every connection."""
        self._closed.set()
        self._released.set()
        for thread in self._threads:
            thread.join(5)
        self._listening.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                for target, args in ((self._send, (client, server)), (self._receive, (server, client))):
                    thread = threading.Thread(target=target, args=args, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _send(self, client: socket.socket, server: socket.socket) -> None:
        """What the client says. Its end is told to the server only once everything has gone there."""
        with client, server, suppress(OSError):
            while data := self._read(client):
                at = self._find(data)
                if at >= 0:
                    server.sendall(data[:at])
                    self.held.set()
                    self._released.wait()
                    if self._closed.is_set():
                        return
                server.sendall(data[max(0, at) :])
            server.shutdown(socket.SHUT_WR)
            self._closed.wait(_SHORT_S)

    def _find(self, data: bytes) -> int:
        """Where the data is to be held, -1: nowhere."""
        at = -1
        while self._left and (at := data.find(self._mark, at + 1)) >= 0:
            self._left -= 1
        return at if not self._left and not self.held.is_set() else -1

    def _receive(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := self._read(server):
                client.sendall(data)

    def _read(self, end: socket.socket) -> bytes:
        end.settimeout(_SHORT_S)
        while not self._closed.is_set():
            with suppress(TimeoutError):
                return end.recv(65536)
        return b""
