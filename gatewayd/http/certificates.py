"""
The certificates that listeners show: PEM files become a TLS context, also anew while connections come.

Decides which versions and protocols are spoken and which files can be used together. Never shows anything of a key:
errors name files only.
"""

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from gatewayd.http.addresses import CannotListen

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files hold: the server's own certificate, those of its chain, and the context made of them."""

    own: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    context: ssl.SSLContext


class Certificate:
    """
    The files of one certificate, of which `file` is the first, and the TLS that new connections get by it.

    Made without reading them; load() reads, use() puts in force, for the connections from then on. `protocol` is what
    ALPN offers (RFC 7301): one name of IANA's.
    """

    def __init__(self, certificate: str, private_key: str, chain: str = "", *, protocol: str = "http/1.1") -> None:
        self.file = certificate
        self._files = (certificate, private_key, chain)
        self._protocol = protocol
        self._loaded: Loaded | None = None

    def load(self) -> Loaded:
        """What the files hold now; CannotListen names the one that cannot be used."""
        return load_tls(*self._files, protocol=self._protocol)

    def use(self, loaded: Loaded) -> None:
        """Serve new connections with these; running ones keep theirs."""
        self._loaded = loaded

    def context(self) -> ssl.SSLContext:
        """That of a connection made now."""
        if self._loaded is None:
            raise RuntimeError("the certificate has not been read yet")
        return self._loaded.context


def load_tls(certificate: str, private_key: str, chain: str = "", *, protocol: str = "http/1.1") -> Loaded:
    """
    Read PEM files: the server's certificate (followed by its chain, or with it in a file of its own) and its key.

    Each is read once, so that a context is never made of two halves of a renewal. Raises CannotListen naming the file
    that cannot be used; nothing of a key is ever in the text.
    """
    found = _CERTIFICATE.findall(_read(certificate))
    if not found:
        raise CannotListen(f"{certificate} has no PEM certificate")
    if chain:
        found += _CERTIFICATE.findall(_read(chain))
    try:
        own, *others = (x509.load_pem_x509_certificate(pem) for pem in found)
    except ValueError:
        raise CannotListen(f"{certificate} has no usable PEM certificate") from None
    key = _read(private_key)
    try:
        load_pem_private_key(key, password=None)  # OpenSSL would ask the terminal for a password
        context = _make_context(b"".join(one.public_bytes(Encoding.PEM) for one in (own, *others)), key, protocol)
    except (ssl.SSLError, ValueError, TypeError):
        # The exception's text is left out: it could quote the file.
        raise CannotListen(f"{private_key} is not the unencrypted PEM key of {certificate}") from None
    return Loaded(own, tuple(others), context)


def _make_context(certificates: bytes, key: bytes, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could have the server's dear half of a handshake done again and again on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([protocol])
    with _as_file(certificates) as certificates_path, _as_file(key) as key_path:
        context.load_cert_chain(certificates_path, key_path)
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path to read it from: OpenSSL takes nothing else, and a key must not be written to a disk."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CannotListen(f"{path} cannot be read: {error.strerror}") from None
