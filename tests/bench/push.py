"""
What push costs: one event to very many streams, beside Node's `ws` and nchan; and what the edge costs webhooks.
`python -m tests.bench --push [--quick] [--write]`.

The server under measurement has one processor, everything else the others. Servers are interleaved event by event,
medians over the events; every stream's events are counted and have to come once and in order. Peers that cannot run
here are said. Not a test: figures depend on the machine, only their ratios travel.
"""

import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.bench import pushnames as names
from tests.bench import report
from tests.bench.pushrig import ECHO, PAYLOAD_BYTES, SIGNALS, EdgeStand, Load, Pushing, cpu_seconds
from tests.bench.rig import machine
from tests.bench.toolchain import PUSH_COMMANDS, NotRun
from tests.gateway import ROOT

DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
TRANSPORTS: Final = ("websocket", "sse", "grpc")
OFFERED: Final = {"Node ws": ("websocket",), "nchan": ("websocket", "sse")}
DESCRIPTORS_LEFT: Final = 500
WARM: Final = 50
BURST_EVENTS: Final = 100
STALLED: Final = 100
STALL_PAYLOAD_BYTES: Final = 2000
STALL_RATE: Final = 40.0
REVOKED: Final = 200
COMMANDS: Final = 400

INTRODUCTION: Final = f"""\
Written by `make bench-push ARGS=--write`. One processor for the server, the others for Valkey, nats-server and the
clients. An event of {PAYLOAD_BYTES} bytes is published once and goes to every stream; times are from its publishing to
the client's read, on one clock; "CPU us" is the server's for each delivery, "ratio" is against gatewayd's. Servers are
interleaved event by event; medians; every event came once to every stream, and in order.

gatewayd's event comes out of JetStream, is signed, carries its position, hash and signature (about 640 bytes as JSON),
is kept for those who come back, and is counted; each stream was opened with a signed envelope that was verified against
its session and reserved in Redis. The peers are handed the event by a POST and send its {PAYLOAD_BYTES} bytes, nothing
else: Node's `ws` with one buffer for all and no compression, and nginx with nchan, which is C. "opened/s" is not the
same work: only gatewayd checks who comes.
"""


class Runs:
    """What is measured, and at which size."""

    def __init__(self, root: Path, *, quick: bool) -> None:
        self.root = root
        self.quick = quick
        self.notes: list[str] = []
        self.peers: dict[str, list[str]] = {}
        self._stands = 0
        for name, prepare in PUSH_COMMANDS.items():
            try:
                self.peers[name] = prepare()
            except NotRun as reason:
                self.note(f"{name}: not installable here: {reason}")
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        wanted = (1000,) if quick else (1000, 5000)
        self.streams = tuple(count for count in wanted if count <= most - DESCRIPTORS_LEFT)
        if self.streams != wanted:
            self.streams = (*self.streams, most - DESCRIPTORS_LEFT)
            self.note(f"{self.streams[-1]} streams instead of {wanted[-1]}: a process may have {most} descriptors here")

    def note(self, text: str) -> None:
        """Say it now and in the document."""
        self.notes.append(text)
        print(text, flush=True)

    @contextmanager
    def stand(self, streams: int, own: int = 0) -> Iterator[EdgeStand]:
        """Servers with the sessions of so many streams, and of `own` streams that have one each."""
        self._stands += 1
        stand = EdgeStand(self.root / str(self._stands))
        try:
            stand.add_sessions(streams)
            stand.add_sessions(own, own=True)
            yield stand
        finally:
            stand.close()

    @contextmanager
    def targets(self, stand: EdgeStand, transport: str) -> Iterator[list[Pushing]]:
        """gatewayd, and the peers that have this transport; with a few streams, so that nothing is done first."""
        made = [stand.add_edge(transport)]
        try:
            for name, command in self.peers.items():
                if transport in OFFERED[name]:
                    kind = f"nchan {transport}" if name == "nchan" else transport
                    made.append(stand.add_pushing_peer(name, kind, command))
            for target in made:
                target.open(WARM)
                target.event()
            yield made
        finally:
            for target in made:
                target.close()


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each member."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def delivery(runs: Runs, transport: str) -> tuple[list[list[str]], list[list[str]]]:
    """The lines of one transport: one event to all; a burst to the first number of streams."""
    single, bursts = [], []
    events = 6 if runs.quick else 20
    with runs.stand(runs.streams[-1]) as stand, runs.targets(stand, transport) as targets:
        for streams in runs.streams:
            opened = {target.name: target.open(streams - target.streams) for target in targets}
            rows: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
            for turn in range(events):
                for target in targets[turn % len(targets) :] + targets[: turn % len(targets)]:
                    rows[target.name].append(target.event())
            ours = medians(rows[targets[0].name])
            for target in targets:
                found = {**medians(rows[target.name]), **opened[target.name]}
                single.append(_delivery_line(transport, streams, target.name, found, ours))
            if streams == runs.streams[0]:
                bursts += _burst_lines(transport, targets, 2 if runs.quick else 5)
    return single, bursts


