"""
gatewayd beside fair peers: what one accepted webhook costs, and what comes with it. `python -m tests.bench [--quick]`.

Every server under measurement on one processor; nats-server (file storage) and the load on the others. Fresh processes
and an empty stream for each round, the servers interleaved within it, medians over the rounds; every run is checked:
two stored messages for each 202, nothing but 202, and one access line for each. Before the first, every server has to
answer the same good and bad requests alike (sameness.py). Not a test: figures depend on the machine, only their ratios
travel.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import curves, exposition, overload, push, pushsoak, report, sameness
from tests.bench.rig import Stand, machine
from tests.bench.toolchain import PEER_COMMANDS, NotRun
from tests.gateway import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
SHAPES: dict[str, Callable[[Stand, Any, float], dict[str, Any]]] = {
    "16 connections": lambda stand, target, seconds: stand.closed(target, 16, seconds),
    "64 connections": lambda stand, target, seconds: stand.closed(target, 64, seconds),
    "256 connections": lambda stand, target, seconds: stand.closed(target, 256, seconds),
    "a connection each, 16 at a time": lambda stand, target, seconds: stand.closed(target, 16, seconds, each=True),
    "1,000/s, open": lambda stand, target, seconds: stand.open(target, 1000, seconds),
}
PREFACE = """# Benchmarks

Written by `make bench ARGS=--write`. The figures are of one machine on one day; only their ratios travel.

One processor for the server under measurement, the others for nats-server (file storage, one replica) and for the
load. TradingView bodies of about 90 bytes, signed `v1=`, two valid secrets. Every server checks signature, window,
nonce, rate, schema and identity, makes both events, awaits both acknowledgements before it answers 202, counts, and
writes one JSON access line. Every run was checked: nothing but 202, two stored messages for each, one access line for
each. Rounds are interleaved, each with fresh processes and an empty stream; medians. "CPU" is the server's process
alone, user and system time of all its threads, for each accepted webhook; "ratio" is against gatewayd's of the same
round; "busy" is how much of its processor it used: where that is below 1 under closed load, the server was waiting for
nats-server, for the load or for other work of the machine, and its rate is not its limit.

