"""
Listening: an Address becomes a port, of the event loop's own transports or of Twisted's; TLS stands on either.

Decides how a socket is bound, which inherited one is fit to be served, what is done about a UNIX socket that a dead
process left, and how a failure reads. Never parses an address (addresses does), never reads a certificate
(certificates does), never serves anything.
"""

import ctypes
import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, TypeAlias

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import deferLater

from gatewayd.http.addresses import Address, CannotListen, Kind
from gatewayd.http.certificates import Certificate
from gatewayd.http.eager import EagerPort
from gatewayd.http.loopport import LoopPort
from gatewayd.http.tls import SecuredFactory

BACKLOG: Final = 1024
"""Connections that may wait for accept(); the kernel cuts it to net.core.somaxconn."""

INHERITED_BACKLOG: Final = 4096
"""The same for a socket of somebody else's, which must not come to hold fewer than before: systemd's default."""

_DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""BPF_RET | BPF_K with 0: a program of one instruction."""
_SO_ATTACH_FILTER: Final = 26
"""asm-generic/socket.h; Python's socket module has no name for it."""
_EMPTYING_TURN_S: Final = 0.005
_EMPTYING_TURNS: Final = 40

_FAMILIES: Final = {"INET": socket.AF_INET, "INET6": socket.AF_INET6, "UNIX": socket.AF_UNIX}
_PROBE_S: Final = 1.0
_REASONS: Final = {
    errno.EADDRINUSE: "is taken",
    errno.EACCES: "may not be bound by this user",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.ENOENT: "cannot be made: its directory does not exist",
}


Around: TypeAlias = Callable[[IProtocolFactory], IProtocolFactory]


def _alone(factory: IProtocolFactory) -> IProtocolFactory:
    return factory


def listen(
    reactor: Any,
    address: Address,
    factory: IProtocolFactory,
    tls: Certificate | None = None,
    loop: Any = None,
    *,
    around: Around = _alone,
) -> IListeningPort:
    """
    Listen at `address` and have `factory` build the protocols; raises CannotListen at once when that is impossible.

    A TCP address is served with `tls`, a TLS one too, in place of its own files as they are now. `loop` is the
    reactor's event loop, if it has one: its transports cost less. `around` makes the factory that sees a connection
    first, before TLS. Accepted TCP connections have TCP_NODELAY.
    """
    if address.kind is Kind.UNIX:
        return _listen_unix(reactor, address, factory, loop)
    if address.kind is Kind.TLS and tls is None:
        tls = Certificate(address.certificate, address.private_key, address.chain)
        tls.use(tls.load())
    factory = around(factory if tls is None else SecuredFactory(tls.context, factory))
    port: Any
    try:
        if loop is not None:
            port = LoopPort(loop, address.host, address.port, factory, BACKLOG)
            port.startListening()
        else:
            port = EagerPort(address.port, factory, BACKLOG, address.host, reactor)
            port.startListening()
            # Linux hands the option on to every accepted socket, which spares a system call for each.
            port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except CannotListenError as failed:
        raise _cannot_listen(address, failed.socketError) from None
    return port  # type: ignore[no-any-return]


def open_inherited(descriptors: Iterable[int], address: Address) -> list[socket.socket]:
    """
    The sockets of an INHERITED address among these descriptors: its domain's streams, one at least, all listening.

    Raises CannotListen. They are ours now, and no child gets them.
    """
    found: list[socket.socket] = []
    others: list[str] = []
    for descriptor in descriptors:
        try:
            opened = socket.socket(fileno=descriptor)
            opened.set_inheritable(False)
            listens = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise CannotListen(f"{address}: descriptor {descriptor} is no socket: {error.strerror}") from None
        if opened.family is not _FAMILIES[address.domain]:
            others.append(opened.family.name)
            opened.detach()  # it may be another address's
        elif opened.type is not socket.SOCK_STREAM or not listens:
            opened.detach()
            raise CannotListen(f"{address}: descriptor {descriptor} is no stream socket that listens")
        else:
            found.append(opened)
    if not found:
        raise CannotListen(f"{address}: the socket is not of this domain but {', '.join(others)}")
    return found


