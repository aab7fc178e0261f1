"""
One connection: the Protocol that every public and admin listener speaks.

Decides when a request is read, dropped or refused, in which order answers go out, what is paused while a client does
not read, and how a connection ends. Framing judges the bytes, message renders the answers, leaves give them. Never
knows what is served, never logs, never makes a timer per request: one deadline a channel, swept once a second.
"""

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol, IPushProducer, ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from gatewayd.committed import Running, hand
from gatewayd.errors import Refused
from gatewayd.http.exchange import HandOver, Streamed, failure_of, install
from gatewayd.http.framing import Framing
from gatewayd.http.message import Request, Response, render
from gatewayd.http.rules import TOO_LARGE, Malformed
from gatewayd.interfaces import ILeaf
from gatewayd.times import Monotonic

if TYPE_CHECKING:
    from gatewayd.http.site import Site

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_TIMEOUT: Final = Refused("GW-015", {"reason": "timeout"}, status=408)


class _State(Enum):
    HEAD = "head"  # waiting for a head, or in one
    BODY = "body"  # the request is accepted or will be refused, its body is not complete
    ANSWERING = "answering"  # a leaf has the request; what arrives is held
    CLOSING = "closing"  # the last answer is on its way; what arrives is dropped
    GONE = "gone"  # lost, or another protocol's


