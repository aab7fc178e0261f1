"""
One gatewayd on virtual time: everything that compose wires, but the reactor, its sockets and the log.

Decides nothing of its own: its parts start and stop as compose orders them. A crash drops all of it between any two
steps of its event loop. The NATS client is the real one, down to nats-py and its parser.
"""

# Twisted's services carry no annotations.
# mypy: disable-error-code="no-untyped-call"

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from gatewayd.aio import Loop
from gatewayd.compose import Core, Part, World
from gatewayd.config import Loaded, load
from gatewayd.health import Phase
from gatewayd.http.inherited import Inherited
from gatewayd.lifecycle import OrderedServices
from gatewayd.times import Wall
from tests.clients import SECRET
from tests.simulation.network import Network
from tests.simulation.timeline import EventLoop, Reactor, Timeline

_log = Logger()

STREAM: Final = "trading-events"
SOURCES: Final = ("tradingview", "custom", "test")


@cache
def settings() -> Loaded:
    """The settings of every process: limits so high that only faults refuse anything, and nobody's clock is trusted."""
    environ = {
        "ENV": "production",
        "API_KEY_HMAC_SECRET": SECRET.decode(),
        "ALLOWED_SOURCES": ",".join(SOURCES),
        "RATE_LIMIT_RPS": "1000000",
        "RATE_LIMIT_ADDRESS_RPS": "1000000",
        "NATS_URL": "nats://127.0.0.1:4222",
        "NATS_STREAM": STREAM,
        "NATS_STREAM_MAX_BYTES": "1GiB",
        "STATE_DIRECTORY": "/nonexistent/gatewayd-simulation",
        "HOME": "/nonexistent",
    }
    loaded = load(environ, None, lambda path: path.read_bytes())
    assert loaded.settings is not None, loaded.problems
    return loaded


class _Nothing:
    """Takes any call; what is in the place of the log."""

    dropped = 0

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _ignore

    def clean(self, text: str) -> str:
        """Leave it as it is."""
        return text


class _Log(_Nothing):
    """The log, as Core is handed it."""

    access = _Nothing()
    writer = _Nothing()
    redactor = _Nothing()


class _Ordered(dict[Any, None]):
    """A set in the order of its additions."""

    def add(self, item: object) -> None:
        self[item] = None

    def discard(self, item: object) -> None:
        self.pop(item, None)


def _ignore(*_: object, **__: object) -> None:
    """Nothing."""


class Process:
    """
    One gatewayd, born at `born_wall` of the true time. `wall_off_s` is how far its wall clock is from that. `completed`
    counts its complete requests, `answered` the answers that it wrote, by status class, `cut` the requests whose
    clients went away, `letters_lost` the broken bodies that were refused and not kept.
    """

    def __init__(
        self,
        number: int,
        timeline: Timeline,
        network: Network,
        wall: Callable[[], float],
        mutated: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.number = number
        self.timeline = timeline
        self.network = network
        self.wall_off_s = 0.0
        self.born_wall = wall()
        self.completed = 0
        self.cut = 0
        self.letters_lost = 0
        self.answered = {2: 0, 4: 0, 5: 0}
        self.dead = False
        self.stopping = False
        self.ready = False
        self.loop = EventLoop(timeline, network.connect)
        self.reactor = Reactor(self.loop)
        loaded = settings()
        assert loaded.settings is not None
        self.world = World(
            self.reactor, Loop(self.loop, loggers=()), lambda: Wall(wall() + self.wall_off_s), {"HOME": "/nonexistent"}
        )
        log: Any = _Log()
        with mutated():
            self.core = Core(
                self.world,
                loaded,
                loaded.settings,
                load=lambda: loaded,
                log=log,
                embedded=None,
                inherited=Inherited(()),
            )
        self.core.site._channels = _Ordered()  # a set's order is that of addresses in memory, another one each run
        self.services = OrderedServices(self.reactor, stop_budget_s=loaded.settings.gateway_shutdown_timeout)
        for service in self.core.services():
            sockets = service.name == "public listener"
            (Part(service.name, _ignore, service.stopService) if sockets else service).setServiceParent(self.services)
        timeline.loops.append(self.loop)

    @property
    def taking(self) -> bool:
        """True while it takes webhooks."""
        return not self.dead and self.core.health.phase is Phase.READY

    def start(self) -> None:
        """Everything, in its order. Its listener is open from the first moment."""
        self.loop.inside(self.services.startService).addErrback(self._failed)

    def stop(self, ended: Callable[[], object]) -> None:
        """Everything, in the opposite order."""
        self.stopping = True
        self.loop.inside(self.services.stopService).addCallback(lambda _: ended())

    def _failed(self, failure: Failure) -> None:
        if not self.stopping:
            _log.failure("a process did not start", failure, event="simulation.start")

    def crash(self) -> None:
        """End without a word. What lies in its sockets is sent, or a part of it."""
        self.dead = self.loop.dead = True
        self.loop.steps_left = None
        self.timeline.loops.remove(self.loop)
        self.network.lose_process(self.loop)

    def bury(self) -> None:
        """
        Let a crashed process' objects run to their end, on a timeline of their own where nobody hears them: a coroutine
        that is dropped half way would run its `finally` at the collector's leisure.
        """
        alone = Timeline(self.timeline.now)
        self.loop.timeline = alone
        self.loop.paused_until = 0.0
        alone.loops.append(self.loop)
        ended: list[bool] = []
        if not self.stopping:
            self.stop(lambda: ended.append(True))
        alone.run(alone.now + 20.0, lambda: bool(ended))
