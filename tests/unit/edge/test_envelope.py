"""Envelopes in both encodings: their forms, their bounds, and what is said of the others."""

import json
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.schemas.edge_v1_pb2 import ExecuteCommandRequest, ExecuteCommandResponse, SubscribeEventsRequest
from gatewayd.sessions.encodings import read_base64, read_base64url, write_base64, write_base64url
from gatewayd.sessions.endings import INVALID_ARGUMENT, Ending
from gatewayd.sessions.envelope import (
    MAX_PAYLOAD_BYTES,
    NOT_JSON,
    NOT_PROTOBUF,
    read_json,
    read_protobuf,
    write_json,
    write_protobuf,
)
from gatewayd.sessions.values import Envelope, Reply
from tests.edge_requests import as_json, as_protobuf, base64url, members, request

pytest_plugins = ("tests.reporting",)

REPLY = Reply("v1", "request-1", 1_700_000_000_000, "ok", b"\x00\xffanswer", b"h" * 32, b"s" * 64)
IDS = ("protocol_version", "device_session_id", "message_type", "request_id")
WRONG_TEXTS = ("", " ", "two words", "tab\t", "line\n", "nul\0", "\x7f", "é", "\u202e", "x" * 513)
RAW_NAMES = {"payload": "payload_bytes"}


def said(outcome: Envelope | Ending) -> str:
    """What was said of a malformed one."""
    assert isinstance(outcome, Ending), outcome
    assert outcome.grpc_status == INVALID_ARGUMENT
    return outcome.message


class BothEncodings(SynchronousTestCase):
    """What holds for protobuf and for JSON alike."""

    ways: tuple[tuple[Callable[[Envelope], bytes], Callable[[bytes], Envelope | Ending]], ...] = (
        (as_protobuf, read_protobuf),
        (as_json, read_json),
    )

    def test_round_trip(self) -> None:
        """Every member arrives as it was sent; payload and trace_id may be empty."""
        for envelope in (
            request(),
            request(payload=b"", trace_id=""),
            request(payload=bytes(range(256)), message_type="m" * 512, request_id="!" * 128, trace_id="~" * 128),
            request(at_ms=2**63 - 1),
        ):
            for write, read in self.ways:
                self.assertEqual(read(write(envelope)), envelope)

    def test_texts(self) -> None:
        """An id is 1 to 128 printable ASCII characters without blanks, a message type to 512; the member is named."""
        for write, read in self.ways:
            for name in IDS:
                for wrong in WRONG_TEXTS:
                    message = said(read(write(request(**{name: wrong}))))
                    self.assertEqual(message, f"{name} is missing or malformed")
            for name in ("device_session_id", "request_id", "protocol_version", "trace_id"):
                self.assertIn(name, said(read(write(request(**{name: "x" * 129})))))

    def test_numbers_and_bytes(self) -> None:
        """A time is above 0, a hash has 32 bytes, a signature 64."""
        for write, read in self.ways:
            for at_ms in (0, -1, -(2**63)):
                self.assertEqual(said(read(write(request(at_ms=at_ms)))), "timestamp_ms is missing or malformed")
            for size in (0, 31, 33, 64):
                self.assertIn("payload_hash", said(read(write(request(payload_hash=bytes(size))))))
            for size in (0, 32, 63, 65):
                envelope = Envelope(**{**asdict(request()), "signature": bytes(size)})
                self.assertIn("signature", said(read(write(envelope))))

    def test_payload(self) -> None:
        """4 MiB of payload are taken, a byte more is not."""
        for write, read in self.ways:
            self.assertIsInstance(read(write(request(payload=bytes(MAX_PAYLOAD_BYTES)))), Envelope)
            self.assertIn("payload_bytes", said(read(write(request(payload=bytes(MAX_PAYLOAD_BYTES + 1))))))

    def test_first_member_is_named(self) -> None:
        """Of several members that are wrong the first one in the message's order is named."""
        for write, read in self.ways:
            self.assertIn("protocol_version", said(read(write(Envelope("", "", "", 0, "", b"", b"", b"", "é")))))

    def test_nothing_is_echoed(self) -> None:
        """Nothing that was sent stands in what is said."""
        for write, read in self.ways:
            self.assertNotIn("canary", said(read(write(request(device_session_id="canary canary")))))


