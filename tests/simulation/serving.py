"""
The model of nats-server on a real socket, so that what tests the real one tests the model.

It is killed, frozen and started as tests.servers.NatsServer is. Decides nothing.
"""

# Twisted's transports carry no annotations.
# mypy: disable-error-code="no-untyped-call"

import time
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from tests.servers import free_port
from tests.simulation.jetstream import Connection, Server


class _Socket(Protocol):
    def __init__(self, owner: "ModelServer") -> None:
        self._owner = owner
        self._connection: Connection | None = None

    def connectionMade(self) -> None:
        self._owner.sockets.append(self)
        self._connection = self._owner.model.accept(self._write)

    def _write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.received(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        del reason
        self._owner.sockets.remove(self)
        assert self._connection is not None
        self._connection.closed()


class ModelServer:
    """One model server on a loopback port that it keeps through every start."""

    def __init__(self, reactor: Any) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.model = Server(time.time, reactor.callLater)
        self.model.up = False
        self.sockets: list[_Socket] = []
        self._reactor = reactor
        self._listening: Any = None

    def start(self) -> "ModelServer":
        """Listen."""
        self.model.start()
        factory = Factory.forProtocol(lambda: _Socket(self))  # type: ignore[arg-type]
        factory.noisy = False
        self._listening = self._reactor.listenTCP(self.port, factory, interface="127.0.0.1")
        return self

    def sigstop(self) -> None:
        """Freeze."""
        self.model.frozen = True

    def sigcont(self) -> None:
        """Go on."""
        self.model.thaw()

    def kill(self) -> None:
        """End at once."""
        self.model.kill()
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.stopListening()
        for each in list(self.sockets):
            each.transport.abortConnection()  # type: ignore[union-attr]

    close = kill
