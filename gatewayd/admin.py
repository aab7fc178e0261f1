"""
The admin listener: a second site for those who run the gateway, on addresses of its own.

Decides what stands at its paths, and warns where others can reach it. It trusts whoever does: it belongs on loopback, a
UNIX socket, or a network of its own. Never serves what is public.
"""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.errors import Refused
from gatewayd.http.addresses import Address, Kind
from gatewayd.http.capacity import Capacity
from gatewayd.http.inherited import Inherited
from gatewayd.http.message import Request, Response
from gatewayd.http.proxied import Proxies
from gatewayd.http.site import Finished, Site
from gatewayd.interfaces import ILeaf
from gatewayd.lifecycle import StartFailed
from gatewayd.listeners import Listeners
from gatewayd.settings import Settings
from gatewayd.settings_edge import ADMIN
from gatewayd.times import Wall

MAX_CONNECTIONS: Final = 32
"""Beyond MAX_CONNECTIONS, of the reserve: what an operator, a scraper and a console need."""

_log: Final = Logger()


class Admin:
    """`paths` is the table of what is served; other parts add theirs to it. The rest is what a Site is made with."""

    def __init__(
        self,
        reactor: Any,
        event_loop: Any,
        settings: Settings,
        paths: dict[bytes, ILeaf],
        *,
        refuse: Callable[[Request | None, Refused], Response],
        failed: Callable[[Request | None, Failure], Response],
        finished: Finished,
        wall: Callable[[], Wall],
    ) -> None:
        self.paths = paths
        self.site = Site(
            route=paths.get,
            refuse=refuse,
            failed=failed,
            finished=finished,
            clock=reactor,
            wall=wall,
            capacity=Capacity(MAX_CONNECTIONS, MAX_CONNECTIONS),
        )
        self._addresses = settings.gateway_admin_http_addr
        # TLS is for addresses that ask for it (ssl:…): the public certificate names public hosts.
        own = replace(settings, gateway_public_http_addr=self._addresses, gateway_tls_cert=None, gateway_tls_key=None)
        proxies = Proxies(self.site.capacity, reactor, _nobody)
        self._listeners = Listeners(reactor, event_loop, own, self.site, proxies=proxies, inherited=Inherited())
        self.load_certificates = self._listeners.load_certificates

    def open(self) -> None:
        """Listen; StartFailed names the address that cannot be listened on. Nothing without an address."""
        try:
            self._listeners.open()
        except StartFailed as error:
            raise StartFailed(f"{ADMIN.name}: {error}") from None
        for warning in self.warnings():
            _log.warn("{warning}", event="admin.reachable", warning=warning)

    async def close(self) -> None:
        """Answer what was asked, and close."""
        await self._listeners.close()

    def port_of(self, address: Address) -> int:
        """The port that a TCP address got."""
        return self._listeners.port_of(address)

    def warnings(self) -> list[str]:
        """What /readyz warns of: addresses that more than this host can reach."""
        return [
            f"{ADMIN.name}: {address} can be reached from elsewhere, and whoever does may do everything there: use "
            "127.0.0.1, a UNIX socket, or a network that is yours alone."
            for address in self._addresses
            if not _is_local(address)
        ]


def _is_local(address: Address) -> bool:
    """True for what only this host reaches; a name other than localhost may be anything."""
    if address.kind is Kind.UNIX or address.host == "localhost":
        return True
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return False


def _nobody(_: str) -> bool:
    """No connection here begins with a PROXY header."""
    return False
