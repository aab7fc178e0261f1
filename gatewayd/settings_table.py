"""
The one table of settings. Pure.

Decides which settings there are, what each may be, what it is when nobody says, whether a running process can take a
new value, and which names are refused: parsing, defaults, the masked dump and the documents are all made from here.
Never reads a value (config does).
"""

import re
from collections.abc import Mapping
from typing import Final

from gatewayd import settings_edge, settings_redis
from gatewayd import settings_values as values
from gatewayd.ingress.signature import SCHEMES
from gatewayd.settings_row import SECRET, Row

SCHEME_NAMES: Final = tuple(sorted(scheme.name for scheme in SCHEMES.values()))
FORMATS: Final = ("tradingview", "generic")
PROFILES: Final = ("standard", "tradingview")
DAY_S: Final = 86400.0
MAX_RATE: Final = 1_000_000.0


SECRET_OF_SOURCE: Final = f"{SECRET}_"


def secret_name(source: str) -> str:
    """The variable of a source's own secrets: upper case, with _ for -."""
    return SECRET_OF_SOURCE + source.upper().replace("-", "_")


_RATE: Final = values.number(0.01, MAX_RATE)
_STREAM_NAME: Final = values.named("letters, digits, _ and -, at most 200", r"[A-Za-z0-9_-]{1,200}")
_SUBJECT: Final = values.named(
    "a subject: words of letters, digits, _ and -, joined by dots", r"(?=.{1,200}\Z)[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*"
)

