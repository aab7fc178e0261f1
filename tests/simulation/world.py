"""
A world from one seed: processes, server, network, clients, and everything that befalls them.

Decides, with one generator, every delivery, delay, fault, crash and restart; the same seed makes the same world to the
last byte. Not every fault is in every world: which are, and how often, is drawn first, so that each also happens where
nothing else does.
"""

import hashlib
import random
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Final

from twisted.logger import LogEvent, globalLogPublisher

from tests.simulation.clients import Clients
from tests.simulation.invariants import Invariants
from tests.simulation.jetstream import Connection, Server
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.stream import Kept
from tests.simulation.timeline import Timeline

EPOCH: Final = 1_700_000_000.0
REST_S: Final = 60.0
"""After the last fault everybody is told within this time."""

AFTER_REPAIR_S: Final = 36.0
"""What comes late is found by the last look of the repair, 30 s after a reconnect; what does not, by its first."""

AFTER_FIRST_REPAIR_S: Final = 10.0
PAST_THE_WINDOW_S: Final = 4300.0
REQUESTS_PER_FAULT: Final = {
    "crash": 10,
    "restart": 150,
    "step": 150,
    "pause": 150,
    "cut": 80,
    "stall": 150,
    "freeze": 250,
    "kill": 250,
    "slow": 250,
    "fill": 250,
    "purge": 400,
    "recreate": 400,
}
"""Every kind of fault, each a method of World, and how often it befalls a world that has it."""

_MAKE_LATE_GHOSTS: Final = frozenset({"freeze", "stall"})
_RARE: Final = ("purge", "recreate")  # an operator's work: what it removes cannot be checked any more
_NOT_FORGOTTEN_S: Final = 5.0  # after a stream was made anew its nonces may be forgotten for so long


