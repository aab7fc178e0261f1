"""The gateway's own keys: files, rotation, and what is published."""

import base64
import hashlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.lifecycle import StartFailed
from gatewayd.sessions.keys import KEY_SETTING, PREVIOUS_SETTING, LoadedKeys, SigningKeys, load_keys
from gatewayd.sessions.signing import key_id, verify
from tests.edge_requests import private_key

PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
OPENSSL_STYLE = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def pem(seed: int = 1) -> bytes:
    """A private key's file."""
    return private_key(seed).private_bytes(*PKCS8)


def public_pem(seed: int) -> bytes:
    """A public key's file."""
    return private_key(seed).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def raw(seed: int) -> bytes:
    """A public key."""
    return private_key(seed).public_key().public_bytes_raw()


class World(SynchronousTestCase):
    """A directory with key files."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)
        self.path = self.root / "signer.pem"
        self.previous = self.root / "previous.pem"
        self.write(pem())

    def write(self, content: bytes, path: Path | None = None, mode: int = 0o600) -> None:
        path = path or self.path
        path.write_bytes(content)
        path.chmod(mode)

    def refused(self, path: str | Path | None = None, previous: str | Path = "") -> str:
        """The line that a start fails with."""
        with self.assertRaises(StartFailed) as caught:
            load_keys(str(path or self.path), str(previous))
        text = str(caught.exception)
        self.assertNotIn("\n", text)
        return text


class Fitness(World):
    """Which files are fit."""

    def test_fit(self) -> None:
        """A PKCS#8 PEM Ed25519 key, also behind other text."""
        for content in (pem(), b"# made in January\n" + pem()):
            self.write(content)
            loaded = load_keys(str(self.path))
            self.assertEqual(loaded.current.public_key().public_bytes_raw(), raw(1))
            self.assertEqual((loaded.previous, loaded.warnings), (None, ()))

    def test_unfit(self) -> None:
        """Every other file is named with its setting and what is wrong with it, in one line, and not shown."""
        curve = ec.generate_private_key(ec.SECP256R1())
        modulus = rsa.generate_private_key(65537, 2048)
        secret = Ed25519PrivateKey.generate()
        cases: dict[str, tuple[bytes, ...]] = {
            "is empty": (b"", b"\n \n"),
            "is encrypted": (
                secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
                modulus.private_bytes(
                    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"password")
                ),
            ),
            "another kind": (
                curve.private_bytes(*PKCS8),
                modulus.private_bytes(*PKCS8),
                X25519PrivateKey.generate().private_bytes(*PKCS8),
            ),
            "is not PKCS#8 PEM": (
                curve.private_bytes(*OPENSSL_STYLE),
                secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
                secret.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                secret.private_bytes_raw(),
                b"canary",
            ),
            "holds a public key": (public_pem(1),),
            "no usable": (pem().replace(b"MC4", b"MC5"), pem()[:60] + b"\n-----END PRIVATE KEY-----\n"),
            "larger than any key": (pem() + b"#" * 70_000,),
        }
        for what, contents in cases.items():
            for content in contents:
                self.write(content)
                text = self.refused()
                self.assertTrue(text.startswith(f"{KEY_SETTING}: {self.path} "), text)
                self.assertIn(what, text)
                self.assertNotIn("canary", text)
                self.assertNotIn(base64.b64encode(secret.private_bytes_raw()).decode(), text)

    def test_unreadable(self) -> None:
        """A file that is not there, a directory and a pipe are told apart; a pipe without a writer blocks nobody."""
        self.assertIn("cannot be read: No such file", self.refused(self.root / "none"))
        self.assertIn("is not a file", self.refused(self.root))
        pipe = self.root / "pipe"
        os.mkfifo(pipe)
        self.assertIn("is not a file", self.refused(pipe))
        self.assertIn("cannot be read", self.refused("a\0b"))

    def test_mode(self) -> None:
        """A key that others can read is used, with a warning that names it."""
        for mode, warns in (
            (0o600, False),
            (0o400, False),
            (0o640, True),
            (0o604, True),
            (0o444, True),
            (0o620, False),
        ):
            self.write(pem(), mode=mode)
            warnings = load_keys(str(self.path)).warnings
            self.assertEqual(len(warnings), int(warns), oct(mode))
            self.assertTrue(all(KEY_SETTING in warning and str(self.path) in warning for warning in warnings))

    def test_previous(self) -> None:
        """The previous key's file may hold either half; it need not be kept from anybody."""
        for content in (pem(2), public_pem(2)):
            self.write(content, self.previous, 0o644)
            loaded = load_keys(str(self.path), str(self.previous))
            self.assertEqual((loaded.previous, loaded.warnings), (raw(2), ()))
        curve = ec.generate_private_key(ec.SECP256R1()).public_key()
        for content in (b"", b"canary", curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
            self.write(content, self.previous)
            self.assertTrue(self.refused(previous=self.previous).startswith(f"{PREVIOUS_SETTING}: {self.previous} "))

    def test_repr(self) -> None:
        """Nothing of a private key is in a repr."""
        keys = SigningKeys(str(self.path))
        keys.use(keys.load())
        self.assertEqual(repr(keys), f"<SigningKeys {key_id(raw(1))}>")
        self.assertEqual(repr(keys.load()), f"<LoadedKeys {key_id(raw(1))}>")


class RotationTests(World):
    """What is signed with and published, over reloads."""

    def published(self, keys: SigningKeys) -> list[tuple[bytes, str]]:
        """The public keys of the document, each with its status."""
        found = []
        for key in json.loads(keys.document())["keys"]:
            public = base64.urlsafe_b64decode(key["x"] + "=")
            self.assertEqual((key["kty"], key["crv"], key["use"]), ("OKP", "Ed25519", "sig"))
            self.assertEqual(key["kid"], hashlib.sha256(public).hexdigest()[:16])
            found.append((public, key["status"]))
        return found

    def test_rotation(self) -> None:
        """After a reload the new key signs, and the old one stays published beside it; a third pushes it out."""
        keys = SigningKeys(str(self.path))
        keys.use(keys.load())
        self.assertEqual(self.published(keys), [(raw(1), "current")])
        self.write(pem(2))
        loaded: LoadedKeys = keys.load()
        self.assertTrue(verify(raw(1), keys.sign(b"x"), b"x"))
        keys.use(loaded)
        self.assertTrue(verify(raw(2), keys.sign(b"x"), b"x"))
        self.assertEqual(self.published(keys), [(raw(2), "current"), (raw(1), "previous")])
        keys.use(keys.load())
        self.assertEqual(self.published(keys), [(raw(2), "current"), (raw(1), "previous")])
        self.write(pem(3))
        keys.use(keys.load())
        self.assertEqual(self.published(keys), [(raw(3), "current"), (raw(2), "previous")])

    def test_restart(self) -> None:
        """The previous key's file keeps it published beyond a restart, once, whatever the reloads before."""
        keys = SigningKeys(str(self.path), str(self.previous))
        self.write(pem(1), self.previous)
        keys.use(keys.load())
        self.assertEqual(self.published(keys), [(raw(1), "current")])
        self.write(pem(2))
        keys.use(keys.load())
        again = SigningKeys(str(self.path), str(self.previous))
        again.use(again.load())
        self.assertEqual(self.published(keys), [(raw(2), "current"), (raw(1), "previous")])
        self.assertEqual(self.published(again), self.published(keys))

    def test_failed_reload(self) -> None:
        """A file that cannot be used changes nothing."""
        keys = SigningKeys(str(self.path))
        keys.use(keys.load())
        self.write(b"")
        self.assertRaises(StartFailed, keys.load)
        self.assertTrue(verify(raw(1), keys.sign(b"x"), b"x"))
