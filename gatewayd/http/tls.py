"""
TLS between a transport and a protocol, by the standard library's OpenSSL.

Decides when a handshake is over, when close_notify is sent and what is waited for behind it, and what an end without it
is. Never reads a file, never chooses a certificate (its factory is handed the context of the moment), never limits how
long anything takes: that is the protocol's own deadline, which runs from the first moment on.

It stands on any stream transport, the event loop's or Twisted's. A bare request costs a third of what it does with
Twisted's TLS (13 against 40 us with 64 connections, measured; the loops' own: 25 us of asyncio, 40 of uvloop). And the
loops' own tell nobody of a connection before its handshake is over: those could not be counted, and would outgrow every
bound.
"""

import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

Host: TypeAlias = IPv4Address | IPv6Address

_PIECE_BYTES: Final = 65536
_DROPPED_BYTES: Final = 4 << 20
"""What a client may go on sending, encrypted, after it was told the end."""


@implementer(IProtocol, IHalfCloseableProtocol, ISSLTransport, IConsumer, IPushProducer)
class Secured:
    """
    One connection: a protocol for the transport below, the transport of the protocol above.

    What has been read from below when the protocol above pauses is still delivered, as by the transports below it: one
    piece of theirs. loseConnection() sends close_notify and FIN behind what was written, and drops what still comes,
    up to a bound, until the peer closes; called again it waits no longer. Nothing else is half-closed: a peer's
    close_notify or FIN is the end.
    """

    __slots__ = (
        "_above",
        "_below",
        "_closing",
        "_dropped",
        "_established",
        "_incoming",
        "_outgoing",
        "_session",
        "_unsent",
        "_verdict",
    )

    def __init__(self, context: ssl.SSLContext, above: IProtocol) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._above: IProtocol | None = above
        self._below: Any = None
        self._established = False
        self._closing = False
        self._dropped = 0
        self._unsent: list[bytes] = []
        self._verdict: ssl.SSLError | None = None

    # -- what the transport below calls ------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The connection is there; the protocol above is told so now, and sends nothing before the handshake."""
        self._below = transport
        self._above.makeConnection(self)  # type: ignore[union-attr] # until the loss

    def connectionMade(self) -> None:
        """Nothing beyond makeConnection."""

    def dataReceived(self, data: bytes) -> None:
        """Encrypted bytes came in."""
        if self._closing and self._established:
            # Not decrypted: the peer's close_notify is followed by its FIN, or by somebody's deadline.
            self._dropped += len(data)
            if self._dropped > _DROPPED_BYTES:
                self._below.abortConnection()
            return
        self._incoming.write(data)
        if self._established or self._shake():
            self._read()
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    def readConnectionLost(self) -> None:
        """The peer has sent everything, and expects nothing that is not written yet."""
        self._below.loseConnection()

    def writeConnectionLost(self) -> None:
        """close_notify and FIN are sent: whoever limits how long the peer may take to read them can begin."""
        above: Any = self._above
        if IHalfCloseableProtocol.providedBy(above):
            above.writeConnectionLost()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone; without close_notify it was cut, whatever the transport below says."""
        above, self._above = self._above, None
        if above is None:
            return
        if isinstance(reason.value, ConnectionDone) and not self._closing:
            reason = Failure(ConnectionLost("without close_notify"))  # type: ignore[no-untyped-call]
        if self._verdict is not None:
            reason = Failure(self._verdict)  # type: ignore[no-untyped-call]
        above.connectionLost(reason)

    # -- ITransport --------------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> IProtocol | None:
        """Who is told what comes in, until the connection is lost. Setting it hands the connection over."""
        return self._above

    @protocol.setter
    def protocol(self, protocol: IProtocol) -> None:
        if self._above is not None:
            self._above = protocol

    @property
    def below(self) -> Any:
        """The transport that carries the encrypted bytes."""
        return self._below

    @property
    def disconnecting(self) -> bool:
        """True once the end has begun."""
        return self._closing or bool(self._below.disconnecting)

    @property
    def disconnected(self) -> bool:
        """True after the loss."""
        return self._above is None

    @property
    def connected(self) -> bool:
        """True until the loss."""
        return self._above is not None

    def write(self, data: bytes) -> None:
        """Encrypt and send; kept until the handshake is over, dropped after the end."""
        if self._closing or self._above is None or not data:
            return
        if not self._established:
            self._unsent.append(data)
            return
        self._session.write(data)
        self._below.write(self._outgoing.read())

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Write the pieces as one."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Send what was written, then close_notify and FIN. Without a handshake there is nobody to tell: a reset."""
        if self._closing:
            self._below.loseConnection()
        if self._closing or self._above is None:
            return
        self._closing = True
        if self._established:
            self._say_end()
        elif not self._unsent:
            self._below.abortConnection()

    def abortConnection(self) -> None:
        """Reset the connection: what was not sent is thrown away."""
        if self._above is not None:
            self._closing = True
            self._below.abortConnection()

    def loseWriteConnection(self) -> None:
        """As loseConnection(): nothing is half-closed."""
        self.loseConnection()

    def getPeer(self) -> Host:
        """The address of the other side."""
        return self._below.getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> Host:
        """The address of this side."""
        return self._below.getHost()  # type: ignore[no-any-return]

    def getPeerCertificate(self) -> None:
        """None: clients are asked for no certificate."""

    @property
    def negotiatedProtocol(self) -> bytes | None:
        """What ALPN agreed on, None for nothing."""
        agreed = self._session.selected_alpn_protocol()
        return None if agreed is None else agreed.encode("ascii")

    def getTcpNoDelay(self) -> bool:
        """As below."""
        return bool(self._below.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        """As below."""
        self._below.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        """As below."""
        return bool(self._below.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """As below."""
        self._below.setTcpKeepAlive(enabled)

    # -- IConsumer and IPushProducer: everything is encrypted at once, so that it waits below ------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """As below."""
        self._below.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """As below."""
        self._below.unregisterProducer()

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._below.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again."""
        self._below.resumeProducing()

    def stopProducing(self) -> None:
        """As a producer is stopped: close."""
        self.loseConnection()

    # -- within ------------------------------------------------------------------------------------------------------

    def _shake(self) -> bool:
        """Go on with the handshake; True when it is over."""
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:  # no TLS, or a version or cipher that is not ours
            self._fail(error)
            return False
        self._established = True
        unsent, self._unsent = self._unsent, []
        for piece in unsent:
            self._session.write(piece)
        if self._closing:
            self._say_end()
        return not self._closing

    def _read(self) -> None:
        session, incoming = self._session, self._incoming
        while (incoming.pending or session.pending()) and not self._closing:
            try:
                data = session.read(_PIECE_BYTES)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError as error:  # a broken record
                self._fail(error)
                return
            if not data:  # close_notify
                self._say_end()
                self._below.loseConnection()
            elif self._above is not None:
                self._above.dataReceived(data)

    def _say_end(self) -> None:
        """Send close_notify, and FIN behind it."""
        self._closing = True
        with suppress(ssl.SSLError):  # the peer has not said it yet, or has sent what nobody reads any more
            self._session.unwrap()
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())
        self._below.loseWriteConnection()

    def _fail(self, error: ssl.SSLError) -> None:
        """Send the alert, if there is one, and close."""
        self._closing = True
        self._verdict = error
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())
        self._below.loseConnection()


class SecuredFactory(Factory):
    """TLS in front of a factory, which may refuse a connection. `context` gives that of a connection made now."""

    noisy = False

    def __init__(self, context: Callable[[], ssl.SSLContext], above: Any) -> None:
        self._context = context
        self.above = above

    def doStart(self) -> None:
        """Somebody listens."""
        self.above.doStart()

    def doStop(self) -> None:
        """Nobody listens."""
        self.above.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Secured | None:  # type: ignore[override] # None refuses
        """TLS around what the factory above builds, None when it builds none."""
        above = self.above.buildProtocol(addr)
        return None if above is None else Secured(self._context(), above)
