"""
twistd's entry: options, the reactor, both clocks, the settings; then compose.

Decides which reactor runs, and ends a start with bad settings in one line for each problem. Never wires anything and
imports nothing heavy at its top: twistd reads this file for its help, and the first import of a reactor would decide
which one it is.
"""

import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twisted.python import usage

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from twisted.application.service import IService

    from gatewayd.config import Loaded


class Options(usage.Options):
    """Options of `twistd gatewayd`; everything else is a setting."""

    synopsis = "[options]"
    longdesc = (
        "Signed webhooks in, stored signals out. Settings come from the environment and, with --config, from a TOML "
        "file; `twistd gatewayd --check-config` shows them. Without any, development mode starts its own NATS server."
    )
    optParameters: ClassVar = [["config", "c", None, "Settings file (TOML); the environment comes first."]]
    optFlags: ClassVar = [
        ["check-config", None, "Print the problems, or the settings in force and where they come from; exit."]
    ]

    def postOptions(self) -> None:
        """Load the settings; a problem ends the process here, before anything is opened or forked."""
        path = self["config"]
        loaded = load_settings(None if path is None else Path(path), check=bool(self["check-config"]))
        if loaded.settings is None:
            for problem in loaded.problems:
                print(f"gatewayd: {problem}", file=sys.stderr)  # noqa: T201 - before there is a log
            raise SystemExit(1)
        if self["check-config"]:
            from gatewayd.config import describe

            print(describe(loaded))  # noqa: T201 - what was asked for
            for warning in loaded.warnings:
                print(f"gatewayd: warning: {warning}", file=sys.stderr)  # noqa: T201
            raise SystemExit(0)
        self["loaded"] = loaded


def load_settings(path: Path | None, *, check: bool = False) -> "Loaded":
    """The settings of this process, from its environment and the file at `path`."""
    from gatewayd.config import Facts, load

    environ = dict(os.environ)
    # It would crash or slow prometheus_client, which looks for it when it is imported.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    # The limit on open files is raised to what the process may have.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return load(environ, path, Path.read_bytes, facts=Facts(descriptors=hard), strict=check)


def install_reactor() -> "AbstractEventLoop":
    """
    Make the asyncio reactor this process's, on uvloop where that is installed, and return its event loop.

    A reactor that is there already stays when it is an asyncio reactor (`twistd --reactor=asyncio`); any other is
    refused, since the NATS client needs an event loop.
    """
    from twisted.internet import asyncioreactor

    present: Any = sys.modules.get("twisted.internet.reactor")
    if present is not None:
        if not isinstance(present, asyncioreactor.AsyncioSelectorReactor):
            raise usage.UsageError(
                f"gatewayd needs the asyncio reactor, and {type(present).__name__} is installed: "
                "leave --reactor out, or say --reactor=asyncio"
            )
        loop: AbstractEventLoop = present._asyncioEventloop
        return loop
    try:
        import uvloop
    except ImportError:
        import asyncio

        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    asyncioreactor.install(loop)  # type: ignore[no-untyped-call]
    return loop


def makeService(options: Options) -> "IService":
    """The service tree for twistd."""
    loop = install_reactor()
    from twisted.internet import reactor

    # Twisted's own clock is the wall clock: a step of it would freeze every timer of the process, or fire all at once.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]

    from gatewayd.compose import build
    from gatewayd.lifecycle import StartFailed

    path = options["config"]
    try:
        return build(
            options["loaded"],
            reactor,
            loop,
            load=partial(load_settings, None if path is None else Path(path).absolute()),
            log_file=_log_file(options.parent or {}),
        )
    except StartFailed as error:
        # A file that a setting names and nobody can use: twistd would show its own frames with it.
        print(f"gatewayd: {error}", file=sys.stderr)  # noqa: T201 - the log's thread has not begun yet
        raise SystemExit(1) from None


def _log_file(twistd: Any) -> str:
    """The file that twistd was told to log to; "" for stdout. In the background twistd's own default is a file."""
    named = twistd.get("logfile") or ""
    if named == "-" or (not named and twistd.get("nodaemon")):
        return ""
    return str(Path(named or "twistd.log").absolute())