def _delivery_line(
    transport: str, streams: int, name: str, found: Mapping[str, float], ours: Mapping[str, float]
) -> list[str]:
    return [
        f"{transport}, {streams:,}",
        name,
        *(f"{found[column]:.1f}" for column in ("first_ms", "median_ms", "last_ms")),
        f"{found['last_ms'] / ours['last_ms']:.2f}",
        f"{found['cpu_us']:.1f}",
        f"{found['cpu_us'] / ours['cpu_us']:.2f}",
        f"{found['idle_kib']:.1f}",
        f"{found['opened_s']:,.0f}",
        f"{found['load_cpu_us']:.1f}",
    ]


def _burst_lines(transport: str, targets: list[Pushing], rounds: int) -> list[list[str]]:
    rows: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            rows[target.name].append(target.event(BURST_EVENTS))
    return [
        [
            f"{transport}, {target.streams:,}",
            target.name,
            f"{found['per_second']:,.0f}",
            f"{found['last_ms']:.0f}",
            f"{found['cpu_us']:.1f}",
        ]
        for target in targets
        for found in (medians(rows[target.name]),)
    ]


def users(runs: Runs) -> list[list[str]]:
    """Client events: one XADD for the streams of each user."""
    lines = []
    with runs.stand(runs.streams[-1]) as stand:
        target = stand.add_edge("websocket", signals=False)
        try:
            for streams in runs.streams:
                target.open(streams - target.streams, "events.subscribe")
                found = medians([target.event() for _ in range(10)])
                number = -(-streams // names.STREAMS_A_USER)
                lines.append(
                    [
                        f"{streams:,} of {number} users",
                        *(f"{found[column]:.1f}" for column in ("first_ms", "median_ms", "last_ms", "cpu_us")),
                    ]
                )
        finally:
            target.close()
    return lines


def stalled(runs: Runs) -> list[list[str]]:
    """What the others notice of clients that read nothing: turns with and without, on one server."""
    streams, events, turns = 1000, 40 if runs.quick else 60, 1 if runs.quick else 3
    rows: dict[str, list[dict[str, float]]] = {"all read": [], f"{STALLED} of them read nothing": []}
    with runs.stand(streams + turns * STALLED) as stand:
        target = stand.add_edge("websocket")
        try:
            target.open(streams)
            for _ in range(turns):
                for title, found in rows.items():
                    if title != "all read":
                        target.load.ask("stall", count=STALLED)
                    found.append(target.events(events, STALL_RATE, STALL_PAYLOAD_BYTES))
                target.load.ask("resume")
                target.open(STALLED)
        finally:
            target.close()
    return [
        [title, *(f"{medians(found)[column]:.1f}" for column in ("median_ms", "p99_ms", "last_ms"))]
        for title, found in rows.items()
    ]


def revocations(runs: Runs) -> list[list[str]]:
    """From the XADD of a snapshot that revokes to the end of the session's stream, one after the other."""
    count = 50 if runs.quick else REVOKED
    lines = []
    for transport in TRANSPORTS[:1] if runs.quick else TRANSPORTS:
        with runs.stand(1000, own=count) as stand:
            target = stand.add_edge(transport)
            others = Load(transport, target.port)
            try:
                others.ask("open", count=1000)
                target.load.ask("open", count=count, own=True)
                took = []
                for stream in range(count):
                    began = stand.revoke(names.session_of(stream, own=True))
                    closed = target.load.ask("close_seen", count=stream + 1)["closed"]
                    took.append((closed[str(stream)] - began) / 1e6)
            finally:
                target.close()
                others.close()
        took.sort()
        lines.append([transport, *(f"{took[int(count * share)]:.1f}" for share in (0.5, 0.99)), f"{took[-1]:.1f}"])
    return lines


def commands(runs: Runs) -> list[list[str]]:
    """Signed commands, one after the other."""
    count = 100 if runs.quick else COMMANDS
    lines = []
    with runs.stand(1) as stand:
        stand.answer_echoes()
        target = stand.add_edge("grpc")
        try:
            for title, message_type in (("refused: no route", "bench.none"), ("answered by a service on NATS", ECHO)):
                target.load.ask("run", count=50, message_type=message_type)
                cpu = cpu_seconds(target.pid)
                found = target.load.ask("run", count=count, message_type=message_type)
                cpu_us = (cpu_seconds(target.pid) - cpu) / count * 1e6
                lines.append([title, f"{found['p50_ms']:.2f}", f"{found['p99_ms']:.2f}", f"{cpu_us:.0f}"])
        finally:
            target.close()
    return lines


def webhooks(runs: Runs) -> list[list[str]]:
    """What an accepted webhook costs, with the edge off and on."""
    streams, rounds, seconds = runs.streams[-1], 2 if runs.quick else 6, 0.5 if runs.quick else 1.5
    idle = f"on, {streams:,} idle streams"
    rows: dict[str, list[dict[str, Any]]] = {}
    with runs.stand(streams) as stand:
        targets = [
            stand.add_gateway("off"),
            stand.add_gateway("on", more=stand.edge()),
            stand.add_gateway(idle, more=stand.edge()),
            stand.add_gateway("on, signals granted", more={**stand.edge(), **SIGNALS}),
        ]
        clients = Load("websocket", targets[2].port)
        try:
            clients.ask("open", count=streams)
            for turn in range(rounds + 1):
                for target in targets[turn % 4 :] + targets[: turn % 4]:
                    found = stand.closed(target, 64, seconds)
                    if turn:  # the first is for warming
                        rows.setdefault(target.name, []).append(found)
        finally:
            clients.close()
    return [
        [
            target.name,
            *(
                f"{statistics.median(row[column] for row in rows[target.name]):,.0f}"
                for column in ("cpu_us", "per_second")
            ),
            f"{statistics.median(_ratios(rows[target.name], rows['off'])):.3f}",
        ]
        for target in targets
    ]


def _ratios(rows: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> Iterator[float]:
    return (one["cpu_us"] / other["cpu_us"] for one, other in zip(rows, base, strict=True))


def sections(runs: Runs) -> Iterator[str]:
    """Each table as soon as it is there."""
    bursts: list[list[str]] = []
    lines: list[list[str]] = []
    for transport in TRANSPORTS:
        single, burst = delivery(runs, transport)
        lines += single
        bursts += burst
    titles = ["streams", "server", "first ms", "median ms", "last ms", "ratio", "CPU us", "ratio", "idle KiB"]
    yield "### One event to all\n\n" + report.table([*titles, "opened/s", "client's CPU us"], lines)
    parts: list[tuple[str, list[str], Callable[[Runs], list[list[str]]]]] = [
        ("Client events, one XADD a user", ["WebSockets", "first ms", "median ms", "last ms", "CPU us"], users),
        (
            f"Events of {STALL_PAYLOAD_BYTES:,} bytes, {STALL_RATE:.0f} a second, to 1,000 WebSockets",
            ["clients", "median ms", "p99 ms", "last ms"],
            stalled,
        ),
        ("Revocation, while 1,000 other streams are open", ["transport", "p50 ms", "p99 ms", "last ms"], revocations),
        ("Signed commands over gRPC, one at a time", ["command", "p50 ms", "p99 ms", "CPU us"], commands),
        ("Webhooks (64 connections)", ["edge", "CPU us", "accepted/s", "CPU, ratio"], webhooks),
    ]
    yield f"### {BURST_EVENTS} events at once\n\n" + report.table(
        ["streams", "server", "deliveries/s", "last ms", "CPU us"], bursts
    )
    for title, columns, measure in parts:
        yield f"### {title}\n\n" + report.table(columns, measure(runs))


def main(*, quick: bool, write: bool) -> None:
    """Measure everything and print it; `write`: into the document, too."""
    os.sched_setaffinity(0, set(range(1, os.cpu_count() or 1)) or {0})
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(Path(directory), quick=quick)
        made = []
        for section in sections(runs):
            print(section, flush=True)
            made.append(section)
    if write:
        text = "\n".join([INTRODUCTION, machine(), "", *runs.notes, *made])
        DOCUMENT.write_text(report.with_push(DOCUMENT.read_text(), text))
