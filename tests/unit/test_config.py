"""Settings: defaults, the places that they come from, the names that are refused, what must hold between them."""

import typing
from collections.abc import Mapping
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from types import UnionType

from gatewayd.config import Facts, Secret, Settings
from gatewayd.http.addresses import Address, Kind
from gatewayd.settings_edge import NAMES
from gatewayd.settings_origins import MAX_FILE_BYTES
from gatewayd.settings_table import TABLE
from tests.unit.settings_case import HOME, PRODUCTION, STRONG, SettingsCase, load_from

SEED = "SU" + "A" * 56

SAMPLE_ENV_PRODUCTION = """
PORT=8001
LOG_LEVEL=INFO
SERVICE_NAME=at-gateway
ENV=production
NATS_URL=nats://nats-cluster:4222
NATS_STREAM=trading-events
NATS_SUBJECT_SIGNALS_RAW=signals.raw
NATS_SUBJECT_SIGNALS_NORMALIZED=signals.normalized
NATS_DURABLE=gateway-consumer
RATE_LIMIT_RPS=100
ALLOWED_SOURCES=tradingview,custom,partner
REPLAY_WINDOW_SEC=300
IDEMPOTENCY_TTL_SEC=3600
PROMETHEUS_MULTIPROC_DIR=/tmp/prometheus
MAINTENANCE_MODE=false
"""


def parse_sample(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.strip().splitlines())


def conforms(value: object, hint: typing.Any) -> bool:
    """True when the value, and everything in it, is of the type that the hint names."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case None:
            wanted = getattr(hint, "__supertype__", hint)
            return isinstance(value, wanted) and (wanted in (bool, object) or not isinstance(value, bool))
        case origin if origin is tuple:
            return isinstance(value, tuple) and all(conforms(item, arguments[0]) for item in value)
        case origin if origin in (UnionType, typing.Union):
            return any(conforms(value, argument) for argument in arguments)
    assert isinstance(value, Mapping)
    return all(conforms(key, arguments[0]) and conforms(item, arguments[1]) for key, item in value.items())


class DefaultsTest(SettingsCase):
    def test_development_needs_nothing(self) -> None:
        """Without any setting: development, loopback, an embedded server and a secret to be made."""
        found = self.settings(HOME)
        self.assertEqual((found.env, found.host, found.port), ("development", "127.0.0.1", 8001))
        self.assertEqual(found.gateway_public_http_addr, (Address(Kind.TCP, "127.0.0.1", 8001),))
        self.assertTrue(found.generate_secret)
        self.assertTrue(found.embedded_nats)
        self.assertEqual(found.unconfigured_sources, ())
        self.assertEqual(found.metrics_allow_cidrs, (ip_network("0.0.0.0/0"), ip_network("::/0")))
        self.assertEqual(found.state_directory, Path("/home/gw/.local/state/gatewayd"))

    def test_production_sample(self) -> None:
        """The published sample of a production environment loads as it stands, once a secret is set."""
        loaded = load_from({**HOME, **parse_sample(SAMPLE_ENV_PRODUCTION), "API_KEY_HMAC_SECRET": STRONG})
        self.assertEqual(loaded.problems, ())
        self.assertEqual(loaded.warnings, ())
        self.assertEqual(len(loaded.notes), 1)
        self.assertIn("PROMETHEUS_MULTIPROC_DIR", loaded.notes[0])
        found = loaded.settings
        assert found is not None
        self.assertEqual(list(found.sources), ["tradingview", "custom", "partner"])
        self.assertEqual((found.host, found.nats_url), ("", ("nats://nats-cluster:4222",)))
        self.assertEqual(found.metrics_allow_cidrs, (ip_network("127.0.0.0/8"), ip_network("::1/128")))
        self.assertFalse(found.generate_secret)

    def test_contract_defaults(self) -> None:
        """The defaults that users rely on."""
        found = self.settings(HOME)
        for name, value in {
            "service_name": "at-gateway",
            "log_level": "INFO",
            "allowed_sources": ("tradingview", "custom", "test"),
            "signature_schemes": ("sha256", "v1"),
            "replay_window_sec": 300,
            "clock_skew_sec": 30,
            "idempotency_ttl_sec": 3600,
            "rate_limit_rps": 100.0,
            "rate_limit_burst": None,
            "rate_limit_address_rps": 100.0,
            "nats_stream": "trading-events",
            "nats_durable": "gateway-consumer",
            "nats_subject_signals_raw": "signals.raw",
            "nats_subject_signals_normalized": "signals.normalized",
            "nats_publish_timeout": 2.0,
            "nats_stream_max_age": 86400.0,
            "nats_stream_max_bytes": None,
            "admission_entries": 200000,
            "lag_shed_messages": None,
            "signal_schema_version": "1.1.0",
            "maintenance_mode": False,
            "maintenance_retry_after": 300.0,
            "maintenance_until": None,
            "gateway_shutdown_timeout": 5.0,
            "max_connections_per_address": 2000,
            "secrets_strict": False,
            "duplicate_window_s": 4200.0,
            "nonce_lifetime_s": 660.0,
        }.items():
            self.assertEqual(getattr(found, name), value, name)
        self.assertEqual(found.sources["tradingview"].format, "tradingview")
        self.assertEqual(found.sources["custom"].format, "generic")
        self.assertEqual(found.sources["custom"].profile, "standard")

    def test_every_value_has_its_declared_type(self) -> None:
        """Each row of the table fills the field of its name with a value of the type that the field declares."""
        full = {
            **PRODUCTION,
            "NATS_URL": "tls://a",
            "NATS_USER": "u",
            "NATS_PASSWORD": "p",
            "NATS_TLS_CA": "/ca",
            "NATS_STREAM_MAX_BYTES": "1GiB",
            "MAINTENANCE_UNTIL": "2030-01-01T00:00:00Z",
            "RATE_LIMIT_BURST": "5",
            "GATEWAY_TLS_CERT": "/c",
            "GATEWAY_TLS_KEY": "/k",
        }
        hints = typing.get_type_hints(Settings)
        for environ in (HOME, full):
            found = self.settings(environ)
            for name, hint in hints.items():
                self.assertTrue(conforms(getattr(found, name), hint), f"{name}: {getattr(found, name)!r}")

    def test_fields_and_rows_agree(self) -> None:
        """Settings has one field for each row of the table but the edge's, and four that follow from them."""
        derived = {"sources", "generate_secret", "unconfigured_sources", "edge"}
        own = {row.field for row in TABLE.values() if row.name not in NAMES}
        self.assertEqual({field.name for field in fields(Settings)}, own | derived)


