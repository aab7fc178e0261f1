"""
Virtual clients: what they send, when they send it again, and when they are content.

Decides what a good client does (retries with a fresh nonce, or the very same request), and what a bad one does: twins,
two bodies under one key, replays, stolen nonces, forged signatures, clients that go away. Every number comes from the
world's generator. Never judges an answer: invariants does.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from tests.simulation.invariants import Attempt, Invariants
from tests.simulation.process import Process
from tests.simulation.signals import Maker, Signal, request_bytes, time_text
from tests.simulation.timeline import Timeline
from tests.simulation.visits import Visit

SAME_REQUEST_S: Final = 200.0
"""A request is sent again as it was only while its time is well inside the window."""


class Clients:
    """
    All clients of a world. `open` are those that have not been told what became of their signal.

    `processes` are those that listen now. `emphasis` makes some plans so many times as likely, by name.
    """

    def __init__(
        self,
        timeline: Timeline,
        rng: Random,
        wall: Callable[[], float],
        processes: list[Process],
        invariants: Invariants,
        note: Callable[..., None],
        emphasis: Mapping[str, float],
    ) -> None:
        self.timeline = timeline
        self.rng = rng
        self.wall = wall
        self.processes = processes
        self.invariants = invariants
        self.note = note
        self.maker = Maker(rng)
        self.open: set[Sender] = set()
        self.waiting: dict[Attempt, None] = {}
        self.impatient = True
        self.replays = True
        self._visits: dict[Process, list[Visit]] = {}
        self._idle: dict[Process, list[Visit]] = {}
        self._used: list[tuple[Signal, str, str]] = []  # what was accepted, under which nonce and time
        self._plans: dict[str, tuple[float, Callable[[], None]]] = {
            "compat": (0.26, lambda: self._alone("sha256")),
            "signed": (0.26, lambda: self._alone("v1")),
            "keyed": (0.26, lambda: self._alone("v1", key=True)),
            "compat, keyed": (0.06, lambda: self._alone("sha256", key=True)),
            "twins": (0.06, self._twins),
            "rivals": (0.08, self._rivals),
            "broken": (0.03, self._broken),
            "forged": (0.01, self._forged),
            "thief": (0.01, self._thief),
        }
        self._names = list(self._plans)
        self._weights = [weight * emphasis.get(name, 1.0) for name, (weight, _) in self._plans.items()]

    # what is sent

    def begin(self) -> None:
        """Somebody has something to say."""
        (name,) = self.rng.choices(self._names, self._weights)
        self._plans[name][1]()

    def _alone(self, scheme: str, *, key: bool = False) -> None:
        self._send(self.maker.signal(self.wall(), scheme=scheme, key=self.maker.key() if key else ""))

    def _twins(self) -> None:
        """The same event two or three times at nearly the same moment, perhaps under one nonce."""
        rng = self.rng
        scheme = rng.choice(("sha256", "v1"))
        signal = self.maker.signal(self.wall(), scheme=scheme, key=rng.choice(("", self.maker.key())))
        nonce = rng.choice(("", self.maker.nonce()))
        for _ in range(rng.choice((2, 2, 3))):
            self._send(signal, nonce=nonce, after_s=self._soon())

    def _rivals(self) -> None:
        """Different bodies under one key, signed or not."""
        scheme, key = self.rng.choice(("sha256", "v1", "v1")), self.maker.key()
        first = self.maker.signal(self.wall(), scheme=scheme, key=key)
        self._send(first)
        for _ in range(self.rng.choice((1, 1, 2))):
            other = self.maker.signal(self.wall(), scheme=scheme, key=key, source=first.source)
            self._send(other, after_s=self._soon() * self.rng.choice((1, 1, 100)))

    def _broken(self) -> None:
        self._send(self.maker.broken())

    def _forged(self) -> None:
        self._send(self.maker.signal(self.wall(), scheme="v1", forged=True), patient=False)

    def _thief(self) -> None:
        """A signal of its own under a nonce that somebody used."""
        if self._used:
            _, nonce, _ = self.rng.choice(self._used)
            self._send(self.maker.signal(self.wall(), scheme="v1"), nonce=nonce, patient=False)

    def _soon(self) -> float:
        return self.rng.random() ** 3 * 0.3

    def _send(self, signal: Signal, *, nonce: str = "", patient: bool = True, after_s: float = 0.0) -> None:
        # Some give up at the first thing that goes wrong: what they left behind is nobody's but the repair's.
        sender = Sender(self, signal, nonce=nonce, patient=patient and self.rng.random() < 0.8)
        self.timeline.after(after_s, sender.go)

    def accepted(self, attempt: Attempt) -> None:
        """Somebody saw the request that was accepted, and sends it again, as it was or, unsigned, under new headers."""
        rng = self.rng
        if len(self._used) < 200:
            self._used.append((attempt.signal, attempt.nonce, attempt.timestamp))
        if not self.replays or rng.random() > 0.06:
            return
        nonce, timestamp = attempt.nonce, attempt.timestamp
        if rng.random() < 0.3 and attempt.signal.scheme == "sha256":
            nonce = timestamp = ""
        late_s = rng.choice((self._soon(), rng.random() * 5.0, rng.random() * 60.0))
        sender = Sender(self, attempt.signal, nonce=nonce, timestamp=timestamp, patient=False)
        self.timeline.after(late_s, sender.go)

    def replay_everything(self) -> None:
        """Send what was accepted once more, as it was and, where nothing else is signed, under new headers."""
        for signal, nonce, timestamp in self._used:
            for as_it_was in (True, False) if signal.scheme == "sha256" else (True,):
                words = {"nonce": nonce, "timestamp": timestamp} if as_it_was else {}
                sender = Sender(self, signal, patient=False, old=True, **words)
                self.timeline.after(self.rng.random() * 2.0, sender.go)

    # connections

    def visit(self, process: Process) -> Visit | None:
        """An idle connection to the process, or a new one; None when it takes no more."""
        idle = self._idle.setdefault(process, [])
        while idle:
            visit = idle.pop()
            if not visit.gone:
                return visit
        visit = Visit(process, self.way_s, idle)
        if visit.gone:
            return None
        self._visits.setdefault(process, []).append(visit)
        return visit

    def way_s(self) -> float:
        """How long bytes are on their way between a client and a process."""
        return 0.0001 + 0.002 * self.rng.random() ** 4

    def process_ended(self, process: Process) -> None:
        """Every connection to it is gone."""
        self._idle.pop(process, None)
        for visit in self._visits.pop(process, []):
            visit.process_ended()

    def overdue(self, now: float) -> Attempt | None:
        """A request that should have been answered by now."""
        for attempt in self.waiting:
            if attempt.complete_at and not attempt.process.dead and not attempt.written_at:
                late = now - max(attempt.complete_at, attempt.process.loop.paused_until)
                return attempt if late > 3.0 else None
        return None


class Sender:
    """One client with one signal. A `patient` one tries until it is told; another once. An `old` signal is refused."""

    __slots__ = (
        "_attempt",
        "_clients",
        "_home",
        "_nonce",
        "_old",
        "_patient",
        "_sent",
        "_timestamp",
        "_visit",
        "signal",
    )

    def __init__(
        self,
        clients: Clients,
        signal: Signal,
        *,
        nonce: str = "",
        timestamp: str = "",
        patient: bool = True,
        old: bool = False,
    ) -> None:
        self.signal = signal
        self._clients = clients
        self._patient = patient
        self._nonce = nonce
        self._timestamp = timestamp
        self._old = old
        self._sent: tuple[str, str, float] | None = None
        self._attempt: Attempt | None = None
        self._visit: Visit | None = None
        self._home: Process | None = None
        clients.open.add(self)

    def go(self) -> None:
        """Try."""
        clients, rng = self._clients, self._clients.rng
        if not clients.processes:
            self._again(0.2)
            return
        process = self._home
        if process is None or process not in clients.processes or rng.random() < 0.3:
            process = self._home = rng.choice(clients.processes)
        visit = clients.visit(process)
        if visit is None:
            clients.invariants.seen["refused connections"] += 1
            self._again(0.5)
            return
        now = clients.wall()
        if self._sent is not None and rng.random() < 0.3 and now - self._sent[2] < SAME_REQUEST_S:
            nonce, timestamp, _ = self._sent
        else:
            nonce = self._nonce or clients.maker.nonce()
            timestamp = self._timestamp or (str(int(now)) if rng.random() < 0.5 else time_text(now))
            self._sent = (nonce, timestamp, now)
            if self._patient:
                self._nonce = ""
        attempt = self._attempt = Attempt(self.signal, process, nonce, timestamp, clients.timeline.now, self._old)
        data = request_bytes(self.signal, nonce, timestamp)
        self._visit = visit
        clients.waiting[attempt] = None
        first = rng.randrange(len(data)) if rng.random() < 0.05 else 0
        visit.ask(data, self, first, lambda: self._complete(attempt))
        clients.note("send", self.signal.identity[:8], process.number, nonce[:6])
        if clients.impatient and rng.random() < 0.01:
            clients.timeline.after(rng.random() ** 2 * 0.05, self._leave, attempt)

    def _leave(self, attempt: Attempt) -> None:
        """The client goes away in the middle, and comes back, or not."""
        if self._attempt is not attempt or self._visit is None:
            return
        self._visit.reset()
        attempt.process.cut += 1
        self._clients.note("leave", self.signal.identity[:8])
        self._end_attempt()
        if self._clients.rng.random() < 0.5:
            self._again(0.5)
        else:
            self._clients.open.discard(self)

    def _complete(self, attempt: Attempt) -> None:
        """The process has it all; the client may have gone meanwhile."""
        attempt.process.completed += 1
        attempt.index, attempt.complete_at = attempt.process.completed, self._clients.timeline.now
        self._clients.invariants.complete(attempt)

    # what the visit says

    def written(self) -> None:
        """The process answered."""
        if self._attempt is not None:
            self._clients.invariants.written(self._attempt, self._clients.timeline.now)

    def told(self, status: int, head: bytes, body: bytes) -> None:
        """The answer."""
        clients, attempt = self._clients, self._attempt
        assert attempt is not None
        members = clients.invariants.judge(attempt, status, head, body)
        clients.note("answer", self.signal.identity[:8], status, members.get("code", members.get("duplicate", "")))
        self._end_attempt()
        if status == 202:
            clients.accepted(attempt)
        if self._patient and self._should_retry(status, members):
            self._again(2.0)
        else:
            clients.open.discard(self)

    def lost(self) -> None:
        """No answer."""
        attempt = self._attempt
        if attempt is None:
            return
        attempt.process.cut += 1
        self._clients.invariants.seen["cut"] += 1
        self._clients.note("cut", self.signal.identity[:8])
        self._end_attempt()
        if self._patient:
            self._again(0.5)
        else:
            self._clients.open.discard(self)

    def _should_retry(self, status: int, members: dict[str, Any]) -> bool:
        """503 always; 401 where the process' clock is wrong, or the nonce was somebody else's, under new headers."""
        if status == 401 and members["code"] == "GW-002" and "original_corr_id" not in members["details"]:
            self._sent = None
            return True
        return status == 503

    def _end_attempt(self) -> None:
        if self._attempt is not None:
            self._clients.waiting.pop(self._attempt, None)
        self._attempt = self._visit = None

    def _again(self, most_s: float) -> None:
        self._clients.timeline.after(0.02 + self._clients.rng.random() * most_s, self.go)
