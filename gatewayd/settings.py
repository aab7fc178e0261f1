"""
Settings as every other module gets them: one frozen value, complete and checked. Pure.

Decides what follows from the settings by arithmetic (windows, the duplicate window of the stream) and which
differences between two of them a running process can take over. Never reads an environment or a file (config does),
and never shows a secret: its repr has their lengths only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gatewayd.http.addresses import Address
from gatewayd.ingress.addresses import Network, Proxies
from gatewayd.secret import Secret
from gatewayd.settings_edge import NAMES, EdgeSettings
from gatewayd.settings_row import Row
from gatewayd.settings_table import TABLE
from gatewayd.stores.redisplace import RedisPlace
from gatewayd.times import Wall

DUPLICATE_MARGIN_S: Final = 600.0
"""The stream remembers ids this much longer than anything may be repeated."""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """
    One source. `secrets`: its own, the current ones first; empty: the shared ones count. `addresses`: the only
    networks it sends from; empty: any. `rps` tokens a second, at most `burst` (from 1) at once. `max_body_age`:
    seconds, None: the idempotency lifetime.
    """

    name: str
    auth: str
    schemes: tuple[str, ...]
    secrets: tuple[Secret, ...]
    addresses: tuple[Network, ...]
    rps: float
    burst: float
    max_body_age: float | None
    profile: str
    format: str


@dataclass(frozen=True, slots=True)
class Settings:
    """
    Every setting, under its own name in lower case (API_KEY_HMAC_SECRET: `shared_secrets`), and what follows at once.

    Durations are seconds, sizes bytes. `host` is "" for every interface; `gateway_public_http_addr` holds what is
    listened on, also when only PORT and HOST say it. `rate_limit_burst` is None where a source's burst is its rate.
    `nats_url` is without credentials (they stand in `nats_user`, `nats_password`, `nats_token`) and empty when a
    server is embedded. `nats_stream_max_bytes` None: half the free disk. `redis_url` None: admission is in memory.
    `sources` has every allowed source.
    `generate_secret`: development without any secret. `unconfigured_sources`: those that no secret is for, sorted.
    `edge` is None while the edge is off; `gateway_admin_http_addr` is empty without an admin listener.
    """

    env: str
    service_name: str
    log_level: str
    state_directory: Path
    gateway_shutdown_timeout: float

    host: str
    port: int
    gateway_public_http_addr: tuple[Address, ...]
    gateway_admin_http_addr: tuple[Address, ...]
    gateway_tls_cert: Path | None
    gateway_tls_key: Path | None
    max_connections: int
    max_connections_per_address: int
    trusted_proxies: Proxies
    metrics_allow_cidrs: tuple[Network, ...]

    allowed_sources: tuple[str, ...]
    shared_secrets: tuple[Secret, ...]
    signature_schemes: tuple[str, ...]
    secrets_strict: bool
    replay_window_sec: int
    clock_skew_sec: int
    idempotency_ttl_sec: int
    admission_entries: int

    rate_limit_rps: float
    rate_limit_burst: float | None
    rate_limit_sources: Mapping[str, float]
    rate_limit_default: float
    rate_limit_address_rps: float
    rate_limit_exempt_cidrs: tuple[Network, ...]

    nats_url: tuple[str, ...]
    nats_user: str | None
    nats_password: Secret | None
    nats_token: Secret | None
    nats_nkey_seed: Secret | None
    nats_credentials_file: Path | None
    nats_tls_ca: Path | None
    nats_tls_cert: Path | None
    nats_tls_key: Path | None
    nats_stream: str
    nats_durable: str
    nats_subject_signals_raw: str
    nats_subject_signals_normalized: str
    nats_publish_timeout: float
    nats_stream_max_age: float
    nats_stream_max_bytes: int | None
    lag_shed_messages: int | None
    nats_server_bin: Path | None

    redis_url: RedisPlace | None
    redis_tls_ca: Path | None

    signal_schema_version: str
    maintenance_mode: bool
    maintenance_retry_after: float
    maintenance_until: Wall | None

    sources: Mapping[str, SourceSettings]
    generate_secret: bool
    unconfigured_sources: tuple[str, ...]
    edge: EdgeSettings | None

    @property
    def production(self) -> bool:
        """True when nothing may be invented."""
        return self.env == "production"

    @property
    def embedded_nats(self) -> bool:
        """True when gatewayd runs a server of its own."""
        return not self.nats_url

    @property
    def nonce_lifetime_s(self) -> float:
        """How long a used nonce is remembered: a request is inside the window for at most half of it."""
        return 2.0 * (self.replay_window_sec + self.clock_skew_sec)

    @property
    def duplicate_window_s(self) -> float:
        """The stream's duplicate window: longer than any event may be repeated."""
        return duplicate_window_s(self.idempotency_ttl_sec, self.sources)

    @property
    def rate_limit_address_burst(self) -> float:
        """The burst of an address: its rate, but at least the one request without which nothing would pass."""
        return max(1.0, self.rate_limit_address_rps)

    def all_secrets(self) -> tuple[Secret, ...]:
        """Every secret of these settings, for whoever must keep them out of texts."""
        nats = (self.nats_password, self.nats_token, self.nats_nkey_seed)
        edge = () if self.edge is None else (self.edge.gateway_redis_password,)
        return (
            *edge,
            *(() if self.redis_url is None or self.redis_url.password is None else (self.redis_url.password,)),
            *self.shared_secrets,
            *(secret for source in self.sources.values() for secret in source.secrets),
            *(secret for secret in nats if secret is not None),
        )


def duplicate_window_s(idempotency_ttl_s: float, sources: Mapping[str, SourceSettings]) -> float:
    """The longest time in which an event may be repeated, and a margin, in seconds."""
    ages = (source.max_body_age for source in sources.values())
    return max([float(idempotency_ttl_s), *(age for age in ages if age is not None)]) + DUPLICATE_MARGIN_S


def value_of(settings: Settings, row: Row) -> Any:
    """What a row's setting is; None for one of the edge's while that is off."""
    return getattr(settings.edge if row.name in NAMES else settings, row.field, None)


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two settings, by name: `reloadable` is taken over by SIGHUP, `needs_restart` is not."""

    reloadable: tuple[str, ...]
    needs_restart: tuple[str, ...]


def changes(old: Settings, new: Settings) -> Changes:
    """
    The settings whose values differ, in the table's order, then `sources.<name>` for each source that differs.

    A source differs also when only what it falls back to does. Of secrets the values are compared, never shown.
    """
    rows = [row for row in TABLE.values() if value_of(old, row) != value_of(new, row)]
    names = sorted({*old.sources, *new.sources})
    differing = [f"sources.{name}" for name in names if old.sources.get(name) != new.sources.get(name)]
    # An edge that comes or goes waits for a restart, with everything that is set of it.
    fixed = NAMES if (old.edge is None) != (new.edge is None) else frozenset()
    taken = [row.name for row in rows if row.reloadable and row.name not in fixed]
    return Changes((*taken, *differing), tuple(row.name for row in rows if row.name not in taken))
