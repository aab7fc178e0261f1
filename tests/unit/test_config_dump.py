"""The masked dump, and what a reload takes over."""

import re

from gatewayd.config import changes, describe
from gatewayd.settings_table import TABLE
from tests.unit.settings_case import HOME, OTHER, PRODUCTION, STRONG, SettingsCase, load_from

LOGIN = "login-Zq7vT2mXw9Lr4Ks8Nd1Yb6Hc3Jp5Gf0"


class DescribeTest(SettingsCase):
    def test_dump(self) -> None:
        """A line for each setting: its value, and where it came from; secrets are only counted and measured."""
        loaded = load_from(
            {**PRODUCTION, "API_KEY_HMAC_SECRET": f"{STRONG},{OTHER}-more", "NATS_URL": f"nats://u:{LOGIN}@h"},
            f'clock_skew_sec = 20\n[sources.test]\nsecret = "{LOGIN}"',
        )
        lines = describe(loaded).splitlines()
        for line in (
            "ENV=production  # environment",
            "CLOCK_SKEW_SEC=20  # configuration file",
            "REPLAY_WINDOW_SEC=300  # default",
            "API_KEY_HMAC_SECRET=<set: 2 secrets, 37 and 42 bytes>  # environment",
            "NATS_URL=nats://h:4222  # environment",
            "NATS_USER=u  # NATS_URL",
            f"NATS_PASSWORD=<set: 1 secret, {len(LOGIN)} bytes>  # NATS_URL",
            "NATS_STREAM_MAX_AGE=24h  # default",
            "LAG_SHED_MESSAGES=off  # default",
            "METRICS_ALLOW_CIDRS=loopback  # default",
            "GATEWAY_PUBLIC_HTTP_ADDR=:8001  # PORT and HOST",
            f"sources.test.secret=<set: 1 secret, {len(LOGIN)} bytes>  # configuration file",
            "sources.test.schemes=sha256,v1  # SIGNATURE_SCHEMES",
            "sources.custom.rps=100  # RATE_LIMIT_DEFAULT",
        ):
            self.assertIn(line, lines)
        self.assertEqual([line.split("=")[0] for line in lines[: len(TABLE)]], list(TABLE))

    def test_dump_can_be_loaded(self) -> None:
        """What the dump says, secrets apart, is what would be loaded from it again."""
        environ = {
            **PRODUCTION,
            "TRUSTED_PROXIES": "10.0.0.0/8,2",
            "RATE_LIMIT_SOURCES": "test:2.5",
            "NATS_STREAM_MAX_BYTES": "3GB",
            "NATS_PUBLISH_TIMEOUT": "250ms",
            "MAINTENANCE_UNTIL": "2030-01-01T00:00:00.5Z",
            "HOST": "127.0.0.1",
        }
        dump = [line.rsplit("  # ", 1)[0].split("=", 1) for line in describe(load_from(environ)).splitlines()]
        again = {name: text for name, text in dump if not name.startswith("sources.")}
        self.assertEqual(
            self.settings({**again, "API_KEY_HMAC_SECRET": STRONG}),
            self.settings({**environ, "PORT": "8001"}),
        )

    def test_problems_instead(self) -> None:
        """With problems the dump is the problems, a line each."""
        self.assertEqual(describe(load_from({**HOME, "PORT": "x"})), "PORT=x: a whole number from 0 to 65535")


class ChangesTest(SettingsCase):
    def test_what_a_reload_takes_over(self) -> None:
        """Secrets, sources, limits, lists, log level and maintenance are reloadable; the rest needs a restart."""
        old = self.settings(PRODUCTION)
        for environ, toml, reloadable, needs_restart in (
            ({}, "", (), ()),
            ({"API_KEY_HMAC_SECRET": OTHER}, "", ("API_KEY_HMAC_SECRET",), ()),
            ({"LOG_LEVEL": "debug", "METRICS_ALLOW_CIDRS": "all"}, "", ("LOG_LEVEL", "METRICS_ALLOW_CIDRS"), ()),
            ({"MAINTENANCE_MODE": "yes"}, "", ("MAINTENANCE_MODE",), ()),
            ({}, "[sources.test]\nrps = 3", ("sources.test",), ()),
            ({"API_KEY_HMAC_SECRET_TEST": OTHER}, "", ("sources.test",), ()),
            (
                {"ALLOWED_SOURCES": "tradingview,custom,partner"},
                "",
                ("ALLOWED_SOURCES", "sources.partner", "sources.test"),
                (),
            ),
            ({"PORT": "9000"}, "", (), ("PORT", "GATEWAY_PUBLIC_HTTP_ADDR")),
            ({"REPLAY_WINDOW_SEC": "60", "TRUSTED_PROXIES": "2"}, "", ("TRUSTED_PROXIES",), ("REPLAY_WINDOW_SEC",)),
        ):
            found = changes(old, self.settings({**PRODUCTION, **environ}, toml))
            self.assertEqual((found.reloadable, found.needs_restart), (reloadable, needs_restart))

    def test_limits_reach_every_source(self) -> None:
        """A changed common limit names the sources that it reaches, too."""
        found = changes(self.settings(PRODUCTION), self.settings({**PRODUCTION, "RATE_LIMIT_RPS": "5"}))
        self.assertEqual(found.needs_restart, ())
        self.assertIn("RATE_LIMIT_RPS", found.reloadable)
        self.assertIn("sources.custom", found.reloadable)


class ShapeTest(SettingsCase):
    def test_settings_are_frozen(self) -> None:
        """Nothing in Settings can be set afterwards."""
        found = self.settings(HOME)
        self.assertRaises(AttributeError, setattr, found, "port", 1)
        self.assertFalse(hasattr(found.sources, "__setitem__"))
        self.assertFalse(hasattr(found.rate_limit_sources, "__setitem__"))
        self.assertIsNone(re.search(r"0x[0-9a-f]{6,}", repr(found)), "a value without a repr of its own")
