"""
Listening on the event loop's own stream transports, which speak to a protocol as Twisted's do.

Decides how Twisted's transport interface is answered by an asyncio or uvloop transport: what a write after the end
does, how an abort becomes a reset, when a producer is paused, which reason a loss has. Never parses a byte, never
limits anything, and knows neither asyncio nor uvloop by name: it is handed the loop.

A bare request costs a quarter less than on Twisted's transports (33 -> 24 us; of a whole webhook that is about 5 %),
because nothing of ours stands between the loop and the protocol: `data_received` is the protocol's own dataReceived,
`write` the loop transport's.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

Host: TypeAlias = IPv4Address | IPv6Address | UNIXAddress

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: close() throws away what was not sent and resets."""
_PIECE_BYTES: Final = 65536
"""What asyncio reads at once. Its own 256 KiB are mapped and unmapped for every read: 24 us a request, and 7 so."""
_MORE: Final = 16
"""Further connections on their way at once: with what asyncio accepts meanwhile, fewer than the descriptors left."""

_AT_ONCE: Final = 8
"""
How many connections asyncio accepts in one turn, before the first of them can be refused. It takes the backlog for it:
a flood took every descriptor that was left, the NATS client's among them, and a log line for each of 1024 more (tried).
"""
_log = Logger()


