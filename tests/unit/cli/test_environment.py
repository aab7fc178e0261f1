"""gatewayctl env."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cli.unit import CONFIG, unit_environment
from tests.directories import temporary_path
from tests.unit.cli.invocation import Ended, gatewayctl

CANARY = "canary-" + "x" * 33
BEFORE = f"""\
# Rate.
#RATE_LIMIT_RPS=100

ENV=production
NATS_URL=nats://127.0.0.1:4222
API_KEY_HMAC_SECRET={CANARY}
"""
SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
case $1 in
show)
    echo "$(dirname "$0")/first.env (ignore_errors=no)"
    echo "$(dirname "$0")/at-gateway.env (ignore_errors=yes)";;
restart) exit "$(cat "$(dirname "$0")/status")";;
esac
"""


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = temporary_path(self)
        self.root.mkdir()
        self.file = self.root / "at-gateway.env"
        self.file.write_text(BEFORE)
        self.file.chmod(0o640)

    def env(self, *arguments: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Ended:
        ended = gatewayctl(
            "env", *arguments, stdin=stdin, environ=environ or {"GATEWAYCTL_ENV_FILE": str(self.file), "PATH": ""}
        )
        self.assertNotIn("canary", ended.out + ended.err)
        return ended

    def with_systemctl(self, status: int = 0) -> Mapping[str, str]:
        """A PATH with a systemctl that knows the unit's files."""
        (self.root / "systemctl").write_text(SYSTEMCTL)
        (self.root / "systemctl").chmod(0o755)
        (self.root / "status").write_text(str(status))
        return {"PATH": f"{self.root}:{os.environ['PATH']}"}

    def asked(self) -> list[str]:
        """What the systemctl was asked."""
        return (self.root / "asked").read_text().splitlines()


class TestSet(Case):
    def test_set(self) -> None:
        """The setting stands under the line that shows it, the rest is as it was; what is next is said."""
        ended = self.env("set", "RATE_LIMIT_RPS=200")
        self.assertEqual((ended.code, ended.lines[0]), (0, "RATE_LIMIT_RPS=200"))
        self.assertIn("systemctl restart", ended.err)
        self.assertEqual(self.file.read_text(), BEFORE.replace("RPS=100\n", "RPS=100\nRATE_LIMIT_RPS=200\n"))

    def test_without_a_restart(self) -> None:
        """Where the settings file stands beside it, the way to change a reloadable setting live is said."""
        (self.root / "at_gateway.toml").write_text("")
        self.assertIn("rate_limit_rps in", self.env("set", "RATE_LIMIT_RPS=200").err)
        self.assertNotIn("reload", self.env("set", "NATS_STREAM=other").err)

    def test_a_new_problem_is_refused(self) -> None:
        """A wrong value, an unknown name, a contradiction: nothing is written, and the reason is the gateway's own."""
        for setting, reason in (
            ("RATE_LIMIT_RPS=-1", "a number from"),
            ("RATE_LIMT_RPS=1", "perhaps RATE_LIMIT_RPS"),
            ("DATABASE_URL=postgres://h", "not available in this version"),
            ("API_KEY_HMAC_SECRET_FILE=/nonexistent", "API_KEY_HMAC_SECRET"),
            ("NATS_USER=u", "needs NATS_PASSWORD"),
            ("RATE_LIMIT_RPS= ", "unset"),
            ("SERVICE_NAME=a\nB=1", "control characters"),
            ("RATE_LIMIT_RPS", "give NAME=VALUE"),
        ):
            ended = self.env("set", setting)
            self.assertEqual((ended.code, ended.out), (2, ""), setting)
            self.assertIn(reason, ended.err)
            self.assertEqual(self.file.read_text(), BEFORE)

    def test_what_belongs_together_is_set_together(self) -> None:
        """A user and its password's file, in one step."""
        (self.root / "password").write_text("pw\n")
        ended = self.env("set", "NATS_USER=u", f"NATS_PASSWORD_FILE={self.root}/password")
        self.assertEqual(ended.code, 0, ended.err)

    def test_an_old_problem_does_not_stop_a_change(self) -> None:
        """A file with two mistakes can be put right one by one; what is left is said."""
        self.file.write_text(BEFORE + "PORT=0x\nRATE_LIMIT_RPS=-1\n")
        ended = self.env("set", "PORT=8001")
        self.assertEqual(ended.code, 0)
        self.assertIn("still a problem: RATE_LIMIT_RPS=-1", ended.err)

    def test_the_settings_file_is_judged_with_it(self) -> None:
        """A source that only the settings file knows makes the list of sources wrong."""
        (self.root / "at_gateway.toml").write_text("[sources.custom]\nrps = 1\n")
        self.assertIn("custom", self.env("set", "ALLOWED_SOURCES=test").err)

    def test_secrets(self) -> None:
        """Refused on the command line without being repeated; taken from stdin, and not shown."""
        for text in (
            f"API_KEY_HMAC_SECRET={CANARY}",
            f"NATS_URL=nats://u:{CANARY}@h",
            f"API_KEY_HMAC_SECRET_TEST={CANARY}",
        ):
            ended = self.env("set", text)
            self.assertEqual(ended.code, 2)
            self.assertIn("--from-stdin", ended.err)
        self.file.chmod(0o644)
        ended = self.env("set", "API_KEY_HMAC_SECRET", "--from-stdin", stdin=f"{CANARY}2,{CANARY}\n".encode())
        self.assertEqual((ended.code, ended.lines[0]), (0, "API_KEY_HMAC_SECRET=<set: 82 bytes>"))
        self.assertIn(f"\nAPI_KEY_HMAC_SECRET={CANARY}2,{CANARY}\n", self.file.read_text())
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o640)

    def test_stdin(self) -> None:
        """One name, and a value that is there."""
        for arguments, stdin in (
            (("A=b",), b"x"),
            (("NATS_TOKEN", "NATS_USER"), b"x"),
            (("NATS_TOKEN",), b""),
            (("NATS_TOKEN",), b"\xff"),
        ):
            self.assertEqual(self.env("set", *arguments, "--from-stdin", stdin=stdin).code, 2)
        self.assertEqual(self.file.read_text(), BEFORE)

    def test_mode_and_links_stay(self) -> None:
        """The file keeps its mode; a link keeps pointing at it; nothing is left beside it."""
        link = self.root / "link.env"
        link.symlink_to(self.file)
        ended = self.env("set", "PORT=9", "--file", str(link))
        self.assertEqual(ended.code, 0)
        self.assertTrue(link.is_symlink())
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o640)
        self.assertEqual(sorted(path.name for path in self.root.iterdir()), ["at-gateway.env", "link.env"])

    def test_at_once(self) -> None:
        """Six changes at the same time: none is lost."""
        names = ["RATE_LIMIT_RPS", "RATE_LIMIT_BURST", "PORT", "REPLAY_WINDOW_SEC", "CLOCK_SKEW_SEC", "LOG_LEVEL"]
        program = "import sys; from gatewayd.cli import main; main()"
        source = str(Path(__file__).parents[3])

        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": source, "HOME": str(self.root)}

        def arguments(name: str) -> list[str]:
            setting = f"{name}={'DEBUG' if name == 'LOG_LEVEL' else '60'}"
            return [sys.executable, "-c", program, "env", "set", setting, "--file", str(self.file)]

        running = [subprocess.Popen(arguments(name), env=environ, stdout=subprocess.DEVNULL) for name in names]
        self.assertEqual([each.wait(30) for each in running], [0] * len(names))
        found = json.loads(self.env("show", "--json").out)
        self.assertLessEqual(set(names), set(found))

    def test_unreadable(self) -> None:
        """A file that is not there, or is no text: one line."""
        self.assertIn("cannot be found", self.env("set", "PORT=1", "--file", "/nonexistent").err)
        self.file.write_bytes(b"\xff")
        self.assertIn("is not UTF-8", self.env("show").err)


