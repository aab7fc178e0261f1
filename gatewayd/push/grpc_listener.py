"""
The addresses of the gRPC server, with TLS or without, their own sockets or inherited ones.

Decides when they are opened, served and closed. Never decides how a port is opened (http.ports does) or what is served
(grpc_server does).
"""

from collections.abc import Sequence
from typing import Any, Final

from twisted.logger import Logger

from gatewayd.http.addresses import Address, CannotListen, Kind
from gatewayd.http.inherited import Inherited
from gatewayd.http.ports import Ports
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
        self._close_s = close_s
        self._ports = Ports(
            reactor,
            event_loop,
            addresses,
            server,
            inherited=inherited,
            proxies=proxies,
            certificate=certificate,
            private_key=private_key,
            protocol=ALPN,
        )
        self.load_certificates = self._ports.load_certificates

    def open(self) -> None:
        """
        Take every address; StartFailed names the one that cannot be opened. Sockets of our own accept from now on, and
        calls are told that nothing is served yet; inherited ones only once it is.
        """
        try:
            self._ports.open()
        except CannotListen as error:
            raise StartFailed(str(error)) from None

    def serve(self) -> None:
        """Calls are taken: accept from inherited sockets too."""
        self._ports.accept()
        self.server.health.set(True)
        for address in self._ports.addresses:
            _log.info("gRPC is served at {address}", event="grpc.open", address=str(address))

    async def leave(self) -> None:
        """Accept no more, and have every client go elsewhere; the calls that there are go on."""
        await self._ports.close()
        self.server.leave()

    async def close(self) -> None:
        """Let the calls end, or end them, and close every connection: when the hub has closed its streams."""
        await self.leave()
        await self.server.stop(self._close_s)

    @property
    def ports(self) -> list[int]:
        """The ports that the TCP addresses got, in their order; inherited ones are not among them."""
        tcp = (address for address in self._ports.addresses if address.kind in (Kind.TCP, Kind.TLS))
        return [self._ports.port_of(address) for address in tcp]
