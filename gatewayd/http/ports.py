"""
The addresses of one factory: opened, accepted from, left, their certificates renewed in between.

Decides which certificate an address shows and which sockets are accepted from when: those of our own from open() on,
inherited ones between accept() and leave(), since what waits in their queues is the next process's. Never decides how
a socket is bound (endpoint does), when any of this is due, or what is served.
"""

import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from gatewayd.http.addresses import Address, CannotListen, Kind
from gatewayd.http.certificates import Certificate
from gatewayd.http.endpoint import listen, open_inherited, serve_inherited, stop_listening
from gatewayd.http.inherited import Inherited
from gatewayd.http.proxied import Proxies

_log: Final = Logger()


class Ports:
    """
    The ports of `addresses`. `certificate` and `private_key` are paths of PEM files for TCP and inherited addresses, ""
    for cleartext; an address that asks for TLS itself has its own. `protocol` is what TLS is to agree on (ALPN).
    `event_loop` is the reactor's, if it has one; `proxies` reads what proxies send first.

    `waiting` are the inherited sockets that are not accepted from yet, `accepted` the ports of those that are.
    """

    def __init__(
        self,
        reactor: Any,
        event_loop: Any,
        addresses: Sequence[Address],
        factory: IProtocolFactory,
        *,
        inherited: Inherited,
        proxies: Proxies,
        certificate: str,
        private_key: str,
        protocol: str = "http/1.1",
    ) -> None:
        self.addresses = addresses
        self.waiting: list[tuple[Address, socket.socket]] = []
        self.accepted: list[IListeningPort] = []
        self._reactor = reactor
        self._event_loop = event_loop
        self._factory = factory
        self._inherited = inherited
        self._around = proxies.around
        self._own: dict[Address, IListeningPort] = {}
        self._tls = Certificate(certificate, private_key, protocol=protocol) if certificate else None
        self._tls_of = {
            address: Certificate(address.certificate, address.private_key, address.chain, protocol=protocol)
            for address in addresses
            if address.kind is Kind.TLS
        }

    @property
    def taken(self) -> frozenset[int]:
        """The descriptors of the inherited sockets that wait."""
        return frozenset(opened.fileno() for _, opened in self.waiting)

    def open(self) -> list[Address]:
        """Take every address, or CannotListen names the one that cannot be; gives those accepted from now on."""
        self.load_certificates()()
        for address in self.addresses:
            if address.kind is Kind.INHERITED:
                self._open_inherited(address)
            else:
                tls = self._tls_of.get(address, self._tls)
                port = listen(self._reactor, address, self._factory, tls, self._event_loop, around=self._around)
                self._own[address] = port
        return list(self._own)

    def _open_inherited(self, address: Address) -> None:
        try:
            wanted = [one for one in self._inherited.descriptors(address) if one not in self.taken]
        except ValueError as error:
            raise CannotListen(str(error)) from None
        if not wanted:
            raise CannotListen(f"{address}: another address means the same socket")
        self.waiting += [(address, opened) for opened in open_inherited(wanted, address)]

    def accept(self) -> list[Address]:
        """Accept from the inherited sockets that wait; gives their addresses."""
        waiting, self.waiting = self.waiting, []
        for _, opened in waiting:
            port = serve_inherited(opened, self._factory, self._tls, self._event_loop, around=self._around)
            self.accepted.append(port)
        return [address for address, _ in waiting]

    async def leave(self) -> None:
        """Inherited sockets are the next process's from now on."""
        waiting, self.waiting = self.waiting, []
        for _, opened in waiting:
            opened.close()
        accepted, self.accepted = self.accepted, []
        for port in accepted:
            await maybeDeferred(port.stopListening)

    async def close(self) -> None:
        """Accept no more anywhere; what was accepted stays. Again, it does nothing."""
        await self.leave()
        own, self._own = self._own, {}
        for port in own.values():
            await stop_listening(self._reactor, port)

    def load_certificates(self) -> Callable[[], None]:
        """Read every certificate; returns what puts them in force. CannotListen names the file that cannot be used."""
        certificates = [*([] if self._tls is None else [self._tls]), *self._tls_of.values()]
        loaded = [(certificate, certificate.load()) for certificate in certificates]

        def use() -> None:
            for certificate, tls in loaded:
                certificate.use(tls)
                _log.info(
                    "new connections get the certificate {file}, valid until {until}",
                    event="listener.certificate",
                    file=certificate.file,
                    until=tls.own.not_valid_after_utc.isoformat(),
                )

        return use

    def port_of(self, address: Address) -> int:
        """The port that a TCP address of our own got."""
        bound: Any = self._own[address].getHost()
        return int(bound.port)