@implementer(ITCPTransport, IConsumer, IPushProducer)
class LoopTransport:
    """
    One accepted connection: asyncio's protocol and Twisted's transport in one object.

    `write` is the loop transport's own until a protocol takes the connection over: whoever keeps it beyond the call,
    as only a guest may, gets the guarded one. After loseConnection(), loseWriteConnection() and abortConnection() it
    drops what it is given, where Twisted's would still send between the first of them and the loss.

    A producer is never waited for: loseConnection() closes when everything written so far is sent.
    """

    __slots__ = (
        "_eof",
        "_fin",
        "_full",
        "_half_closeable",
        "_local",
        "_peer",
        "_port",
        "_protocol",
        "_reason",
        "_transport",
        "connected",
        "data_received",
        "disconnected",
        "disconnecting",
        "producer",
        "streamingProducer",
        "write",
    )

    data_received: Callable[[bytes], None]
    write: Callable[[bytes], None]

    def __init__(self, port: "LoopPort") -> None:
        self._port = port
        self._transport: Any = None
        self._protocol: IProtocol | None = None
        self._local: Any = None
        self._peer: Host | None = None
        self._reason: Failure | None = None
        self._half_closeable = False
        self._eof = False
        self._fin = False
        self._full = False
        self.connected = False
        self.disconnecting = False
        self.disconnected = False
        self.producer: Any = None
        self.streamingProducer = False
        self.data_received = self.write = _drop

    # -- what the loop calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A connection was accepted: the factory's protocol gets it, or it is closed when there is none."""
        self._transport = transport
        if hasattr(transport, "max_size"):  # asyncio's; uvloop keeps one buffer
            transport.max_size = _PIECE_BYTES
        self._port.accepted()
        peer = transport.get_extra_info("peername")
        self._local = transport.get_extra_info("sockname")  # uvloop cannot say it after the end
        if self._port.unix:
            self._peer = UNIXAddress(None)
        elif peer is None:  # reset before it was accepted; without an address nobody could count it
            transport.abort()
            return
        else:
            self._peer = _address(peer)
        protocol: Any = None
        try:
            protocol = self._port.factory.buildProtocol(self._peer)
            if protocol is None:
                transport.close()
                return
            self.connected = True
            self.write = transport.write
            self._adopt(protocol, protocol.dataReceived)
            protocol.makeConnection(self)
        except Exception:  # the loop would keep a connection that nobody owns
            self._fail()

    def eof_received(self) -> bool:
        """The peer has sent everything: a protocol that knows half-close may go on writing, for others it is over."""
        self._eof = True
        if not self._half_closeable:
            return False
        self._protocol.readConnectionLost()  # type: ignore[union-attr] # half-closeable
        return True

    def pause_writing(self) -> None:
        """More is waiting to be sent than the loop's high-water mark."""
        self._full = True
        if self.producer is not None and self.streamingProducer and not self._fin:
            self.producer.pauseProducing()

    def resume_writing(self) -> None:
        """What was waiting has been sent, but for the low-water mark."""
        self._full = False
        if self._fin:
            # asyncio says it one line before it sends FIN, and does not expect to be closed here.
            self._port.loop.call_soon(self._fin_sent)
        elif self.producer is not None and not self.disconnecting:
            if self.streamingProducer:
                self.producer.resumeProducing()
            else:
                self._pull()

    def connection_lost(self, error: BaseException | None) -> None:
        """The connection is gone."""
        self.connected, self.disconnected = False, True
        self.write = self.data_received = _drop
        protocol, self._protocol = self._protocol, None
        producer, self.producer = self.producer, None
        if protocol is None:
            return
        try:
            if producer is not None:
                producer.stopProducing()
        finally:
            protocol.connectionLost(self._reason or _reason_of(error))

    # -- ITransport --------------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> IProtocol | None:
        """Who is told what comes in, until the connection is lost. Setting it hands the connection over."""
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: IProtocol) -> None:
        if self.disconnected:
            return
        if not (self._fin or self.disconnecting):
            self.write = self._write
        self._adopt(protocol, self._receive)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Write the pieces as one."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Send what was written, then close. Nothing ends it when the peer never reads: that is the protocol's."""
        if self.disconnecting or self.disconnected:
            return
        self.disconnecting = True
        self.write = _drop
        self._transport.close()

    def loseWriteConnection(self) -> None:
        """Send what was written and FIN behind it; writeConnectionLost() says that it is done."""
        if self._fin or self.disconnecting or self.disconnected:
            return
        self._fin = True
        self.write = _drop
        transport = self._transport
        try:
            transport.write_eof()
        except OSError:  # asyncio shuts the socket down here and now, and the peer has reset it
            self.abortConnection()
            return
        # The low-water mark at 0 makes the loop say when the last byte is gone.
        transport.set_write_buffer_limits(0)
        if not transport.get_write_buffer_size():
            self._port.loop.call_soon(self._fin_sent)

    def abortConnection(self) -> None:
        """Reset the connection: what was not sent is thrown away."""
        self._abort(ConnectionAborted())

    def getPeer(self) -> Host | None:  # type: ignore[override] # None before it is connected
        """The address of the other side, also after the end."""
        return self._peer

    def getHost(self) -> Host:  # type: ignore[override] # a UNIX socket's, too
        """The address of this side, also after the end."""
        return _address(self._local)

    def bound_unsent(self, unsent_bytes: int) -> Any:
        """Pause the producer while more than that waits here; gives the socket, whose own buffer comes on top."""
        self._transport.set_write_buffer_limits(unsent_bytes)
        return self._socket()

    def getTcpNoDelay(self) -> bool:
        """True when small writes are not held back, as from the beginning."""
        return bool(self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Hold small writes back, or do not."""
        self._socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, bool(enabled))

    def getTcpKeepAlive(self) -> bool:
        """True when the kernel asks a silent peer whether it is still there."""
        return bool(self._socket().getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Have the kernel ask a silent peer whether it is still there, or not."""
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, bool(enabled))

    # -- IConsumer and IPushProducer ---------------------------------------------------------------------------------

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """
        Tell a push producer when to pause, ask a pull producer for a piece in every turn while there is room.

        RuntimeError when there is one already; on a lost connection it is stopped at once.
        """
        if self.producer is not None:
            raise RuntimeError("the transport has a producer already")
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer, self.streamingProducer = producer, streaming
        if not streaming:
            self._port.loop.call_soon(self._pull)
        elif self._full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        """The producer has finished, or gave up."""
        self.producer = None

    def pauseProducing(self) -> None:
        """Stop reading; the peer's FIN or reset goes unseen until resumeProducing()."""
        if not (self._eof or self.disconnecting or self.disconnected):
            self._transport.pause_reading()

    def resumeProducing(self) -> None:
        """Read again; nothing more to read after FIN, which the loop would report again and again."""
        if not (self._eof or self.disconnecting or self.disconnected):
            self._transport.resume_reading()

    def stopProducing(self) -> None:
        """As a producer is stopped: close."""
        self.loseConnection()

    # -- within ------------------------------------------------------------------------------------------------------

    def _adopt(self, protocol: IProtocol, received: Callable[[bytes], None]) -> None:
        self._protocol = protocol
        self._half_closeable = IHalfCloseableProtocol.providedBy(protocol)
        self.data_received = received
        # uvloop looks data_received up here and nowhere else.
        self._transport.set_protocol(self)

    def _receive(self, data: bytes) -> None:
        """What comes in for a protocol that took the connection over, which is not ours: its bugs are kept apart."""
        try:
            self._protocol.dataReceived(data)  # type: ignore[union-attr] # cleared with data_received
        except Exception:  # a bug of the guest
            self._fail()

    def _write(self, data: bytes) -> None:
        """A `write` that may be kept: uvloop's raises once the connection is closed, whoever had it from before."""
        if not (self._fin or self.disconnecting or self.disconnected):
            self._transport.write(data)

    def _pull(self) -> None:
        producer = self.producer
        if producer is None or self.streamingProducer or self._full or self._fin or self.disconnecting:
            return
        producer.resumeProducing()
        if self.producer is producer and not self._full:
            self._port.loop.call_soon(self._pull)

    def _fin_sent(self) -> None:
        if self._half_closeable and not (self.disconnecting or self.disconnected):
            self._protocol.writeConnectionLost()  # type: ignore[union-attr] # half-closeable

    def _fail(self) -> None:
        failure = Failure()  # type: ignore[no-untyped-call]
        _log.failure("A protocol failed; its connection is cut.", failure, event="connection_failed")
        self._abort(failure)

    def _abort(self, reason: Failure | Exception) -> None:
        if self._reason is not None or self.disconnected:
            return
        self._reason = reason if isinstance(reason, Failure) else Failure(reason)  # type: ignore[no-untyped-call]
        self.disconnecting = True
        self.write = self.data_received = _drop
        # Without it an abort is a plain FIN, behind which the kernel goes on sending what it has (100 KB arrived).
        with suppress(OSError):  # raised when the socket is closed already
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _socket(self) -> Any:
        return self._transport.get_extra_info("socket")


