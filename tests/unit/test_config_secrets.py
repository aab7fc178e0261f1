"""Secrets and sources: every form they may be given in, what is refused, and that no secret is ever shown."""

import typing
from dataclasses import replace
from ipaddress import ip_network

from gatewayd.config import Secret, changes, describe
from gatewayd.settings_origins import MAX_FILE_BYTES
from tests.unit.settings_case import HOME, OTHER, PRODUCTION, STRONG, SettingsCase, load_from, shown_in_tracebacks

CANARY = "canary-Zq7vT2mXw9Lr4Ks8Nd1Yb6Hc3Jp5Gf0"


class SecretsTest(SettingsCase):
    def test_forms(self) -> None:
        """A secret comes from a variable, a file or a credential; a trailing newline of a file is no part of it."""
        shared = (Secret(STRONG.encode()), Secret(OTHER.encode()))
        text = f"{STRONG},{OTHER}"
        for environ, toml, files in (
            ({"API_KEY_HMAC_SECRET": text}, None, {}),
            ({"API_KEY_HMAC_SECRET": f" {STRONG} , {OTHER}\n"}, None, {}),
            ({"API_KEY_HMAC_SECRET_FILE": "/s"}, None, {"/s": text.encode() + b"\n"}),
            ({"API_KEY_HMAC_SECRET_FILE": "/s"}, None, {"/s": text.encode() + b"\r\n"}),
            ({"CREDENTIALS_DIRECTORY": "/run/c"}, None, {"/run/c/API_KEY_HMAC_SECRET": text.encode()}),
            ({}, f'api_key_hmac_secret = "{text}"', {}),
            ({}, f'api_key_hmac_secret = ["{STRONG}", "{OTHER}"]', {}),
            ({}, 'api_key_hmac_secret_file = "/s"', {"/s": text.encode()}),
        ):
            loaded = load_from({**HOME, **environ}, toml, files)
            self.assertEqual(loaded.problems, ())
            assert loaded.settings is not None
            self.assertEqual(loaded.settings.shared_secrets, shared)
            self.assertFalse(loaded.settings.generate_secret)

    def test_two_forms(self) -> None:
        """Two forms of one secret are an error; one form in environment and file is not: the environment counts."""
        files = {"/s": STRONG.encode(), "/c/API_KEY_HMAC_SECRET": OTHER.encode()}
        for environ, toml in (
            ({"API_KEY_HMAC_SECRET": STRONG, "API_KEY_HMAC_SECRET_FILE": "/s"}, None),
            ({"API_KEY_HMAC_SECRET": STRONG, "CREDENTIALS_DIRECTORY": "/c"}, None),
            ({"API_KEY_HMAC_SECRET_FILE": "/s", "CREDENTIALS_DIRECTORY": "/c"}, None),
            ({"API_KEY_HMAC_SECRET": STRONG}, 'api_key_hmac_secret_file = "/s"'),
        ):
            self.assert_problem(
                self.problems({**HOME, **environ}, toml, files=files), "API_KEY_HMAC_SECRET", "given twice"
            )
        found = self.settings({**HOME, "API_KEY_HMAC_SECRET": STRONG}, f'api_key_hmac_secret = "{OTHER}"')
        self.assertEqual(found.shared_secrets, (Secret(STRONG.encode()),))

    def test_bad_secrets(self) -> None:
        """Empty, NUL-ended, broken and repeated secrets are refused."""
        for value, word in (
            ("", "empty"),
            ("  ", "empty"),
            (f"{STRONG},,{OTHER}", "secret 2 of 3 is empty"),
            (f"{STRONG},", "secret 2 of 2 is empty"),
            (f"{STRONG}\0", "ends in NUL"),
            (f"{STRONG[:10]}\n{STRONG[10:]}", "line break"),
            (f"{STRONG},{STRONG}", "is the same as secret 1 of API_KEY_HMAC_SECRET"),
        ):
            self.assert_problem(self.problems({**HOME, "API_KEY_HMAC_SECRET": value}), "API_KEY_HMAC_SECRET", word)
        files = {"/s": b"\n"}
        self.assert_problem(
            self.problems({**HOME, "API_KEY_HMAC_SECRET_FILE": "/s"}, files=files), "secret 1 of 1 is empty"
        )

    def test_same_secret_of_two_sources(self) -> None:
        """One secret for two sources would not say who signed: refused."""
        found = self.problems({**HOME, "API_KEY_HMAC_SECRET": STRONG, "API_KEY_HMAC_SECRET_TEST": STRONG})
        self.assert_problem(found, "API_KEY_HMAC_SECRET_TEST", "same as secret 1 of API_KEY_HMAC_SECRET")

    def test_weak_secrets(self) -> None:
        """Short and published secrets are a warning, with SECRETS_STRICT a problem; neither shows them."""
        for value in (
            "your-secret-key",
            "your-256-bit-secret",
            "old-secret",
            "new-secret",
            "ChangeMe",
            "short-one",
            "x",
        ):
            loaded = load_from({**HOME, "API_KEY_HMAC_SECRET": value})
            self.assertEqual((loaded.problems, len(loaded.warnings)), ((), 1))
            self.assertNotIn(value, loaded.warnings[0].replace("bytes, fewer", "").replace("example", ""))
            self.assert_problem(
                self.problems({**HOME, "API_KEY_HMAC_SECRET": value, "SECRETS_STRICT": "true"}), "API_KEY_HMAC_SECRET: "
            )
        self.assertEqual(load_from({**HOME, "API_KEY_HMAC_SECRET": STRONG, "SECRETS_STRICT": "1"}).problems, ())

    def test_unreadable_secret_file(self) -> None:
        """A secret's file that cannot be read is named by its variable only: the path may be the secret itself."""
        for content, word in ((None, "No such file"), (b"x" * (MAX_FILE_BYTES + 1), "more than")):
            files = {} if content is None else {CANARY: content}
            found = self.problems({**HOME, "API_KEY_HMAC_SECRET_FILE": CANARY}, files=files)
            self.assert_problem(found, "API_KEY_HMAC_SECRET_FILE", word)
            self.assertNotIn(CANARY, found[0])

    def test_missing_credentials_are_no_problem(self) -> None:
        """A credentials directory need not hold every secret, but what it holds must be readable."""
        self.assertTrue(self.settings({**HOME, "CREDENTIALS_DIRECTORY": "/c"}).generate_secret)
        files = {"/c/NATS_TOKEN": PermissionError(13, "Permission denied")}
        found = self.problems({**HOME, "CREDENTIALS_DIRECTORY": "/c"}, files=files)
        self.assert_problem(found, "NATS_TOKEN", "credential", "Permission denied")

    def test_bytes_of_any_kind(self) -> None:
        """A secret that is not UTF-8 keeps its bytes, in a file and in the environment."""
        raw = b"\xff\xfe" * 20
        found = self.settings({**HOME, "API_KEY_HMAC_SECRET_FILE": "/s"}, None, {"/s": raw})
        self.assertEqual(found.shared_secrets[0].reveal(), raw)
        found = self.settings({**HOME, "API_KEY_HMAC_SECRET": raw.decode("utf-8", "surrogateescape")})
        self.assertEqual(found.shared_secrets[0].reveal(), raw)


