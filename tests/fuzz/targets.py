"""
What is fuzzed: everything that reads bytes of somebody else. Each target says what must hold whatever it is given.

A target returns in a few words what became of its input.
"""

import json
import re
import tomllib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from nats.protocol.parser import Parser

from gatewayd.config import describe
from gatewayd.errors import Refused
from gatewayd.http.addresses import Kind, parse_address
from gatewayd.http.framing import Framing
from gatewayd.http.message import Request
from gatewayd.http.proxyheader import MAX_V2_BYTES, Broken, read_header
from gatewayd.http.rules import Limits
from gatewayd.ingress import normalise, strict
from gatewayd.ingress.addresses import Proxies, parse_ip
from gatewayd.ingress.events import parse_facts, parse_nonce
from gatewayd.ingress.fields import SCHEMA_VERSIONS
from gatewayd.ingress.headers import Stamp, read_headers, refuse_media_type
from gatewayd.ingress.signature import parse_signatures
from gatewayd.times import Wall, parse_header_time, parse_rfc3339
from tests.unit.bus.test_inlet import INBOX, STREAM, Connection, ack, message, parse, take_acks
from tests.unit.http.test_differential import PAYLOADS, check, world
from tests.unit.settings_case import HOME, PRODUCTION, load_from

VECTORS: Final = Path(__file__).parents[1] / "vectors"
HEX: Final = b"0123456789abcdefABCDEF01234567890123456789abcdefABCDEF0123456789"
CANARY: Final = "canary-of-a-secret-that-nobody-may-ever-see-again"
NOW: Final = Wall(1_705_314_600.0)
TEN: Final = ip_network("10.0.0.0/8")
SECRETS: Final = frozenset(
    {"API_KEY_HMAC_SECRET", "API_KEY_HMAC_SECRET_PREVIOUS", "NATS_URL", "NATS_PASSWORD", "NATS_TOKEN"}
)


def channel(data: bytes) -> Hashable:
    """The channel serves what h11 reads, or refuses; however it is cut; without a fault, and leaving nothing."""
    _, statuses, closed = served = check(data)
    third = len(data) // 3
    assert check(data, third, 2 * third, len(data) - 1) == served
    assert 500 not in statuses
    refused = [response.body for _, response, _ in world().finished if response.status >= 400]
    return tuple(statuses), closed, tuple(json.loads(body)["details"].get("reason") for body in refused)


def strict_json(body: bytes) -> Hashable:
    """Strict JSON is JSON, and means what the standard library says it means."""
    found = strict.read(body)
    if isinstance(found, strict.Malformed):
        assert 1 <= found.line <= body.count(b"\n") + 1
        assert 1 <= found.column <= len(body) + 1
        return found.message, found.likely_cause
    plain = json.loads(body.decode("utf-8"), parse_int=str.encode, parse_float=str.encode)
    assert plain == found
    json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8")
    return type(found).__name__, len(found) if isinstance(found, (dict, list)) else 0


def bodies(body: bytes) -> Hashable:
    """A body is a signal, has faults or is no JSON; the fast and the exact readers agree, in every schema."""
    outcomes = []
    for version, rules in SCHEMA_VERSIONS.items():
        tradingview = normalise.read_tradingview(body, version)
        assert tradingview == normalise._exact_tradingview(body, rules)
        generic = normalise.read_generic(body, None, version)
        assert generic == normalise._exact_generic(body, None, rules)
        outcomes += [_kind_of(tradingview), _kind_of(generic)]
    return tuple(outcomes)


def _kind_of(found: object) -> Hashable:
    match found:
        case strict.Malformed():
            return found.likely_cause
        case normalise.Invalid():
            return tuple((fault.path[:20], fault.message[:20]) for fault in found.faults[:3])
        case normalise.Generic():
            return "generic", _kind_of(found.signal)
    assert isinstance(found, normalise.Signal)
    assert found.instrument.isascii()
    assert float(found.price) >= 0
    return "signal", found.side


_SIGNATURE: Final = re.compile(rb"(v1|sha256)=([0-9A-Fa-f]{64})")