@implementer(IListeningPort)
class LoopPort:
    """
    A listening socket whose connections are the loop's. `port` 0 lets the kernel choose; getHost() says which. A socket
    that listens already is served as it is instead, be it TCP or UNIX: `listening`, which belongs to the port then.

    The socket is bound and listens when startListening() returns, also while no loop runs yet: the kernel queues what
    connects until the loop accepts. Short of descriptors, asyncio rests for a second and says so, uvloop closes what
    connects; either goes on listening (tried). A factory that refuses connections well before that keeps the rest free.
    """

    def __init__(
        self,
        loop: Any,
        host: str,
        port: int,
        factory: IProtocolFactory,
        backlog: int,
        *,
        listening: socket.socket | None = None,
    ) -> None:
        self.loop = loop
        self.factory = factory
        self.socket: socket.socket | None = None
        self.unix = listening is not None and listening.family is socket.AF_UNIX
        self._wanted = (host, port)
        self._given = listening
        self._backlog = backlog
        self._address: Host | None = None
        self._server: Any = None
        self._task: Any = None
        self._looking = False
        self._making: set[Any] = set()

    def startListening(self) -> None:
        """Bind and listen; CannotListenError when that is impossible."""
        listening = self._given or self._bind()
        listening.setblocking(False)
        if not self.unix:
            # Linux hands it on to every accepted socket; asyncio sets it on none that has no protocol number.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = listening
        self._address = _address(listening.getsockname())
        self.factory.doStart()
        self._task = self.loop.create_task(self._serve(listening))

    def _bind(self) -> socket.socket:
        host, port = self._wanted
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(self._backlog)
        except OSError as error:
            listening.close()
            raise CannotListenError(host, port, error) from None  # type: ignore[no-untyped-call]
        return listening

    def stopListening(self) -> Deferred[None] | None:
        """
        Accept no more; connections that were accepted stay as they are. Fires when the descriptor is closed.

        It is closed, never shut down: whoever else holds the socket can accept what waits in its queue.
        """
        listening, self.socket = self.socket, None
        if listening is None:
            return None
        self._task.cancel()
        self.factory.doStop()
        if self._server is None:  # the loop never came to it
            listening.close()
            return None
        # asyncio takes connections out of the queue and makes their transports in its next turn, which fails, and cuts
        # them, when the server is closed by then (tried). uvloop makes them at once, and knows of no reader here.
        if not self.loop.remove_reader(listening):
            self._server.close()
            return None
        closed: Deferred[None] = Deferred()
        self.loop.call_soon(self._close, closed)
        return closed

    def _close(self, closed: Deferred[None]) -> None:
        self._server.close()
        closed.callback(None)

    def getHost(self) -> Host:
        """What it listens on, also after the end; RuntimeError before the beginning."""
        if self._address is None:
            raise RuntimeError("the port does not listen yet")
        return self._address

    async def _serve(self, listening: socket.socket) -> None:
        # In two steps, of which the first does not wait: a stop in between finds the server.
        create, options = self.loop.create_server, {}
        if self.unix:
            create = self.loop.create_unix_server
            # The path stays: the socket has not been made here. Python 3.13 would remove it.
            options = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await create(
            lambda: LoopTransport(self), sock=listening, backlog=_AT_ONCE, start_serving=False, **options
        )
        self.loop.call_soon(self._deepen)
        await self._server.start_serving()

    def accepted(self) -> None:
        """A connection was made: look for more, once in this turn of the loop."""
        if not self._looking and self.socket is not None:
            self._looking = True
            self.loop.call_soon(self._accept)

    def _accept(self) -> None:
        """
        Take further connections out of the queue. uvloop takes one a turn: while turns are long for other reasons,
        those that connect would wait for seconds (3.4 s behind 1,500 busy connections, measured).
        """
        self._looking = False
        for _ in range(_MORE - len(self._making)):
            if self.socket is None:
                return
            try:
                connection, _ = self.socket.accept()
            except OSError:  # nobody waits; or no descriptor is left, which is the loop's own affair
                return
            connection.setblocking(False)
            making = self.loop.create_task(self.loop.connect_accepted_socket(lambda: LoopTransport(self), connection))
            self._making.add(making)
            making.add_done_callback(self._making.discard)

    def _deepen(self) -> None:
        """The loop serves, and has told the kernel to queue no more than it accepts at once."""
        if self.socket is not None:
            self.socket.listen(self._backlog)


def _drop(_: bytes) -> None:
    """Take what comes after the end."""


def _address(name: Any) -> Host:
    if isinstance(name, (str, bytes)):
        return UNIXAddress(name or None)
    return IPv4Address("TCP", *name) if len(name) == 2 else IPv6Address("TCP", *name)


def _reason_of(error: BaseException | None) -> Failure:
    """What connectionLost is told."""
    if error is None:
        return Failure(ConnectionDone())  # type: ignore[no-untyped-call]
    trace = error.__traceback__
    if isinstance(error, OSError) and (trace is None or trace.tb_next is None):
        text = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return Failure(ConnectionLost(text))  # type: ignore[no-untyped-call]
    failure = Failure(error, type(error), trace)  # type: ignore[no-untyped-call]
    if isinstance(error, OSError):
        # Raised below the loop's own frame, so by the protocol: the loops report every error but these.
        _log.failure("A protocol failed; its connection is cut.", failure, event="connection_failed")
    return failure
