"""
Answers that are more than one message: those that write themselves, and connections that change hands.

Decides what a leaf may return beside a plain Response, and what the channel asks of it then. Never writes a byte.
"""

from abc import ABC, abstractmethod
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.http.message import Response

if TYPE_CHECKING:
    from gatewayd.http.channel import Channel
    from gatewayd.http.site import Site


class HandOver(Response):
    """
    Not an answer: the connection is `protocol`'s from here on, with every byte that was not read yet.

    The protocol writes its own answer (101 or a stream's head) when it is connected. It is told of the client's FIN as
    of a lost connection: a long-lived protocol has nobody to talk to then. The site counts the connection until it is
    gone, and closes it in close(). `status` is for the log only.
    """

    __slots__ = ("protocol",)

    def __init__(self, protocol: IProtocol, status: int = 101) -> None:
        super().__init__(status)
        self.protocol = protocol


class Streamed(Response, ABC):
    """
    An answer that writes itself, piece by piece, through the channel it is begun on; ends with `channel.end()`.

    Whoever makes one overrides all four; after lost() it must not touch the channel again.
    """

    __slots__ = ()

    @abstractmethod
    def begin(self, channel: "Channel") -> None:
        """Start writing. An exception is a bug of the leaf: answered 500 when nothing was written yet."""

    @abstractmethod
    def pause(self) -> None:
        """The client does not read: write no more until resume()."""

    @abstractmethod
    def resume(self) -> None:
        """The client reads again."""

    @abstractmethod
    def lost(self, reason: Failure) -> None:
        """The connection is gone before the end."""


def failure_of(error: Exception | None = None) -> Failure:
    """A Failure of an exception made here, or of the one that is being handled."""
    return Failure(error)  # type: ignore[no-untyped-call]


def install(site: "Site", channel: "Channel", protocol: IProtocol, rest: bytes) -> None:
    """
    Put `protocol` in the channel's place at its transport, which tells it of everything from here on, FIN as a loss.

    `rest` is what the channel had received and not read. The channel itself is nobody's any more: of the 3.5 KiB that
    an idle stream took in memory 0.7 were its (measured).
    """
    transport = channel.transport
    guest = Guest(site, channel.peer, transport, protocol)
    site.handed_over(channel, guest)
    # Twisted's TLS is a protocol in front of ours that keeps it under another name.
    setattr(transport, "wrappedProtocol" if hasattr(transport, "wrappedProtocol") else "protocol", guest)
    protocol.makeConnection(transport)
    if rest:
        protocol.dataReceived(rest)


@implementer(IProtocol)
class Guest:
    """
    The protocol that took a connection over, as the transport and the site see it: counted and closed like a channel,
    without a deadline of the site's.
    """

    __slots__ = ("_protocol", "_site", "peer", "transport")

    deadline: ClassVar[float] = inf
    waits: ClassVar[bool] = False

    def __init__(self, site: "Site", peer: str, transport: Any, protocol: IProtocol) -> None:
        self._site = site
        self._protocol = protocol
        self.peer = peer
        self.transport = transport

    def makeConnection(self, transport: Any) -> None:
        """Called by nobody: the connection is there already."""

    def connectionMade(self) -> None:
        """As makeConnection."""

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        self._protocol.dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        """Pass it on."""
        self._site.closed(self)
        self._protocol.connectionLost(reason)

    def expire(self) -> None:
        """It has no deadline."""

    def retire(self) -> None:
        """It waits for no request."""

    def shut(self) -> None:
        """The site closes: what was written still goes out."""
        self.transport.loseConnection()
