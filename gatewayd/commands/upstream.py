"""
An HTTP client for services of our own: POST, and an answer of bounded size in bounded time.

Decides which connections are kept, what an answer may cost, and what counts as none: a redirect is an answer like any
other here and is never followed, cookies are nobody's, nothing is decompressed, and a body whose end is only the end
of the connection may have been cut. Never asks twice.
"""

# Twisted's HTTP client, wrappers and failures carry no annotations.
# mypy: disable-error-code="no-untyped-call,misc,no-any-return"

from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final

from hyperlink import EncodedURL
from OpenSSL import SSL
from service_identity import VerificationError
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS, platformTrust
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from gatewayd.commands.received import Cause, Received, Unanswered

HEAD_BYTES: Final = 65_536
"""What the head of an answer may have; 1xx answers before it count as body."""

CONNECT_S: Final = 1.0
NEXT_ADDRESS_S: Final = 0.05
"""
When the next address of a host is tried beside the one before it (RFC 8305, 5), and when it is noticed of the last that
it was refused: 0.3 s, as Twisted has it, would be what a service costs that is not there (tried).
"""

KEPT_CONNECTIONS: Final = 32
KEPT_S: Final = 1
"""
Idle connections are closed before their server does it: a POST on one that just closed would be lost, and is not sent
again. The shortest default among usual servers is gunicorn's, 2 s.
"""

CLOSE_S: Final = 1.0
"""How long a connection may take to close in order; a server that does not answer TLS's close_notify holds it open."""

_SHOWN: Final = frozenset({b"content-type", b"x-result-code", b"retry-after", b"content-language"})


