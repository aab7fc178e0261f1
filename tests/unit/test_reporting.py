"""A test that could not do its work is counted and named."""

from twisted.trial.unittest import SynchronousTestCase

from tests.reporting import NotRun


class NotRunTest(SynchronousTestCase):
    def test_nothing_to_say(self) -> None:
        """A session in which everything was run ends without a word of it."""
        self.assertEqual(NotRun().lines(), [])

    def test_each_is_named(self) -> None:
        """The count comes first, then each reason with its test."""
        not_run = NotRun()
        not_run.reasons += [("node is not installed", "a.py::test_node"), ("no index", "a.py::test_install")]
        self.assertEqual(
            not_run.lines(),
            ["2 not run", "not run: node is not installed (a.py::test_node)", "not run: no index (a.py::test_install)"],
        )