def signatures(header: bytes) -> Hashable:
    """X-Signature is a list of at most five digests, each of a known scheme, or nothing."""
    first, *others = header.split(b",")
    parts = [_SIGNATURE.fullmatch(first), *(_SIGNATURE.fullmatch(part.lstrip(b" \t")) for part in others)]
    found = parse_signatures(header)
    if len(parts) > 5 or None in parts:
        assert found is None
        return len(parts) > 5
    expected: dict[bytes, list[bytes]] = {}
    for part in parts:
        assert part is not None
        expected.setdefault(part[1], []).append(bytes.fromhex(part[2].decode()))
    assert found == expected
    return tuple(sorted((word, len(digests)) for word, digests in expected.items()))


def times(data: bytes) -> Hashable:
    """A timestamp is one instant between 1970 and 9999, the one that the standard library reads, or none."""
    text = data.decode("latin-1")
    header, body = parse_header_time(text), parse_rfc3339(text)
    if header is not None and text.isdigit():
        assert (header, body) == (float(text), None)
        return "epoch", len(text)
    assert header is None or header == body
    if body is None:
        return "none", text[10:11] in "Tt", text[-1:] in "Zz", min(len(text), 22)
    whole, fraction = re.fullmatch(r"([^.]+?)(?:\.(\d+))?(?:[Zz]|[+-]\d\d:\d\d)", text).groups()  # type: ignore[union-attr]
    zone = text[len(whole) + (1 + len(fraction) if fraction else 0) :]
    plain = datetime.fromisoformat(whole.upper() + ("+00:00" if zone in "Zz" else zone)).astimezone(UTC).timestamp()
    assert abs(body - plain - float(f"0.{fraction or 0}")) < 1e-4
    return "instant", len(fraction or ""), zone[:1]


def listening(data: bytes) -> Hashable:
    """An address to listen on is read, and reads the same as it is shown; anything else is a ValueError."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        address = parse_address(text)
    except ValueError as error:
        return str(error)[-25:]
    assert 0 <= address.port < 65536
    assert "\0" not in address.path + address.host
    if address.kind is Kind.TCP and address.host:
        assert parse_address(str(address)) == address
    return address.kind, ":" in address.host, address.mode is None


def forwarded(data: bytes) -> Hashable:
    """Whatever X-Forwarded-For says, the client is an address, and the peer unless a proxy is believed."""
    lines = data.split(b"\n")
    peer = "10.0.0.1"
    outcomes = []
    for proxies in (Proxies(), Proxies(hops=2), Proxies(networks=(TEN,)), Proxies(networks=(TEN,), hops=1)):
        client = proxies.client(peer, lines)
        assert parse_ip(client) is not None
        ip_address(client)
        assert client == peer or proxies != Proxies()
        outcomes.append((client == peer, ":" in client))
    return tuple(outcomes)


def proxy_header(data: bytes) -> Hashable:
    """A PROXY header carries an address or none, ends in what was sent, within its bound, and nowhere else before."""
    found = read_header(data)
    if found is None:
        assert len(data) < MAX_V2_BYTES
        return "more", min(len(data), 17)
    if isinstance(found, Broken):
        assert read_header(data + b"x") == found
        return found.reason, data[:6] == b"PROXY "
    assert 0 < found.size <= min(len(data), MAX_V2_BYTES)
    assert 0 <= found.port <= 65535
    assert read_header(data[: found.size]) == found
    assert read_header(data[: found.size - 1]) is None
    if found.address:
        assert str(parse_ip(found.address)) == found.address
    return "v1" if data[:1] == b"P" else "v2", ":" in found.address, found.address == "", found.port == 0


def settings_file(data: bytes) -> Hashable:
    """Any file of settings is settings or problems; what is secret in it is shown by neither."""
    try:
        members = _flat(tomllib.loads(data.decode("utf-8")))
    except ValueError:
        members = []
    misplaced = any(CANARY in text for name, text in members if name not in ("api_key_hmac_secret", "secret"))
    return _loaded(load_from(PRODUCTION, data), secret=not misplaced)


def _flat(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every name in a table with its value as text; names count as texts of their own."""
    found = [("", name) for name in table]
    for name, value in table.items():
        found += _flat(value) if isinstance(value, dict) else [(name, str(value))]
    return found


def settings_environment(data: bytes) -> Hashable:
    """Any environment is settings or problems, and shows no secret."""
    environ = dict(HOME)
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        name, equals, value = line.partition("=")
        if equals and name and "\0" not in line:
            environ[name] = value
    misplaced = any(
        CANARY in name or (CANARY in text and (name not in SECRETS or ("URL" in name and "@" not in text)))
        for name, text in environ.items()
    )
    return _loaded(load_from(environ, strict=True), secret=not misplaced)


