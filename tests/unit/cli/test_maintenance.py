"""gatewayctl maintenance: the file, and what is said of it."""

import json
import os
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.maintenance import Maintenance
from gatewayd.state_files import MAINTENANCE as FILE_NAME
from tests.unit.cli.invocation import NOW, NOW_TEXT, Ended, gatewayctl


class TestMaintenance(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.file = self.directory / "maintenance.json"

    def run_command(self, *words: str, **environ: str) -> Ended:
        """Run it with the state directory in the environment."""
        return gatewayctl("maintenance", *words, environ={"STATE_DIRECTORY": str(self.directory), **environ})

    def test_on_without_an_end(self) -> None:
        """The file says since when; clients are told the settings' wait."""
        ended = self.run_command("on", MAINTENANCE_RETRY_AFTER="120")
        self.assertEqual(json.loads(self.file.read_bytes()), {"until": None, "since": NOW_TEXT})
        self.assertEqual(ended.code, 0)
        self.assertIn("HTTP 503, GW-011 maintenance_mode, Retry-After: 120", ended.out)

    def test_on_for_a_while(self) -> None:
        """--for and --until set the end, and the wait runs to it."""
        for words in (("--for", "10m"), ("--until", "2026-01-15T11:20:00+01:00")):
            ended = self.run_command("on", *words, "--reason", "disk \x1b[2J", "--json")
            self.assertEqual(ended.json["until"], "2026-01-15T10:20:00.000Z")
            self.assertEqual(ended.json["retry_after_s"], 600)
            self.assertEqual(ended.json["by"], "file")
            self.assertEqual(json.loads(self.file.read_bytes())["until"], "2026-01-15T10:20:00.000Z")
        self.assertIn("reason: disk \\x1b[2J", self.run_command("status").out)

    def test_the_gateway_understands_the_file(self) -> None:
        """What is written switches the gateway's own reader, which ends it by itself."""
        self.run_command("on", "--for", "10m")
        now = [NOW]
        switch = Maintenance(lambda: now[0], on=False, until=None, retry_after_s=300.0)
        switch.read_file(self.file.read_bytes())
        window = switch.window()
        assert window is not None
        self.assertEqual(window.retry_after_s, 600.0)
        now[0] = type(NOW)(NOW + 600)
        self.assertIsNone(switch.window())

    def test_another_user_can_read_it(self) -> None:
        """The file is readable for a gateway that runs as another user, whatever the umask; nothing is left over."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        self.run_command("on")
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o644)
        self.assertEqual(os.listdir(self.directory), [FILE_NAME])

    def test_off(self) -> None:
        """The file goes; a second time that is said, and no failure."""
        self.run_command("on")
        ended = self.run_command("off", "--json")
        self.assertEqual((ended.json["on"], self.file.exists()), (False, False))
        ended = self.run_command("off")
        self.assertEqual(ended.code, 0)
        self.assertIn("was not there", ended.err)

    def test_off_says_when_the_settings_keep_it_on(self) -> None:
        """MAINTENANCE_MODE in this environment is not undone by the file's removal."""
        self.run_command("on")
        ended = self.run_command("off", MAINTENANCE_MODE="true")
        self.assertIn("maintenance is on", ended.out)
        self.assertIn("MAINTENANCE_MODE is set", ended.err)

    def test_a_window_that_has_passed_is_off(self) -> None:
        """status judges the file as the gateway does."""
        self.file.write_text('{"until": "2026-01-15T10:09:59Z"}')
        self.assertFalse(self.run_command("status", "--json").json["on"])

    def test_a_file_that_nobody_understands_is_on(self) -> None:
        """As the gateway takes it; said on stderr."""
        self.file.write_bytes(b"\xff{")
        ended = self.run_command("status")
        self.assertIn("maintenance is on", ended.out)
        self.assertIn("cannot be understood", ended.err)

    def test_wrong_times(self) -> None:
        """Ends that are past, malformed, too far or given twice: exit code 2 and no file."""
        for words in (
            ("--until", "2026-01-15T10:10:00Z"),
            ("--until", "tomorrow"),
            ("--for", "soon"),
            ("--for", "0"),
            ("--for", "31d"),
            ("--for", "800h"),
            ("--for", "1m", "--until", "2027-01-01T00:00:00Z"),
        ):
            ended = self.run_command("on", *words)
            self.assertEqual((ended.code, ended.out), (2, ""), words)
            self.assertFalse(self.file.exists())

    def test_a_directory_that_no_gateway_uses_is_not_made(self) -> None:
        """A switch that nobody looks at would be a trap: exit code 2, and the option is named."""
        ended = self.run_command("on", STATE_DIRECTORY=str(self.directory / "elsewhere"))
        self.assertEqual(ended.code, 2)
        self.assertIn("--state-directory", ended.err)

    def test_state_directory_does_without_the_settings(self) -> None:
        """With --state-directory not even wrong settings keep maintenance from being switched."""
        self.assertEqual(self.run_command("on", PORT="x").code, 2)
        ended = self.run_command("on", "--state-directory", str(self.directory), PORT="x")
        self.assertEqual(ended.code, 0)
        self.assertTrue(self.file.exists())

    def test_a_directory_that_cannot_be_written(self) -> None:
        """Exit code 2 in one line, and no half file."""
        self.file.mkdir()
        for words in (("on",), ("off",), ("status",)):
            ended = self.run_command(*words)
            self.assertEqual((ended.code, ended.out), (2, ""), words)
            self.assertEqual(ended.err.count("\n"), 1)
        self.assertEqual(os.listdir(self.directory), [FILE_NAME])