class PlacesTest(SettingsCase):
    def test_environment_first(self) -> None:
        """The environment counts before the file, the file before the default; origins say which it was."""
        loaded = load_from({**HOME, "PORT": "9001"}, 'port = 9002\nclock_skew_sec = "1m"\n')
        assert loaded.settings is not None
        self.assertEqual((loaded.settings.port, loaded.settings.clock_skew_sec), (9001, 60))
        self.assertEqual(loaded.origins["PORT"], "environment")
        self.assertEqual(loaded.origins["CLOCK_SKEW_SEC"], "configuration file")
        self.assertEqual(loaded.origins["REPLAY_WINDOW_SEC"], "default")

    def test_empty_is_not_set(self) -> None:
        """An empty variable counts as not set."""
        self.assertEqual(self.settings({**HOME, "PORT": "", "NATS_URL": " "}), self.settings(HOME))

    def test_toml_types(self) -> None:
        """TOML's own numbers, booleans, arrays and times are understood."""
        found = self.settings(
            HOME,
            """
            rate_limit_rps = 2.5
            maintenance_mode = true
            maintenance_until = 2030-01-01T00:00:00+01:00
            allowed_sources = ["a", "b"]
            trusted_proxies = ["10.0.0.0/8", 2]
            """,
        )
        self.assertEqual((found.rate_limit_rps, found.maintenance_mode), (2.5, True))
        self.assertEqual(found.maintenance_until, 1893452400.0)
        self.assertEqual(found.allowed_sources, ("a", "b"))
        self.assertEqual((found.trusted_proxies.networks, found.trusted_proxies.hops), ((ip_network("10.0.0.0/8"),), 2))

    def test_unknown_keys_of_the_file(self) -> None:
        """An unknown key of the file is an error that names the nearest, in source tables too."""
        for toml, words in (
            ("replay_windw_sec = 3", ("replay_windw_sec", "perhaps replay_window_sec")),
            ("PORT = 3", ("perhaps port",)),
            ('[sources.test]\nsecrt = "x"', ("[sources.test] secrt", "perhaps secret")),
            ('api_key_hmac_secret_test = "x"', ("[sources.<name>]",)),
            ('gateway_redis_username = "x"', ("gateway_redis_username", "retired")),
            ('database_url = "x"', ("not available in this version",)),
        ):
            self.assert_problem(self.problems(HOME, toml), *words)

    def test_unreadable_file(self) -> None:
        """A configuration file that cannot be read or understood is one problem that names it."""
        for content, word in (
            (PermissionError(13, "Permission denied"), "Permission denied"),
            (b"port = ", "not TOML"),
            (b"\xff", "not UTF-8"),
            (b"x" * (MAX_FILE_BYTES + 1), "more than"),
            (b"port = " + b"9" * 5000, "not TOML"),
            (b"[" * 5000, "not TOML"),
        ):
            found = load_from(HOME, content)
            self.assert_problem([str(problem) for problem in found.problems], "--config=/etc/gatewayd.toml", word)

    def test_numbers_beyond_toml(self) -> None:
        """A number that is too large to be one is a problem, not a crash."""
        for text in ("0x" + "f" * 5000, "1e999", "-1", "nan"):
            self.assert_problem(self.problems(HOME, f"port = {text}"), "PORT", "65535")

    def test_lists_from_files(self) -> None:
        """A list may stand in a file, one entry a line or several, with comments."""
        found = self.settings(
            {**HOME, "RATE_LIMIT_EXEMPT_CIDRS_FILE": "/lists/exempt"},
            'trusted_proxies_file = "/lists/proxies"',
            {"/lists/exempt": b"# ours\n10.0.0.0/8, 192.0.2.1 # two\n\n2001:db8::/32\n", "/lists/proxies": b"2\n"},
        )
        self.assertEqual(
            found.rate_limit_exempt_cidrs,
            (ip_network("10.0.0.0/8"), ip_network("192.0.2.1"), ip_network("2001:db8::/32")),
        )
        self.assertEqual(found.trusted_proxies.hops, 2)

    def test_lists_given_twice(self) -> None:
        """A list given inline and as a file is an error."""
        found = self.problems(
            {**HOME, "TRUSTED_PROXIES": "2", "TRUSTED_PROXIES_FILE": "/x"}, None, files={"/x": b"10.0.0.0/8"}
        )
        self.assert_problem(found, "TRUSTED_PROXIES", "given twice")

    def test_state_directory(self) -> None:
        """$STATE_DIRECTORY (the first of several), else under $XDG_STATE_HOME, else under the home directory."""
        for environ, facts, path in (
            ({"STATE_DIRECTORY": "/var/lib/gatewayd"}, Facts(), "/var/lib/gatewayd"),
            ({"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}, Facts(), "/var/lib/one"),
            ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, Facts(), "/x/gatewayd"),
            ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, Facts(), "/h/.local/state/gatewayd"),
            ({"HOME": "/h"}, Facts(home=Path("/real")), "/real/.local/state/gatewayd"),
        ):
            loaded = load_from(environ, facts=facts)
            assert loaded.settings is not None
            self.assertEqual(loaded.settings.state_directory, Path(path))
        self.assert_problem(self.problems({}), "STATE_DIRECTORY")
        self.assert_problem(self.problems({"STATE_DIRECTORY": "state"}), "STATE_DIRECTORY=state", "absolute")

    def test_connections_follow_descriptors(self) -> None:
        """MAX_CONNECTIONS leaves 64 descriptors for everything else, unless it is set."""
        loaded = load_from(HOME, facts=Facts(descriptors=20000))
        assert loaded.settings is not None
        self.assertEqual(loaded.settings.max_connections, 19936)
        self.assertEqual(self.settings({**HOME, "MAX_CONNECTIONS": "50"}).max_connections, 50)

    def test_listening_addresses(self) -> None:
        """Several addresses; `:port` is at HOST; PORT is then not used, and a note says so."""
        loaded = load_from({**HOME, "HOST": "::1", "PORT": "1", "GATEWAY_PUBLIC_HTTP_ADDR": ":8080,0.0.0.0:80"})
        assert loaded.settings is not None
        self.assertEqual(
            loaded.settings.gateway_public_http_addr,
            (Address(Kind.TCP, "::1", 8080), Address(Kind.TCP, "0.0.0.0", 80)),
        )
        self.assertIn("PORT is not used", loaded.notes[0])
        self.assertEqual(self.settings({**HOME, "HOST": "all"}).host, "")
        inherited = self.settings({**HOME, "GATEWAY_PUBLIC_HTTP_ADDR": "systemd:domain=INET:name=public"})
        self.assertEqual(inherited.gateway_public_http_addr, (Address(Kind.INHERITED, domain="INET", name="public"),))


