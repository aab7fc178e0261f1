"""docs/gatewayctl.md says what the program does."""

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from gatewayd.cli.console import EXIT_CODES
from tests.unit.cli.invocation import gatewayctl
from tests.unit.cli.test_commands import every_command

DOCUMENT = (Path(__file__).parents[3] / "docs" / "gatewayctl.md").read_text()


class TestDocument(SynchronousTestCase):
    def test_every_command_has_a_place(self) -> None:
        """Each command is named in a heading; completion, whose lines are there, is a chapter of its own."""
        headings = " ".join(re.findall(r"^## (.*)$", DOCUMENT, re.MULTILINE))
        for words in every_command():
            if words != ("completion",):
                self.assertIn(f"`gatewayctl {' '.join(words)}`", headings)
        self.assertIn("gatewayctl completion bash", DOCUMENT)

    def test_exit_codes(self) -> None:
        """The table of exit codes is the program's."""
        self.assertEqual(
            re.findall(r"^\| (\d+) \| (.*) \|$", DOCUMENT, re.MULTILINE),
            [(str(int(code)), text) for code, text in EXIT_CODES.items()],
        )

    def test_options_exist(self) -> None:
        """Every option that the document names is one that a command has."""
        helps = " ".join(gatewayctl(*words, "--help").out for words in every_command())
        known = set(re.findall(r"--[a-z-]+", helps))
        of_others = {"--data-binary", "--check-config"}
        self.assertEqual(set(re.findall(r"--[a-z][a-z-]+", DOCUMENT)) - known - of_others, set())
