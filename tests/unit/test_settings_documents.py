"""The documents made from the table of settings."""

import subprocess
import sys
from pathlib import Path

from gatewayd.settings_documents import env_example, main, markdown
from gatewayd.settings_table import RETIRED, SOURCE_TABLE, TABLE, is_platforms, refusal
from gatewayd.settings_values import Wrong
from tests.unit.settings_case import HOME, SettingsCase, load_from

ROOT = Path(__file__).parents[2]


class DocumentsTest(SettingsCase):
    def test_example_is_current(self) -> None:
        """etc/gatewayd.env.example is what the table says today."""
        self.assertEqual((ROOT / "etc/gatewayd.env.example").read_text(), env_example())

    def test_example_shows_the_defaults(self) -> None:
        """The sample file, with every line switched on but the secrets', changes nothing and warns of nothing."""
        pairs = [line[1:].split("=", 1) for line in env_example().splitlines() if line[:1] == "#" and line[1:2] != " "]
        environ = {name: value for name, value in pairs if name != "API_KEY_HMAC_SECRET"}
        self.assertLessEqual(set(TABLE) - {"API_KEY_HMAC_SECRET"}, set(environ))
        loaded = load_from({**HOME, **environ}, strict=True)
        self.assertEqual(loaded.settings, self.settings(HOME))
        self.assertEqual((loaded.problems, loaded.warnings), ((), ()))

    def test_every_setting_is_documented(self) -> None:
        """Each setting and each key of a source has a row of its own, with as many cells as the head."""
        text = markdown()
        for name in (*TABLE, *SOURCE_TABLE):
            self.assertEqual(text.count(f"\n| `{name}`"), 1, name)
        for block in text.split("####")[1:]:
            rows = [line for line in block.splitlines() if line.startswith("|")]
            self.assertEqual(len({line.replace("\\|", "").count("|") for line in rows}), 1, rows)

    def test_lines_are_short(self) -> None:
        """No line of the sample file is longer than a terminal is wide."""
        self.assertLessEqual(max(map(len, env_example().splitlines())), 120)

    def test_command(self) -> None:
        """The generator writes the document that is asked for, and explains itself otherwise."""
        run = subprocess.run(
            [sys.executable, "-m", "gatewayd.settings_documents", "env"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(run.stdout, env_example())
        self.assertEqual(main(["nothing"]), 2)
        self.assertEqual(main([]), 2)


class TableTest(SettingsCase):
    def test_defaults_are_of_their_kind(self) -> None:
        """Every default is a text that its own row allows, and says what holds where there is none."""
        for row in (*TABLE.values(), *SOURCE_TABLE.values()):
            if row.default is None:
                self.assertTrue(row.otherwise, row.name)
                continue
            self.assertFalse(isinstance(row.kind.parse(tuple(row.default.split(","))), Wrong), row.name)

    def test_no_setting_is_refused(self) -> None:
        """No pattern of refused or injected names takes one of ours with it."""
        for name in TABLE:
            self.assertEqual(refusal(name), "")
            self.assertFalse(is_platforms(name, "tcp://10.0.0.1:1"))
            self.assertNotIn(name, RETIRED)
            self.assertEqual(refusal(f"{name}_FILE"), "")

    def test_secrets_are_never_plain(self) -> None:
        """What is a secret may also be given by file, and is not shown when it is wrong."""
        for row in (*TABLE.values(), *SOURCE_TABLE.values()):
            if row.secret:
                self.assertTrue(row.filed, row.name)
                self.assertTrue(row.kind.private("x"), row.name)

    def test_pure(self) -> None:
        """Loading settings needs neither Twisted nor asyncio nor a driver."""
        code = "import sys, gatewayd.config; print([m for m in ('twisted', 'asyncio', 'nats') if m in sys.modules])"
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        self.assertEqual(run.stdout.strip(), "[]")