class NamesTest(SettingsCase):
    def test_unknown_names_warn(self) -> None:
        """An unknown GATEWAY_ name is a warning with the nearest name, and an error when the check is strict."""
        for name, meant in (
            ("GATEWAY_SHUTDOWN_TIMEOT", "GATEWAY_SHUTDOWN_TIMEOUT"),
            ("GATEWAY_PORT", "PORT"),
            ("GATEWAY_NATS_URL", "NATS_URL"),
        ):
            loaded = load_from({**HOME, name: "7"})
            self.assertEqual(loaded.problems, ())
            self.assertEqual(loaded.warnings, (f"{name} is not a setting; perhaps {meant}",))
            self.assert_problem(self.problems({**HOME, name: "7"}, strict=True), name, f"perhaps {meant}")

    def test_platform_names_are_ignored(self) -> None:
        """What container platforms inject is ignored, also when the check is strict."""
        injected = {
            "GATEWAY_SERVICE_HOST": "10.0.0.1",
            "GATEWAY_SERVICE_PORT": "8001",
            "GATEWAY_SERVICE_PORT_HTTP": "8001",
            "GATEWAY_PORT": "tcp://10.0.0.1:8001",
            "GATEWAY_PORT_8001_TCP": "tcp://10.0.0.1:8001",
            "GATEWAY_PORT_8001_TCP_PROTO": "tcp",
            "GATEWAY_PORT_8001_TCP_PORT": "8001",
            "GATEWAY_PORT_8001_TCP_ADDR": "10.0.0.1",
            "GATEWAY_REDIS_SERVICE_HOST": "10.0.0.2",
            "GATEWAY_REDIS_PORT": "tcp://10.0.0.2:6379",
            "GATEWAY_STREAM_PORT": "udp://10.0.0.2:1",
        }
        loaded = load_from({**HOME, **injected}, strict=True)
        self.assertEqual((loaded.problems, loaded.warnings), ((), ()))

    def test_a_setting_is_never_the_platforms(self) -> None:
        """PORT=tcp://… is a wrong port: only names that are no settings are a platform's."""
        self.assert_problem(self.problems({**HOME, "PORT": "tcp://10.0.0.1:8001"}), "PORT=tcp://10.0.0.1:8001")

    def test_retired_names(self) -> None:
        """Retired names are refused by name, also when they are empty."""
        for name in (
            "GATEWAY_REDIS_TLS_ENABLED",
            "GATEWAY_REDIS_USERNAME",
            "GATEWAY_SESSION_CACHE_REDIS_ADDR",
            "GATEWAY_SESSION_CACHE_REDIS_USERNAME",
        ):
            for value in ("false", ""):
                self.assert_problem(self.problems({**HOME, name: value}), name, "retired")

    def test_unavailable_names(self) -> None:
        """What this version does not have is refused by name instead of being ignored."""
        for name in (
            "DATABASE_URL",
            "JWT_KEYS_SECRET",
        ):
            self.assert_problem(self.problems({**HOME, name: "x"}), name, "not available in this version")
            self.assertEqual(self.problems({**HOME, name: ""}), [])

    def test_other_programs_names(self) -> None:
        """Names of other programs are none of ours."""
        self.assertEqual(
            load_from({**HOME, "NATS_CONTEXT": "x", "PATH": "/bin", "RATE_LIMIT_X": "y"}, strict=True).warnings, ()
        )


