"""Who signed a request: the header's form, and which secret made it."""

import hashlib
import hmac
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.ingress.signature import Signed, SigningKey, parse_signatures, sign, verify

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "webhook_signatures.json").read_text())
BOTH = frozenset({"v1", "sha256"})
SIGNED = Signed(b"1700000000", b"nonce-one", b"", b"{}")


def signed_of(vector: dict[str, str]) -> Signed:
    return Signed(
        vector.get("timestamp", "").encode(),
        vector.get("nonce", "").encode(),
        (vector.get("idempotency_key") or "").encode(),
        vector["body"].encode(),
    )


class VectorTests(SynchronousTestCase):
    """The published vectors."""

    def test_sign(self) -> None:
        """Signing gives the published value."""
        for vector in VECTORS:
            made = sign(vector["scheme"], vector["secret"].encode(), signed_of(vector))
            assert made.decode() == vector["signature"]

    def test_verify(self) -> None:
        """The published value is accepted under its scheme, in either case, and under no other."""
        for vector in VECTORS:
            key = SigningKey(vector["secret"].encode(), None, 1)
            word, _, value = vector["signature"].partition("=")
            for header in (vector["signature"], f"{word}={value.upper()}"):
                parsed = parse_signatures(header.encode())
                assert parsed is not None
                found = verify(parsed, [key], BOTH, signed_of(vector))
                assert found is not None
                assert found.scheme.name == vector["scheme"]
                assert verify(parsed, [key], BOTH - {vector["scheme"]}, signed_of(vector)) is None


class FormTests(SynchronousTestCase):
    """The form of X-Signature."""

    def test_other_forms(self) -> None:
        """Anything but one to five values of a known scheme with 64 hex digits is refused whole."""
        good = b"sha256=" + b"a" * 64
        for header in (
            b"",
            b"a" * 64,
            b"sha256=" + b"a" * 63,
            b"sha256=" + b"a" * 65,
            b"sha256=" + b"g" * 64,
            b"sha256= " + b"a" * 63,
            b"sha256=" + b"a" * 63 + b" ",
            b"sha256=" + "é".encode() * 32,
            b"sha512=" + b"a" * 64,
            b"SHA256=" + b"a" * 64,
            good + b",",
            b"," + good,
            good + b",v2=" + b"a" * 64,
            b",".join([good] * 6),
            good + b"\n",
            b"sha256=" + "\u0661".encode() * 64,
        ):
            assert parse_signatures(header) is None, header

    def test_list(self) -> None:
        """Up to five values, with or without a blank after the comma."""
        value = b"v1=" + b"A" * 64
        parsed = parse_signatures(b", ".join([value] * 4) + b",sha256=" + b"b" * 64)
        assert parsed == {b"v1": [b"\xaa" * 32] * 4, b"sha256": [b"\xbb" * 32]}

    @given(st.binary(max_size=200))
    def test_never_raises(self, header: bytes) -> None:
        """Any bytes are a header that parses or does not."""
        parsed = parse_signatures(header)
        assert parsed is None or all(len(v) == 32 for values in parsed.values() for v in values)


class KeyTests(SynchronousTestCase):
    """Which secret matched."""

    def test_any_active_secret(self) -> None:
        """Old and new secret both sign during a rotation; the one that matched is named by its number."""
        keys = [SigningKey(b"old-secret", None, 1), SigningKey(b"new-secret", None, 2)]
        for number, secret in ((1, b"old-secret"), (2, b"new-secret")):
            parsed = parse_signatures(sign("v1", secret, SIGNED))
            assert parsed is not None
            found = verify(parsed, keys, BOTH, SIGNED)
            assert found is not None
            assert found.key.number == number

    def test_one_good_value_among_others(self) -> None:
        """A sender that signs with several secrets needs one that is known here."""
        header = b",".join((sign("v1", b"unknown", SIGNED), sign("v1", b"known", SIGNED)))
        parsed = parse_signatures(header)
        assert parsed is not None
        assert verify(parsed, [SigningKey(b"known", None, 1)], BOTH, SIGNED) is not None

    def test_stronger_scheme_counts(self) -> None:
        """Signed both ways, the request counts as v1, which binds its headers."""
        header = b",".join((sign("sha256", b"k", SIGNED), sign("v1", b"k", SIGNED)))
        parsed = parse_signatures(header)
        assert parsed is not None
        found = verify(parsed, [SigningKey(b"k", None, 1)], BOTH, SIGNED)
        assert found is not None
        assert found.scheme.name == "v1"
        assert found.scheme.binds_headers

    def test_other_message(self) -> None:
        """v1 covers time, nonce, key and body: a change of any of them does not match."""
        parsed = parse_signatures(sign("v1", b"k", SIGNED))
        assert parsed is not None
        for other in (
            Signed(b"1700000001", SIGNED.nonce, b"", b"{}"),
            Signed(SIGNED.timestamp, b"nonce-two", b"", b"{}"),
            Signed(SIGNED.timestamp, SIGNED.nonce, b"k", b"{}"),
            Signed(SIGNED.timestamp, SIGNED.nonce, b"", b"{}\n"),
        ):
            assert verify(parsed, [SigningKey(b"k", None, 1)], BOTH, other) is None

    def test_wrong_secrets(self) -> None:
        """No other secret matches: neither an empty one nor the right one with a byte more or less."""
        parsed = parse_signatures(sign("v1", b"the-secret", SIGNED))
        assert parsed is not None
        for secret in (b"", b"the-secre", b"the-secret2", b"THE-SECRET"):
            assert verify(parsed, [SigningKey(secret, None, 1)], BOTH, SIGNED) is None

    @given(st.binary(min_size=1, max_size=100), st.binary(max_size=300))
    def test_is_hmac_sha256(self, secret: bytes, message: bytes) -> None:
        """The prepared key gives HMAC-SHA256, as often as it is used."""
        key = SigningKey(secret, None, 1)
        expected = hmac.new(secret, message, hashlib.sha256).digest()
        assert key.mac(message) == expected == key.mac(message)

    def test_secret_is_not_shown(self) -> None:
        """A key's text names its number only."""
        assert "s3cr3t" not in repr(SigningKey(b"s3cr3t", "custom", 1)) + str(SigningKey(b"s3cr3t", None, 1))
