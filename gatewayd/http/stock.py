"""
Any twisted.web Resource as a leaf: stock server.Request behind our channel.

Decides what a stock Request sees where it expects twisted.web's own HTTPChannel, and which of the common headers its
answers get. Framing, limits, deadlines and order stay the channel's. Never logs requests: the site's account does.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IPullProducer, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Request as StockRequest
from twisted.web.server import Site as StockSite
from zope.interface import implementer

from gatewayd.errors import Refused
from gatewayd.http.channel import Channel
from gatewayd.http.exchange import Streamed, failure_of
from gatewayd.http.message import Request, Response
from gatewayd.interfaces import ILeaf

BODY_BYTES: Final = 1_048_576

# What twisted.web says about itself and what only the channel can know.
_OURS: Final = frozenset({b"server", b"connection", b"keep-alive"})


@implementer(ILeaf)
class StockLeaf:
    """
    Serve a tree of Resources. The tree's root sees the whole path, so it can stand at several paths at once.

    `bound` is the most bytes a body may have. `corr_id` makes the value of X-Correlation-ID. `parse_forms` fills
    request.args from form bodies, which costs every POST the email package's parser (56 to 95 us, measured).
    """

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        *,
        corr_id: Callable[[], str],
        bound: int = BODY_BYTES,
        parse_forms: bool = True,
    ) -> None:
        self.reactor = reactor
        self.corr_id = corr_id
        # Only for the tree, sessions and content files: it never builds a protocol and is never started.
        self.stock_site: StockSite = StockSite(  # type: ignore[no-untyped-call]
            resource, reactor=reactor, parsePOSTFormSubmission=parse_forms
        )
        self._bound = bound

    def begin(self, request: Request) -> Response | int:
        """Every request is for the tree, which answers 404 and 405 itself."""
        return self._bound

    def answer(self, request: Request) -> Response:
        """What the tree answers, as it is written."""
        return _Exchange(self, request)


class _Request(StockRequest):
    """A stock Request whose failures are answered by the site, with a correlation id and without HTML."""

    def processingFailed(self, reason: Failure) -> Failure:
        """Called by twisted.web when a Resource raised."""
        exchange: Any = self.channel
        exchange.failed(reason)
        return reason


class _Exchange(Streamed):
    """
    What a stock Request takes for its HTTPChannel, for one request.

    `transport`, `site` and `factory` are read by the Request; a factory of None switches its own log off.
    """

    __slots__ = (
        "_blocked",
        "_channel",
        "_leaf",
        "_persist",
        "_producer",
        "_pulling",
        "_received",
        "_request",
        "factory",
        "site",
        "transport",
    )

    transport: Any
    _channel: Channel

    def __init__(self, leaf: StockLeaf, received: Request) -> None:
        super().__init__(200, corr_id=leaf.corr_id())
        self.site = leaf.stock_site
        self.factory = None
        self._leaf = leaf
        self._received = received
        self._request: Any = None
        self._producer: Any = None
        self._pulling = False
        self._blocked = False
        self._persist = False

    # -- what our channel calls --------------------------------------------------------------------------------------

    def begin(self, channel: Channel) -> None:
        """Make the stock Request and let it find its Resource."""
        self._channel = channel
        self.transport = channel.transport
        received = self._received
        request: Any = _Request(self)  # type: ignore[no-untyped-call]
        self._request = request
        for name in received.headers:
            request.requestHeaders.setRawHeaders(name, received.values(name))
        request.parseCookies()
        # requestReceived() asks for the position to learn the length, and rewinds.
        request.content = BytesIO(received.body)
        request.content.seek(0, 2)
        request.requestReceived(
            received.method, _target(received), b"HTTP/1.0" if channel.framing.http_1_0 else b"HTTP/1.1"
        )

    def pause(self) -> None:
        """The client does not read."""
        self._blocked = True
        if self._producer is not None and not self._pulling:
            self._producer.pauseProducing()

    def resume(self) -> None:
        """The client reads again."""
        self._blocked = False
        if self._pulling:
            self._leaf.reactor.callLater(0, self._pull)
        elif self._producer is not None:
            self._producer.resumeProducing()

    def lost(self, reason: Failure) -> None:
        """Stop the producer and tell the Request, whose notifyFinish() fails with `reason`."""
        producer, self._producer = self._producer, None
        request, self._request = self._request, None
        self._pulling = False
        if producer is not None:
            producer.stopProducing()
        if request is not None:
            request.connectionLost(reason)

    # -- what the stock Request calls --------------------------------------------------------------------------------

    def getPeer(self) -> IAddress:
        """The client's address; of one behind a PROXY header with port 0."""
        peer, below = self._channel.peer, self.transport.getPeer()
        if getattr(below, "host", peer) in (peer, f"::ffff:{peer}"):
            return below  # type: ignore[no-any-return]
        return (IPv6Address if ":" in peer else IPv4Address)("TCP", peer, 0)

    def getHost(self) -> IAddress:
        """Our address."""
        return self.transport.getHost()  # type: ignore[no-any-return]

    def isSecure(self) -> bool:
        """True when the request came by TLS."""
        return self._channel.secure

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write the head of the answer, with our common headers where the Resource has none of its own."""
        self.status = status = int(code)
        lines = [b"HTTP/1.1 %b %b\r\n" % (code, reason)]
        names = set()
        closes = False
        for name, values in headers.getAllRawHeaders():
            lower = name.lower()
            names.add(lower)
            if lower == b"connection":
                closes = any(b"close" in value.lower() for value in values)
            elif lower not in _OURS:
                lines += [b"%b: %b\r\n" % (name, value) for value in values]
        if b"cache-control" not in names:
            lines.append(b"Cache-Control: no-store\r\n")
        if b"x-content-type-options" not in names:
            lines.append(b"X-Content-Type-Options: nosniff\r\n")
        if b"x-correlation-id" not in names:
            lines.append(b"X-Correlation-ID: %b\r\n" % self.corr_id.encode("ascii"))
        # HTTP/1.0 knows no chunks: without a length the end of the connection is the end of the body.
        delimited = (
            b"content-length" in names
            or b"transfer-encoding" in names
            or self._received.method == b"HEAD"
            or status in NO_BODY_CODES
        )
        self._persist = delimited and not closes and self._channel.may_persist
        if not self._persist:
            lines.append(b"Connection: close\r\n")
        elif self._channel.framing.http_1_0:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._channel.write(b"".join(lines))

    def write(self, data: bytes) -> None:
        """Write a piece of the body."""
        self._channel.write(data)

    def writeSequence(self, pieces: list[bytes]) -> None:
        """Write pieces of the body."""
        self._channel.write(b"".join(pieces))

    def requestDone(self, request: StockRequest) -> None:
        """The answer is complete."""
        self._request = self._producer = None
        self._channel.end(persist=self._persist)

    def registerProducer(self, producer: IPushProducer | IPullProducer, streaming: bool) -> None:
        """Pass back-pressure on to a producer: pause and resume it, or ask a pull producer only while there is room."""
        self._producer = producer
        self._pulling = not streaming
        if self._pulling:
            self._pull()
        elif self._blocked:
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The producer has finished."""
        self._producer = None
        self._pulling = False

    def loseConnection(self) -> None:
        """A Resource closes the connection under its own answer."""
        self._channel.shut()

    def failed(self, reason: Failure) -> None:
        """A Resource raised: our 500 when nothing was written yet, else a cut connection, so that nobody takes it."""
        self.lost(reason)
        self._channel.broke(self, reason)

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Called by twisted.web for a multipart body that it cannot read."""
        self._request = None
        self._channel.refuse(Refused("GW-015", {"reason": "form"}))

    def _pull(self) -> None:
        """One piece from a pull producer, then another in the next turn: a file must not keep the reactor to itself."""
        if not self._pulling or self._blocked:
            return
        try:
            self._producer.resumeProducing()
        except Exception:  # a Resource's bug, as in processingFailed
            self.failed(failure_of())
            return
        if self._pulling:
            self._leaf.reactor.callLater(0, self._pull)


def _target(received: Request) -> bytes:
    """The target in origin form: twisted.web would take an absolute one for a path."""
    if received.target.startswith(b"/"):
        return received.target
    return received.path + b"?" + received.query if received.query else received.path