class SourcesTest(SettingsCase):
    def test_own_secrets(self) -> None:
        """A source's own secrets come from its variable, its file, a credential or its table."""
        for environ, toml, files in (
            ({"API_KEY_HMAC_SECRET_MY_BOT": STRONG}, "", {}),
            ({"API_KEY_HMAC_SECRET_MY_BOT_FILE": "/s"}, "", {"/s": STRONG.encode()}),
            ({"CREDENTIALS_DIRECTORY": "/c"}, "", {"/c/API_KEY_HMAC_SECRET_MY_BOT": STRONG.encode()}),
            ({}, f'secret = "{STRONG}"', {}),
            ({}, 'secret_file = "/s"', {"/s": STRONG.encode()}),
        ):
            found = self.settings(
                {**HOME, "ALLOWED_SOURCES": "my-bot,other", **environ}, f"[sources.my-bot]\n{toml}", files
            )
            self.assertEqual(found.sources["my-bot"].secrets, (Secret(STRONG.encode()),))
            self.assertEqual(found.sources["other"].secrets, ())
            self.assertEqual((found.unconfigured_sources, found.generate_secret), (("other",), False))

    def test_previous_secret(self) -> None:
        """A previous secret is accepted after the current one, and never alone."""
        toml = f'[sources.test]\nprevious_secret = "{OTHER}"\n'
        found = self.settings({**HOME, "API_KEY_HMAC_SECRET_TEST": STRONG}, toml)
        self.assertEqual(found.sources["test"].secrets, (Secret(STRONG.encode()), Secret(OTHER.encode())))
        self.assert_problem(self.problems(HOME, toml), "sources.test.previous_secret")

    def test_missing_secrets_in_production(self) -> None:
        """With secrets for some sources only, production starts and names the others."""
        environ = {**PRODUCTION, "API_KEY_HMAC_SECRET_TEST": OTHER}
        del environ["API_KEY_HMAC_SECRET"]
        loaded = load_from(environ)
        assert loaded.settings is not None
        self.assertEqual(loaded.settings.unconfigured_sources, ("custom", "tradingview"))
        self.assertIn("custom, tradingview", loaded.warnings[0])

    def test_names_that_are_not_allowed(self) -> None:
        """A source that is not in ALLOWED_SOURCES is refused wherever it is named, with the nearest one."""
        for environ, toml, words in (
            ({"API_KEY_HMAC_SECRET_TRADINGVEW": STRONG}, None, "perhaps API_KEY_HMAC_SECRET_TRADINGVIEW"),
            ({"API_KEY_HMAC_SECRET_TRADINGVEW_FILE": "/s"}, None, "perhaps API_KEY_HMAC_SECRET_TRADINGVIEW_FILE"),
            ({"RATE_LIMIT_SOURCES": "custm:3"}, None, "perhaps custom"),
            ({}, "[sources.tset]\nrps = 3", "perhaps test"),
        ):
            self.assert_problem(self.problems({**HOME, **environ}, toml), words)

    def test_ambiguous_variable(self) -> None:
        """A variable that two sources would share is refused, naming both."""
        for allowed, variable in (
            ("my-bot,my_bot", "API_KEY_HMAC_SECRET_MY_BOT"),
            ("Test,test", "API_KEY_HMAC_SECRET_TEST_FILE"),
            ("x,x_file", "API_KEY_HMAC_SECRET_X_FILE"),
        ):
            found = self.problems({**HOME, "ALLOWED_SOURCES": allowed, variable: STRONG})
            self.assertIn(f"{variable}: could be meant for {' and '.join(allowed.split(','))}", found[0])

    def test_file_of_the_shared_secret(self) -> None:
        """API_KEY_HMAC_SECRET_FILE is the shared secret's file, also when a source is called file."""
        found = self.settings(
            {**HOME, "ALLOWED_SOURCES": "file,test", "API_KEY_HMAC_SECRET_FILE": "/s"}, None, {"/s": STRONG.encode()}
        )
        self.assertEqual(found.shared_secrets, (Secret(STRONG.encode()),))
        self.assertEqual(found.sources["file"].secrets, ())

    def test_rates(self) -> None:
        """A source's rate: its own, else the default's, else everyone's; its burst is its rate unless one is set."""
        found = self.settings(
            {
                **HOME,
                "ALLOWED_SOURCES": "a,b,c",
                "RATE_LIMIT_RPS": "200",
                "RATE_LIMIT_SOURCES": "a:100",
                "RATE_LIMIT_DEFAULT": "25",
            },
            "[sources.a]\nrps = 7\n[sources.b]\nrps = 0.5\n[sources.c]\nburst = 3",
        )
        rates = {name: (source.rps, source.burst) for name, source in found.sources.items()}
        self.assertEqual(rates, {"a": (100.0, 100.0), "b": (0.5, 1.0), "c": (25.0, 3.0)})
        self.assertEqual((found.rate_limit_address_rps, found.rate_limit_address_burst), (200.0, 200.0))
        found = self.settings({**HOME, "RATE_LIMIT_RPS": "200", "RATE_LIMIT_BURST": "10"})
        self.assertEqual({(source.rps, source.burst) for source in found.sources.values()}, {(200.0, 10.0)})

    def test_rate_given_twice(self) -> None:
        """One file that gives a source two rates is refused."""
        found = self.problems(HOME, 'rate_limit_sources = "test:1"\n[sources.test]\nrps = 2')
        self.assert_problem(found, "sources.test.rps", "keep one")

    def test_every_key(self) -> None:
        """Every key of a source's table reaches its settings."""
        found = self.settings(
            HOME,
            f"""
            [sources.test]
            auth = "hmac"
            schemes = ["v1"]
            secret = "{STRONG}"
            addresses = "192.0.2.0/24,2001:db8::1"
            rps = 5
            burst = 9
            max_body_age = "2h"
            profile = "tradingview"
            format = "tradingview"
            """,
        ).sources["test"]
        self.assertEqual((found.auth, found.schemes, found.rps, found.burst), ("hmac", ("v1",), 5.0, 9.0))
        self.assertEqual(found.addresses, (ip_network("192.0.2.0/24"), ip_network("2001:db8::1")))
        self.assertEqual((found.max_body_age, found.profile, found.format), (7200.0, "tradingview", "tradingview"))

    def test_bad_tables(self) -> None:
        """A table with another way to authenticate, a wrong name or a wrong form is refused."""
        for toml, word in (
            ("[sources.test]\nauth = 'stripe'", "sources.test.auth=stripe"),
            ("[sources.test]\nformat = 'xml'", "tradingview or generic"),
            ("[sources.'a b']\nrps = 1", "a source's name has"),
            ("[sources]\ntest = 3", "[sources.test]"),
            ("sources = 3", "[sources]"),
            ("[sources.test]\nrps = [1]", "another type"),
            ("[sources.test]\nsecret_file = 3", "secret_file is a path"),
        ):
            self.assert_problem(self.problems(HOME, toml), word)


