"""
A client's end of one connection of a Site, on a Clock: bytes in, answers out, without a socket.

The transport does what Twisted's TCP does where the channel depends on it: half-close, pausing, an abort that is seen
as a loss, a buffer that a client may refuse to read.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from gatewayd.errors import Refused
from gatewayd.http.capacity import Capacity
from gatewayd.http.channel import Channel
from gatewayd.http.message import Request, Response, refusal
from gatewayd.http.rules import Limits
from gatewayd.http.site import Site
from gatewayd.interfaces import ILeaf
from gatewayd.times import Wall

WALL = Wall(1_700_000_000.0)


@dataclass(frozen=True)
class Answer:
    """One answer as a client reads it; `headers` with lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The GW code of an error answer."""
        return str(json.loads(self.body)["code"])

    @property
    def details(self) -> dict[str, object]:
        """The details of an error answer."""
        details = json.loads(self.body)["details"]
        assert isinstance(details, dict)
        return details

    @property
    def closes(self) -> bool:
        """True when the answer says that the connection closes."""
        return self.headers.get("connection") == "close"


def read_answers(data: bytes, *, heads: int = 0) -> list[Answer]:
    """Every answer in `data`, which must hold nothing else; the first `heads` of them answer HEAD."""
    answers = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        line, *fields = head.decode("latin-1").split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Za-z -]+", line)
        assert found is not None, line
        status = int(found[1])
        headers = {}
        for header in fields:
            name, colon, value = header.partition(": ")
            assert colon, header
            assert name.lower() not in headers, header
            headers[name.lower()] = value
        length = 0 if status == 100 or len(answers) < heads else int(headers["content-length"])
        assert len(data) >= length, (length, data)
        answers.append(Answer(status, headers, data[:length]))
        data = data[length:]
    return answers


@implementer(ILeaf)
class Leaf:
    """A leaf that answers what `reply` says, or 202 with the body's length, and remembers what it was asked."""

    def __init__(
        self,
        reply: Callable[[Request], Response | Deferred[Response]] | None = None,
        *,
        methods: tuple[bytes, ...] = (b"POST",),
        bound: int = 1_048_576,
        refusal: Callable[[], Response] | None = None,
    ) -> None:
        self.reply = reply
        self.methods = methods
        self.bound = bound
        self.refusal = refusal
        self.requests: list[Request] = []

    def begin(self, request: Request) -> Response | int:
        """405 for other methods, the refusal when there is one, else the bound."""
        if request.method not in self.methods:
            allow = b", ".join(self.methods)
            return refusal(Refused("GW-017", status=405, headers=((b"Allow", allow),)), "req_405", WALL)
        return self.bound if self.refusal is None else self.refusal()

    def answer(self, request: Request) -> Response | Deferred[Response]:
        """Answer as told."""
        self.requests.append(request)
        if self.reply is not None:
            return self.reply(request)
        return Response(202, b'{"length":%d}' % len(request.body), corr_id="req_202")


class Waiting:
    """A reply that is given later: Deferreds in the order of the requests."""

    def __init__(self) -> None:
        self.deferreds: list[Deferred[Response]] = []
        self.cancelled = 0

    def __call__(self, request: Request) -> Deferred[Response]:
        """Make the next Deferred."""
        deferred: Deferred[Response] = Deferred(self._cancel)
        self.deferreds.append(deferred)
        return deferred

    def _cancel(self, _: Deferred[Response]) -> None:
        self.cancelled += 1


class Transport(StringTransport):
    """A TCP transport whose client reads everything at once, unless `stuck`; then all above `buffer` bytes blocks."""

    buffer = 65536

    def __init__(self) -> None:
        super().__init__(lenient=True)
        self.protocol: object = None
        self.stuck = False
        self.unread = 0
        self.fin = False
        self.lost = False
        self.writes = 0
        self._blocked = False

    def write(self, data: bytes) -> None:
        """Buffer what a stuck client does not read."""
        assert not self.disconnecting, "written after loseConnection"
        assert not self.fin, "written after FIN"
        self.writes += 1
        super().write(data)
        if self.stuck:
            self.unread += len(data)
            if self.unread > self.buffer and self.producer is not None and not self._blocked:
                self._blocked = True
                self.producer.pauseProducing()

    def read_all(self) -> None:
        """The client reads everything."""
        self.unread = 0
        self.stuck = False
        if self._blocked:
            self._blocked = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        """FIN behind what was written."""
        assert self.producer is None
        self.fin = True
        if not self.unread and IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.writeConnectionLost()  # type: ignore[attr-defined]

    def loseConnection(self) -> None:
        """Close once everything is read."""
        super().loseConnection()
        if not self.unread:
            self._lose(ConnectionDone())

    def abortConnection(self) -> None:
        """Reset."""
        self.disconnected = True
        self._lose(ConnectionAborted())

    def _lose(self, reason: Exception) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(reason))  # type: ignore[attr-defined]

    def client_closes(self) -> None:
        """FIN from the client."""
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()  # type: ignore[attr-defined]
        else:
            self._lose(ConnectionDone())

    def client_resets(self) -> None:
        """RST from the client."""
        self._lose(ConnectionAborted())


