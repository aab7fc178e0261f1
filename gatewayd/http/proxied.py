"""
Connections that a proxy makes for its clients: the PROXY header is read first, and says whose connection it is.

Decides how long a header may take, what becomes of a connection without one, and what is said about it. Never decides
who is a proxy (its collaborator does) or what a header means (proxyheader does).
"""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.http.capacity import Capacity
from gatewayd.http.proxyheader import Broken, read_header
from gatewayd.http.rules import Limits

REPORT_S: Final = 60.0
"""One log line in so long, however many connections are closed for their headers."""

_log: Final = Logger()


class Proxies:
    """
    What listeners share: `announces` says of a peer's address whether it must send a header first, which has as
    long as a request's head.

    `refused` counts connections closed because theirs was missing, malformed, too long or late. Connections whose
    header is awaited take up `capacity` (Capacity.arriving). What a header says holds for the bounds of addresses too.
    """

    def __init__(
        self,
        capacity: Capacity,
        clock: IReactorTime,
        announces: Callable[[str], bool],
        limits: Limits | None = None,
    ) -> None:
        self.capacity = capacity
        self.clock = clock
        self.announces = announces
        self.head_s = (limits or Limits()).head_s
        self.refused = 0
        self.arriving: set[Any] = set()
        self._reported_at: float | None = None
        self._unreported = 0

    def around(self, factory: IProtocolFactory) -> "ProxiedFactory":
        """A factory that has the header read in front of `factory`, where there must be one."""
        return ProxiedFactory(self, factory)

    def close(self) -> None:
        """Cut the connections whose header has not come."""
        for arriving in tuple(self.arriving):
            arriving.transport.abortConnection()

    def refuse(self, peer: str, reason: str) -> None:
        """Count a connection that is closed for its header, and say so now and then."""
        self.refused += 1
        self._unreported += 1
        now = self.clock.seconds()
        if self._reported_at is not None and now - self._reported_at < REPORT_S:
            return
        count, self._unreported, self._reported_at = self._unreported, 0, now
        _log.warn(
            "{count} connections were closed for their PROXY header, the last one of {peer}: {reason}",
            event="listener.proxy_header",
            count=count,
            peer=peer,
            reason=reason,
        )


class ProxiedFactory(Factory):
    """The factory of one listener."""

    noisy = False

    def __init__(self, proxies: Proxies, above: Any) -> None:
        self._proxies = proxies
        self.above = above

    def doStart(self) -> None:
        """Somebody listens."""
        self.above.doStart()

    def doStop(self) -> None:
        """Nobody listens."""
        self.above.doStop()

    def buildProtocol(self, addr: IAddress | None) -> IProtocol | None:  # type: ignore[override] # None refuses
        """What reads the header, or, where there is none to come, what the factory above builds."""
        proxies, peer = self._proxies, getattr(addr, "host", "")
        if not proxies.announces(peer):
            return self.above.buildProtocol(addr)  # type: ignore[no-any-return]
        return Arriving(proxies, self.above, addr) if proxies.capacity.admits() else None


@implementer(IProtocol)
class Arriving:
    """One connection until its header is complete."""

    transport: Any = None

    def __init__(self, proxies: Proxies, above: IProtocolFactory, addr: Any) -> None:
        self._proxies = proxies
        self._above = above
        self._addr = addr
        self._held = b""
        self._timer: Any = None

    def makeConnection(self, transport: Any) -> None:
        """The connection is there: its header has as long as a request's head."""
        proxies = self._proxies
        self.transport = transport
        proxies.arriving.add(self)
        proxies.capacity.arriving += 1
        self._timer = proxies.clock.callLater(proxies.head_s, self._refuse, "late")

    def connectionMade(self) -> None:
        """Nothing beyond makeConnection."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the header; those behind it are the client's first."""
        if self._timer is None:
            return
        self._held += data
        found = read_header(self._held)
        if found is None:
            return
        if isinstance(found, Broken):
            self._refuse(found.reason)
            return
        self._end()
        addr, transport = self._addr, self.transport
        if found.address:
            kind = IPv6Address if ":" in found.address else IPv4Address
            addr = kind("TCP", found.address, found.port)
        above = self._above.buildProtocol(addr)
        if above is None:
            transport.loseConnection()
            return
        transport.protocol = above
        above.makeConnection(transport)
        if len(self._held) > found.size:
            above.dataReceived(self._held[found.size :])

    def connectionLost(self, reason: Failure) -> None:
        """It is gone before its header came, as those are that only look whether somebody listens."""
        self._end()

    def _refuse(self, reason: str) -> None:
        self._end()
        self._proxies.refuse(self._addr.host, reason)
        self.transport.abortConnection()

    def _end(self) -> None:
        timer, self._timer = self._timer, None
        if timer is None:
            return
        if timer.active():
            timer.cancel()
        self._proxies.arriving.discard(self)
        self._proxies.capacity.arriving -= 1