_HEAD, _BODY, _ANSWERING, _CLOSING, _GONE = _State  # a member looked up through its class costs 40 ns, each time


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class Channel:
    """
    One connection of a Site. `deadline` is the monotonic second after which expire() is due. `peer` is the client's
    address, "" for a UNIX socket; `secure` says that it came by TLS. The rest is for a Streamed answer: `transport`
    for what it says about itself, `framing` for what it says about the request, `may_persist`, write(), end().
    """

    __slots__ = (
        "_blocked",
        "_bound",
        "_dropped",
        "_eof",
        "_fin_sent",
        "_head_timed",
        "_leaf",
        "_now",
        "_paused",
        "_pending",
        "_pumping",
        "_refusal",
        "_request",
        "_site",
        "_state",
        "_streamed",
        "_wrote",
        "deadline",
        "framing",
        "peer",
        "secure",
        "transport",
    )

    transport: Any  # ITransport does not name half of what a transport does

    def __init__(self, site: "Site", peer: str) -> None:
        self._site = site
        self.framing = Framing(site.limits, site.kept)
        self._state = _HEAD
        self._now = Monotonic(0.0)
        self._request: Request | None = None
        self._leaf: ILeaf | None = None
        self._refusal: Response | None = None
        self._pending: Deferred[Response] | Running[Response] | None = None
        self._streamed: Streamed | None = None
        self._bound = 0
        self._dropped = 0
        self._head_timed = True
        self._pumping = False
        self._blocked = False
        self._paused = False
        self._eof = False
        self._fin_sent = False
        self._wrote = False
        self.deadline = inf
        self.peer = peer
        self.secure = False

    # -- what the transport calls ----------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The connection is there: the first head has its time from now."""
        self.transport = transport
        self.secure = ISSLTransport.providedBy(transport)
        self.deadline = self._site.clock.seconds() + self._site.limits.head_s
        transport.registerProducer(self, True)
        self._site.opened(self)

    def connectionMade(self) -> None:
        """Nothing beyond makeConnection."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes came in: parsed at once, held while a request is being answered, dropped once nothing is read."""
        if self._state is _CLOSING:
            self._dropped += len(data)
            if self._dropped > self._site.limits.lingering:
                self.transport.abortConnection()
            return
        if self._state is _GONE:
            return
        self.framing.push(data)
        if self._state is _ANSWERING:
            self._balance()
        else:
            self._pump()

    def readConnectionLost(self) -> None:
        """The client has sent all it will send (RFC 9112 9.6 lets it wait for the answer): FIN and close look alike."""
        self._eof = True
        if self._state is _CLOSING:
            self.transport.loseConnection()
        elif self._state is not _ANSWERING and self._state is not _GONE:
            self._pump()

    def writeConnectionLost(self) -> None:
        """Everything was sent and FIN with it: what is left is to let the client read it before the socket closes."""
        self.deadline = self._site.clock.seconds() + self._site.limits.lingering_s
        self._fin_sent = True

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone; whoever works for it is told."""
        if self._state is _GONE:
            return
        self._state = _GONE
        self.framing.close()
        self._site.closed(self)
        streamed, pending, request = self._streamed, self._pending, self._request
        if pending is not None:
            # Fires with what its maker makes of it; _arrived or _broke then settles the account.
            pending.cancel()
        elif request is not None:
            self._request = self._streamed = None
            self._site.settled(request, streamed, written=False)
            if streamed is not None:
                streamed.lost(reason)

    def pauseProducing(self) -> None:
        """The transport holds more than it likes: answer and read nothing until the client has read."""
        self._blocked = True
        if self._state is not _CLOSING:
            self.deadline = self._site.clock.seconds() + self._site.limits.write_s
            self._balance()
        if self._streamed is not None:
            self._streamed.pause()

    def resumeProducing(self) -> None:
        """The client has read."""
        self._blocked = False
        if self._state is _CLOSING or self._state is _GONE:
            return
        limits, now = self._site.limits, self._site.clock.seconds()
        if self._state is _ANSWERING:
            self.deadline = inf
            if self._streamed is not None:
                self._streamed.resume()
        else:
            self.deadline = now + (limits.body_s if self._state is _BODY else limits.idle_s)
            self._head_timed = False
            self._pump()
        self._balance()

    def stopProducing(self) -> None:
        """The transport is closing; connectionLost says the rest."""

    # -- what the site calls ---------------------------------------------------------------------------------------

    def expire(self) -> None:
        """The deadline has passed."""
        if self._state is _CLOSING:
            # With FIN sent a plain close is enough; a client that never reads must not keep the buffer.
            (self.transport.loseConnection if self._fin_sent else self.transport.abortConnection)()
        elif self._blocked or self._state is _ANSWERING:
            self.transport.abortConnection()
        elif self._state is _BODY or self.framing.begun:
            # A request that is refused anyway is told why, not that its body was slow.
            self._deliver(self._refusal or self._site.refuse(self._request, _TIMEOUT), close=True)
        elif self._state is _HEAD:
            self._lose()

    @property
    def waits(self) -> bool:
        """True between two requests, and before the first one: the next may be on its way."""
        return self._state is _HEAD

    def retire(self) -> None:
        """The site is draining: close when there is nothing to answer."""
        if self.waits and not self.framing.begun and not self.framing.held:
            self._lose()

    def shut(self) -> None:
        """The site closes: what was written still goes out, within the time for writing; FIN sent, nobody waits."""
        if self._state is _GONE or self._fin_sent:
            self.transport.loseConnection()
        elif self._state is not _CLOSING:
            self._lose()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Read and answer, one request after the other, until something has to be waited for."""
        if self._pumping or self._state is _GONE:
            return
        self._pumping = True
        self._now = Monotonic(self._site.clock.seconds())
        try:
            self._take_turns()
        finally:
            self._pumping = False
        if self._paused or self.framing.held:
            self._balance()

    def _take_turns(self) -> None:
        turns = self._site.limits.turn
        while not self._blocked:
            if self._state is _HEAD and not self._read_head():
                break
            if self._state is _BODY and not self._read_body():
                break
            if self._state is not _HEAD:
                break
            turns -= 1
            if not self.framing.held:
                if not self._eof:
                    break
            elif not turns:
                # 256 KiB of pipelined requests would keep everybody else waiting for a tenth of a second.
                self._site.clock.callLater(0, self._pump)
                break

    def _read_head(self) -> bool:
        """Take a request up to its body; False when its head is not complete."""
        site, framing = self._site, self.framing
        request = framing.read_head()
        if request is None:
            if self._eof:
                self._lose()
            elif framing.begun and not self._head_timed:
                self._head_timed = True
                self.deadline = self._now + site.limits.head_s
            return False
        if isinstance(request, Malformed):
            self.refuse(request.refused(self._bound))
            return False
        request.peer = request.client_ip = self.peer
        request.secure = self.secure
        request.received_at = self._now
        request.received_wall = site.wall()
        self._request = request
        site.in_flight += 1
        try:
            leaf = self._leaf = site.route(request.path)
            verdict = site.refuse(request, Refused("GW-017")) if leaf is None else leaf.begin(request)
        except Exception:  # whatever a leaf raises is a bug of it and becomes its 500
            verdict = site.failed(request, failure_of())
        if framing.declared == 0:
            if isinstance(verdict, Response):
                self._deliver(verdict)
            else:
                self._answer(request)
            return True
        return self._begin_body(verdict)

    def _begin_body(self, verdict: Response | int) -> bool:
        """
        Go on to the body, whose bound a leaf gives: 0 means that it does not want it.

        The body of a refused request is dropped first, so that the connection lives on; a client that waits for 100
        (Continue), or would send more than is worth dropping, is told at once and closed.
        """
        limits, framing = self._site.limits, self.framing
        if isinstance(verdict, Response):
            if framing.expects_continue or framing.declared > limits.dropped:
                self._deliver(verdict, close=True)
                return False
            self._refusal, wanted = verdict, 0
        else:
            wanted = verdict
        self._bound = wanted or limits.dropped
        if framing.declared > self._bound:
            self.refuse(TOO_LARGE.refused(self._bound))
            return False
        if framing.expects_continue and not framing.held:
            self.transport.write(_CONTINUE)
        framing.begin_body(self._bound, keep=wanted > 0)
        self._state = _BODY
        self.deadline = self._now + limits.body_s
        return True

    def _read_body(self) -> bool:
        """Read the body and have the request answered; False when there is more to come."""
        body = self.framing.read_body()
        if body is None:
            if self._eof:
                self._lose()
            return False
        refusal, request = self._refusal, self._request
        if isinstance(body, Malformed):
            if refusal is not None and body.status == 413:
                self._deliver(refusal, close=True)
            else:
                self.refuse(body.refused(self._bound))
            return False
        if refusal is not None:
            self._deliver(refusal)
        elif request is not None:
            request.body = body
            if request.received_at != self._now:
                request.received_at = self._now
                request.received_wall = self._site.wall()
            self._answer(request)
        return True

    # -- answering -------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        self._state = _ANSWERING
        self.deadline = inf
        try:
            answer = self._leaf.answer(request)  # type: ignore[union-attr] # set with the request
        except Exception:  # as in _read_head
            answer = self._site.failed(request, failure_of())
        if isinstance(answer, (Running, Deferred)):
            self._pending = answer
            hand(answer, self._arrived)
        else:
            self._arrived(answer)

    def _arrived(self, answer: object) -> None:
        """A leaf's answer, or the Failure of it; the connection may be gone by now."""
        self._pending = None
        if not isinstance(answer, Response):
            self._broke(answer if isinstance(answer, Failure) else failure_of(TypeError(type(answer).__name__)))
        elif self._state is not _ANSWERING:
            request, self._request = self._request, None
            self._site.settled(request, answer, written=False)
        elif isinstance(answer, Streamed):
            self._stream(answer)
        elif isinstance(answer, HandOver):
            self._hand_over(answer)
        else:
            self._deliver(answer)

    def _broke(self, failure: Failure) -> None:
        """A leaf's answer failed: a bug, unless the client is gone and the leaf gave up with it."""
        if self._state is not _ANSWERING and isinstance(failure.value, CancelledError):
            request, self._request = self._request, None
            self._site.settled(request, None, written=False)
        elif self._request is not None:
            self._arrived(self._site.failed(self._request, failure))

    def _deliver(self, response: Response, *, close: bool = False) -> None:
        """Write one whole answer in one piece and go on, or close."""
        site, framing, request = self._site, self.framing, self._request
        persist = not close and not response.close and self.may_persist
        head_only = request is not None and request.method == b"HEAD"
        try:
            data = render(response, keep_alive=persist, head_only=head_only, http_1_0=framing.http_1_0)
        except Exception:  # an answer that cannot be written is a leaf's bug like any other
            response, persist = site.failed(request, failure_of()), False
            data = render(response, keep_alive=False, head_only=head_only)
        self.transport.write(data)
        self._finish(response, persist=persist)

    def _finish(self, response: Response, *, persist: bool) -> None:
        """The answer is written: settle the account, then the next request, or the end."""
        request = self._request
        self._request = self._leaf = self._refusal = None
        self._site.settled(request, response, written=True)
        if self._state is _GONE or self._state is _CLOSING:
            return
        if not persist:
            self._linger()
            return
        self._state = _HEAD
        self._head_timed = False
        now = self._now if self._pumping else self._site.clock.seconds()
        self.deadline = now + (self._site.limits.write_s if self._blocked else self._site.limits.idle_s)
        if response.rest and not self._blocked:
            self._site.rest(self)
            self.pauseProducing()  # until the site ends it: nothing is written meanwhile, so nobody else does
        elif not self._pumping and (self._eof or self._paused or self.framing.held):
            self._pump()

    @property
    def may_persist(self) -> bool:
        """False when the current answer is the connection's last."""
        framing = self.framing
        return framing.keep_alive and not self._site.draining and not (self._eof and not framing.held)

    def _stream(self, streamed: Streamed) -> None:
        self._streamed = streamed
        self._wrote = False
        try:
            streamed.begin(self)
        except Exception:  # as in _read_head
            self.broke(streamed, failure_of())

    def broke(self, streamed: Streamed, failure: Failure) -> None:
        """A Streamed answer failed: 500 when nothing of it was written, else the connection is cut."""
        if self._streamed is not streamed:
            return
        self._streamed = None
        response = self._site.failed(self._request, failure)
        if self._wrote or self._state is not _ANSWERING:
            self.transport.abortConnection()
        else:
            self._deliver(response, close=True)

    def refuse(self, refused: Refused) -> None:
        """Answer with a refusal, also in place of a Streamed answer that has written nothing yet, and close."""
        self._streamed = None
        self._deliver(self._site.refuse(self._request, refused), close=True)

    def write(self, data: bytes) -> None:
        """Write a piece of a Streamed answer."""
        self._wrote = True
        if self._state is _ANSWERING:
            self.transport.write(data)

    def end(self, *, persist: bool) -> None:
        """A Streamed answer is complete. `persist` false: the client was told that the connection closes."""
        streamed, self._streamed = self._streamed, None
        if streamed is not None:
            self._wrote = False
            self._finish(streamed, persist=persist)

    def _hand_over(self, answer: HandOver) -> None:
        rest, request, transport = self.framing.rest(), self._request, self.transport
        self.framing.close()
        self._state = _GONE
        self._request = self._leaf = None
        transport.unregisterProducer()
        if self._paused and not self._eof:
            transport.resumeProducing()
        try:
            install(self._site, self, answer.protocol, rest)
        except Exception:  # as in _read_head, but the connection is not ours to answer on any more
            answer.status = self._site.failed(request, failure_of()).status
            transport.abortConnection()
        self._site.settled(request, answer, written=True)
        if self._eof:
            transport.loseConnection()

    # -- back-pressure and the end -----------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Stop reading while the client does not read, or has sent more than is held for it; go on afterwards."""
        if self._state is _GONE:
            return
        pause = self._state is not _CLOSING and (self._blocked or self.framing.held > self._site.limits.held)
        if pause is not self._paused and not self._eof:
            self._paused = pause
            (self.transport.pauseProducing if pause else self.transport.resumeProducing)()

    def _linger(self) -> None:
        """
        Close so that the client can read the answer: FIN behind it at once, then drop what still comes, for a while.
        A close with unread bytes would be a reset, which destroys the answer (RFC 9112 9.6).
        """
        half_close = None if self.secure or self._eof else getattr(self.transport, "loseWriteConnection", None)
        self._close()
        # TLS has no half-close; its own shutdown waits for the client's close_notify and drops what comes before it.
        (half_close or self.transport.loseConnection)()

    def _lose(self) -> None:
        """Close without an answer."""
        self._close()
        self.transport.loseConnection()

    def _close(self) -> None:
        self._state = _CLOSING
        self.deadline = self._site.clock.seconds() + self._site.limits.write_s
        # A transport that has a producer may wait for it before it closes.
        self.transport.unregisterProducer()
        self.framing.rest()
        self._balance()