The peers are in `tests/bench/peers`, written to be fast: FastAPI under uvicorn with uvloop, httptools, orjson, a
validating model and asynchronous publishing; Go's net/http with nats.go under GOMAXPROCS=1. Both do less than gatewayd:
no repair of half-stored pairs, no dead letters, no exact numbers through FastAPI, no refusal of doubled JSON keys, no
limits for each address, no deadlines beyond the acknowledgement's, no reload, no drain.
"""


class Bench:
    """What is measured here: this tree's gatewayd, others' and the peers that can run."""

    def __init__(self, root: Path, gateways: dict[str, str]) -> None:
        self.root = root
        self.gateways = {"gatewayd": "", **gateways}
        self.peers: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._stands = 0
        for name, prepare in PEER_COMMANDS.items():
            try:
                self.peers[name] = prepare()
            except NotRun as reason:
                self.notes.append(f"{name}: not run: {reason}")
                print(self.notes[-1], flush=True)

    def stand(self, **options: Any) -> Stand:
        """Everything, started on an empty stream and warm."""
        self._stands += 1
        stand = Stand(self.root / str(self._stands), **options)
        try:
            for name, python in self.gateways.items():
                stand.add_gateway(name, python)
            for name, command in self.peers.items():
                stand.add_peer(name, command)
            for target in stand.targets:
                stand.closed(target, 64, 0.5)
        except BaseException:
            stand.close()
            raise
        return stand

    def round(self, number: int, seconds: float) -> list[dict[str, Any]]:
        """Every shape of load on every server; the order of the servers turns from shape to shape."""
        stand = self.stand()
        rows = []
        try:
            if not number:
                for target in stand.targets:
                    sameness.check(stand, target)
            for turn, (shape, measure) in enumerate(SHAPES.items(), number):
                turned = turn % len(stand.targets)
                for target in stand.targets[turned:] + stand.targets[:turned]:
                    rows.append(
                        {"round": number, "shape": shape, "name": target.name, **measure(stand, target, seconds)}
                    )
            for target in stand.targets:
                target.check_log()
        finally:
            stand.close()
        return rows


def show_curves(bench: Bench, seconds: float) -> tuple[str, str]:
    """The sections of the curves, and the drawing."""
    stand = bench.stand()
    try:
        connections = curves.by_connections(stand, seconds)
        sizes = curves.by_size(stand, seconds)
        scraped = curves.scrapes(stand)
    finally:
        stand.close()
    synced = curves.by_sync(bench.stand, seconds)
    keys, starts = curves.by_keys(), curves.by_pairs(bench.root)
    parts = [
        "## Connections\n",
        report.grid(connections, "connections", "connections", report.rate_and_tail),
        "## Body size (16 connections)\n",
        report.grid(sizes, "size", "bytes", report.rate_and_tail),
        "## Every message synced (`sync_interval: always`, 64 connections)\n",
        report.table(["server", "accepted/s", "p99 ms"], _named(synced, ("per_second", 0), ("p99_ms", 1))),
        "## Remembered keys (the store alone)\n",
        report.table(
            ["live keys", "bytes a key", "admission, us"],
            [[f"{row['live']:,}", f"{row['bytes_a_key']:.0f}", f"{row['admission_us']:.1f}"] for row in keys],
        ),
        "## Start\n",
        report.table(
            ["recent pairs in the stream", "ready after, s", "RSS MiB"],
            [[f"{row['pairs']:,}", f"{row['ready_s']:.2f}", f"{row['rss_mib']:.0f}"] for row in starts],
        ),
        "## One scrape of /metrics\n",
        report.table(["server", "ms"], _named(scraped, ("ms", 2))),
    ]
    return "\n".join(parts), report.drawing(connections)


def _named(rows: list[dict[str, Any]], *columns: tuple[str, int]) -> list[list[str]]:
    return [[row["name"], *(f"{row[column]:,.{digits}f}" for column, digits in columns)] for row in rows]


def soak(bench: Bench, seconds: float) -> str:
    """Memory under a steady load."""
    stand = Stand(bench.root / "soak")
    try:
        stand.add_gateway("gatewayd")
        rows = curves.growth(stand, seconds, max(1.0, min(30.0, seconds / 10)))
    finally:
        stand.close()
    lines = [[f"{row['seconds']:.0f}", f"{row['rss_mib']:.1f}", f"{row['p99_ms']:.1f}"] for row in rows]
    return report.table(["seconds at 1,000/s", "RSS MiB", "p99 ms"], lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, no curves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each run")
    parser.add_argument("--gatewayd", action="append", default=[], metavar="NAME=PYTHON", help="another one to measure")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)} and its drawing")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="memory under a steady load instead")
    parser.add_argument("--overload", action="store_true", help="offer up to three times the peak instead")
    parser.add_argument("--push", action="store_true", help="streams of the edge, and what it costs webhooks, instead")
    options = parser.parse_args()
    if options.push and options.soak:
        pushsoak.main(options.soak)
        return
    if options.push:
        push.main(quick=options.quick, write=options.write)
        return
    if options.overload:
        overload.main(3.0 if options.quick else 6.0)
        return
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), dict(given.split("=", 1) for given in options.gatewayd))
        if options.soak:
            print(soak(bench, options.soak))
            return
        rows = [row for number in range(rounds) for row in bench.round(number, seconds)]
        names = [*bench.gateways, *bench.peers]
        text = "\n".join([machine(), "", *bench.notes, report.main_table(rows, list(SHAPES), names)])
        print(text, flush=True)
        if options.quick:
            return
        curved, drawn = show_curves(bench, 1.0)
    print(curved)
    exposition.main()
    if options.write:
        drawing = "![rate and p99 against connections](benchmarks.svg)"
        kept = report.push_of(DOCUMENT.read_text())
        DOCUMENT.write_text(f"{PREFACE}\n{text}\n{drawing}\n\n{curved}{kept}")
        DOCUMENT.with_suffix(".svg").write_text(drawn)


if __name__ == "__main__":
    main()
