"""What is signed, and which signatures are good."""

import base64
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.sessions.signing import event_input, fit_key, request_input, response_input, verify
from gatewayd.sessions.values import Envelope
from tests.edge_requests import private_key, request

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "edge_signatures.json").read_text())
KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["private_key_seed"]))
PUBLIC = base64.b64decode(VECTORS["public_key"])
HASH = bytes.fromhex(VECTORS["payload_hash"])
ORDER = 2**252 + 27742317777372353535851937790883648493

SMALL_ORDER = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000080",
)


def of_vector(kind: str) -> bytes:
    """The signing input that the vector's members give."""
    members: dict[str, Any] = VECTORS[kind]["members"]
    if kind == "request":
        return request_input(
            Envelope(**members, timestamp_ms=VECTORS["timestamp_ms"], payload=b"payload", payload_hash=HASH,
                     signature=b"", trace_id="")
        )  # fmt: skip
    made = response_input if kind == "response" else event_input
    return made(**members, timestamp_ms=VECTORS["timestamp_ms"], payload_hash=HASH)


class VectorTests(SynchronousTestCase):
    """The published vectors."""

    def test_inputs_and_signatures(self) -> None:
        """Each kind's bytes under the signature are the published ones, and so is the signature."""
        for kind in ("request", "response", "event"):
            signed = of_vector(kind)
            signature = base64.b64decode(VECTORS[kind]["signature"])
            assert signed.hex() == VECTORS[kind]["signed"], kind
            assert KEY.sign(signed) == signature
            assert verify(PUBLIC, signature, signed)

    def test_no_kind_stands_for_another(self) -> None:
        """A signature of one kind is none of another."""
        for kind in ("request", "response", "event"):
            signature = base64.b64decode(VECTORS[kind]["signature"])
            for other in {"request", "response", "event"} - {kind}:
                assert not verify(PUBLIC, signature, of_vector(other))


class InputTests(SynchronousTestCase):
    """One input for each request."""

    @given(st.lists(st.text(st.characters(codec="ascii"), max_size=300), min_size=4, max_size=4))
    def test_lengths(self, texts: list[str]) -> None:
        """Whatever the members hold, their lengths keep them apart: read back, the input is the members."""
        version, name, message_type, request_id = texts
        envelope = Envelope(version, name, message_type, 7, request_id, b"", bytes(32), b"", "")
        rest = request_input(envelope)
        found: list[bytes] = []
        for part in ("lp", "lp", "lp", "lp", "be64", "lp", "lp"):
            size, shift, at = (8, 0, 0) if part == "be64" else (0, 0, 0)
            while part == "lp":
                size |= (rest[at] & 0x7F) << shift
                shift, at = shift + 7, at + 1
                if rest[at - 1] < 0x80:
                    break
            found.append(rest[at : at + size])
            rest = rest[at + size :]
        assert rest == b""
        assert found[1:4] == [version.encode(), name.encode(), message_type.encode()]
        assert found[4:] == [(7).to_bytes(8, "big"), request_id.encode(), bytes(32)]

    def test_every_signed_member_counts(self) -> None:
        """Any other value of a signed member breaks the signature; trace_id and the payload itself are not signed."""
        envelope = request()
        public = private_key().public_key().public_bytes_raw()
        changed: dict[str, Any] = {
            "protocol_version": "v2",
            "device_session_id": "device-session-2",
            "message_type": "user.commanD",
            "timestamp_ms": envelope.timestamp_ms + 1,
            "request_id": "request-2",
            "payload_hash": bytes(32),
        }
        for name, value in changed.items():
            assert not verify(public, envelope.signature, request_input(replace(envelope, **{name: value}))), name
        for name, free in {"trace_id": "another", "payload": b"another"}.items():
            assert verify(public, envelope.signature, request_input(replace(envelope, **{name: free}))), name


class SignatureTests(SynchronousTestCase):
    """Signatures that are almost good."""

    def setUp(self) -> None:
        self.signed = b"message"
        self.signature = KEY.sign(self.signed)

    def test_any_bit(self) -> None:
        """A signature with any other bit is none."""
        for bit in range(512):
            wrong = bytearray(self.signature)
            wrong[bit // 8] ^= 1 << bit % 8
            assert not verify(PUBLIC, bytes(wrong), self.signed), bit

    def test_lengths(self) -> None:
        """A signature, or a key, of another length is none."""
        for wrong in (b"", self.signature[:63], self.signature + b"\0", self.signature[:32], self.signature * 2):
            assert not verify(PUBLIC, wrong, self.signed)
        for key in (b"", PUBLIC[:31], PUBLIC + b"\0"):
            assert not verify(key, self.signature, self.signed)

    def test_malleated(self) -> None:
        """S plus the group's order is the same number to the curve, and refused: a signature has one spelling."""
        s = int.from_bytes(self.signature[32:], "little")
        for times in range(1, 15):
            if s + times * ORDER < 2**256:
                wrong = self.signature[:32] + (s + times * ORDER).to_bytes(32, "little")
                assert not verify(PUBLIC, wrong, self.signed)

    def test_small_order_keys(self) -> None:
        """
        A key of small order, in any spelling, is not fit: under each of them there are signatures that anybody can
        make, which is shown here.
        """
        for text in SMALL_ORDER:
            key = bytes.fromhex(text)
            assert not fit_key(key), text
        anybody = bytes.fromhex(SMALL_ORDER[1]) + bytes(32)
        assert verify(bytes.fromhex(SMALL_ORDER[1]), anybody, b"whatever was asked for")

    def test_other_keys(self) -> None:
        """A key of another length or with y outside of the field is not fit; those that are made are."""
        for wrong in (b"", bytes(31), bytes(33), b"\xff" * 32):
            assert not fit_key(wrong)
        for seed in range(1, 200):
            assert fit_key(private_key(seed).public_key().public_bytes_raw())

    def test_no_point_of_the_curve(self) -> None:
        """Under bytes that are no point nothing is good."""
        assert not verify(b"\2" + bytes(31), self.signature, self.signed)