class World:
    """
    One world. run() lets it live until `requests` requests were complete and everybody was told; what was broken is in
    `invariants.broken`, `seen` counts what happened, `digest` is that of the trace.

    `faults` are the kinds that there are, drawn when None. `emphasis` makes some of what clients do so many times as
    likely. Every process is built inside of `mutated`. `show` is called with each line of the trace.
    """

    def __init__(
        self,
        seed: int,
        requests: int = 1000,
        *,
        faults: Collection[str] | None = None,
        emphasis: Mapping[str, float] = MappingProxyType({}),
        mutated: Callable[[], AbstractContextManager[None]] = nullcontext,
        show: Callable[[str], object] | None = None,
    ) -> None:
        self.seed = seed
        self.requests = requests
        self.rng = random.Random(seed)
        self.timeline = Timeline(1000.0)
        self.invariants = Invariants()
        self.seen = self.invariants.seen
        self.server = Server(self.wall, self.timeline.after, stored=self._stored, proposing=self._proposing)
        self.network = Network(self.timeline, self.server, self.rng)
        self.processes: list[Process] = []
        self.clients = Clients(self.timeline, self.rng, self.wall, self.processes, self.invariants, self.note, emphasis)
        self._mutated = mutated
        self._show = show
        self._digest = hashlib.sha256()
        self._lines: list[str] = []
        self._number = 0
        self._storm = True
        self._draw(faults)

    def _draw(self, faults: Collection[str] | None) -> None:
        """What kind of world this is."""
        rng = self.rng
        self.wanted = rng.choice((1, 1, 2, 2, 3))
        self.rate = rng.choice((10.0, 30.0, 100.0, 400.0))
        self.still_proposed = rng.choice((0.0, 0.0, 0.5))
        self.ages = rng.random() < 0.1
        self.intervals = {}
        for fault, per_fault in REQUESTS_PER_FAULT.items():
            share = 0.95 if fault == "crash" else 0.03 if fault in _RARE else 0.4
            drawn = rng.random() < share
            if drawn if faults is None else fault in faults:
                self.intervals[fault] = per_fault / self.rate * rng.uniform(0.5, 1.5)

    def wall(self) -> float:
        """The true time."""
        return EPOCH + self.timeline.now

    def note(self, *what: object) -> None:
        """A line of the trace."""
        line = f"{self.timeline.now:.6f} {' '.join(map(str, what))}"
        self._lines.append(line)
        if self._show is not None:
            self._show(line)
        if len(self._lines) >= 512:
            self._fold()

    def _fold(self) -> None:
        self._digest.update("\n".join(self._lines).encode())
        self._lines.clear()

    @property
    def digest(self) -> str:
        """Of everything that happened."""
        self._fold()
        return self._digest.hexdigest()

    # its life

    def run(self) -> "World":
        """Live; the product's own generator of jitter is the seed's too."""
        before = random.getstate()
        random.seed(self.seed)
        failures: list[LogEvent] = []

        def observe(event: LogEvent) -> None:
            if event.get("log_failure") is not None:
                failures.append(event)
            if self._show is not None and "log_format" in event:
                self._show(f"  log: {event.get('event')} {event.get('text', '')} {event.get('error', '')}")

        globalLogPublisher.addObserver(observe)
        try:
            self._live()
            for process in list(self.processes):
                self._gone(process)
                process.crash()
                process.bury()
        finally:
            globalLogPublisher.removeObserver(observe)
            random.setstate(before)
        for event in failures:
            self.invariants.violate(f"logged: {event['log_failure'].getErrorMessage()}")
        return self

    def _live(self) -> None:
        broken = self.invariants.broken
        for _ in range(self.wanted):
            self._start()
        self._arrive()
        for fault, interval_s in self.intervals.items():
            self._befall(fault, interval_s)
        self._watch()
        self.timeline.run(float("inf"), lambda: bool(broken) or self.seen["requests"] >= self.requests)
        if broken:
            return
        self._calm()
        until = self.timeline.now + REST_S
        self.timeline.run(until, lambda: bool(broken) or (not self.clients.open and not self._unrest()))
        if self.clients.open and not broken:
            self.invariants.violate(f"{len(self.clients.open)} clients were never told")
        if not broken:
            self.timeline.run(self.timeline.now + self._rest_s(), lambda: bool(broken))
        if not broken:
            self.invariants.finish()
        if not broken and self.ages:
            self._age()
        if not broken:
            self._end()

    def _unrest(self) -> bool:
        return any(not process.taking for process in self.processes) or len(self.processes) < self.wanted

    def _rest_s(self) -> float:
        return AFTER_REPAIR_S if self.intervals.keys() & _MAKE_LATE_GHOSTS else AFTER_FIRST_REPAIR_S

    def _calm(self) -> None:
        """No more faults, and nobody new; what is broken is mended."""
        self._storm = False
        self.clients.impatient = self.clients.replays = False
        self.still_proposed = 0.0
        self.network.slow_until = 0.0
        if self.server.frozen:
            self._thaw()
        if not self.server.up:
            self._start_server()
        self._empty()
        for process in self.processes:
            process.wall_off_s = 0.0
            process.loop.steps_left = None
        self.note("calm")

    def _end(self) -> None:
        """Stop every process in good order: nothing may be left."""
        for process in list(self.processes):
            self._stop(process, again=False)
        self.timeline.run(self.timeline.now + 30.0, lambda: not self.processes)
        if self.processes:
            self.invariants.violate("a process did not stop")

    def _age(self) -> None:
        """Everything is off until the stream has forgotten every id; then all that was accepted is sent again."""
        self._end()
        self.seen["aged worlds"] += 1
        self.timeline.run(self.timeline.now + PAST_THE_WINDOW_S)
        self._start()
        self.timeline.run(self.timeline.now + 1.0)
        self.clients.replay_everything()
        self.timeline.run(self.timeline.now + 10.0, lambda: bool(self.invariants.broken) or not self.clients.open)

    # what happens all the time

    def _arrive(self) -> None:
        if not self._storm:
            return
        self.clients.begin()
        self.timeline.after(self.rng.expovariate(self.rate), self._arrive)

    def _watch(self) -> None:
        late = self.clients.overdue(self.timeline.now)
        if late is not None:
            self.invariants.violate(f"not answered: {late.signal.identity} by process {late.process.number}")
        self.timeline.after(1.0, self._watch)

    def _stored(self, kept: Kept) -> None:
        self.invariants.stored(kept)
        ghost = isinstance(kept.by, Connection) and kept.by.left
        self.seen["ghosts"] += ghost
        self.note("stored", kept.sequence, kept.subject, "as a ghost" if ghost else "")

    def _proposing(self, twin: Kept) -> bool:
        if self.wall() - twin.at < 0.1 and self.rng.random() < self.still_proposed:
            self.seen["being proposed"] += 1
            return True
        return False

    # processes

    def _start(self) -> None:
        self._number += 1
        process = Process(self._number, self.timeline, self.network, self.wall, self._mutated)
        process.loop.crashed = lambda: self._crashed(process)
        self.processes.append(process)
        self.seen["starts"] += 1
        self.note("start", process.number)
        process.start()

    def _start_if_wanted(self) -> None:
        if len(self.processes) < self.wanted:
            self._start()

    def _crashed(self, process: Process) -> None:
        self.seen["crashes"] += 1
        self.note("crash", process.number)
        self._gone(process)
        process.crash()
        self.invariants.conserve(process)
        process.bury()
        self.timeline.after(self.rng.random() * 1.5, self._start_if_wanted)

    def _gone(self, process: Process) -> None:
        if process in self.processes:
            self.processes.remove(process)
        self.clients.process_ended(process)

    def _stop(self, process: Process, *, again: bool) -> None:
        def ended() -> None:
            if process.dead:
                return
            process.crash()
            self._gone(process)
            self.invariants.at_rest(process)
            self.invariants.conserve(process)
            self.note("stopped", process.number)
            if again:
                self._start_if_wanted()

        process.stop(ended)

    # faults

    def _befall(self, fault: str, interval_s: float) -> None:
        """The next one of a kind."""

        def happen() -> None:
            if self._storm:
                getattr(self, f"_{fault}")()
                self._befall(fault, interval_s)

        self.timeline.after(self.rng.expovariate(1.0 / interval_s), happen)

    def _any(self) -> Process | None:
        live = [process for process in self.processes if not process.stopping and process.loop.steps_left is None]
        return self.rng.choice(live) if live else None

    def _crash(self) -> None:
        process = self._any()
        if process is not None:
            process.loop.steps_left = self.rng.randrange(300)

    def _restart(self) -> None:
        process = self._any()
        if process is not None:
            self.seen["graceful restarts"] += 1
            self.note("stop", process.number)
            self._stop(process, again=True)

    def _step(self) -> None:
        process = self._any()
        if process is not None:
            self.invariants.clock_trouble = True
            self.seen["clock steps"] += 1
            process.wall_off_s = self.rng.choice((-400.0, 400.0, self.rng.uniform(-400.0, 400.0), 0.0))
            self.note("step", process.number, process.wall_off_s)
            self.timeline.after(self.rng.random() * 5.0, setattr, process, "wall_off_s", 0.0)

    def _pause(self) -> None:
        process = self._any()
        if process is not None:
            self.seen["pauses"] += 1
            process.loop.paused_until = max(process.loop.paused_until, self.timeline.now + self.rng.random() * 6.0)
            self.note("pause", process.number)

    def _cut(self) -> None:
        if self.network.wires:
            self.seen["cut connections"] += 1
            wire = self.rng.choice(self.network.wires)
            self.note("reset", wire.number)
            wire.cut()

    def _stall(self) -> None:
        if self.network.wires:
            self.seen["stalls"] += 1
            wire = self.rng.choice(self.network.wires)
            self.note("stall", wire.number)
            wire.stall(self.rng.choice((0.5, 4.0, 15.0)) * self.rng.random())

    def _freeze(self) -> None:
        if self.server.up and not self.server.frozen:
            self.seen["freezes"] += 1
            self.server.frozen = True
            self.note("freeze")
            self.timeline.after(self.rng.choice((1.0, 4.0, 10.0)) * self.rng.random(), self._thaw)

    def _thaw(self) -> None:
        if self.server.frozen:
            self.note("thaw")
            self.server.thaw(self.rng.shuffle)

    def _kill(self) -> None:
        if self.server.up:
            self.seen["server restarts"] += 1
            self.note("kill server")
            self.network.kill_server()
            self.timeline.after(self.rng.random() * 4.0, self._start_server)

    def _start_server(self) -> None:
        if not self.server.up:
            self.note("start server")
            self.server.start()

    def _slow(self) -> None:
        self.seen["slow disks"] += 1
        self.network.slow_until = self.timeline.now + self.rng.random() * 3.0
        self.network.slow_s = self.rng.choice((0.3, 4.0))
        self.note("slow")

    def _fill(self) -> None:
        stream = self.server.stream
        if stream is not None:
            self.seen["full streams"] += 1
            self.invariants.full = True
            stream.config["max_msgs"] = len(stream.messages) + self.rng.randrange(4)
            self.note("full")
            self.timeline.after(self.rng.random() * 2.0, self._empty)

    def _purge(self) -> None:
        if self.server.up and self.server.stream is not None:
            self.seen["purges"] += 1
            self.note("purge")
            self.server.stream.purge()
            self.invariants.remove_all()

    def _recreate(self) -> None:
        """An operator deletes the stream; gatewayd makes it anew."""
        if self.server.up and self.server.stream is not None:
            self.seen["deleted streams"] += 1
            self.note("delete stream")
            self.server.stream = None
            self.invariants.remove_all()
            self.invariants.forgets_until = self.timeline.now + _NOT_FORGOTTEN_S
            self.invariants.used.clear()

    def _empty(self) -> None:
        if self.server.stream is not None:
            self.server.stream.config["max_msgs"] = -1