class CanaryTest(SettingsCase):
    """No secret is shown, wherever it was put."""

    PLACES: typing.ClassVar[list[tuple[dict[str, str], str, dict[str, bytes]]]] = [
        ({"API_KEY_HMAC_SECRET": CANARY}, "", {}),
        ({"API_KEY_HMAC_SECRET": f"{CANARY},{CANARY}"}, "", {}),
        ({"API_KEY_HMAC_SECRET": f"{CANARY},\0"}, "", {}),
        ({"API_KEY_HMAC_SECRET_TEST": CANARY}, "", {}),
        ({"API_KEY_HMAC_SECRET_NOBODY": CANARY}, "", {}),
        ({"API_KEY_HMAC_SECRET_FILE": CANARY}, "", {}),
        ({"API_KEY_HMAC_SECRET_FILE": f"{CANARY}\0"}, "", {}),
        ({"API_KEY_HMAC_SECRET_FILE": "/s"}, "", {"/s": CANARY.encode()}),
        ({"NATS_URL": f"nats://u:{CANARY}@h", "NATS_TOKEN": "t"}, "", {}),
        ({"NATS_URL": f"nats://u:{CANARY}@h"}, "", {}),
        ({"NATS_URL": f"nats://{CANARY}@h"}, "", {}),
        ({"NATS_URL": f"nats://u:12,{CANARY}@h"}, "", {}),
        ({"NATS_URL": f"nats://u:{CANARY}#x@h"}, "", {}),
        ({"NATS_URL": f"u:{CANARY}@h:port"}, "", {}),
        ({"NATS_PASSWORD": CANARY}, "", {}),
        ({"NATS_NKEY_SEED": CANARY}, "", {}),
        ({"NATS_TOKEN": CANARY}, "", {}),
        ({"GATEWAY_TLS_KEY": f"-----BEGIN PRIVATE KEY-----\n{CANARY}"}, "", {}),
        ({}, f'api_key_hmac_secret = ["{CANARY}", ""]', {}),
        ({}, f'[sources.test]\nsecret = "{CANARY}"\nprevious_secret = "{CANARY}"', {}),
        ({}, f'[sources.test]\nprevious_secret_file = "{CANARY}"', {}),
        ({}, f'[sources.test]\nsecret = {{ x = "{CANARY}" }}', {}),
        ({}, f'api_key_hmac_secret = "{CANARY}', {}),
        ({"GATEWAY_SECRET": CANARY, "GATEWAY_REDIS_PASSWORD": CANARY, "JWT_KEY": CANARY}, "", {}),
    ]

    def test_nothing_shows_a_secret(self) -> None:
        """Problems, warnings, notes, origins, dumps, reprs and tracebacks hold no part of a secret."""
        seen = 0
        for environ, toml, files in self.PLACES:
            for more in ({}, {"SECRETS_STRICT": "true"}, {"NATS_URL": "nats://x"}, {"PORT": "x"}):
                loaded = load_from({**HOME, **more, **environ}, toml, files, strict=True)
                shown = [repr(loaded), str(loaded), describe(loaded), *map(str, loaded.problems), *loaded.warnings]
                if loaded.settings is not None:
                    seen += 1
                    shown += [
                        repr(loaded.settings),
                        shown_in_tracebacks(loaded.settings),
                        repr(loaded.settings.all_secrets()),
                    ]
                    shown.append(repr(changes(loaded.settings, replace(loaded.settings, shared_secrets=()))))
                text = "\n".join(shown)
                self.assertNotIn(CANARY, text, environ)
                self.assertNotIn(CANARY[7:20], text, environ)
        self.assertGreater(seen, 10)