class TestUnset(Case):
    def test_unset(self) -> None:
        """The default holds again; unsetting what others need is refused; what is not set may be unset."""
        self.env("set", "RATE_LIMIT_RPS=7")
        self.assertEqual(self.env("unset", "RATE_LIMIT_RPS").code, 0)
        self.assertEqual(self.file.read_text(), BEFORE)
        self.assertIn("NATS_URL", self.env("unset", "NATS_URL").err)
        ended = self.env("unset", "PORT", "--json")
        self.assertEqual(ended.json["changed"], False)
        self.assertEqual(self.file.read_text(), BEFORE)


class TestShow(Case):
    def test_show(self) -> None:
        """What is set, in order; secrets are measured, logins left out, foreign variables not shown."""
        self.file.write_text(f"{BEFORE}OTHER={CANARY}\nNATS_TOKEN_FILE={CANARY}\nNATS_PASSWORD_FILE=/etc/pw\n")
        ended = self.env("show")
        self.assertEqual(
            ended.lines,
            [
                "ENV=production",
                "NATS_URL=nats://127.0.0.1:4222",
                "API_KEY_HMAC_SECRET=<set: 40 bytes>",
                "OTHER=<set: 40 bytes>",
                "NATS_TOKEN_FILE=<40 characters that are no path>",
                "NATS_PASSWORD_FILE=/etc/pw",
            ],
        )
        self.file.write_text(f"NATS_URL=nats://u:{CANARY}@h\n")
        self.assertEqual(self.env("show").lines, ["NATS_URL=<set, with a login in it>"])

    def test_one(self) -> None:
        """A setting by its name; one that is not set is said on stderr."""
        ended = self.env("show", "ENV", "PORT", "--json")
        self.assertEqual(ended.json, {"ENV": "production"})
        self.assertIn("PORT is not set in", ended.err)