def _loaded(loaded: Any, *, secret: bool) -> Hashable:
    assert (loaded.settings is None) is bool(loaded.problems)
    shown = [*map(str, loaded.problems), *loaded.warnings, *loaded.notes]
    if loaded.settings is not None:
        shown.append(describe(loaded))
    assert not (secret and any(CANARY in text for text in shown)), shown
    return tuple(sorted(str(problem).partition(" ")[0][:24] for problem in loaded.problems)[:4])


def acknowledgements(data: bytes) -> Hashable:
    """What is taken out and what goes on are together what nats-py's own parser would tell, however it is cut."""
    third = len(data) // 3
    acks, rest = take_acks([data])
    assert (acks, rest) == take_acks([data[:third], data[third:]])
    told, error = _parse(data)
    left, left_error = _parse(rest)
    if not error and not left_error:
        tokens = [subject for kind, _, subject, *_ in (one for one in told if one[0] == "message")]
        assert all(b"%b.%b" % (INBOX, token) in tokens for token, _, _ in acks)
        assert len(told) == len(left) + len(acks)
    return len(acks), len(left), error


def _parse(data: bytes) -> tuple[list[tuple[Any, ...]], str]:
    connection = Connection()
    parser: Any = Parser(connection)  # type: ignore[no-untyped-call]
    try:
        parse(parser, data)
    except Exception as error:
        return connection.told, type(error).__name__
    return connection.told, ""


def facts(data: bytes) -> Hashable:
    """Gw-Facts is facts that read back as they were written, or foreign."""
    text = data.decode("latin-1")
    found = parse_facts(text)
    nonce = parse_nonce(f"gw:{'ab' * 16}:norm", text)
    assert (found is None) is (nonce is None)
    parse_nonce(text, None)
    if found is None:
        return "foreign", text[:2] == "1 ", len(text) > 80
    assert (len(found.body), len(found.nonce)) == (16, 16)
    digests = f"{found.body.hex()} {found.nonce.hex()}"
    assert text == f"1 {found.kind.value} {digests} {found.scheme} {round(found.accepted_at * 1000):013d}"
    return found.kind, len(found.scheme), found.accepted_at == 0


def headers(data: bytes) -> Hashable:
    """A webhook's headers are a stamp of the promised form, or a refusal that carries nothing of a signature."""
    framing = Framing(Limits())
    framing.push(b"POST /webhook/a HTTP/1.1\r\nHost: gw\r\n" + data + b"\r\n\r\n")
    request = framing.read_head()
    if not isinstance(request, Request):
        return "no request"
    request.received_wall = NOW
    media = refuse_media_type(request)
    found = read_headers(request, 300, 30)
    if isinstance(found, Refused):
        assert HEX.decode() not in str(found.details)
        return media is None, found.code, str(found.details.get("reason"))
    assert isinstance(found, Stamp)
    assert re.fullmatch(rb"[A-Za-z0-9._:-]{8,128}", found.nonce)
    assert found.key is None or re.fullmatch(rb"[\x21-\x7e]{1,255}", found.key)
    assert parse_header_time(found.timestamp.decode("ascii")) is not None
    assert sum(map(len, found.signatures.values())) in range(1, 6)
    return media is None, found.key is None, found.client_corr_id is None, found.traceparent is None


@dataclass(frozen=True)
class Fuzzed:
    """A target, what it begins with, and how often it runs in `make test`."""

    target: Callable[[bytes], Hashable]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    runs: int


def _vectors(name: str) -> list[Any]:
    found: list[Any] = json.loads((VECTORS / name).read_text("utf-8"))
    return found