class Upstream:
    """
    The connections to all services, at most KEPT_CONNECTIONS idle ones to each; whoever calls bounds those in use.

    An answer's body has at most `longest_bytes`. `trust_root`: the authorities of https, None for the platform's (of
    OpenSSL, which SSL_CERT_FILE and SSL_CERT_DIR change).
    """

    def __init__(self, reactor: Any, longest_bytes: int, *, trust_root: Any = None) -> None:
        self._reactor = reactor
        self._longest_bytes = longest_bytes
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = KEPT_CONNECTIONS
        self._pool.cachedConnectionTimeout = KEPT_S
        self._pool.retryAutomatically = False
        endpoints = _Endpoints(reactor, longest_bytes, trust_root or platformTrust())
        agent = _Plain(Agent.usingEndpointFactory(reactor, endpoints, self._pool))
        # treq keeps cookies in one jar for all who call: this one takes none.
        jar = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._client = HTTPClient(agent, jar)

    def post(
        self, url: str, headers: Mapping[str, str], body: bytes, deadline_s: float
    ) -> Deferred[Received | Unanswered]:
        """
        POST once; fires within `deadline_s`. Never fails, but when it is cancelled, which closes the connection. The
        texts of `headers` and `url` are ASCII and are sent as they are: whoever calls has checked them.
        """

        def too_late(_: object, seconds: float) -> Unanswered:
            return Unanswered(Cause.TIMED_OUT, f"no answer within {seconds:g} s")

        posted = Deferred.fromCoroutine(self._post(url, headers, body))
        return posted.addTimeout(deadline_s, self._reactor, too_late)

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Received | Unanswered:
        sent = Headers({name: [value] for name, value in headers.items()})
        try:
            response = await self._client.post(
                _Written.from_text(url),
                headers=sent,
                data=_Bytes(body),
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
        except _Compressed as error:
            return Unanswered(Cause.BROKEN, str(error))
        except (ConnectError, DNSLookupError) as error:
            return Unanswered(Cause.DOWN, _describe(error))
        except (RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed) as error:
            _raise_cancelled(error)
            return Unanswered(_cause(error), _describe(error))
        return await self._receive(response)

    async def _receive(self, response: IResponse) -> Received | Unanswered:
        shown: dict[bytes, bytes] = {}
        for name, values in response.headers.getAllRawHeaders():
            if name.lower() in _SHOWN:
                shown[name.lower()] = values[0]
        collected: Deferred[bytes | str] = Deferred()
        collector = _Collector(collected, self._longest_bytes)
        if response.length is not UNKNOWN_LENGTH and response.length > self._longest_bytes:
            collector.end(f"a body of {response.length} bytes")
        response.deliverBody(collector)
        try:
            body = await collected
        except CancelledError:
            collector.end("given up")
            raise
        return Unanswered(Cause.BROKEN, body) if isinstance(body, str) else Received(response.code, shown, body)

    def stop(self) -> Deferred[None]:
        """Close the idle connections; those in use end with their calls. Fires when they are gone."""
        return self._pool.closeCachedConnections()


class _Written(EncodedURL):
    """A URL that is sent as it was checked: the encoding that treq asks for fails at an IPv6 address (tried)."""

    def to_uri(self) -> "_Written":
        """Itself."""
        return self


class _Compressed(Exception):
    """An answer that was not asked for in this form."""


@implementer(IAgent)
class _Plain:
    """
    An agent below treq's own, which asks for gzip and unpacks it without a bound: neither is asked for, and an answer
    that is compressed all the same is none.
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        plain = Headers() if headers is None else headers.copy()
        plain.removeHeader(b"accept-encoding")
        return self._agent.request(method, uri, plain, bodyProducer).addCallback(self._check)

    def _check(self, response: Any) -> Any:
        if response.headers.getRawHeaders(b"content-encoding", []) in ([], [b"identity"]):
            return response
        text = "a compressed body"
        unread = _Collector(Deferred(), 0)
        unread.end(text)
        response.deliverBody(unread)
        raise _Compressed(text)


class _Collector(Protocol):
    """Fires `collected` with the whole body, or with a text that says why there is none."""

    def __init__(self, collected: Deferred[bytes | str], longest_bytes: int) -> None:
        self._collected = collected
        self._left = longest_bytes
        self._pieces: list[bytes] = []
        self._ended = False

    def connectionMade(self) -> None:
        """What was refused by its head is not read."""
        if self._ended:
            self._lose()

    def dataReceived(self, data: bytes) -> None:
        """Keep it, up to the bound."""
        self._left -= len(data)
        if self._ended:
            return
        if self._left < 0:
            self.end("a longer body than is taken")
        else:
            self._pieces.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is there if, and only if, its own framing says so."""
        if reason.check(ResponseDone) is None:
            self.end(f"its body broke off: {_describe(reason.value)}")
        elif not self._ended:
            self._ended = True
            self._collected.callback(b"".join(self._pieces))

    def end(self, text: str) -> None:
        """There will be no body; nothing more is kept."""
        if not self._ended:
            self._ended = True
            self._pieces.clear()
            if not self._collected.called:
                self._collected.callback(text)
        self._lose()

    def _lose(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


@implementer(IBodyProducer)
class _Bytes:
    """A request's body, written at once: it is in memory already, and bounded."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write all of it."""
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing is left to write."""

    def resumeProducing(self) -> None:
        """As pauseProducing."""

    def stopProducing(self) -> None:
        """As pauseProducing."""


class _Bounded(ProtocolWrapper):
    """
    A connection that gives an answer up that is longer than it may be, whatever it consists of: the client itself
    bounds neither the number of header lines nor that of 1xx answers or trailers.
    """

    _received = 0
    _head_over = False
    _end = b""
    _cut: Any = None
    transport: Any

    def write(self, data: bytes) -> None:
        """What is written begins, or belongs to, a request: an answer to it is a new one."""
        self._received, self._head_over, self._end = 0, False, b""
        super().write(data)

    def writeSequence(self, data: Any) -> None:
        """As write."""
        self.write(b"".join(data))

    def dataReceived(self, data: bytes) -> None:
        """Pass it on, within the bounds."""
        if self._cut is not None:
            return
        self._received += len(data)
        if not self._head_over:
            seen = self._end + data
            self._head_over = b"\n\r\n" in seen or b"\n\n" in seen
            self._end = seen[-3:]
        bound = self.factory.bound_bytes if self._head_over else HEAD_BYTES
        if self._received > bound:
            self.transport.abortConnection()
        else:
            super().dataReceived(data)

    def loseConnection(self) -> None:
        """Close it in order, and if that takes too long all the same."""
        if self._cut is None:
            self._cut = self.factory.reactor.callLater(CLOSE_S, self.transport.abortConnection)
            super().loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        super().connectionLost(reason)


class _BoundedFactory(WrappingFactory):
    """Wraps the client's factory of one connection."""

    protocol = _Bounded
    noisy = False

    def __init__(self, wrapped: Any, reactor: Any, bound_bytes: int) -> None:
        super().__init__(wrapped)
        self.reactor = reactor
        self.bound_bytes = bound_bytes


@implementer(IStreamClientEndpoint)
class _BoundedEndpoint:
    """An endpoint whose connections are _Bounded."""

    def __init__(self, endpoint: Any, reactor: Any, bound_bytes: int) -> None:
        self._endpoint = endpoint
        self._reactor = reactor
        self._bound_bytes = bound_bytes

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect; fires with the client's own protocol, as the pool expects it."""
        connecting = self._endpoint.connect(_BoundedFactory(protocolFactory, self._reactor, self._bound_bytes))
        return connecting.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Where a URL leads, without regard to proxies that the environment may name."""

    def __init__(self, reactor: Any, longest_bytes: int, trust_root: Any) -> None:
        self._reactor = reactor
        # A head, a body, and what chunks of a sensible size add to it.
        self._bound_bytes = 2 * HEAD_BYTES + longest_bytes + longest_bytes // 4
        self._trust_root = trust_root

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """TCP, and TLS on it for https: the certificate must be the host's."""
        host = uri.host.decode("ascii")
        endpoint: Any = HostnameEndpoint(self._reactor, host, uri.port, timeout=CONNECT_S, attemptDelay=NEXT_ADDRESS_S)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(optionsForClientTLS(host, trustRoot=self._trust_root), endpoint)
        return _BoundedEndpoint(endpoint, self._reactor, self._bound_bytes)


def _reasons(error: BaseException | None) -> list[BaseException]:
    """What lies behind an error of the client, innermost last."""
    found = [] if error is None else [error]
    for reason in getattr(error, "reasons", ()):
        found += _reasons(reason.value)
    return found


def _raise_cancelled(error: BaseException) -> None:
    for reason in _reasons(error):
        if isinstance(reason, CancelledError):
            raise reason


def _cause(error: BaseException) -> Cause:
    """DOWN only where the service cannot have read the request: TLS has failed, or its certificate is another's."""
    tls = any(isinstance(reason, SSL.Error | VerificationError) for reason in _reasons(error))
    return Cause.DOWN if tls and isinstance(error, ResponseNeverReceived) else Cause.BROKEN


def _describe(error: BaseException | None) -> str:
    """One line about an error; it holds nothing of the request."""
    last = _reasons(error)[-1]
    text = "" if isinstance(last, ConnectionClosed) else " ".join(str(last).split())[:200]
    return f"{type(last).__name__}: {text}" if text else type(last).__name__
