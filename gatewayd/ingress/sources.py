"""
The rules of ingress, made from the settings. Pure.

Decides which source a path stands for, which secrets, schemes, addresses and limits are whose. One frozen value:
a reload makes a new one and swaps it whole, so that no request ever sees half of a change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from gatewayd.ingress.addresses import Network, Proxies
from gatewayd.ingress.admission import BODY, KEY, Limit, identity_prefix, prefix
from gatewayd.ingress.normalise import READERS, Generic, Invalid, Malformed, Signal
from gatewayd.ingress.signature import SigningKey
from gatewayd.settings import Settings, SourceSettings

GENERIC_PATH: Final = b"/webhook/generic"
PREFIX: Final = b"/webhook/"
UNKNOWN_SOURCE: Final = "_other"
"""What a source that is not known is called, in limits and in metrics."""

Read: TypeAlias = Callable[[bytes, str | None], Signal | Generic | Malformed | Invalid]
"""A body, and the path's source or None, to what it says."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What the digests of one source stand behind."""

    body: bytes
    key: bytes
    nonce: bytes
    claim: bytes

    @classmethod
    def of(cls, source: bytes) -> "Prefixes":
        """Those of a source."""
        return cls(
            identity_prefix(source, BODY), identity_prefix(source, KEY), prefix(source), prefix(source, b"claim")
        )


@dataclass(frozen=True, slots=True)
class Source:
    """
    One configured source.

    `keys` are the secrets that sign for it: its own, else the shared ones; empty: it is not configured and answers
    GW-018. `max_body_age_s` bounds the age of the body's own time under schemes that do not bind the headers. `read` is
    its format's reader. `transient_as_503` is for senders that give an event up on any 4xx.
    """

    name: str
    prefixes: Prefixes
    keys: tuple[SigningKey, ...]
    schemes: frozenset[str]
    addresses: tuple[Network, ...]
    limit: Limit
    max_body_age_s: float
    read: Read
    transient_as_503: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything of the settings that a request is judged by."""

    sources: Mapping[str, Source]
    paths: Mapping[bytes, Source]
    keys: tuple[SigningKey, ...]
    schemes: frozenset[str]
    replay_window_s: float
    clock_skew_s: float
    address_limit: Limit
    exempt: tuple[Network, ...]
    proxies: Proxies
    metrics_readers: tuple[Network, ...]
    generic: Read
    default_limit: Limit


def _reader(form: str, schema_version: str) -> Read:
    return partial(READERS[form], schema_version=schema_version)


def _source(settings: Settings, source: SourceSettings, shared: tuple[SigningKey, ...]) -> Source:
    own = tuple(SigningKey(secret.reveal(), source.name, number) for number, secret in enumerate(source.secrets, 1))
    return Source(
        name=source.name,
        prefixes=Prefixes.of(source.name.encode("ascii")),
        keys=own or shared,
        schemes=frozenset(source.schemes),
        addresses=source.addresses,
        limit=Limit(source.rps, source.burst),
        max_body_age_s=settings.idempotency_ttl_sec if source.max_body_age is None else source.max_body_age,
        read=_reader(source.format, settings.signal_schema_version),
        transient_as_503=source.profile == "tradingview",
    )


def make_rules(settings: Settings) -> Rules:
    """The rules that these settings mean."""
    shared = tuple(SigningKey(secret.reveal(), None, n) for n, secret in enumerate(settings.shared_secrets, 1))
    sources = {name: _source(settings, source, shared) for name, source in settings.sources.items()}
    own = tuple(key for source in sources.values() for key in source.keys if key.source is not None)
    return Rules(
        sources=sources,
        paths={PREFIX + name.encode("ascii"): source for name, source in sources.items() if name != "generic"},
        keys=shared + own,
        schemes=frozenset().union(*(source.schemes for source in sources.values())),
        replay_window_s=settings.replay_window_sec,
        clock_skew_s=settings.clock_skew_sec,
        address_limit=Limit(settings.rate_limit_address_rps, settings.rate_limit_address_burst),
        exempt=settings.rate_limit_exempt_cidrs,
        proxies=settings.trusted_proxies,
        metrics_readers=settings.metrics_allow_cidrs,
        generic=_reader("generic", settings.signal_schema_version),
        default_limit=Limit(
            settings.rate_limit_default, settings.rate_limit_burst or max(1.0, settings.rate_limit_default)
        ),
    )