_JSON_SEEDS: Final = [
    bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode() for case in _vectors("json_cases.json")
]
_JSON_TOKENS: Final = [
    *(b'"a":', b"[", b"]", b"{", b"}", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"\\udc00", b"null", b"true", b"NaN"),
    *(
        b"-Infinity",
        b"1e999",
        b"-0",
        b"1.",
        b".5",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"//",
        b"'",
        b"\xc2\xa0",
    ),
    *(
        b"[" * 33,
        b'{"a":' * 33,
        b"\t",
        b"\n",
        b"\x00",
        b"{{ticker}}",
        b"\xe2\x80\x9c",
        b"\xf0\x9f\x98\xb9",
        b"1_0",
        b"0x1",
    ),
]
_TRADINGVIEW: Final = b'{"ticker":"EURUSD","action":"buy","price":1.0945,"time":"2024-01-15T10:30:00Z","strength":0.5}'
_GENERIC: Final = (
    b'{"source":"test","instrument":"BTCUSD","timestamp":"2024-01-15T10:30:00Z",'
    b'"payload":{"price":45000,"side":"sell"}}'
)
_STAMP: Final = (
    b"Content-Type: application/json\r\nX-Timestamp: 1705314600\r\nX-Nonce: nonce-one\r\nX-Signature: v1=" + HEX
)
_ENVIRONMENT: Final = (
    f"API_KEY_HMAC_SECRET={CANARY}\nALLOWED_SOURCES=tradingview,custom\nNATS_URL=nats://u:{CANARY}@h:4222"
)
_TOML: Final = f"""
api_key_hmac_secret = "{CANARY}"
allowed_sources = ["tradingview", "custom"]
rate_limit_rps = 10.5
trusted_proxies = "10.0.0.0/8"
gateway_public_http_addr = [":8001", "unix:/run/gw.sock:mode=660"]

[sources.custom]
secret = "{CANARY}x"
schemes = ["v1"]
"""
_NAMES: Final = sorted({"PORT", "HOST", "ENV", "LOG_LEVEL", "NATS_URL", "TRUSTED_PROXIES", "STATE_DIRECTORY"})