class ProblemsTest(SettingsCase):
    def test_all_at_once(self) -> None:
        """Every problem is reported, each with the setting, its value and what is allowed."""
        found = self.problems(
            {
                **HOME,
                "PORT": "70000",
                "RATE_LIMIT_RPS": "nan",
                "LOG_LEVEL": "loud",
                "TRUSTED_PROXIES": "proxy-protocol",
                "GATEWAY_TLS_CERT": "/c",
            },
            "replay_window_sec = 0\n[sources.x]\nauth = 'jwt'\n",
        )
        self.assertEqual(len(found), 8, found)
        text = "\n".join(found)
        for words in (
            "PORT=70000: a whole number from 0 to 65535",
            "RATE_LIMIT_RPS=nan: a number from",
            "LOG_LEVEL=loud: one of DEBUG, INFO",
            "proxy-protocol goes with the networks of the proxies that speak it",
            "REPLAY_WINDOW_SEC=0: ",
            "sources.x.auth=jwt: ",
            "[sources.x]: x is not in ALLOWED_SOURCES",
            "GATEWAY_TLS_CERT: needs GATEWAY_TLS_KEY beside it",
        ):
            self.assertIn(words, text)

    def test_values_are_shown_on_one_line(self) -> None:
        """A value with control characters is escaped, a long one cut."""
        for value in ("1\n2\x1b[31m", "9" * 10000):
            (found,) = self.problems({**HOME, "PORT": value})
            self.assertTrue(found.isprintable())
            self.assertLess(len(found), 400)

    def test_development_only_conveniences(self) -> None:
        """Production needs a NATS server and a secret, and invents neither."""
        found = self.problems({**HOME, "ENV": "production"})
        self.assertEqual(len(found), 2, found)
        self.assertIn("NATS_URL: is required in production", found[0])
        self.assertIn("API_KEY_HMAC_SECRET: no source has a secret", found[1])

    def test_duplicate_window(self) -> None:
        """A stream that would forget ids sooner than they may be repeated is refused."""
        self.assert_problem(
            self.problems({**HOME, "NATS_STREAM_MAX_AGE": "1h"}), "NATS_STREAM_MAX_AGE=1h", "at least 70m"
        )
        self.assert_problem(self.problems(HOME, '[sources.test]\nmax_body_age = "24h"'), "at least 1450m")
        found = self.settings(HOME, 'nats_stream_max_age = "25h"\n[sources.test]\nmax_body_age = "24h"')
        self.assertEqual(found.duplicate_window_s, 87000.0)

    def test_pairs(self) -> None:
        """A certificate needs its key, a user a password, and the other way round."""
        for one, other in (
            ("GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY"),
            ("NATS_TLS_CERT", "NATS_TLS_KEY"),
            ("NATS_USER", "NATS_PASSWORD"),
        ):
            self.assert_problem(self.problems({**PRODUCTION, one: "/x"}), f"{one}: needs {other}")
            self.assert_problem(self.problems({**PRODUCTION, other: "/x"}), f"{other}: needs {one}")
            self.assertEqual(self.problems({**PRODUCTION, one: "/x", other: "/y"}), [])

    def test_subjects_differ(self) -> None:
        """Raw and normalised events have subjects of their own."""
        self.assert_problem(
            self.problems({**HOME, "NATS_SUBJECT_SIGNALS_RAW": "signals.normalized"}), "NATS_SUBJECT_SIGNALS_NORMALIZED"
        )


