"""
What a test could not run, said aloud: in its place, and once more at the end with the number of them.

A test that a missing program keeps from its work calls `not_run`; it passes, but nobody can take it for run. A test
module asks for the fixture with `pytest_plugins = ("tests.reporting",)`.
"""

from collections.abc import Callable

import pytest

PLUGIN = "gatewayd-not-run"


class NotRun:
    """The reasons of one session, each with the id of its test."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, str]] = []

    def lines(self) -> list[str]:
        """What is said of them: the count, then one line for each."""
        if not self.reasons:
            return []
        return [f"{len(self.reasons)} not run", *(f"not run: {reason} ({test})" for reason, test in self.reasons)]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say it at the end of the session, whatever the verbosity."""
        for line in self.lines():
            terminalreporter.write_line(line, yellow=True)


def of_session(config: pytest.Config) -> NotRun:
    """The session's own, made when it is first asked for."""
    known = config.pluginmanager.get_plugin(PLUGIN)
    if isinstance(known, NotRun):
        return known
    made = NotRun()
    config.pluginmanager.register(made, PLUGIN)
    return made


@pytest.fixture
def not_run(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Called with the reason why this test cannot do its work: `not run: node is not installed`."""

    def say(reason: str) -> None:
        print(f"not run: {reason}")
        of_session(request.config).reasons.append((reason, request.node.nodeid))

    return say
