"""Directories of a test's own, gone when it ends."""

import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase


def temporary_path(case: SynchronousTestCase) -> Path:
    """
    A path in a new directory that goes with the test; nothing is there yet. trial's own mktemp() leaves its
    directories in the working directory for ever.
    """
    directory = tempfile.TemporaryDirectory()
    case.addCleanup(directory.cleanup)
    return Path(directory.name) / "temp"