GROUPS: Final[Mapping[str, tuple[Row, ...]]] = {
    "Service": (
        Row(
            "ENV",
            values.one_of("development", "production"),
            "development",
            "development needs no other setting and makes what is missing; production invents nothing",
        ),
        Row(
            "SERVICE_NAME",
            values.named("letters, digits, dots, _ and -, at most 64", r"[A-Za-z0-9._-]{1,64}"),
            "at-gateway",
            "the service's name in logs and towards NATS",
        ),
        Row(
            "LOG_LEVEL",
            values.one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", folded=str.upper),
            "INFO",
            "the lowest level that is logged",
            reloadable=True,
        ),
        Row(
            "STATE_DIRECTORY",
            values.path(),
            None,
            "where generated secrets, the embedded server's store and the maintenance switch are kept",
            "$XDG_STATE_HOME/gatewayd, else ~/.local/state/gatewayd",
        ),
        Row(
            "GATEWAY_SHUTDOWN_TIMEOUT",
            values.duration(0.1, 300),
            "5s",
            "how long each component may take to stop",
        ),
    ),
    "Listeners": (
        Row(
            "HOST",
            values.host(),
            None,
            "where PORT and addresses of the form :port listen",
            "127.0.0.1 in development, all in production",
        ),
        Row("PORT", values.whole(0, 65535), "8001", "the public listener's port (0: any free one)"),
        Row(
            "GATEWAY_PUBLIC_HTTP_ADDR",
            values.listening(),
            None,
            "addresses of the public listener, instead of PORT",
            "PORT on HOST",
        ),
        settings_edge.ADMIN,
        Row("GATEWAY_TLS_CERT", values.path(), None, "PEM certificate chain: TLS on the public listener"),
        Row("GATEWAY_TLS_KEY", values.path(), None, "its private key; SIGHUP reads both files again"),
        Row(
            "MAX_CONNECTIONS",
            values.whole(1, 1_000_000),
            None,
            "connections open at once; those beyond are closed at once, and counted",
            "the limit of descriptors - 64",
        ),
        Row("MAX_CONNECTIONS_PER_ADDRESS", values.whole(1, 1_000_000), "2000", "the same for one client address"),
        Row(
            "TRUSTED_PROXIES",
            values.proxies(),
            "none",
            "whose X-Forwarded-For is believed: networks, or how many proxies stand in front; with proxy-protocol "
            "every connection of the networks must begin with a PROXY header (version 1 or 2), and is its client's",
            filed=True,
            reloadable=True,
        ),
        Row(
            "METRICS_ALLOW_CIDRS",
            values.networks("all", "loopback", "none"),
            None,
            "who may read /metrics on the public listener",
            "all in development, loopback in production",
            filed=True,
            reloadable=True,
        ),
    ),
    "Sources and signatures": (
        Row(
            "ALLOWED_SOURCES",
            values.source_names(),
            "tradingview,custom,test",
            "the sources that may send; exact, case-sensitive",
            reloadable=True,
        ),
        Row(
            SECRET,
            values.secret_list(),
            None,
            "secrets of sources without their own, all valid at once (for a rotation: the new one, the old one)",
            "made in development",
            secret=True,
            filed=True,
            reloadable=True,
        ),
        Row(
            "SIGNATURE_SCHEMES",
            values.some_of(*SCHEME_NAMES),
            ",".join(SCHEME_NAMES),
            "the ways to sign that are accepted",
            reloadable=True,
        ),
        Row(
            "SECRETS_STRICT",
            values.switch(),
            "false",
            "true refuses secrets under 32 bytes and published sample values; false warns of them",
            reloadable=True,
        ),
        Row(
            "REPLAY_WINDOW_SEC",
            values.duration(1, DAY_S, whole_seconds=True),
            "300",
            "how old X-Timestamp may be",
        ),
        Row(
            "CLOCK_SKEW_SEC",
            values.duration(0, 3600, whole_seconds=True),
            "30",
            "how far ahead X-Timestamp may be",
        ),
        Row(
            "IDEMPOTENCY_TTL_SEC",
            values.duration(1, 30 * DAY_S, whole_seconds=True),
            "3600",
            "how long a repeated event is recognised",
        ),
        Row(
            "ADMISSION_ENTRIES",
            values.whole(1000, 100_000_000),
            "200000",
            "bound of what is remembered in memory (nonces, keys, answers)",
        ),
    ),
    "Rate limits": (
        Row("RATE_LIMIT_RPS", _RATE, "100", "requests a second of each source", reloadable=True),
        Row(
            "RATE_LIMIT_BURST",
            values.number(1, MAX_RATE),
            None,
            "requests of a source that may come at once",
            "the source's rate",
            reloadable=True,
        ),
        Row(
            "RATE_LIMIT_SOURCES",
            values.rates(0.01, MAX_RATE),
            None,
            "rates of single sources, such as tradingview:100,custom:50",
            reloadable=True,
        ),
        Row(
            "RATE_LIMIT_DEFAULT",
            _RATE,
            None,
            "rate of the sources that have none of their own",
            "RATE_LIMIT_RPS",
            reloadable=True,
        ),
        Row(
            "RATE_LIMIT_ADDRESS_RPS",
            _RATE,
            None,
            "requests a second of each client address, before authentication",
            "RATE_LIMIT_RPS",
            reloadable=True,
        ),
        Row(
            "RATE_LIMIT_EXEMPT_CIDRS",
            values.networks("loopback", "none"),
            "none",
            "clients that no address limit applies to",
            filed=True,
            reloadable=True,
        ),
    ),
    "NATS": (
        Row(
            "NATS_URL",
            values.servers(),
            None,
            "the servers, all of one cluster; a user and password may stand before the host",
            "an embedded server in development; required in production",
        ),
        Row(
            "NATS_USER",
            values.named("a text without control characters", r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}"),
            None,
            "user",
        ),
        Row("NATS_PASSWORD", values.secret("one line of text"), None, "its password", secret=True, filed=True),
        Row("NATS_TOKEN", values.secret("one line of text"), None, "token, instead of a user", secret=True, filed=True),
        Row(
            "NATS_NKEY_SEED",
            values.secret("the seed of a user's nkey (58 characters, SU…)", r"SU[A-Z2-7]{56}"),
            None,
            "nkey, instead of a user",
            secret=True,
            filed=True,
        ),
        Row("NATS_CREDENTIALS_FILE", values.path(), None, "credentials file (JWT and seed), instead of a user"),
        Row("NATS_TLS_CA", values.path(), None, "PEM certificates of the authority that signed the server's"),
        Row("NATS_TLS_CERT", values.path(), None, "PEM certificate that this client shows"),
        Row("NATS_TLS_KEY", values.path(), None, "its private key"),
        Row("NATS_STREAM", _STREAM_NAME, "trading-events", "the stream; created when it is not there"),
        Row("NATS_DURABLE", _STREAM_NAME, "gateway-consumer", "the durable consumer whose lag is watched"),
        Row("NATS_SUBJECT_SIGNALS_RAW", _SUBJECT, "signals.raw", "subject of raw events"),
        Row("NATS_SUBJECT_SIGNALS_NORMALIZED", _SUBJECT, "signals.normalized", "subject of normalised events"),
        Row(
            "NATS_PUBLISH_TIMEOUT",
            values.duration(0.05, 2.4),
            "2s",
            "how long a publish may wait for its acknowledgement (every webhook is answered within 2.5 s)",
        ),
        Row(
            "NATS_STREAM_MAX_AGE",
            values.duration(60, 3650 * DAY_S),
            "24h",
            "how long a stream that gatewayd creates keeps events",
        ),
        Row(
            "NATS_STREAM_MAX_BYTES",
            values.size_bytes(1024**2, 1024**5),
            None,
            "how large it may become",
            "half the free disk",
        ),
        Row(
            "LAG_SHED_MESSAGES",
            values.whole(1, 10**12, "off"),
            "off",
            "refuse webhooks (GW-010) above this lag of the consumer, while it acknowledges",
        ),
        Row(
            "NATS_SERVER_BIN",
            values.path(),
            None,
            "the nats-server that development embeds",
            "the nats-server-bin package's, else the one on PATH",
        ),
    ),
    "Redis": settings_redis.ROWS,
    "Events": (
        Row(
            "SIGNAL_SCHEMA_VERSION",
            values.one_of("1.1.0", "1.0.0"),
            "1.1.0",
            "version of the normalised event",
        ),
    ),
    "Maintenance": (
        Row("MAINTENANCE_MODE", values.switch(), "false", "true answers every webhook 503 GW-011", reloadable=True),
        Row(
            "MAINTENANCE_RETRY_AFTER",
            values.duration(1, 7 * DAY_S),
            "300",
            "Retry-After of those answers while no end is known",
            reloadable=True,
        ),
        Row("MAINTENANCE_UNTIL", values.instant(), None, "when the maintenance ends", reloadable=True),
    ),
    "Edge gateway": settings_edge.ROWS,
}

