"""
The gateway's own keys: what answers and events are signed with, and what the world verifies them with.

Decides which files are fit to sign with, which public keys are published, and what replaces them on a reload. Never
shows anything of a private key: errors name files only.

A rotation: the new key's file in the place of the old one, the old key (its public half is enough) in the file of
GATEWAY_RESPONSE_SIGNER_PREVIOUS_KEY_PEM_PATH, SIGHUP. Without the latter the old key is still published, but only until
the process ends.
"""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from os import fstat
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from gatewayd.lifecycle import StartFailed
from gatewayd.sessions.encodings import write_base64url
from gatewayd.sessions.signing import key_id

KEY_SETTING: Final = "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH"
PREVIOUS_SETTING: Final = "GATEWAY_RESPONSE_SIGNER_PREVIOUS_KEY_PEM_PATH"
_MAX_FILE_BYTES: Final = 65_536
_PKCS8: Final = b"-----BEGIN PRIVATE KEY-----"
_ENCRYPTED: Final = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"ENCRYPTED")
_PUBLIC: Final = b"-----BEGIN PUBLIC KEY-----"
_MAKE_ONE: Final = "`openssl genpkey -algorithm ed25519` makes one"


@dataclass(frozen=True, slots=True)
class LoadedKeys:
    """What the files hold: the key to sign with, the previous public key where one is set, and what to warn of."""

    current: Ed25519PrivateKey
    previous: bytes | None
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<LoadedKeys {key_id(self.current.public_key().public_bytes_raw())}>"


def load_keys(path: str, previous_path: str = "") -> LoadedKeys:
    """Read the files. StartFailed says in one line which setting's file cannot be used, and why."""
    pem, mode = _read(KEY_SETTING, path)
    current = _private_key(KEY_SETTING, path, pem)
    warnings: tuple[str, ...] = ()
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings = (f"{KEY_SETTING}: {path} can be read by its group or by everybody; chmod 600 it",)
    if not previous_path:
        return LoadedKeys(current, None, warnings)
    pem, _ = _read(PREVIOUS_SETTING, previous_path)
    return LoadedKeys(current, _public_key(PREVIOUS_SETTING, previous_path, pem), warnings)


def _read(setting: str, path: str) -> tuple[bytes, int]:
    """A file's bytes and its mode."""
    try:
        if not Path(path).is_file():  # reading a pipe would wait for its writer
            Path(path).stat()
            raise StartFailed(f"{setting}: {path} is not a file")
        with Path(path).open("rb") as file:
            content, mode = file.read(_MAX_FILE_BYTES + 1), fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        raise StartFailed(f"{setting}: {path} cannot be read: {getattr(error, 'strerror', '')}") from None
    if not content.strip():
        raise StartFailed(f"{setting}: {path} is empty")
    if len(content) > _MAX_FILE_BYTES:
        raise StartFailed(f"{setting}: {path} is larger than any key")
    return content, mode


def _private_key(setting: str, path: str, pem: bytes) -> Ed25519PrivateKey:
    if any(mark in pem for mark in _ENCRYPTED):
        raise StartFailed(f"{setting}: {path} is encrypted; an unencrypted PKCS#8 PEM key is needed")
    if _PKCS8 not in pem:
        what = "holds a public key" if _PUBLIC in pem else "is not PKCS#8 PEM"
        raise StartFailed(f"{setting}: {path} {what}; an Ed25519 private key in PKCS#8 PEM is needed: {_MAKE_ONE}")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The exception's text is left out: it could quote the file.
        raise StartFailed(f"{setting}: {path} has no usable PKCS#8 PEM key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StartFailed(f"{setting}: {path} holds a key of another kind, not Ed25519: {_MAKE_ONE}")
    return key


def _public_key(setting: str, path: str, pem: bytes) -> bytes:
    """The public half of either kind of file."""
    if _PUBLIC not in pem:
        return _private_key(setting, path, pem).public_key().public_bytes_raw()
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise StartFailed(f"{setting}: {path} has no usable PEM key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise StartFailed(f"{setting}: {path} holds a key of another kind, not Ed25519")
    return key.public_bytes_raw()


class SigningKeys:
    """
    The keys in force. Made without reading them; load() reads, use() puts in force.

    Published are the current key, the one that it replaced in this process, and that of the previous key's file: at
    most three, for clients hold answers and events that each of them signed.
    """

    def __init__(self, path: str, previous_path: str = "") -> None:
        self._paths = (path, previous_path)
        self._current: Ed25519PrivateKey | None = None
        self._replaced: bytes | None = None
        self._public: tuple[bytes, ...] = ()
        self._document = b""
        self.warnings: tuple[str, ...] = ()

    def load(self) -> LoadedKeys:
        """What the files hold now; StartFailed names the one that cannot be used."""
        return load_keys(*self._paths)

    def use(self, loaded: LoadedKeys) -> None:
        """Sign with these from now on."""
        public = loaded.current.public_key().public_bytes_raw()
        if self._public and self._public[0] != public:
            self._replaced = self._public[0]
        wanted = [public, self._replaced, loaded.previous]
        self._public = tuple(dict.fromkeys(key for key in wanted if key is not None))
        self._current = loaded.current
        self._document = _document(self._public)
        self.warnings = loaded.warnings

    def sign(self, data: bytes) -> bytes:
        """The gateway's signature, 64 bytes: 60 us (measured)."""
        if self._current is None:
            raise RuntimeError("the keys have not been read yet")
        return self._current.sign(data)

    def document(self) -> bytes:
        """
        What /.well-known/gatewayd/keys serves: a JWK set (RFC 7517, RFC 8037), the key in force first. `kid` is key_id;
        `status` is current or previous. WebCrypto imports each member as it is.
        """
        return self._document

    def __repr__(self) -> str:
        return f"<SigningKeys {', '.join(key_id(key) for key in self._public)}>"


def _document(public_keys: Sequence[bytes]) -> bytes:
    return msgspec.json.encode(
        {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "x": write_base64url(key),
                    "kid": key_id(key),
                    "use": "sig",
                    "status": "previous" if number else "current",
                }
                for number, key in enumerate(public_keys)
            ]
        }
    )
