"""
From environment, file and secrets to Settings. Pure but for the reader of files that it is handed.

Decides what the sources are, what follows where nobody says, and what must hold between settings; finds all problems
at once. Never says what one setting may be (the table does) or where it stands (settings_origins does), never opens
anything by itself, and never shows a secret.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from gatewayd.http.addresses import parse_address
from gatewayd.secret import Secret, show_secrets
from gatewayd.settings import Changes, Settings, SourceSettings, changes, duplicate_window_s, value_of
from gatewayd.settings_edge import ADMIN, NAMES, REQUIRED, edge_of
from gatewayd.settings_origins import ENVIRONMENT, Given, Origins, Place, Problem, Reader, nearest
from gatewayd.settings_row import SECRET, Row
from gatewayd.settings_table import SECRET_OF_SOURCE, SOURCE_TABLE, TABLE, secret_name
from gatewayd.settings_values import (
    ALL_NETWORKS,
    LOOPBACK,
    MAX_ITEMS,
    SOURCE_FORM,
    Wrong,
    is_source_name,
    show_duration,
)

__all__ = [
    "Changes",
    "Facts",
    "Loaded",
    "Problem",
    "Secret",
    "Settings",
    "SourceSettings",
    "changes",
    "describe",
    "load",
]

RESERVED_DESCRIPTORS: Final = 64
"""Descriptors that are not for clients: listeners, the admin listener's, NATS, Redis, logs, files read on SIGHUP."""
EDGE_PORT: Final = ":8080"
_DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of the process: its user's home (None: $HOME), and how many descriptors it may open."""

    home: Path | None = None
    descriptors: int = 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    What was found. `settings` is None exactly when there are `problems`. `warnings` are worth an operator's attention,
    `notes` are not. `origins` says by setting where its value came from (`sources.<name>.<key>` for those of a source).
    """

    settings: Settings | None
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    origins: Mapping[str, str]


def load(
    environ: Mapping[str, str],
    config_file: Path | None,
    read: Reader,
    *,
    facts: Facts = Facts(),
    strict: bool = False,
) -> Loaded:
    """
    Find every setting. `read` gives a file's bytes or raises OSError; `strict` makes unknown GATEWAY_ names problems.

    Never raises for anything that a file or variable holds: it is in `problems`, all of it.
    """
    origins = Origins(environ, config_file, read)
    filed = [row.name for row in TABLE.values() if row.filed]
    origins.judge_environment([*TABLE, *(f"{name}_FILE" for name in filed)], strict=strict)
    origins.judge_file([*(name.lower() for name in TABLE), *(f"{name.lower()}_file" for name in filed), "sources"])
    return _Loading(origins, facts).load()


class _Loading:
    """One run of load(): the values found so far, by the names of their settings."""

    def __init__(self, origins: Origins, facts: Facts) -> None:
        self._origins = origins
        self._facts = facts
        self._values: dict[str, Any] = {}
        self._from: dict[str, str] = {}
        self._secrets: list[tuple[str, Secret]] = []

    def load(self) -> Loaded:
        """Everything, in the order in which one thing needs another."""
        origins = self._origins
        for row in TABLE.values():
            self._values[row.name] = self._setting(row)
        self._derive()
        sources = self._sources()
        self._derive_nats_login()
        self._judge_nats()
        self._judge_secrets()
        self._judge_windows(sources)
        self._judge_pair("GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY")
        self._judge_pair("NATS_TLS_CERT", "NATS_TLS_KEY")
        self._judge_redis()
        self._judge_edge()
        missing = self._missing_secrets(sources)
        settings = None
        if not origins.problems:
            settings = Settings(
                **{row.field: self._values[row.name] for row in TABLE.values() if row.name not in NAMES},
                edge=edge_of(self._values, self._values["HOST"]),
                sources=MappingProxyType(sources),
                generate_secret=len(missing) == len(sources),
                unconfigured_sources=() if len(missing) == len(sources) else missing,
            )
        return Loaded(
            settings,
            tuple(origins.problems),
            tuple(origins.warnings),
            tuple(origins.notes),
            MappingProxyType(self._from),
        )

    # ---- single settings ----

    def _setting(self, row: Row) -> Any:
        place = Place(row, row.name, row.name, self._origins.top, row.name.lower())
        given = self._origins.find(place)
        value = None if given is None else self._value(place, given)
        if value is not None:
            return value
        self._from[row.name] = _DEFAULT if given is None else given.origin
        if row.default is None:
            return () if row.name == SECRET else None
        return row.kind.parse(tuple(row.default.split(",")))

    def _value(self, place: Place, given: Given) -> Any:
        """The value of a text; None, said as it is, when it is wrong."""
        row, text = place.row, ",".join(given.items)
        value = row.kind.parse(given.items) if len(given.items) <= MAX_ITEMS else Wrong(f"at most {MAX_ITEMS} items")
        if isinstance(value, Wrong):
            reason = f"{row.kind.allowed}; {value.reason}" if value.reason else row.kind.allowed
            self._origins.problem(place.label, reason, None if row.secret or row.kind.private(text) else text)
            return None
        self._from[place.label] = given.origin
        return value

    def _follow(self, name: str, origin: str, value: Any) -> None:
        """Fill in what nobody gave."""
        if self._values[name] is None:
            self._values[name] = value
            self._from[name] = origin

    def _derive(self) -> None:
        values = self._values
        production = values["ENV"] == "production"
        self._follow("HOST", _DEFAULT, "" if production else "127.0.0.1")
        self._follow("METRICS_ALLOW_CIDRS", _DEFAULT, LOOPBACK if production else ALL_NETWORKS)
        self._follow("MAX_CONNECTIONS", "descriptors", max(1, self._facts.descriptors - RESERVED_DESCRIPTORS))
        self._follow("RATE_LIMIT_DEFAULT", "RATE_LIMIT_RPS", values["RATE_LIMIT_RPS"])
        self._follow("RATE_LIMIT_ADDRESS_RPS", "RATE_LIMIT_RPS", values["RATE_LIMIT_RPS"])
        self._follow("RATE_LIMIT_SOURCES", _DEFAULT, {})
        values["RATE_LIMIT_SOURCES"] = MappingProxyType(values["RATE_LIMIT_SOURCES"])
        host = values["HOST"]
        if values["GATEWAY_PUBLIC_HTTP_ADDR"] is None:
            self._follow("GATEWAY_PUBLIC_HTTP_ADDR", "PORT and HOST", (f":{values['PORT']}", *self._second_port()))
        elif self._from.get("PORT", _DEFAULT) != _DEFAULT:
            self._origins.notes.append("PORT is not used: GATEWAY_PUBLIC_HTTP_ADDR says where to listen")
        values["GATEWAY_PUBLIC_HTTP_ADDR"] = tuple(
            parse_address(text, host) for text in values["GATEWAY_PUBLIC_HTTP_ADDR"]
        )
        admin = values[ADMIN.name] or ()
        values[ADMIN.name] = tuple(parse_address(text, "127.0.0.1") for text in admin)
        self._derive_state_directory()

    def _second_port(self) -> tuple[str, ...]:
        """The edge's own port of old, beside the default one where nobody says where to listen."""
        edge = all(self._values[name] is not None for name in REQUIRED)
        return (EDGE_PORT,) if edge and self._from["PORT"] == _DEFAULT else ()

    def _derive_state_directory(self) -> None:
        environ, given = self._origins.environ, self._values["STATE_DIRECTORY"]
        if given is not None:
            if self._from["STATE_DIRECTORY"] == ENVIRONMENT:
                # systemd lists every directory of the unit here; ours is the first.
                given = Path(str(given).partition(":")[0])
            if not given.is_absolute():
                self._origins.problem("STATE_DIRECTORY", "an absolute path", str(given))
            self._values["STATE_DIRECTORY"] = given
            return
        state_home = Path(environ.get("XDG_STATE_HOME", ""))
        home = self._facts.home or Path(environ.get("HOME", ""))
        if state_home.is_absolute():  # a relative one must be ignored (XDG Base Directory Specification)
            self._follow("STATE_DIRECTORY", "XDG_STATE_HOME", state_home / "gatewayd")
        elif home.is_absolute():
            self._follow("STATE_DIRECTORY", "home directory", home / ".local/state/gatewayd")
        else:
            self._origins.problem("STATE_DIRECTORY", "there is no home directory to put it into: set an absolute path")

    # ---- sources ----

    def _sources(self) -> dict[str, SourceSettings]:
        allowed: tuple[str, ...] = self._values["ALLOWED_SOURCES"]
        tables = self._source_tables()
        if self._origins.sound("ALLOWED_SOURCES"):
            for name in tables:
                self._judge_source(name, f"[sources.{name}]")
            for name in self._values["RATE_LIMIT_SOURCES"]:
                self._judge_source(name, "RATE_LIMIT_SOURCES")
        variables = self._secret_variables(allowed)
        # Tables of names that are not allowed are read, too, so that all their problems show at once.
        names = dict.fromkeys((*allowed, *tables))
        found = {name: self._source(name, tables.get(name, {}), variables.get(name, "")) for name in names}
        return {name: found[name] for name in allowed}

    def _source_tables(self) -> dict[str, Mapping[str, Any]]:
        given = self._origins.top.get("sources", {})
        if not isinstance(given, dict):
            self._origins.problem("[sources]", "a table for each source, [sources.<name>]")
            return {}
        tables: dict[str, Mapping[str, Any]] = {}
        known = [*SOURCE_TABLE, *(f"{row.name}_file" for row in SOURCE_TABLE.values() if row.filed)]
        for name, table in given.items():
            label = f"[sources.{name}]"
            if not isinstance(table, dict):
                self._origins.problem(label, "a table")
                continue
            if not is_source_name(name):
                self._origins.problem(label, f"a source's name has {SOURCE_FORM}")
                continue
            for key in sorted(table.keys() - set(known)):
                self._origins.problem(f"{label} {key}", f"is not a setting of a source{nearest(key, known)}")
            tables[name] = table
        return tables

    def _judge_source(self, name: str, label: str) -> None:
        allowed = self._values["ALLOWED_SOURCES"]
        if name not in allowed:
            self._origins.problem(label, f"{name} is not in ALLOWED_SOURCES{nearest(name, allowed)}")

    def _secret_variables(self, allowed: tuple[str, ...]) -> dict[str, str]:
        """The variable of each source's own secrets, after a look at those that are set and mean nothing, or two."""
        meant: defaultdict[str, list[str]] = defaultdict(list)
        for name in allowed:
            # API_KEY_HMAC_SECRET_FILE is the file of the shared secrets, also when a source is called "file".
            if secret_name(name) != f"{SECRET}_FILE":
                meant[secret_name(name)].append(name)
                meant[f"{secret_name(name)}_FILE"].append(name)
        variables = {name: secret_name(name) for name in allowed if secret_name(name) in meant}
        for variable in sorted(self._origins.environ):
            if not variable.startswith(SECRET_OF_SOURCE) or variable == f"{SECRET}_FILE":
                continue
            if len(meant[variable]) > 1:
                names = " and ".join(meant[variable])
                self._origins.problem(variable, f"could be meant for {names}; use [sources.<name>] in a file")
            elif not meant[variable] and self._origins.sound("ALLOWED_SOURCES"):
                end = nearest(variable, [name for name in meant if meant[name]])
                self._origins.problem(variable, f"is for a source that is not in ALLOWED_SOURCES{end}")
        return {name: variable for name, variable in variables.items() if len(meant[variable]) == 1}

    def _source(self, name: str, table: Mapping[str, Any], variable: str) -> SourceSettings:
        values: dict[str, Any] = {}
        for key, row in SOURCE_TABLE.items():
            own = variable if key == "secret" else ""
            place = Place(row, f"sources.{name}.{key}", own, table, key)
            given = self._origins.find(place)
            values[key] = None if given is None else self._value(place, given)
            if values[key] is None and row.default is not None:
                values[key] = row.kind.parse((row.default,))
            if row.secret and given is not None:
                shown = variable if given.origin == ENVIRONMENT else f"[sources.{name}] {key}"
                self._secrets += [(shown, secret) for secret in values[key] or ()]
        if values["schemes"] is None:
            self._from[f"sources.{name}.schemes"] = "SIGNATURE_SCHEMES"
        rps = self._rate(name, values["rps"])
        burst = values["burst"] or self._values["RATE_LIMIT_BURST"] or max(1.0, rps)
        if values["previous_secret"] and not values["secret"]:
            self._origins.problem(f"sources.{name}.previous_secret", "there is no secret beside it")
        return SourceSettings(
            name=name,
            auth=values["auth"],
            schemes=values["schemes"] or self._values["SIGNATURE_SCHEMES"],
            secrets=(*(values["secret"] or ()), *(values["previous_secret"] or ())),
            addresses=values["addresses"] or (),
            rps=rps,
            burst=burst,
            max_body_age=values["max_body_age"],
            profile=values["profile"],
            format=values["format"] or ("tradingview" if name == "tradingview" else "generic"),
        )

    def _rate(self, name: str, own: float | None) -> float:
        """A source's rate: RATE_LIMIT_SOURCES in the environment, its own table, then what holds for all."""
        listed: float | None = self._values["RATE_LIMIT_SOURCES"].get(name)
        if listed is not None and own is not None and self._from["RATE_LIMIT_SOURCES"] != ENVIRONMENT:
            self._origins.problem(f"sources.{name}.rps", "stands in rate_limit_sources, too; keep one")
        if listed is not None:
            self._from[f"sources.{name}.rps"] = "RATE_LIMIT_SOURCES"
            return listed
        if own is not None:
            return own
        self._from[f"sources.{name}.rps"] = "RATE_LIMIT_DEFAULT"
        default: float = self._values["RATE_LIMIT_DEFAULT"]
        return default

    # ---- what must hold between settings ----

    def _derive_nats_login(self) -> None:
        servers = self._values["NATS_URL"] or ()
        self._values["NATS_URL"] = tuple(server.url for server in servers)
        login = next((server for server in servers if server.user or server.token), None)
        if login is None:
            return
        given = [name for name in ("NATS_USER", "NATS_PASSWORD", "NATS_TOKEN") if self._values[name] is not None]
        if given:
            self._origins.problem("NATS_URL", f"holds credentials, and so does {' and '.join(given)}; keep one")
            return
        self._follow("NATS_USER", "NATS_URL", login.user)
        self._follow("NATS_PASSWORD", "NATS_URL", login.password)
        self._follow("NATS_TOKEN", "NATS_URL", login.token)

    def _judge_nats(self) -> None:
        values, origins = self._values, self._origins
        logins = [
            name
            for name in ("NATS_USER", "NATS_TOKEN", "NATS_NKEY_SEED", "NATS_CREDENTIALS_FILE")
            if values[name] is not None
        ]
        if len(logins) > 1:
            origins.problem(logins[0], f"there is one way to log in, and {' and '.join(logins)} are set; keep one")
        self._judge_pair("NATS_USER", "NATS_PASSWORD")
        tls = [name for name in ("NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY") if values[name] is not None]
        if not values["NATS_URL"] and origins.sound("NATS_URL"):
            if values["ENV"] == "production":
                origins.problem("NATS_URL", f"is required in production: {TABLE['NATS_URL'].kind.allowed}")
            elif logins or tls:
                origins.warnings.append(
                    f"{', '.join([*logins, *tls])} has no effect without NATS_URL: a server is embedded"
                )
        raw, normalized = "NATS_SUBJECT_SIGNALS_RAW", "NATS_SUBJECT_SIGNALS_NORMALIZED"
        if values[raw] == values[normalized] and origins.sound(raw, normalized):
            origins.problem(normalized, f"another subject than {raw}", values[normalized])

    def _judge_pair(self, one: str, other: str) -> None:
        given = [name for name in (one, other) if self._values[name] is not None]
        if len(given) == 1 and self._origins.sound(one, other):
            self._origins.problem(given[0], f"needs {other if given[0] == one else one} beside it")

    def _judge_redis(self) -> None:
        place = self._values["REDIS_URL"]
        if self._values["REDIS_TLS_CA"] is not None and (place is None or not place.tls):
            self._origins.notes.append("REDIS_TLS_CA has no effect without a REDIS_URL that begins with rediss://")

    def _judge_edge(self) -> None:
        values, origins = self._values, self._origins
        there = [name for name in REQUIRED if values[name] is not None or not origins.sound(name)]
        absent = [name for name in REQUIRED if name not in there]
        if there and absent:
            origins.problem(there[0], f"needs {' and '.join(absent)} beside it: the edge is on with all five or off")
        for one, other in (
            ("GATEWAY_SESSION_EVENTS_REDIS_STREAM", "GATEWAY_CLIENT_EVENTS_REDIS_STREAM"),
            ("GATEWAY_SESSION_REDIS_KEY_PREFIX", "GATEWAY_REPLAY_REDIS_KEY_PREFIX"),
        ):
            if values[one] is not None and values[one] == values[other] and origins.sound(one, other):
                origins.problem(other, f"another one than {one}", values[other])
        self._note_without_edge(there)

    def _note_without_edge(self, there: Sequence[str]) -> None:
        given = [name for name in TABLE if name in NAMES and self._from.get(name, _DEFAULT) != _DEFAULT]
        if given and not there:
            self._origins.notes.append(f"{', '.join(given)} has no effect: the edge is off")

    def _judge_secrets(self) -> None:
        secrets = [(SECRET, secret) for secret in self._values[SECRET]] + self._secrets
        counts: defaultdict[str, int] = defaultdict(int)
        first: dict[Secret, str] = {}
        for label, secret in secrets:
            counts[label] += 1
            number = counts[label]
            if secret in first:
                self._origins.problem(label, f"secret {number} is the same as {first[secret]}")
            first.setdefault(secret, f"secret {number} of {label}")
            weakness = secret.weakness()
            if not weakness:
                continue
            advice = f"secret {number} {weakness}; `gatewayctl secret new` makes a good one"
            if self._values["SECRETS_STRICT"]:
                self._origins.problem(label, advice)
            else:
                self._origins.warnings.append(f"{label}: {advice}")

    def _missing_secrets(self, sources: Mapping[str, SourceSettings]) -> tuple[str, ...]:
        """The sources that no secret is for, sorted; all of them only when there is no secret at all."""
        origins = self._origins
        if self._values[SECRET]:
            return ()
        missing = tuple(sorted(name for name, source in sources.items() if not source.secrets))
        if not origins.sound(SECRET, *(f"sources.{name}.secret" for name in sources)):
            return missing
        if len(missing) < len(sources):
            if missing:
                origins.warnings.append(f"no secret for {', '.join(missing)}: their webhooks are answered 503 GW-018")
        elif self._values["ENV"] == "production" and origins.sound("ALLOWED_SOURCES"):
            origins.problem(
                SECRET,
                f"no source has a secret, and production makes none: set {SECRET}, {SECRET}_FILE, a credential of "
                f"that name, or {SECRET_OF_SOURCE}<SOURCE>",
            )
        return missing

    def _judge_windows(self, sources: Mapping[str, SourceSettings]) -> None:
        window_s = duplicate_window_s(self._values["IDEMPOTENCY_TTL_SEC"], sources)
        max_age_s = self._values["NATS_STREAM_MAX_AGE"]
        if window_s > max_age_s and self._origins.sound("NATS_STREAM_MAX_AGE", "IDEMPOTENCY_TTL_SEC"):
            self._origins.problem(
                "NATS_STREAM_MAX_AGE",
                f"at least {show_duration(window_s)}: the stream must remember ids for the longest of "
                "IDEMPOTENCY_TTL_SEC and every max_body_age, and 10 minutes more",
                show_duration(max_age_s),
            )


def describe(loaded: Loaded) -> str:
    """
    The effective settings as text, a line each, `NAME=value  # where it came from`; the problems where there are some.

    Secrets are counted and measured, nothing else is said of them.
    """
    if loaded.settings is None:
        return "\n".join(str(problem) for problem in loaded.problems)
    return "\n".join(f"{name}={text}  # {origin}" for name, text, origin in effective(loaded.settings, loaded.origins))


def effective(settings: Settings, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Every setting as (name, masked text, origin), those of sources as `sources.<name>.<key>`."""
    lines = []
    for row in TABLE.values():
        value = value_of(settings, row)
        unset = value is None and (row.default is None or (settings.edge is None and row.name in NAMES))
        lines.append((row.name, "" if unset else row.kind.show(value), origins.get(row.name, _DEFAULT)))
    for name, source in settings.sources.items():
        for key, row in SOURCE_TABLE.items():
            if key == "previous_secret":
                continue  # shown with the others: `secrets` holds both
            value = source.secrets if key == "secret" else getattr(source, key)
            show: Callable[[Any], str] = show_secrets if key == "secret" else row.kind.show
            label = f"sources.{name}.{key}"
            lines.append((label, "" if value is None else show(value), origins.get(label, _DEFAULT)))
    return lines
