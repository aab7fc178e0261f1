"""
Listening: an Address becomes a port, of the event loop's own transports or of Twisted's TCP, TLS or UNIX ones.

Decides how a socket is bound, what is done about a UNIX socket that a dead process left, and how a failure reads.
Never parses an address (addresses does), never serves anything.
"""

import errno
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IProtocolFactory
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

from gatewayd.http.addresses import Address, Kind
from gatewayd.http.eager import EagerPort
from gatewayd.http.loopport import LoopPort

BACKLOG: Final = 1024
"""Connections that may wait for accept(); the kernel cuts it to net.core.somaxconn."""

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

    `tls` is a context factory (see load_tls) that a TCP address is served with; an address that names its own key
    files needs none. `loop` is the reactor's event loop, if it has one: plain TCP is then served by its transports,
    which cost less. Accepted TCP connections have TCP_NODELAY.
    """
    if address.kind is Kind.UNIX:
        return _listen_unix(reactor, address, factory)
    if address.kind is Kind.TLS:
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
