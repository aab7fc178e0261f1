"""
The public listeners: opened first, closed last.

Decides when an address is listened on and when it is accepted from: a socket of our own from the first moment to the
last, so that senders get a 503 rather than a refused connection; an inherited one only while webhooks are taken, since
what waits in its queue is the next process's. Never decides how a port is opened (http.ports does) or what is served.
"""

import os
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

from twisted.logger import Logger

from gatewayd.http.addresses import Address, CannotListen, Kind
from gatewayd.http.inherited import FIRST, VARIABLES, Inherited, read_inherited
from gatewayd.http.ports import Ports
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

    `addresses` are those of the settings.
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
        self.ports = Ports(
            reactor,
            event_loop,
            self.addresses,
            site,
            inherited=inherited,
            proxies=proxies,
            certificate=str(settings.gateway_tls_cert or ""),
            private_key=str(settings.gateway_tls_key or ""),
        )
        self.load_certificates = self.ports.load_certificates
        self.port_of = self.ports.port_of
        self._also_meant = () if settings.edge is None else settings.edge.gateway_authenticated_grpc_addr
        self._timer: Any = None

    @property
    def all_inherited(self) -> bool:
        """True when leave() ends the coming of new connections."""
        return all(address.kind is Kind.INHERITED for address in self.addresses)

    def open(self) -> None:
        """Open every public address; StartFailed names the one that cannot be opened."""
        try:
            opened = self.ports.open()
        except CannotListen as error:
            raise StartFailed(str(error)) from None
        _say_open(opened)
        meant = self.ports.taken.union(*(self._meant(address) for address in self._also_meant))
        unused = [name for place, name in enumerate(self._inherited.names) if place + FIRST not in meant]
        if unused:
            _log.warn(
                "sockets were passed to this process that no address of GATEWAY_PUBLIC_HTTP_ADDR means: {names}",
                event="listener.unused",
                names=", ".join(unused),
            )
        if self.ports.waiting:
            self._timer = self._reactor.callLater(ACCEPT_AFTER_S, self.accept)

    def _meant(self, address: Address) -> Sequence[int]:
        """The descriptors of an address that others open, and name what is wrong with it."""
        try:
            return self._inherited.descriptors(address) if address.kind is Kind.INHERITED else ()
        except ValueError:
            return ()

    def accept(self) -> None:
        """Webhooks are taken: accept from inherited sockets too. Once is enough."""
        self._end_timer()
        _say_open(self.ports.accept())

    async def leave(self) -> None:
        """The process is going to end: what comes on inherited sockets from now on waits for the next one."""
        self._end_timer()
        await self.ports.leave()

    async def drain(self) -> None:
        """
        Give every connection its last answer, accept no more on inherited sockets, and wait for what is in flight.

        Inherited sockets are accepted from while connections are idle: those who come meanwhile are served too, and
        nobody waits in the queue longer than the next process takes to start.
        """
        if self.ports.accepted and self.all_inherited:
            await self._site.retire(self._serve_s)
        await self.leave()
        await self._site.retire(self._idle_s)
        await self._site.drain()

    async def close(self) -> None:
        """Stop listening, answer what was accepted until then, and close what is left: the last but the log."""
        self._end_timer()
        await self.ports.close()
        await self._site.retire(self._idle_s)
        await self._site.drain()
        self.proxies.close()
        await self._site.close()

    def _end_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


def _say_open(addresses: Iterable[Address]) -> None:
    for address in addresses:
        _log.info("listening on {address}", event="listener.open", address=str(address))
