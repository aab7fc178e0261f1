"""
Listening: an Address becomes a port, of the event loop's own transports or of Twisted's TCP, TLS or UNIX ones.

Decides how a socket is bound, which inherited one is fit to be served, what is done about a UNIX socket that a dead
process left, and how a failure reads. Never parses an address (addresses does), never serves anything.
"""

import ctypes
import errno
import os
import re
import select
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from gatewayd.http.addresses import Address, Kind
from gatewayd.http.eager import EagerPort
from gatewayd.http.loopport import LoopPort

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
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_REASONS: Final = {
    errno.EADDRINUSE: "is taken",
    errno.EACCES: "may not be bound by this user",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.ENOENT: "cannot be made: its directory does not exist",
}


class CannotListen(Exception):
    """An address cannot be listened on; the text names it and says why, for people."""


def listen(
    reactor: Any, address: Address, factory: IProtocolFactory, tls: Any = None, loop: Any = None
) -> IListeningPort:
    """
    Listen at `address` and have `factory` build the protocols; raises CannotListen at once when that is impossible.

    `tls` is what load_tls gives, or a Certificate: a TCP address is served with it, a TLS one too, in place of its own
    files as they are now. `loop` is the reactor's event loop, if it has one: plain TCP is then served by its
    transports, which cost less. Accepted TCP connections have TCP_NODELAY.
    """
    if address.kind is Kind.UNIX:
        return _listen_unix(reactor, address, factory)
    if address.kind is Kind.TLS and tls is None:
        tls = load_tls(address.certificate, address.private_key, address.chain)
    if tls is not None:
        factory = _TLSFactory(tls, False, factory, clock=reactor)
    port: Any
    try:
        if loop is not None and tls is None:
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
    reactor: Any, listening: socket.socket, factory: IProtocolFactory, tls: Any, loop: Any
) -> IListeningPort:
    """Accept from now on what waits, and what comes, on a socket that listens already; UNIX ones are never TLS."""
    if tls is not None and listening.family is not socket.AF_UNIX:
        factory = _TLSFactory(tls, False, factory, clock=reactor)
    port = LoopPort(loop, "", 0, factory, INHERITED_BACKLOG, listening=listening)
    port.startListening()
    return port


async def stop_listening(reactor: Any, port: IListeningPort) -> None:
    """
    Stop so that no connection is cut: one that is in the kernel's queue when a socket closes is reset.

    What wants to connect is dropped first, by a filter that returns 0 for every packet; its client tries again in a
    second (RFC 6298 2.1), and finds the next process or is refused. Then the queue is emptied, by the reactor.
    """
    listening: Any = getattr(port, "socket", None)
    if listening is not None and listening.family is not socket.AF_UNIX:
        drop = ctypes.create_string_buffer(_DROP_ALL)
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))
        queue = select.poll()
        queue.register(listening, select.POLLIN)
        for _ in range(_EMPTYING_TURNS):
            await deferLater(reactor, _EMPTYING_TURN_S)
            if not queue.poll(0):
                break
    await maybeDeferred(port.stopListening)


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """
    The files of one certificate, of which `file` is the first, and the TLS that new connections get by it.

    Made without reading them; load() reads, use() puts in force, for the connections from then on.
    """

    def __init__(self, certificate: str, private_key: str, chain: str = "") -> None:
        self.file = certificate
        self._files = (certificate, private_key, chain)
        self._options: CertificateOptions | None = None

    def load(self) -> CertificateOptions:
        """What the files hold now; CannotListen names the one that cannot be used."""
        return load_tls(*self._files)

    def use(self, options: CertificateOptions) -> None:
        """Serve new connections with these; running ones keep theirs."""
        self._options = options

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """What Twisted asks for each new connection."""
        if self._options is None:
            raise RuntimeError("the certificate has not been read yet")
        return SSL.Connection(self._options.getContext(), None)


def load_tls(certificate: str, private_key: str, chain: str = "") -> CertificateOptions:
    """
    Read PEM files: the server's certificate (followed by its chain, or with it in a file of its own) and its key.

    Raises CannotListen naming the file that cannot be used; nothing of a key is ever in the text.
    """
    found = _CERTIFICATE.findall(_read(certificate))
    if not found:
        raise CannotListen(f"{certificate} has no PEM certificate")
    if chain:
        found += _CERTIFICATE.findall(_read(chain))
    try:
        own, *others = _load(found)
    except ValueError:
        raise CannotListen(f"{certificate} has no usable PEM certificate") from None
    try:
        key: Any = load_pem_private_key(_read(private_key), password=None)
        options = CertificateOptions(privateKey=key, certificate=own, extraCertChain=others)
        options.getContext()
    except (SSL.Error, ValueError, TypeError):
        # The exception's text is left out: it could quote the file.
        raise CannotListen(f"{private_key} is not the unencrypted PEM key of {certificate}") from None
    return options


class _TLSFactory(TLSMemoryBIOFactory):
    """TLS in front of a factory that may refuse a connection: Twisted's own would wrap the None."""

    def buildProtocol(self, addr: IAddress | None) -> TLSMemoryBIOProtocol | None:  # type: ignore[override] # None refuses
        """A TLS protocol around what the factory builds, None when it builds none."""
        inner: IProtocol | None = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


def _listen_unix(reactor: Any, address: Address, factory: IProtocolFactory) -> IListeningPort:
    _remove_stale(address)
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


def _load(certificates: list[bytes]) -> list[Any]:
    # CertificateOptions is annotated with pyOpenSSL's own types, which pyOpenSSL has deprecated in favour of these.
    return [x509.load_pem_x509_certificate(pem) for pem in certificates]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CannotListen(f"{path} cannot be read: {error.strerror}") from None