@dataclass
class World:
    """A Site on a Clock with leaves at paths; what it was told is in the lists."""

    leaves: dict[bytes, Leaf] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    max_connections: int = 100
    max_per_address: int = 100
    clock: Clock = field(default_factory=Clock)
    finished: list[tuple[Request | None, Response, bool]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock.advance(1000)
        self.site = Site(
            route=self.leaves.get,
            refuse=lambda request, refused: refusal(refused, "req_refused", WALL),
            failed=self._failed,
            finished=self._finished,
            clock=self.clock,
            wall=lambda: Wall(WALL + self.clock.seconds() - 1000),
            limits=self.limits,
            capacity=Capacity(self.max_connections, self.max_per_address),
        )

    def _failed(self, request: Request | None, failure: Failure) -> Response:
        self.failures.append(failure)
        return refusal(Refused("GW-016"), "req_failed", WALL)

    def _finished(self, request: Request | None, response: Response, *, written: bool) -> None:
        self.finished.append((request, response, written))

    def connect(self, host: str = "192.0.2.1") -> Transport:
        """A new connection."""
        transport = Transport()
        channel = self.site.buildProtocol(_Peer(host))  # type: ignore[arg-type]
        assert isinstance(channel, Channel)
        transport.protocol = channel
        channel.makeConnection(transport)
        return transport

    def advance(self, seconds: float) -> None:
        """Let time pass in quarters of a second, so that every sweep happens when it is due."""
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)

    def exchange(self, data: bytes, *, step: int = 0, heads: int = 0) -> tuple[list[Answer], bool]:
        """Send `data` on a new connection, in pieces of `step` bytes; the answers, and whether the server closed."""
        transport = self.connect()
        for piece in split(data, step):
            send(transport, piece)
        self.clock.advance(0)
        closed = transport.fin or transport.disconnecting or transport.lost
        if not transport.lost:
            transport.client_closes()
        return read_answers(transport.value(), heads=heads), closed


@dataclass
class _Peer:
    host: str


def send(transport: Transport, data: bytes) -> None:
    """Give received bytes to whoever has the transport."""
    if not transport.lost:
        transport.protocol.dataReceived(data)  # type: ignore[attr-defined]


def split(data: bytes, step: int) -> Iterator[bytes]:
    """`data` in pieces of `step` bytes; in one for 0."""
    for start in range(0, len(data), step or len(data) or 1):
        yield data[start : start + (step or len(data))]


def get(path: str = "/healthz", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: gw", *headers, "", ""]).encode("latin-1")


def post(body: bytes = b"{}", *headers: str, path: str = "/webhook/tradingview", version: str = "1.1") -> bytes:
    """A request with a body of told length."""
    return get(path, f"Content-Length: {len(body)}", *headers, version=version, method="POST") + body


def chunked(*chunks: bytes, trailers: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
    """A request with a chunked body."""
    head = get("/webhook/tradingview", "Transfer-Encoding: chunked", *headers, method="POST")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


def statuses(transport: Transport) -> list[int]:
    """The statuses of everything written so far."""
    return [answer.status for answer in read_answers(transport.value())]


def busy() -> Response:
    """A leaf's refusal at begin()."""
    return refusal(Refused("GW-011"), "req_busy", WALL)


class WorldCase(SynchronousTestCase):
    """A world with a probe, a webhook, one that answers later, one that refuses."""

    def setUp(self) -> None:
        self.waiting = Waiting()
        self.probe = Leaf(lambda request: Response(200, b'{"ok":true}'), methods=(b"GET", b"HEAD"), bound=0)
        self.webhook = Leaf()
        self.refusing = Leaf(refusal=busy)
        self.world = World(
            {
                b"/healthz": self.probe,
                b"/webhook/tradingview": self.webhook,
                b"/later": Leaf(self.waiting, methods=(b"GET", b"POST")),
                b"/busy": self.refusing,
            }
        )

    def only(self, transport: Transport) -> Answer:
        """The one answer written so far."""
        (answer,) = read_answers(transport.value())
        return answer