class TestUnit(Case):
    def test_systemd_says_which_file(self) -> None:
        """The unit's last environment file is the one that counts."""
        ended = self.env("show", "ENV", "--unit", "at-gateway.service", environ=self.with_systemctl())
        self.assertEqual(ended.lines, ["ENV=production"])
        self.assertEqual(self.asked(), ["show --property=EnvironmentFiles --value -- at-gateway"])

    def test_restart(self) -> None:
        """--restart restarts the unit when the file is written, and only then."""
        environ = {**self.with_systemctl(), "GATEWAYCTL_UNIT": "at-gateway"}
        self.assertEqual(self.env("set", "PORT=0x", "--restart", environ=environ).code, 2)
        self.assertFalse(any("restart" in line for line in self.asked()))
        self.assertEqual(self.env("set", "PORT=9", "--restart", environ=environ).code, 0)
        self.assertEqual(self.asked()[-1], "restart at-gateway")

    def test_a_restart_that_fails(self) -> None:
        """It is said that the file is written all the same; exit code 1."""
        environ = {**self.with_systemctl(1), "GATEWAYCTL_UNIT": "at-gateway"}
        ended = self.env("set", "PORT=9", "--restart", environ=environ)
        self.assertEqual(ended.code, 1)
        self.assertIn("journalctl -u at-gateway", ended.err)
        self.assertIn("PORT=9", self.file.read_text())

    def test_nothing_to_go_by(self) -> None:
        """Without a unit or a file it says what to give; --restart needs a unit and a systemctl."""
        self.assertIn("--unit NAME", self.env("show", environ={"PATH": ""}).err)
        self.assertIn("name the unit", self.env("set", "PORT=1", "--restart").err)
        self.assertIn("no systemctl", self.env("set", "PORT=1", "--restart", "--unit", "x").err)

    def test_every_command_sees_the_units_settings(self) -> None:
        """With GATEWAYCTL_UNIT the file's settings stand behind one's own, the settings file among them."""
        (self.root / "at_gateway.toml").write_text("")
        known = unit_environment(
            {"GATEWAYCTL_UNIT": "at-gateway", "GATEWAYCTL_ENV_FILE": str(self.file), "ENV": "development"}
        )
        self.assertEqual((known["ENV"], known["NATS_URL"]), ("development", "nats://127.0.0.1:4222"))
        self.assertEqual(known["STATE_DIRECTORY"], "/var/lib/at-gateway")
        self.assertEqual(known[CONFIG], str(self.root / "at_gateway.toml"))
        (self.root / "at_gateway.toml").write_text("log_level = 'DEBUG'\n")
        shown = gatewayctl("config", "show", "LOG_LEVEL", environ=known)
        self.assertEqual(shown.out, "LOG_LEVEL=DEBUG  # configuration file\n")

    def test_a_file_of_somebody_else(self) -> None:
        """Whoever may not read it, or has no unit, has the own environment only."""
        self.assertEqual(unit_environment({"A": "1"}), {"A": "1"})
        nowhere = {"GATEWAYCTL_UNIT": "x", "GATEWAYCTL_ENV_FILE": "/nonexistent"}
        self.assertEqual(unit_environment(nowhere), nowhere)
