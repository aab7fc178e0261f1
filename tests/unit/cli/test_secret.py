"""gatewayctl secret new."""

import os
import re
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.unit.cli.invocation import gatewayctl


class TestSecretNew(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(tempfile.mkdtemp()) / "secret"

    def test_printed(self) -> None:
        """At least 32 random bytes, another each time, in characters that need no quoting."""
        first, second = gatewayctl("secret", "new"), gatewayctl("secret", "new")
        self.assertIsNotNone(re.fullmatch(r"[A-Za-z0-9_-]{43}\n", first.out))
        self.assertNotEqual(first.out, second.out)
        self.assertEqual(len(gatewayctl("secret", "new", "--bytes", "48", "--json").json["secret"]), 64)

    def test_weak_ones_are_refused(self) -> None:
        """Fewer than 32 bytes: exit code 2."""
        self.assertEqual(gatewayctl("secret", "new", "--bytes", "16").code, 2)

    def test_written_for_its_owner_only(self) -> None:
        """--out makes a file of mode 0600, whatever the umask, and prints nothing of the secret."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        ended = gatewayctl("secret", "new", "--out", str(self.path))
        self.assertEqual((ended.code, ended.out), (0, ""))
        made = self.path.read_text().strip()
        self.assertEqual(len(made), 43)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertNotIn(made, ended.err)

    def test_as_json_the_file_is_named_and_the_secret_is_not(self) -> None:
        """--out with --json says where it is."""
        ended = gatewayctl("secret", "new", "--out", str(self.path), "--json")
        self.assertEqual(ended.json, {"file": str(self.path), "bytes": 32})

    def test_nothing_is_replaced(self) -> None:
        """A file, or a link to nowhere, is left as it is: exit code 2."""
        self.path.write_text("kept")
        self.assertEqual(gatewayctl("secret", "new", "--out", str(self.path)).code, 2)
        self.assertEqual(self.path.read_text(), "kept")
        link = self.path.with_name("link")
        link.symlink_to(self.path.with_name("elsewhere"))
        self.assertEqual(gatewayctl("secret", "new", "--out", str(link)).code, 2)
        self.assertFalse(self.path.with_name("elsewhere").exists())

    def test_a_directory_that_is_not_there(self) -> None:
        """Exit code 2, in one line."""
        ended = gatewayctl("secret", "new", "--out", "/nonexistent/secret")
        self.assertEqual(ended.code, 2)
        self.assertIn("/nonexistent/secret cannot be made: No such file or directory", ended.err)
