"""
The public listeners: opened first, closed last, their certificates renewed in between.

Decides when an address is listened on and when it is accepted from: a socket of our own from the first moment to the
last, so that senders get a 503 rather than a refused connection; an inherited one only while webhooks are taken, since
what waits in its queue is the next process's. Never decides how a socket is bound (http.endpoint does) or what is
served.
"""

import os
import socket
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from gatewayd.http.addresses import Address, CannotListen, Kind
from gatewayd.http.certificates import Certificate
from gatewayd.http.endpoint import listen, open_inherited, serve_inherited, stop_listening
from gatewayd.http.inherited import FIRST, VARIABLES, Inherited, read_inherited
from gatewayd.http.proxied import Proxies
from gatewayd.http.site import Site
from gatewayd.lifecycle import StartFailed
from gatewayd.settings import Settings

_log: Final = Logger()

ACCEPT_AFTER_S: Final = 1.0
"""An inherited socket is accepted from at the latest so long after the start: probes must be answered in a long one."""

SERVE_S: Final = 1.5
"""How long the end goes on serving for the sake of idle connections, where the sockets are inherited."""

IDLE_S: Final = 0.5
"""How long idle connections have for a last request once nothing new is taken."""


def take_inherited(environ: MutableMapping[str, str]) -> Inherited:
    """
    What this process was started with. The variables that say so are taken out of `environ`: a child of ours would take
    descriptors of its own for them.

    Twisted's endpoints do the same when they are imported, whoever imports them, so that `environ` may have lost them:
    Linux keeps what the process was started with.
    """
    for name in VARIABLES:
        environ.pop(name, None)
    try:
        started_with = Path("/proc/self/environ").read_bytes()
    except OSError as error:
        return Inherited(problem=f"/proc/self/environ cannot be read: {error.strerror}")
    pairs = [os.fsdecode(item).partition("=") for item in started_with.split(b"\0")]
    return read_inherited({name: text for name, _, text in pairs}, os.getpid())


class Listeners:
    """
    The ports of the public addresses, all served by `site`; `proxies` reads what proxies send first, `inherited` is
    what the process was started with.

    `addresses` are those of the settings, `waiting` the inherited sockets that are not accepted from yet.
    """

    def __init__(
        self, reactor: Any, event_loop: Any, settings: Settings, site: Site, *, proxies: Proxies, inherited: Inherited
    ) -> None:
        self._reactor = reactor
        self._event_loop = event_loop
        self.addresses = settings.gateway_public_http_addr
        # Together with what a request in flight may take (2.5 s) they are less than the default budget of a stop.
        self._serve_s = min(SERVE_S, settings.gateway_shutdown_timeout * 0.3)
        self._idle_s = min(IDLE_S, settings.gateway_shutdown_timeout * 0.1)
        self.proxies = proxies
        self._site = site
        self._inherited = inherited
        self._ports: dict[Address, IListeningPort] = {}
        self.waiting: list[tuple[Address, socket.socket]] = []
        self._accepted: list[IListeningPort] = []
        self._timer: Any = None
        self._tls = None
        if settings.gateway_tls_cert is not None:
            self._tls = Certificate(str(settings.gateway_tls_cert), str(settings.gateway_tls_key))
        self._own = {
            address: Certificate(address.certificate, address.private_key, address.chain)
            for address in self.addresses
            if address.kind is Kind.TLS
        }

    @property
    def all_inherited(self) -> bool:
        """True when leave() ends the coming of new connections."""
        return all(address.kind is Kind.INHERITED for address in self.addresses)

    def open(self) -> None:
        """Open every public address; StartFailed names the one that cannot be opened."""
        try:
            self.load_certificates()()
            taken: list[int] = []
            for address in self.addresses:
                if address.kind is Kind.INHERITED:
                    taken += self._open_inherited(address, taken)
                else:
                    tls = self._own.get(address, self._tls)
                    self._ports[address] = self._listen(address, tls)
                    _log.info("listening on {address}", event="listener.open", address=str(address))
        except CannotListen as error:
            raise StartFailed(str(error)) from None
        unused = [name for place, name in enumerate(self._inherited.names) if place + FIRST not in taken]
        if unused:
            _log.warn(
                "sockets were passed to this process that no address of GATEWAY_PUBLIC_HTTP_ADDR means: {names}",
                event="listener.unused",
                names=", ".join(unused),
            )
        if self.waiting:
            self._timer = self._reactor.callLater(ACCEPT_AFTER_S, self.accept)

    def accept(self) -> None:
        """Webhooks are taken: accept from inherited sockets too. Once is enough."""
        self._end_timer()
        waiting, self.waiting = self.waiting, []
        for address, opened in waiting:
            port = serve_inherited(opened, self._site, self._tls, self._event_loop, around=self.proxies.around)
            self._accepted.append(port)
            _log.info("listening on {address}", event="listener.open", address=str(address))

    async def leave(self) -> None:
        """The process is going to end: what comes on inherited sockets from now on waits for the next one."""
        self._end_timer()
        waiting, self.waiting = self.waiting, []
        for _, opened in waiting:
            opened.close()
        accepted, self._accepted = self._accepted, []
        for port in accepted:
            await maybeDeferred(port.stopListening)

    async def drain(self) -> None:
        """
        Give every connection its last answer, accept no more on inherited sockets, and wait for what is in flight.

        Inherited sockets are accepted from while connections are idle: those who come meanwhile are served too, and
        nobody waits in the queue longer than the next process takes to start.
        """
        if self._accepted and self.all_inherited:
            await self._site.retire(self._serve_s)
        await self.leave()
        await self._site.retire(self._idle_s)
        await self._site.drain()

    async def close(self) -> None:
        """Stop listening, answer what was accepted until then, and close what is left: the last but the log."""
        await self.leave()
        for port in self._ports.values():
            await stop_listening(self._reactor, port)
        await self._site.retire(self._idle_s)
        await self._site.drain()
        self.proxies.close()
        await self._site.close()

    def load_certificates(self) -> Callable[[], None]:
        """Read every certificate; returns what puts them in force. CannotListen names the file that cannot be used."""
        certificates = [*([] if self._tls is None else [self._tls]), *self._own.values()]
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
        """The port that a TCP address got."""
        bound: Any = self._ports[address].getHost()
        return int(bound.port)

    def _listen(self, address: Address, tls: Certificate | None) -> IListeningPort:
        return listen(self._reactor, address, self._site, tls, self._event_loop, around=self.proxies.around)

    def _open_inherited(self, address: Address, taken: list[int]) -> list[int]:
        """Take what an address means, to be accepted from later; returns the descriptors."""
        try:
            wanted = [one for one in self._inherited.descriptors(address) if one not in taken]
        except ValueError as error:
            raise CannotListen(str(error)) from None
        if not wanted:
            raise CannotListen(f"{address}: another address means the same socket")
        found = open_inherited(wanted, address)
        self.waiting += [(address, opened) for opened in found]
        return [opened.fileno() for opened in found]

    def _end_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
