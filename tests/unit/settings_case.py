"""What the tests of settings share: loading from given variables, file and files, and some good values."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from gatewayd.config import Facts, Loaded, Settings, load

HOME = {"HOME": "/home/gw"}
STRONG = "0123456789-abcdefghijklmnopqrstuvwxyz"
OTHER = "zyxwvutsrqponmlkjihgfedcba-9876543210"
PRODUCTION = {**HOME, "ENV": "production", "NATS_URL": "nats://nats:4222", "API_KEY_HMAC_SECRET": STRONG}
CONFIG = Path("/etc/gatewayd.toml")
NO_FILES: Mapping[str, bytes | OSError] = MappingProxyType({})


def load_from(
    environ: Mapping[str, str],
    toml: str | bytes | OSError | None = None,
    files: Mapping[str, bytes | OSError] = NO_FILES,
    *,
    strict: bool = False,
    facts: Facts = Facts(),
) -> Loaded:
    """What these variables, this configuration file and these other files load as."""
    every = {**files}
    if toml is not None:
        every[str(CONFIG)] = toml.encode() if isinstance(toml, str) else toml

    def read(path: Path) -> bytes:
        found = every.get(str(path), FileNotFoundError(2, "No such file or directory", str(path)))
        if isinstance(found, OSError):
            raise found
        return found

    return load(environ, None if toml is None else CONFIG, read, strict=strict, facts=facts)


def shown_in_tracebacks(settings: Settings) -> str:
    """Every form of traceback that a failure with these settings around it leaves."""
    try:
        raise RuntimeError(f"{settings.shared_secrets} {settings.sources}")
    except RuntimeError:
        return traceback.format_exc() + Failure(captureVars=True).getTraceback(detail="verbose")


class SettingsCase(SynchronousTestCase):
    """Settings that must load, and problems that must be found."""

    def settings(
        self,
        environ: Mapping[str, str],
        toml: str | None = None,
        files: Mapping[str, bytes | OSError] = NO_FILES,
    ) -> Settings:
        loaded = load_from(environ, toml, files)
        self.assertEqual([str(problem) for problem in loaded.problems], [])
        assert loaded.settings is not None
        return loaded.settings

    def problems(self, environ: Mapping[str, str], toml: str | None = None, **more: object) -> list[str]:
        loaded = load_from(environ, toml, **more)  # type: ignore[arg-type]
        self.assertEqual(loaded.settings is None, bool(loaded.problems))
        return [str(problem) for problem in loaded.problems]

    def assert_problem(self, found: list[str], *words: str) -> None:
        self.assertEqual(len(found), 1, found)
        for word in words:
            self.assertIn(word, found[0])
