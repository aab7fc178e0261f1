"""REDIS_URL: what it may be, what it means, and that its password is never shown."""

import subprocess
import sys
from pathlib import Path

from gatewayd.config import describe
from gatewayd.secret import Secret
from gatewayd.stores.redisplace import RedisPlace, parse_redis_url
from tests.unit.settings_case import HOME, SettingsCase, load_from

ROOT = Path(__file__).parents[3]
PASSWORD = "p@ss:word/?#"
ENCODED = "p%40ss%3Aword%2F%3F%23"


class RedisUrlTests(SettingsCase):
    def test_forms(self) -> None:
        """Every form of address, with what is filled in."""
        for text, place in (
            ("redis://h", RedisPlace("h")),
            ("redis://h/", RedisPlace("h")),
            ("redis://10.0.0.1:6380/3", RedisPlace("10.0.0.1", 6380, 3)),
            ("REDIS://redis.example", RedisPlace("redis.example")),
            ("redis://[::1]:6380", RedisPlace("::1", 6380)),
            (f"redis://:{ENCODED}@h", RedisPlace("h", password=Secret(PASSWORD.encode()))),
            ("redis://gateway:pw@h", RedisPlace("h", user="gateway", password=Secret(b"pw"))),
            (f"rediss://:{ENCODED}@h:1/9", RedisPlace("h", 1, 9, Secret(PASSWORD.encode()), tls=True)),
            ("unix:///run/redis.sock", RedisPlace(path="/run/redis.sock")),
            ("unix://:pw@/run/redis.sock?db=2", RedisPlace(path="/run/redis.sock", db=2, password=Secret(b"pw"))),
        ):
            self.assertEqual(parse_redis_url(text), place, text)
            self.assertEqual(self.settings({**HOME, "REDIS_URL": text}).redis_url, place)

    def test_wrong(self) -> None:
        """What is none of these is a problem, which does not repeat the text: it may hold a password."""
        for text in (
            "h:6379",
            "http://h",
            "redis://",
            "redis://h:0",
            "redis://h:65536",
            "redis://h/x",
            "redis://h/10000",
            "redis://h/0?x=1",
            "redis://canary@h",
            "redis://:@h",
            "redis://:can ary@h",
            "redis://:canary@h\r\nAUTH x",
            "redis://:canary@h#",
            "unix://canary.sock",
        ):
            self.assertIsNone(parse_redis_url(text), text)
            (problem,) = self.problems({**HOME, "REDIS_URL": text})
            self.assertTrue(problem.startswith("REDIS_URL: redis://"), problem)
            self.assertNotIn("canary", problem)

    def test_it_is_a_secret(self) -> None:
        """The password is known to redaction and shown nowhere; the URL may be in a file."""
        url = f"redis://:{ENCODED}@h:6380/3"
        for loaded in (
            load_from({**HOME, "REDIS_URL": url}),
            load_from({**HOME, "REDIS_URL_FILE": "/run/secrets/redis"}, files={"/run/secrets/redis": url.encode()}),
        ):
            settings = loaded.settings
            assert settings is not None
            self.assertIn(Secret(PASSWORD.encode()), settings.all_secrets())
            shown = describe(loaded) + repr(settings) + str(settings.redis_url)
            self.assertIn("REDIS_URL=redis://:<12 bytes>@h:6380/3", shown)
            self.assertNotIn(PASSWORD, shown)
            self.assertNotIn(ENCODED, shown)

    def test_off(self) -> None:
        """Without it each gatewayd remembers for itself; an authority alone is noted as of no effect."""
        self.assertIsNone(self.settings(HOME).redis_url)
        for environ, notes in (
            ({"REDIS_TLS_CA": "/ca.pem"}, 1),
            ({"REDIS_TLS_CA": "/ca.pem", "REDIS_URL": "redis://h"}, 1),
            ({"REDIS_TLS_CA": "/ca.pem", "REDIS_URL": "rediss://h"}, 0),
        ):
            found = [note for note in load_from({**HOME, **environ}).notes if "REDIS_TLS_CA" in note]
            self.assertEqual(len(found), notes, environ)

    def test_nothing_of_it_is_imported(self) -> None:
        """A gatewayd that has no Redis imports neither the driver nor what stands on it."""
        code = (
            "import sys; from twisted.internet import asyncioreactor; asyncioreactor.install()\n"
            "import gatewayd.compose\n"
            "print([m for m in sys.modules if m.startswith(('txredisapi', 'hiredis', 'gatewayd.stores.redis'))])"
        )
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        self.assertEqual(run.stdout.strip(), "['gatewayd.stores.redisplace']")