TABLE: Final[Mapping[str, Row]] = {row.name: row for rows in GROUPS.values() for row in rows}
"""Every setting by its name, in the order in which it is shown."""

SOURCE_TABLE: Final[Mapping[str, Row]] = {
    row.name: row
    for row in (
        Row("auth", values.one_of("hmac"), "hmac", "how its requests are authenticated"),
        Row("schemes", values.some_of(*SCHEME_NAMES), None, "the ways it may sign", "signature_schemes"),
        Row("secret", values.secret_list(), None, "its own secrets", "the shared ones", secret=True, filed=True),
        Row(
            "previous_secret",
            values.secret_list(),
            None,
            "secrets that are still accepted during a rotation",
            secret=True,
            filed=True,
        ),
        Row("addresses", values.networks("loopback"), None, "the only networks it sends from", "any address"),
        Row("rps", _RATE, None, "requests a second", "the table above"),
        Row("burst", values.number(1, MAX_RATE), None, "requests that may come at once", "the table above"),
        Row(
            "max_body_age",
            values.duration(1, 30 * DAY_S),
            None,
            "how old the body's own time may be when it is signed with sha256",
            "idempotency_ttl_sec",
        ),
        Row(
            "profile",
            values.one_of(*PROFILES),
            "standard",
            "tradingview: nothing transient is answered with a 4xx, so that the sender tries again",
        ),
        Row("format", values.one_of(*FORMATS), None, "how bodies are read", "generic; tradingview for that source"),
    )
}
"""The keys of a [sources.<name>] table."""

FILED: Final = frozenset(name for name, row in TABLE.items() if row.filed)

RETIRED: Final = frozenset(
    {
        "GATEWAY_REDIS_TLS_ENABLED",
        "GATEWAY_REDIS_USERNAME",
        "GATEWAY_SESSION_CACHE_REDIS_ADDR",
        "GATEWAY_SESSION_CACHE_REDIS_USERNAME",
    }
)
"""Names of earlier products that must not be set any more."""

_UNAVAILABLE: Final = re.compile(r"DATABASE_URL(?:_FILE)?|JWT_.*", re.ASCII)

IGNORED: Final[Mapping[str, str]] = {
    "PROMETHEUS_MULTIPROC_DIR": "gatewayd is one process, whose metrics need no shared directory",
}
"""Names that may be set and change nothing, with the reason."""

# What container platforms set for every service beside ours: NAME_SERVICE_HOST, NAME_PORT=tcp://…, and their kin.
_PLATFORM: Final = re.compile(
    r".+_SERVICE_(?:HOST|PORT(?:_.+)?)|.+_PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?", re.ASCII
)
_PLATFORM_PORT: Final = re.compile(r"(?:tcp|udp|sctp)://.*", re.ASCII | re.DOTALL)


def is_platforms(name: str, value: str) -> bool:
    """True for a variable that a container platform set of its own accord; never for a setting's name."""
    if name in TABLE:
        return False
    return _PLATFORM.fullmatch(name) is not None or (
        name.endswith("_PORT") and _PLATFORM_PORT.fullmatch(value) is not None
    )


def refusal(name: str) -> str:
    """Why this name (in upper case) must not be set; "" when nothing is known against it."""
    if name in TABLE:
        return ""
    if name in RETIRED:
        return "is retired and no longer accepted; remove it"
    if _UNAVAILABLE.fullmatch(name) is not None:
        return "is not available in this version; remove it"
    return ""
