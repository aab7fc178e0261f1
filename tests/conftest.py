"""
The session's shared parts.

What needs a running reactor is a pytest-twisted function; a plain test function, unlike trial's TestCase, passes
when Twisted logs a failure, so one fixture here makes every test fail on it.
"""

import signal
from collections.abc import Iterator

import pytest
from twisted.logger import LogEvent, globalLogPublisher


def pytest_configure() -> None:
    """Let the programs that tests start be interrupted: run in the background, a shell has them ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_logged_failures(request: pytest.FixtureRequest) -> Iterator[list[LogEvent]]:
    """Fail the test when Twisted logged a failure in it that the test did not take out of the list."""
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            failures.append(event)

    globalLogPublisher.addObserver(observe)
    yield failures
    globalLogPublisher.removeObserver(observe)
    assert not failures, [event["log_failure"].getTraceback() for event in failures]