class Protobuf(SynchronousTestCase):
    """The message on gRPC."""

    def test_both_requests_are_one(self) -> None:
        """SubscribeEventsRequest and ExecuteCommandRequest have the same members under the same numbers."""
        for name, field in ExecuteCommandRequest.DESCRIPTOR.fields_by_name.items():
            other = SubscribeEventsRequest.DESCRIPTOR.fields_by_name[name]
            self.assertEqual((field.number, field.type), (other.number, other.type))
        self.assertEqual(len(SubscribeEventsRequest.DESCRIPTOR.fields), 9)

    def test_garbage(self) -> None:
        """What is no such message is told so: cut off, wrong wire types, invalid UTF-8, groups 1,000 deep."""
        whole = as_protobuf(request())
        for wrong in (b"\xff", whole[:-1], b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x9b\x06" * 1000, b"not protobuf"):
            self.assertEqual(read_protobuf(wrong), NOT_PROTOBUF)

    def test_unknown_members(self) -> None:
        """A member of a later version is ignored."""
        self.assertEqual(read_protobuf(as_protobuf(request()) + b"\xfa\x3e\x03new"), request())

    @given(st.binary(max_size=300))
    def test_any_bytes(self, message: bytes) -> None:
        """Whatever comes, there is an answer."""
        self.assertIsInstance(read_protobuf(message), Envelope | Ending)

    def test_reply(self) -> None:
        """A reply's message has its members."""
        read = ExecuteCommandResponse.FromString(write_protobuf(REPLY))
        self.assertEqual(
            (read.protocol_version, read.request_id, read.timestamp_ms, read.result_code),
            ("v1", "request-1", 1_700_000_000_000, "ok"),
        )
        self.assertEqual(
            (read.payload_bytes, read.payload_hash, read.signature), (b"\x00\xffanswer", b"h" * 32, b"s" * 64)
        )


class Json(SynchronousTestCase):
    """The text on WebSocket and SSE."""

    def changed(self, **others: Any) -> Envelope | Ending:
        """The answer to a good envelope with other members."""
        return read_json(json.dumps({**members(request()), **others}))

    def test_text_and_bytes(self) -> None:
        """A text may come decoded."""
        self.assertEqual(read_json(as_json(request()).decode()), request())

    def test_no_object(self) -> None:
        """What is no strict JSON object is told so, without where."""
        for wrong in (b"", b"[]", b"1", b"null", b'"x"', b"{", b'{"a":1,"a":1}', b"\xff", b'{"a":NaN}', b"{" * 100):
            self.assertEqual(read_json(wrong), NOT_JSON)

    def test_types(self) -> None:
        """A member of another type is refused by its name; null counts as left out; unknown members are ignored."""
        for name in (*members(request()),):
            for wrong in (True, [], {}, 1.5):
                self.assertIn(name, said(self.changed(**{name: wrong})))
            outcome = self.changed(**{name: None})
            if name in ("payload_bytes", "trace_id"):
                self.assertIsInstance(outcome, Envelope)
            else:
                self.assertIn(name, said(outcome))
        self.assertEqual(self.changed(kind="command", later={"a": []}), request())

    def test_time_is_a_whole_number(self) -> None:
        """Neither a fraction, an exponent, a sign, a leading zero nor a string is a time; nor are 400 digits."""
        text = as_json(request()).decode()
        for wrong in ("1.7e12", "1700000000000.0", "-1", "0", '"1700000000000"', "9" * 400, "9223372036854775808"):
            self.assertIn("timestamp_ms", said(read_json(text.replace("1700000000000", wrong))))

    def test_base64url(self) -> None:
        """One spelling: no padding, no other alphabet, no blanks, no unused bits."""
        for wrong in ("cGF5bG9hZA==", "cGF5bG9hZ", "cGF5 bG9hZA", "cGF5bG9hZB", "+/+/", "cGF5bG9hZA\n", "é", "A"):
            self.assertIn("payload_bytes", said(self.changed(payload_bytes=wrong)))

    @given(st.binary(max_size=80))
    def test_spellings(self, value: bytes) -> None:
        """What is written is read, and nothing else is."""
        self.assertEqual(read_base64url(write_base64url(value)), value)
        self.assertEqual(read_base64(write_base64(value)), value)
        if len(value) % 3:
            self.assertIsNone(read_base64(write_base64url(value)))
            self.assertIsNone(read_base64url(write_base64(value)))

    def test_reply(self) -> None:
        """A reply's text has its members, bytes in base64url."""
        self.assertEqual(
            json.loads(write_json(REPLY)),
            {
                "protocol_version": "v1",
                "request_id": "request-1",
                "timestamp_ms": 1_700_000_000_000,
                "result_code": "ok",
                "payload_bytes": base64url(REPLY.payload),
                "payload_hash": base64url(REPLY.payload_hash),
                "signature": base64url(REPLY.signature),
            },
        )


def test_generated_code(not_run: Callable[[str], None]) -> None:
    """The committed protobuf code is what the .proto file gives today."""
    if find_spec("grpc_tools") is None:
        not_run("grpcio-tools is not installed")
        return
    from grpc_tools import protoc

    schemas = Path(str(files("gatewayd.schemas").joinpath("")))
    with TemporaryDirectory() as made:
        arguments = [f"-I{schemas}", f"--python_out={made}", f"--pyi_out={made}", str(schemas / "edge_v1.proto")]
        assert protoc.main(["protoc", *arguments]) == 0
        for name in ("edge_v1_pb2.py", "edge_v1_pb2.pyi"):
            assert generated(Path(made) / name) == generated(schemas / name), name


def generated(path: Path) -> list[str]:
    """The lines that the schema decides: not those on the generator's own version, nor what a linter is told."""
    lines = [line.partition("  # noqa")[0].rstrip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
