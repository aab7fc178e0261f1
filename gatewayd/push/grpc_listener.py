"""
The addresses of the gRPC server, with TLS or without, their own sockets or inherited ones.

Decides when they are opened, served and closed, and which certificate each shows. Never decides how a socket is bound
(http.endpoint does) or what is served (grpc_server does).
"""

import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from gatewayd.http.addresses import Address, CannotListen, Kind
from gatewayd.http.certificates import Certificate
from gatewayd.http.endpoint import listen, open_inherited, serve_inherited, stop_listening
from gatewayd.http.inherited import Inherited
from gatewayd.http.proxied import Proxies
from gatewayd.lifecycle import StartFailed
from gatewayd.push.grpc_server import GrpcServer

ALPN: Final = "h2"
"""What TLS must agree on (RFC 9113, 3.2)."""

_log: Final = Logger()


class GrpcListener:
    """
    The ports of `addresses`. `certificate` and `private_key` are paths of PEM files for the TCP addresses, "" for
    cleartext; an address that asks for TLS itself has its own. `event_loop` is the reactor's, if it has one. `close_s`
    is what close() may take.
    """

    def __init__(
        self,
        reactor: Any,
        event_loop: Any,
        server: GrpcServer,
        addresses: Sequence[Address],
        *,
        inherited: Inherited,
        proxies: Proxies,
        certificate: str = "",
        private_key: str = "",
        close_s: float,
    ) -> None:
        self.server = server
        self._reactor = reactor
        self._event_loop = event_loop
        self._addresses = addresses
        self._inherited = inherited
        self._around = proxies.around
        self._close_s = close_s
        self._ports: list[IListeningPort] = []
        self._waiting: list[socket.socket] = []
        self._accepted: list[IListeningPort] = []
        self._tls = Certificate(certificate, private_key, protocol=ALPN) if certificate else None
        self._own = {
            address: Certificate(address.certificate, address.private_key, address.chain, protocol=ALPN)
            for address in addresses
            if address.kind is Kind.TLS
        }

    def open(self) -> None:
        """
        Take every address; StartFailed names the one that cannot be opened. Sockets of our own accept from now on, and
        calls are told that nothing is served yet; inherited ones only once it is.
        """
        try:
            self.load_certificates()()
            for address in self._addresses:
                self._open(address)
        except CannotListen as error:
            raise StartFailed(str(error)) from None

    def serve(self) -> None:
        """Calls are taken: accept from inherited sockets too."""
        waiting, self._waiting = self._waiting, []
        for opened in waiting:
            port = serve_inherited(opened, self.server, self._tls, self._event_loop, around=self._around)
            self._accepted.append(port)
        self.server.health.set(True)
        for address in self._addresses:
            _log.info("gRPC is served at {address}", event="grpc.open", address=str(address))

    async def leave(self) -> None:
        """Accept no more, and have every client go elsewhere; the calls that there are go on."""
        waiting, self._waiting = self._waiting, []
        for opened in waiting:
            opened.close()
        ports, self._ports = self._ports, []
        for port in ports:
            await stop_listening(self._reactor, port)
        accepted, self._accepted = self._accepted, []
        for port in accepted:
            # What waits in its queue is the next process's.
            await maybeDeferred(port.stopListening)
        self.server.leave()

    async def close(self) -> None:
        """Let the calls end, or end them, and close every connection: when the hub has closed its streams."""
        await self.leave()
        await self.server.stop(self._close_s)

    def load_certificates(self) -> Callable[[], None]:
        """Read every certificate; returns what puts them in force. CannotListen names the file that cannot be used."""
        certificates = [*([] if self._tls is None else [self._tls]), *self._own.values()]
        loaded = [(certificate, certificate.load()) for certificate in certificates]

        def use() -> None:
            for certificate, tls in loaded:
                certificate.use(tls)

        return use

    @property
    def ports(self) -> list[int]:
        """The ports that the TCP addresses got, in their order; inherited ones are not among them."""
        hosts: list[Any] = [port.getHost() for port in self._ports]
        return [host.port for host in hosts if hasattr(host, "port")]

    def _open(self, address: Address) -> None:
        if address.kind is not Kind.INHERITED:
            tls = self._own.get(address, self._tls)
            port = listen(self._reactor, address, self.server, tls, self._event_loop, around=self._around)
            self._ports.append(port)
            return
        try:
            descriptors = self._inherited.descriptors(address)
        except ValueError as error:
            raise CannotListen(str(error)) from None
        self._waiting += open_inherited(descriptors, address)
