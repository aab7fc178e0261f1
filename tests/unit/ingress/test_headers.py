"""The forms of a webhook's headers, and the window."""

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.errors import Refused
from gatewayd.http.message import Request
from gatewayd.ingress.headers import Stamp, read_headers, refuse_media_type
from gatewayd.times import Wall, format_wall

NOW = Wall(1_700_000_000.7)
SIGNATURE = b"v1=" + b"a" * 64


def request(repeated: dict[bytes, list[bytes]] | None = None, **headers: bytes | None) -> Request:
    """A request with good headers but for those given (underscores for dashes; None leaves one out)."""
    lines: dict[bytes, bytes | None] = {
        b"content-type": b"application/json",
        b"x-signature": SIGNATURE,
        b"x-timestamp": b"1700000000",
        b"x-nonce": b"nonce-one",
    }
    lines.update({name.replace("_", "-").encode(): value for name, value in headers.items()})
    kept = {name: value for name, value in lines.items() if value is not None}
    return Request(b"POST", b"/webhook/custom", kept, repeated=repeated, received_wall=NOW)


def read(made: Request) -> Stamp | Refused:
    return read_headers(made, 300.0, 30.0)


class HeaderTests(SynchronousTestCase):
    """Accepted and refused forms, in the published order."""

    def refused(self, made: Request, code: str, **details: object) -> None:
        found = read(made)
        assert isinstance(found, Refused), found
        assert found.code == code, found
        assert {key: found.details[key] for key in details} == details

    def test_good(self) -> None:
        """A good request gives its texts verbatim."""
        stamp = read(request(idempotency_key=b"order-17", x_correlation_id=b"abc_1", x_api_version=b"1.0"))
        assert isinstance(stamp, Stamp)
        assert (stamp.timestamp, stamp.nonce, stamp.key) == (b"1700000000", b"nonce-one", b"order-17")
        assert stamp.client_corr_id == "abc_1"

    def test_timestamp_edges(self) -> None:
        """300 s back and 30 s ahead are inside, one second more is not, in both forms."""
        for seconds, inside in ((0, True), (-300, True), (30, True), (-301, False), (31, False)):
            instant = int(NOW) + seconds
            for text in (str(instant), format_wall(instant), format_wall(instant).replace(".000Z", "+00:00")):
                found = read(request(x_timestamp=text.encode()))
                assert isinstance(found, Stamp) is inside, (seconds, text)
        found = read(request(x_timestamp=b"1699999699"))
        assert isinstance(found, Refused)
        assert found.details["reason"] == "timestamp_too_old"
        assert found.details["clock_skew_ms"] == -301700

    def test_timestamp_forms(self) -> None:
        """What Python's own parsers would take, and what RFC 3339 does not allow, is malformed and not shown."""
        for text in (
            b"nan",
            b"inf",
            b"-inf",
            b"1e999",
            b"1_700_000_000",
            b"+1700000000",
            b" 1700000000",
            "\u0661\u0667\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660".encode(),
            b"0x6553f100",
            b"2023-11-14T22:13:20",
            b"2023-11-14",
            b"2023-W46-2",
            b"2023-11-14T22:13:20+23:59",
            b"2023-11-14T22:13:20,5Z",
            b"2023-11-14T22:13:20.123456789Z",
            b"0001-01-01T00:00:00+14:00",
            b"9999-12-31T23:59:59-14:00",
            b"2023-11-14T22:13:20 Z",
            b"",
            b"1700000000.5",
        ):
            self.refused(request(x_timestamp=text), "GW-002", reason="timestamp_malformed")

    def test_lower_case_letters_of_rfc3339(self) -> None:
        """RFC 3339 allows t and z."""
        assert isinstance(read(request(x_timestamp=b"2023-11-14t22:13:20z")), Stamp)

    def test_timestamp_count(self) -> None:
        """No timestamp, and two of them, are refused."""
        self.refused(request(x_timestamp=None), "GW-002", reason="timestamp_missing")
        two = {b"x-timestamp": [b"1700000000", b"1700000000"]}
        self.refused(request(two), "GW-002", reason="timestamp_malformed")

    def test_nonce_forms(self) -> None:
        """8 to 128 of A-Z a-z 0-9 . _ : - and nothing else, once."""
        for nonce in (b"12345678", b"a" * 128, b"A-b_c.d:9"):
            assert isinstance(read(request(x_nonce=nonce)), Stamp)
        for nonce in (
            b"",
            b"1",
            b"a" * 7,
            b"a" * 129,
            b"with space",
            "n\u00f6nce-one".encode(),
            b"*" * 8,
            b"$-1\r\n$-1\r\n",
        ):
            self.refused(request(x_nonce=nonce), "GW-002", reason="nonce_malformed")
        self.refused(request(x_nonce=None), "GW-002", reason="nonce_missing")
        self.refused(request({b"x-nonce": [b"nonce-one", b"nonce-one"]}), "GW-002", reason="nonce_malformed")

    def test_key_forms(self) -> None:
        """1 to 255 visible ASCII characters under either name, once."""
        for key in (b"k", b"k" * 255, b'a"b\\c'):
            for name in ("idempotency_key", "x_idempotency_key"):
                stamp = read(request(**{name: key}))
                assert isinstance(stamp, Stamp)
                assert stamp.key == key
        for key in (b"", b"k" * 256, b"a b", "\u00e9".encode(), b"a\tb"):
            self.refused(request(idempotency_key=key), "GW-015")
        assert isinstance(read(request(idempotency_key=b"k", x_idempotency_key=b"k")), Stamp)
        self.refused(request(idempotency_key=b"k", x_idempotency_key=b"l"), "GW-015")
        self.refused(request({b"idempotency-key": [b"k", b"k"]}, idempotency_key=b"k"), "GW-015")

    def test_api_version(self) -> None:
        """Absent, 1, 1.0 and 1.0.0 are spoken here."""
        for version in (None, b"1", b"1.0", b"1.0.0"):
            assert isinstance(read(request(x_api_version=version)), Stamp)
        for version in (b"2", b"1.1", b"", b"v1"):
            self.refused(request(x_api_version=version), "GW-015")

    def test_signature_count(self) -> None:
        """No signature, and two header lines of it, are refused, with the length that came."""
        self.refused(request(x_signature=None), "GW-001", signature_len=0)
        self.refused(request({b"x-signature": [SIGNATURE, SIGNATURE]}), "GW-001", signature_len=2 * len(SIGNATURE))

    def test_order(self) -> None:
        """With everything wrong at once the key is named first, then the signature, then the time, then the nonce."""
        wrong: dict[str, bytes | None] = {
            "idempotency_key": b"a b",
            "x_signature": b"?",
            "x_timestamp": b"?",
            "x_nonce": b"?",
        }
        codes = []
        for name, good in (
            ("idempotency_key", b"k"),
            ("x_signature", SIGNATURE),
            ("x_timestamp", b"1700000000"),
            ("x_nonce", b"nonce-one"),
        ):
            found = read(request(**wrong))
            assert isinstance(found, Refused)
            codes.append((found.code, found.details.get("reason", "")))
            wrong[name] = good
        assert [code for code, _ in codes] == ["GW-015", "GW-001", "GW-002", "GW-002"]
        assert isinstance(read(request(**wrong)), Stamp)

    def test_trace_context(self) -> None:
        """A valid traceparent is passed on; another is as if it were absent."""
        valid = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        stamp = read(request(traceparent=valid))
        assert isinstance(stamp, Stamp)
        assert stamp.traceparent == valid
        for other in (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", valid + b"\r\nX: y", b"ff" + valid[2:]):
            stamp = read(request(traceparent=other))
            assert isinstance(stamp, Stamp)
            assert stamp.traceparent is None


class MediaTypeTests(SynchronousTestCase):
    """Which bodies are looked at."""

    def test_accepted(self) -> None:
        """JSON, with the charset utf-8 or none."""
        for media in (
            b"application/json",
            b"Application/JSON",
            b"application/json; charset=utf-8",
            b"application/json;charset=UTF-8",
            b'application/json; charset="utf-8"',
        ):
            assert refuse_media_type(request(content_type=media)) is None, media
        assert refuse_media_type(request(content_encoding=b"identity")) is None

    def test_refused(self) -> None:
        """Everything else, and anything compressed, is 415."""
        for media in (
            None,
            b"",
            b"text/plain",
            b"application/json; charset=utf-16",
            b"application/jsonx",
            b"application/json, text/plain",
            b"multipart/form-data; boundary=x",
            b"application/x-www-form-urlencoded",
            b"application/json; version=1",
        ):
            refused = refuse_media_type(request(content_type=media))
            assert refused is not None, media
            assert refused.code == "GW-014"
        for encoding in (b"gzip", b"br", b"identity, gzip"):
            assert refuse_media_type(request(content_encoding=encoding)) is not None
        assert refuse_media_type(request({b"content-type": [b"application/json", b"text/plain"]})) is not None