def serve_inherited(
    listening: socket.socket, factory: IProtocolFactory, tls: Certificate | None, loop: Any, *, around: Around = _alone
) -> IListeningPort:
    """Accept from now on what waits, and what comes, on a socket that listens already; UNIX ones are never TLS."""
    if listening.family is not socket.AF_UNIX:
        factory = around(factory if tls is None else SecuredFactory(tls.context, factory))
    port = LoopPort(loop, "", 0, factory, INHERITED_BACKLOG, listening=listening)
    port.startListening()
    return port


async def stop_listening(reactor: Any, port: IListeningPort) -> None:
    """
    Stop so that no connection is cut: one that is in the kernel's queue when a socket closes is reset.

    What wants to connect is dropped first, by a filter that returns 0 for every packet; its client tries again in a
    second (RFC 6298 2.1), and finds the next process or is refused; of a UNIX socket the path is removed. Then the
    queue is emptied, by the reactor.
    """
    listening: Any = getattr(port, "socket", None)
    if isinstance(port, _UnixPort) and port.remove_path():
        await _empty(reactor, listening)
    elif listening is not None and listening.family is not socket.AF_UNIX:
        drop = ctypes.create_string_buffer(_DROP_ALL)
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))
        await _empty(reactor, listening)
    await maybeDeferred(port.stopListening)


async def _empty(reactor: Any, listening: socket.socket) -> None:
    queue = select.poll()
    queue.register(listening, select.POLLIN)
    for _ in range(_EMPTYING_TURNS):
        await deferLater(reactor, _EMPTYING_TURN_S)
        if not queue.poll(0):
            break


def _listen_unix(reactor: Any, address: Address, factory: IProtocolFactory, loop: Any) -> IListeningPort:
    _remove_stale(address)
    if loop is not None:
        port = _UnixPort(loop, "", 0, factory, BACKLOG, listening=_bind_unix(address))
        port.startListening()
        return port
    _try_to_bind(address)
    umask = os.umask(0o777)
    # Bound without any permission and then given its own: nobody can connect in between. The reactor's thread is the
    # only one while listeners are made.
    try:
        mode = 0o777 & ~umask if address.mode is None else address.mode
        return reactor.listenUNIX(address.path, factory, backlog=BACKLOG, mode=mode)  # type: ignore[no-any-return]
    except CannotListenError as failed:
        raise _cannot_listen(address, failed.socketError) from None
    finally:
        os.umask(umask)


class _UnixPort(LoopPort):
    """A port whose path nobody else holds: it is removed at the end."""

    _file: os.stat_result | None = None

    def startListening(self) -> None:
        """Listen, and know the path again."""
        super().startListening()
        self._file = os.stat(self._path)

    def stopListening(self) -> Deferred[None] | None:
        """Remove the path, and stop."""
        self.remove_path()
        return super().stopListening()

    def remove_path(self) -> bool:
        """Remove the path so that nobody connects any more; False when that is done."""
        file, self._file = self._file, None
        if file is None:
            return False
        with suppress(OSError):
            if os.path.samestat(file, os.lstat(self._path)):  # else somebody else has put his own there
                os.unlink(self._path)
        return True

    @property
    def _path(self) -> str:
        name: Any = self.getHost()
        return os.fsdecode(name.name)


def _bind_unix(address: Address) -> socket.socket:
    """A socket at a path, as in _listen_unix: nobody can connect before it has its mode."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777)
    try:
        opened.bind(address.path)
        os.chmod(address.path, 0o777 & ~umask if address.mode is None else address.mode)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise _cannot_listen(address, error) from None
    finally:
        os.umask(umask)
    return opened


def _remove_stale(address: Address) -> None:
    """Remove the socket file of a process that is gone: connecting to it is refused. Nothing else is ever removed."""
    try:
        mode = os.lstat(address.path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{address} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
        except OSError:
            # Whatever else it is, somebody may be behind it: the bind says that it is taken.
            return


def _try_to_bind(address: Address) -> None:
    """Learn here why a path cannot be bound: Twisted's port leaves its socket open when it cannot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address.path)
        except OSError as error:
            raise _cannot_listen(address, error) from None
        os.unlink(address.path)


def _cannot_listen(address: Address, error: object) -> CannotListen:
    if isinstance(error, socket.gaierror):
        return CannotListen(f"{address} cannot be listened on: the host name is not known")
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        return CannotListen(f"{address} cannot be listened on: {error}")
    reason = _REASONS.get(number, f"cannot be listened on: {os.strerror(number)}")
    return CannotListen(f"{address} {reason} ({errno.errorcode.get(number, number)})")
