"""
The settings of the edge gateway and of the admin listener: their rows, their kinds, their values. Pure.

Decides what each of them may be and what it is when nobody says, and that five of them switch the edge on together.
Never reads a value (config does).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gatewayd import settings_values as values
from gatewayd.commands.routes import RouteSpec, is_http_url, parse_routes
from gatewayd.http.addresses import Address, parse_address
from gatewayd.ingress.admission import Limit
from gatewayd.push.wishes import parse_grants
from gatewayd.secret import Secret
from gatewayd.settings_row import Row
from gatewayd.settings_values import Kind, Wrong

_MAX_RATE: Final = 1_000_000.0
_HOST_PORT: Final = re.compile(
    r"([A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", re.ASCII
)
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
_USUAL_PORTS: Final[Mapping[str, str]] = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where a server is: a name or an IP address without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """
    Every setting of the edge, under its own name in lower case. Durations are seconds, sizes bytes, rates a second.

    `gateway_command_routes` are in the order given. `gateway_signals_grants` is the text that
    push.wishes.parse_grants reads, "" for none. `gateway_push_allowed_origins` are as browsers write them.
    """

    gateway_redis_master_addr: HostPort
    gateway_redis_password: Secret
    gateway_redis_db: int
    gateway_redis_replica_addrs: tuple[HostPort, ...]
    gateway_redis_operation_timeout: float
    gateway_session_events_redis_stream: str
    gateway_client_events_redis_stream: str
    gateway_session_redis_key_prefix: str
    gateway_replay_redis_key_prefix: str
    gateway_replay_redis_reserve_timeout: float
    gateway_response_signer_private_key_pem_path: Path
    gateway_response_signer_previous_key_pem_path: Path | None
    gateway_freshness_window: float
    gateway_authenticated_grpc_addr: tuple[Address, ...]
    gateway_command_routes: tuple[RouteSpec, ...]
    gateway_auth_service_base_url: str | None
    gateway_session_rps: float
    gateway_user_rps: float
    gateway_message_type_rps: float
    gateway_push_queue_events: int
    gateway_push_queue_bytes: int
    gateway_push_heartbeat: float
    gateway_push_allowed_origins: tuple[str, ...]
    gateway_signals_grants: str

    @property
    def limits(self) -> dict[str, Limit]:
        """The limits of signed requests, for sessions.limits.Limits: a burst is twice the rate, at least 1."""
        rates = {
            "session": self.gateway_session_rps,
            "user": self.gateway_user_rps,
            "message_type": self.gateway_message_type_rps,
        }
        return {name: Limit(rps=rate, burst=max(1.0, 2 * rate)) for name, rate in rates.items()}


def _host_port(text: str) -> HostPort | Wrong:
    found = _HOST_PORT.fullmatch(text)
    if found is None or not 1 <= int(found[2]) <= 65535:
        return Wrong()
    host = found[1].removeprefix("[").removesuffix("]")
    try:
        return HostPort(parse_address(text).host if ":" in host else host, int(found[2]))
    except ValueError:
        return Wrong()


def redis_address() -> Kind:
    """One server: a HostPort. A password has a setting of its own, so what stands before an @ is not repeated."""
    return Kind("host:port", lambda items: _host_port(items[0]), private=lambda text: "@" in text)


def redis_addresses() -> Kind:
    """Several servers: a tuple of HostPort."""

    def parse(items: tuple[str, ...]) -> object:
        found = [_host_port(item) for item in items]
        return next((one for one in found if isinstance(one, Wrong)), tuple(found))

    return Kind(
        "a list of host:port",
        parse,
        lambda found: ",".join(map(str, found)),
        many=True,
        private=lambda text: "@" in text,
    )


def stream_key() -> Kind:
    """The name of a stream, or what names begin with: visible ASCII."""
    return values.named("1 to 512 visible ASCII characters", r"[\x21-\x7e]{1,512}")


def routes() -> Kind:
    """Command routes: a tuple of RouteSpec."""
    return Kind(
        "a list of message_type=nats:subject or message_type=http(s)://…, a type that ends in a dot standing for all "
        "that begin with it, each with ;deadline=2s behind it where 2s is not meant",
        parse_routes,
        lambda found: ",".join(map(str, found)),
        many=True,
        private=lambda text: "@" in text,
    )


def base_url() -> Kind:
    """Where a service is: an http or https URL that paths are put behind, without a slash at its end."""

    def parse(items: tuple[str, ...]) -> object:
        return items[0].rstrip("/") if is_http_url(items[0]) and "?" not in items[0] else Wrong()

    allowed = "an http or https URL without credentials, query and fragment"
    return Kind(allowed, parse, private=lambda text: "@" in text)


def origins() -> Kind:
    """Origins of web pages (RFC 6454), as browsers write them: lower case, without the usual port."""

    def parse(items: tuple[str, ...]) -> object:
        found = []
        for item in items if [item.lower() for item in items] != ["none"] else ():
            parts = _ORIGIN.fullmatch(item.lower())
            if parts is None:
                return Wrong(f"{item[:80]!a} is none")
            scheme, host, port = parts.groups("")
            found.append(f"{scheme}://{host}{'' if port == _USUAL_PORTS[scheme] else port}")
        return tuple(dict.fromkeys(found))

    return Kind(
        "a list of origins such as https://app.example.com, or none",
        parse,
        lambda found: ",".join(found) or "none",
        many=True,
    )


def grants() -> Kind:
    """Grants of signals as push.wishes reads them: the text itself, "" for none."""

    def parse(items: tuple[str, ...]) -> object:
        try:
            parse_grants(items[0])
        except ValueError as problem:
            return Wrong(str(problem))
        return items[0]

    def show(text: str) -> str:
        entries = (entry.strip() for entry in text.replace(";", "\n").splitlines())
        return "; ".join(entry for entry in entries if entry and not entry.startswith("#"))

    form = "user_id: grants, in lines or with ; between them; a grant is *, a source or source/instrument"
    return Kind(f"{form}; the user * is everybody", parse, show)


def own_listening() -> Kind:
    """Addresses that gatewayd opens itself, kept as texts; sockets that it is started with are the public ones."""
    every = values.listening()

    def parse(items: tuple[str, ...]) -> object:
        if any(item.startswith("systemd:") for item in items):
            return Wrong("a socket that systemd passes is for GATEWAY_PUBLIC_HTTP_ADDR")
        return every.parse(items)

    return Kind(
        "a list of :port, host:port, unix:/path or ssl:port:privateKey=path:certKey=path", parse, every.show, True
    )


_RATE: Final = values.number(0.01, _MAX_RATE)
_TIMEOUT: Final = values.duration(0.01, 10)

ADMIN: Final = Row(
    "GATEWAY_ADMIN_HTTP_ADDR",
    own_listening(),
    None,
    "addresses of the admin listener: metrics and probes, for whoever can reach it (:port is at 127.0.0.1)",
    "no admin listener",
)

REQUIRED: Final = (
    "GATEWAY_REDIS_MASTER_ADDR",
    "GATEWAY_REDIS_PASSWORD",
    "GATEWAY_SESSION_EVENTS_REDIS_STREAM",
    "GATEWAY_CLIENT_EVENTS_REDIS_STREAM",
    "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH",
)
"""The settings that switch the edge on, all of them or none."""

_OFF: Final = "no edge; with any of the five, all must be set"

ROWS: Final[tuple[Row, ...]] = (
    Row(
        "GATEWAY_REDIS_MASTER_ADDR",
        redis_address(),
        None,
        "the Redis of sessions, replays and events (1 of the 5 that switch the edge on)",
        _OFF,
    ),
    Row("GATEWAY_REDIS_PASSWORD", values.secret("one line of text"), None, "its password (2 of 5)", _OFF, True, True),
    Row("GATEWAY_SESSION_EVENTS_REDIS_STREAM", stream_key(), None, "the stream of session snapshots (3 of 5)", _OFF),
    Row("GATEWAY_CLIENT_EVENTS_REDIS_STREAM", stream_key(), None, "the stream of events to push (4 of 5)", _OFF),
    Row(
        "GATEWAY_RESPONSE_SIGNER_PRIVATE_KEY_PEM_PATH",
        values.path(),
        None,
        "Ed25519 key, PKCS#8 PEM, that answers and events are signed with (5 of 5)",
        _OFF,
    ),
    Row(
        "GATEWAY_RESPONSE_SIGNER_PREVIOUS_KEY_PEM_PATH",
        values.path(),
        None,
        "the key before it, whose public half is still served after a rotation",
    ),
    Row("GATEWAY_REDIS_DB", values.whole(0, 65535), "0", "the number of the database"),
    Row("GATEWAY_REDIS_REPLICA_ADDRS", redis_addresses(), None, "accepted and not used"),
    Row("GATEWAY_REDIS_OPERATION_TIMEOUT", _TIMEOUT, "250ms", "how long one command of the edge may take"),
    Row("GATEWAY_SESSION_REDIS_KEY_PREFIX", stream_key(), "gateway:session:", "what keys of sessions begin with"),
    Row("GATEWAY_REPLAY_REDIS_KEY_PREFIX", stream_key(), "gateway:replay:", "what keys of used request_ids begin with"),
    Row("GATEWAY_REPLAY_REDIS_RESERVE_TIMEOUT", _TIMEOUT, "250ms", "how long the reservation of a request_id may take"),
    Row(
        "GATEWAY_FRESHNESS_WINDOW",
        values.duration(1, 3600),
        "5m",
        "how old, or far ahead, the time of a signed request may be",
    ),
    Row(
        "GATEWAY_AUTHENTICATED_GRPC_ADDR",
        values.listening(),
        ":9090",
        "addresses of the gRPC listener (:port is at HOST)",
    ),
    Row(
        "GATEWAY_COMMAND_ROUTES",
        routes(),
        None,
        "where commands go; the message type itself counts before prefixes, a longer prefix before a shorter one",
        "every command is answered UNIMPLEMENTED",
        filed=True,
    ),
    Row(
        "GATEWAY_AUTH_SERVICE_BASE_URL",
        base_url(),
        None,
        "the service behind the public authentication paths",
        "they answer 503",
    ),
    # A person's app asks a few times a second, and at once after a reconnect: 20 do not get in its way. A user has two
    # or three devices. A message type's limit is its service's: one process verifies and forwards some thousand.
    Row(
        "GATEWAY_SESSION_RPS",
        _RATE,
        "20",
        "signed requests a second of one session; twice as many may come at once",
        reloadable=True,
    ),
    Row("GATEWAY_USER_RPS", _RATE, "50", "the same for all sessions of one user", reloadable=True),
    Row("GATEWAY_MESSAGE_TYPE_RPS", _RATE, "1000", "the same for one route, of all users", reloadable=True),
    Row(
        "GATEWAY_PUSH_QUEUE_EVENTS",
        values.whole(1, 100_000),
        "256",
        "events that may wait for one stream; beyond, that stream is closed",
    ),
    Row("GATEWAY_PUSH_QUEUE_BYTES", values.size_bytes(1024, 1024**3), "1MiB", "the same in bytes"),
    Row("GATEWAY_PUSH_HEARTBEAT", values.duration(1, 600), "15s", "after so long without an event comes a heartbeat"),
    Row(
        "GATEWAY_PUSH_ALLOWED_ORIGINS",
        origins(),
        "none",
        "the web pages that may open a WebSocket; what sends no Origin is no page and may",
        filed=True,
        reloadable=True,
    ),
    Row(
        "GATEWAY_SIGNALS_GRANTS",
        grants(),
        None,
        "which users get normalised signals pushed",
        "nobody",
        filed=True,
    ),
)
"""The group of the edge, in the order in which it is shown; every row is a field of EdgeSettings."""

NAMES: Final = frozenset(row.name for row in ROWS)


def edge_of(given: Mapping[str, Any], host: str) -> EdgeSettings | None:
    """The edge's settings from every setting's value by name; None when it is off. `host`: where `:port` listens."""
    if any(given[name] is None for name in REQUIRED):
        return None
    made = {row.field: given[row.name] for row in ROWS}
    for name, nothing in (
        ("gateway_redis_replica_addrs", ()),
        ("gateway_command_routes", ()),
        ("gateway_signals_grants", ""),
    ):
        made[name] = made[name] or nothing
    made["gateway_authenticated_grpc_addr"] = tuple(
        parse_address(text, host) for text in given["GATEWAY_AUTHENTICATED_GRPC_ADDR"]
    )
    return EdgeSettings(**made)