class NatsTest(SettingsCase):
    def test_login_in_the_url(self) -> None:
        """Credentials of NATS_URL are taken out of it, percent-decoded, and count for all servers."""
        found = self.settings({**PRODUCTION, "NATS_URL": "tls://u%40x:p%2Cw@a:1,nats://b,[::1]:4333"})
        self.assertEqual(found.nats_url, ("tls://a:1", "nats://b:4222", "nats://[::1]:4333"))
        self.assertEqual((found.nats_user, found.nats_password), ("u@x", Secret(b"p,w")))
        self.assertEqual(self.settings({**PRODUCTION, "NATS_URL": "nats://tok@a"}).nats_token, Secret(b"tok"))

    def test_one_way_to_log_in(self) -> None:
        """Two ways to log in are an error."""
        for more in (
            {"NATS_TOKEN": "t", "NATS_NKEY_SEED": SEED},
            {"NATS_USER": "u", "NATS_PASSWORD": "p", "NATS_CREDENTIALS_FILE": "/c"},
            {"NATS_URL": "nats://u:p@a", "NATS_TOKEN": "t"},
            {"NATS_URL": "nats://u:p@a,nats://v:p@b"},
        ):
            found = self.problems({**PRODUCTION, **more})
            self.assertEqual(len(found), 1, found)

    def test_login_without_a_server(self) -> None:
        """Credentials for no server are a warning: the embedded one has its own."""
        loaded = load_from({**HOME, "NATS_TOKEN": "t"})
        self.assertEqual(loaded.problems, ())
        self.assertIn("NATS_TOKEN has no effect without NATS_URL", loaded.warnings[0])
