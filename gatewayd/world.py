"""
What every composing module is handed: what is around the process, and how two functions become a service.

Decides nothing.
"""

# Twisted's services carry no annotations.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service

from gatewayd.aio import Loop
from gatewayd.times import Monotonic, Wall


class Part(Service):
    """A service made of two functions."""

    def __init__(self, name: str, start: Callable[[], Any], stop: Callable[[], Any]) -> None:
        self.name = name
        self._start = start
        self._stop = stop

    def startService(self) -> Any:
        """Start; a Deferred when it takes time."""
        super().startService()
        return self._start()

    def stopService(self) -> Any:
        """Stop; a Deferred when it takes time."""
        super().stopService()
        return self._stop()


@dataclass(frozen=True, slots=True)
class World:
    """What is around the process: its reactor (whose clock is monotonic), its wall clock, its environment."""

    reactor: Any
    loop: Loop
    wall: Callable[[], Wall]
    environ: Mapping[str, str]

    def now(self) -> Monotonic:
        """The monotonic clock."""
        return Monotonic(self.reactor.seconds())