TARGETS: Final[Mapping[str, Fuzzed]] = {
    "channel": Fuzzed(
        channel,
        [payload for payload in PAYLOADS if len(payload) < 400],
        [
            *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b"0\r\n\r\n", b"5\r\n", b"GET / HTTP/1.1\r\n"),
            *(
                b"Content-Length: 5\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Host: gw\r\n",
                b"Connection: close\r\n",
            ),
            *(
                b"Upgrade: x\r\nConnection: upgrade\r\n",
                b"Expect: 100-continue\r\n",
                b"HTTP/1.0",
                b"HEAD ",
                b"\x00",
            ),
        ],
        1200,
    ),
    "strict_json": Fuzzed(strict_json, _JSON_SEEDS, _JSON_TOKENS, 15_000),
    "bodies": Fuzzed(
        bodies,
        [_TRADINGVIEW, _GENERIC, *(seed for seed in _JSON_SEEDS if len(seed) < 200)],
        [
            *_JSON_TOKENS,
            b'"price":1,',
            b'"time":"2024-01-15T10:30:00+02:00",',
            b'"side":null,',
            b'"action":"close",',
        ],
        4000,
    ),
    "signatures": Fuzzed(
        signatures,
        [b"v1=" + HEX, b"sha256=" + HEX, b", ".join([b"v1=" + HEX] * 5), b"v1=" + HEX + b",\tsha256=" + HEX],
        [
            b"v1=",
            b"sha256=",
            b",",
            b", ",
            b"\t",
            b"=",
            HEX,
            HEX[:63],
            b"v1=" + HEX,
            b",v1=" + HEX,
            b"\xd9\xa3",
            b"v2=",
        ],
        25_000,
    ),
    "times": Fuzzed(
        times,
        [
            *(b"1705314600", b"0", b"99999999999", b"2024-01-15T10:30:00Z", b"2024-02-29t23:59:59.123456789+14:00"),
            *(b"1970-01-01T00:00:00-00:00", b"9998-12-31T23:59:59.99999999z", b"2024-W03-1T10:30:00Z"),
        ],
        [
            b"Z",
            b"z",
            b"T",
            b"+00:00",
            b"-14:00",
            b".",
            b",",
            b":60",
            b"24:",
            b"nan",
            b"1e9",
            b"_",
            b"+",
            b" ",
            b"\xb2",
            b"-02-30",
        ],
        25_000,
    ),
    "listening": Fuzzed(
        listening,
        [
            *(b":8001", b"127.0.0.1:8001", b"[::1]:8001", b"gw.example:80", b"tcp:8001:interface=127.0.0.1"),
            *(
                b"unix:/run/gw.sock:mode=660",
                b"ssl:443:privateKey=/a\\:b:certKey=/c:interface=\\:\\:1",
                b"systemd:a",
            ),
        ],
        [
            b":",
            b"\\",
            b"[",
            b"]",
            b"unix:",
            b"ssl:",
            b"tcp:",
            b"=",
            b"65536",
            b"0",
            b"mode=",
            b"%",
            b"::ffff:1.2.3.4",
            b"/",
        ],
        12_000,
    ),
    "proxy_header": Fuzzed(
        proxy_header,
        [
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n",
            b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\nGET /",
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\xc0\0\2\7" * 3 + b"GET /",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + b"\x20\x01\x0d\xb8" * 9,
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        ],
        [
            b"PROXY ",
            b"TCP4 ",
            b"TCP6 ",
            b"UNKNOWN",
            b"\r\n",
            b" ",
            b"::",
            b"65535",
            b"\x21\x11",
            b"\x20",
            b"\0\x0c",
            b"\xff",
        ],
        10_000,
    ),
    "forwarded": Fuzzed(
        forwarded,
        [
            *(
                b"192.0.2.1",
                b"192.0.2.1, 10.0.0.2",
                b"[2001:db8::1]:443",
                b"::ffff:10.1.1.1",
                b"192.0.2.1:99, unknown",
            ),
            *(b"fe80::1%eth0, 10.0.0.9", b"1.2.3.4\n5.6.7.8,10.0.0.1"),
        ],
        [
            b",",
            b", ",
            b"10.0.0.1",
            b"::",
            b"[",
            b"]",
            b":1",
            b"\n",
            b"%25",
            b"0",
            b"::ffff:",
            b"1.2.3.4",
            b"\xb2",
            b"01.2.3.4",
        ],
        5000,
    ),
    "settings_file": Fuzzed(
        settings_file,
        [_TOML.encode(), b"", b'env = "production"\nport = 8001\n'],
        [
            b"=",
            b"[",
            b"]",
            b'"',
            b"\n",
            b"#",
            b"1e999",
            b"nan",
            b"inf",
            b"true",
            b"'''",
            b"[sources.a]\n",
            b"= [[[[",
            b"\xff",
            b"\x00",
        ],
        250,
    ),
    "settings_environment": Fuzzed(
        settings_environment,
        [_ENVIRONMENT.encode(), b"PORT=8001\nENV=production\nTRUSTED_PROXIES=10.0.0.0/8"],
        [
            *(name.encode() + b"=" for name in _NAMES),
            b"\n",
            b",",
            b"=",
            b"GATEWAY_X=",
            b"1e9",
            b"\xff",
            b"_FILE=",
            b"/32",
            b"5m",
        ],
        250,
    ),
    "acknowledgements": Fuzzed(
        acknowledgements,
        [b"".join(STREAM[:-2]), message(b"1", ack(1)) * 3, b"PING\r\n" + message(b"2", b"")],
        [
            b"MSG ",
            b"HMSG ",
            b"\r\n",
            b"PING\r\n",
            b"-ERR 'x'\r\n",
            b"+OK\r\n",
            INBOX,
            b".7 1 2\r\nhi\r\n",
            b" 99999\r\n",
            b"INFO {}\r\n",
        ],
        4000,
    ),
    "facts": Fuzzed(
        facts,
        [
            b"1 body " + b"ab" * 16 + b" " + b"cd" * 16 + b" v1 1705314600123",
            b"1 key " + b"0" * 32 + b" " + b"1" * 32 + b" sha256 0000000000000",
        ],
        [b"1 ", b"2 ", b"key", b"body", b" ", b"ab" * 16, b"\xb2", b"\n", b"v1", b"1705314600123"],
        20_000,
    ),
    "headers": Fuzzed(
        headers,
        [
            _STAMP,
            _STAMP + b"\r\nIdempotency-Key: order-1\r\nX-API-Version: 1\r\nX-Correlation-ID: a",
            _STAMP.replace(b"1705314600", b"2024-01-15T10:30:00Z"),
        ],
        [
            *(
                b"\r\n",
                b": ",
                b"X-Nonce: another-one\r\n",
                b"X-Signature: ",
                b"X-Idempotency-Key: k\r\n",
                b"X_Nonce: a\r\n",
            ),
            *(
                b"; charset=utf-8",
                b"Content-Encoding: identity\r\n",
                b"traceparent: 00-",
                b"sha256=" + HEX,
                b",",
                b"\xff",
                b"nan",
            ),
        ],
        5000,
    ),
}
