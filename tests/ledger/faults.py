"""
The table of faults under load: what is done, what is promised while it lasts and after it, and what came of it.

Decides the promises and compares the measurements with them. Never makes a fault (acts.py does), and never compares
answers with the stream (the checker does).
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.clients import SECRET, stamped, tradingview_body
from tests.ledger import acts
from tests.ledger.client import Line
from tests.ledger.plan import Kind
from tests.ledger.report import FROZEN, GATEWAY, NATS, Report, Result, percentile
from tests.ledger.run import Options, Run, Strike, vitals_of

HEALTH_MS: Final = 50.0
KNOWN_DOWN_MS: Final = 50.0
RECOVER_S: Final = 2.0
GROWN_MIB: Final = 64.0
GROWN_DESCRIPTORS: Final = 5
GONE_S: Final = 10.0
"""How long descriptors may take to be what they were."""

_FEW_DESCRIPTORS: Final = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); "
_UNREAD_PIPE: Final = "import os, sys; r, w = os.pipe(); os.set_inheritable(r, True); os.dup2(w, 1); os.dup2(w, 2); "
_GO_ON: Final = "os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class Row:
    """
    One fault. `act` gets `amount`, in the long form `long`: seconds, or times that take about `each_s`.

    `codes` are refusals that must have been seen; from `known_after_s` after its begin on a refusal comes at once.
    `nats` is what /healthz must have said meanwhile. `clean`: nothing is refused or cut at all. `same`: it is one
    process all along. `seconds` is what the sending takes in the short form, `answers_ms` bounds the p99 of all
    answers, `recover_s` the time from the fault's end to the next 202. `prepare` makes settings from the run's
    directory; `after` says what is wrong with what is left.
    """

    name: str
    says: str
    act: Callable[[Run, float], None]
    amount: float = 1.0
    long: float = 1.0
    each_s: float = 1.0
    codes: frozenset[str] = frozenset()
    known_after_s: float | None = None
    nats: str = ""
    clean: bool = False
    same: bool = True
    proxied: bool = False
    inherited: bool = False
    seconds: float = 4.0
    kinds: frozenset[Kind] | None = None
    gateways: int = 1
    connections: int = 16
    answers_ms: float | None = None
    recover_s: float = RECOVER_S
    prefix: Sequence[str] = ()
    prepare: Callable[[Path], Mapping[str, str]] = lambda _: {}
    after: Callable[[Run], Sequence[str]] = lambda _: ()


def _old_secret(run: Run) -> list[str]:
    """The secret that was taken out signs nothing any more."""
    body = tradingview_body(time.time(), price=99)
    status = run.gateway.ask("POST", "/webhook/tradingview", body, stamped(body, time.time(), secret=SECRET))[0]
    return [] if status == 401 else [f"what the old secret signed was answered {status}"]


def _dropped_lines(run: Run) -> list[str]:
    """Lines were dropped, and counted; a stop is not held up by the reader."""
    text = run.gateway.get("/metrics")[2].decode()
    dropped = next(float(line.split()[-1]) for line in text.splitlines() if line.startswith("gateway_log_dropped_"))
    began = time.monotonic()
    run.gateway.stop()
    missed = [] if dropped else ["no line of the log was dropped"]
    return missed if time.monotonic() - began < 5.0 else [*missed, "the stop took 5 s"]


def _closed(run: Run) -> list[str]:
    """What came beyond the descriptors was closed at once."""
    return [] if run.measured["closed at once"] >= 100 else [f"closed at once: {run.measured['closed at once']}"]


def _second_signal(run: Run) -> list[str]:
    """The second SIGTERM does not wait."""
    took_s = run.measured.get("second SIGTERM s")
    if took_s is None:
        return ["it had ended before the second SIGTERM"]
    return [] if took_s < 1.0 else [f"it lived {took_s:.1f} s after the second SIGTERM"]


def _replaced(run: Run) -> list[str]:
    """It is another stream: made so soon that perhaps no request came in between."""
    return [] if '"event":"stream.replaced"' in run.gateway.log_text() else ["the stream was not made anew"]


_DOWN: Final = frozenset({"GW-005"})
_EVENTS: Final = frozenset({Kind.VALID, Kind.STUBBORN, Kind.TWINS, Kind.SIBLINGS})
_AT_ONCE: Final = frozenset({Kind.TWINS, Kind.SIBLINGS, Kind.RACE})

ROWS: Final = (
    Row(
        "nats-kill",
        "kill -9 of nats-server",
        acts.kill_nats,
        3.0,
        60.0,
        codes=_DOWN,
        known_after_s=0.3,
        nats="disconnected",
    ),
    Row(
        "nats-term",
        "SIGTERM of nats-server",
        acts.stop_nats,
        1.5,
        10.0,
        codes=_DOWN,
        known_after_s=1.0,
        nats="disconnected",
    ),
    Row(
        "nats-freeze",
        "SIGSTOP of nats-server",
        acts.freeze_nats,
        4.5,
        10.0,
        codes=_DOWN,
        known_after_s=3.5,
        nats="disconnected",
    ),
    Row(
        "nats-silent",
        "NATS accepts and never speaks",
        acts.silence,
        4.5,
        10.0,
        codes=_DOWN,
        known_after_s=3.5,
        nats="disconnected",
        proxied=True,
    ),
    Row("nats-reset", "RST behind random bytes", acts.reset_at_random, 8, 100, 0.6, proxied=True),
    Row(
        "nats-latency",
        "200 ms, 100 more or less",
        acts.delay,
        3.0,
        20.0,
        clean=True,
        proxied=True,
        answers_ms=1200.0,
        connections=64,
    ),
    Row("nats-narrow", "2 MB/s in slices of 700 bytes", acts.narrow, 2.0, 20.0, clean=True, proxied=True),
    Row("nats-half-open", "the peer is gone without a word", acts.half_open, 5.0, 20.0, codes=_DOWN, proxied=True),
    Row("nats-ghosts", "what was written is stored after a reconnect", acts.ghosts, 5.0, 20.0, proxied=True),
    Row("nats-disk-full", "nats-server cannot write its files", acts.fill_disk, 5.0, 20.0, codes=_DOWN),
    Row(
        "stream-full",
        "max_msgs reached, discard new",
        acts.fill_stream,
        2.5,
        20.0,
        codes=frozenset({"GW-010"}),
        known_after_s=1.0,
    ),
    Row("stream-deleted", "the stream is deleted", acts.remove_stream, kinds=_EVENTS, after=_replaced),
    Row("stream-purged", "every message is purged", acts.empty_stream, clean=True, seconds=3.0),
    Row("both-kill", "kill -9 of both, and gatewayd is back first", acts.kill_all, 1.5, 20.0, codes=_DOWN, same=False),
    Row(
        "gateway-kill",
        "kill -9 of gatewayd at random points, with an inherited socket",
        acts.kill_gateway,
        20,
        1000,
        1.7,
        same=False,
        inherited=True,
        seconds=16.0,
    ),
    Row(
        "gateway-kill-own",
        "the same with a listener of its own",
        acts.kill_gateway,
        4,
        50,
        1.7,
        same=False,
        seconds=6.0,
    ),
    Row(
        "gateway-kill-behind-ack",
        "nothing passes behind one acknowledgement, then kill -9",
        acts.kill_behind_ack,
        3,
        50,
        2.5,
        same=False,
        proxied=True,
        seconds=6.0,
    ),
    Row("gateway-term", "SIGTERM of gatewayd", acts.stop_gateway, 2, 20, 2.0, same=False),
    Row(
        "gateway-term-twice",
        "SIGTERM twice, with NATS frozen",
        acts.stop_gateway_twice,
        same=False,
        after=_second_signal,
    ),
    Row("gateway-reload", "SIGHUP", acts.reload_gateway, 5, 50, 0.4, clean=True),
    Row("gateway-freeze", "SIGSTOP of gatewayd", acts.freeze_gateway, 3.0, 10.0),
    Row(
        "gateway-pair",
        "two gatewayd, the same requests at once",
        acts.nothing,
        kinds=_AT_ONCE,
        gateways=2,
        seconds=20.0,
    ),
    Row(
        "secret-rotation",
        "old, old and new, new",
        acts.rotate_secret,
        1.0,
        10.0,
        clean=True,
        kinds=_EVENTS | {Kind.BROKEN, Kind.RACE},  # none that sends again what the old secret has signed
        prepare=acts.secret_file,
        after=_old_secret,
    ),
    Row(
        "log-unread",
        "nobody reads the log",
        acts.shout,
        clean=True,
        prefix=(sys.executable, "-c", _UNREAD_PIPE + _GO_ON),
        after=_dropped_lines,
    ),
    Row(
        "descriptors",
        "128 descriptors, 200 connections, and NATS restarts",
        acts.crowd,
        1.0,
        10.0,
        connections=6,
        prefix=(sys.executable, "-c", _FEW_DESCRIPTORS + _GO_ON),
        after=_closed,
    ),
)
"""Every fault under load."""

PACE_RPS: Final = 200.0


def make_run(row: Row, root: Path, *, seed: int, count: int, full: bool) -> Run:
    """A run that meets this fault a quarter of its way; `count` 0 takes as long as the row says, at a slow pace."""
    amount = row.long if full else row.amount
    seconds = row.seconds + (row.long - row.amount) * row.each_s * full
    options = Options(
        count=count or int(PACE_RPS * seconds),
        seed=seed,
        connections=row.connections,
        deadline_s=60.0 + 2.0 * seconds + count / 200,
        eager=2,
        pace_rps=0.0 if count else PACE_RPS,
        kinds=row.kinds,
        proxied=row.proxied,
        inherited=row.inherited,
        probed=True,
        gateways=row.gateways,
        settings=row.prepare(root),
        prefix=row.prefix,
    )
    return Run(root, options, [Strike(0.25, Random(seed).uniform(0.0, 0.05), lambda run: row.act(run, amount))])


def run_row(row: Row, root: Path, *, seed: int, count: int = 0, full: bool = False, slack: float = 1.0) -> Result:
    """Run it and judge it; `slack` multiplies the bounds of what is timed, for a machine that does other things."""
    run = make_run(row, root, seed=seed, count=count, full=full)
    try:
        run.send()
        result = judge(row, run, run.reconcile(), slack)
        if run.measured.get("left out") and not count:
            result.missed.append(f"{run.measured['left out']:g} were left out: the load had ended")
        return result
    finally:
        run.close()


def judge(row: Row, run: Run, report: Report, slack: float = 1.0) -> Result:
    """What came of it."""
    lines = run.lines()
    result = measure(row, run, report, lines)
    missed = result.missed = [f"{name}: {text}" for name, texts in report.found.items() for text in texts[:5]]
    bounds = (
        ("recover s", result.recover_s, row.recover_s),
        ("refuse p99 ms", result.refuse_p99_ms, KNOWN_DOWN_MS),
        ("healthz p99 ms", result.health_p99_ms, HEALTH_MS if row.same else None),
        ("answers p99 ms", report.figures.get("p99 ms"), row.answers_ms),
    )
    for what, value, bound in bounds:
        if value is not None and bound is not None and value > bound * slack:
            missed.append(f"{what}: {value:.3f}")
    seen = {line.code for line in lines if line.status == 503}
    missed += [f"no refusal was {code}" for code in sorted(row.codes - seen)]
    if row.clean:
        missed += [f"{line.status} {line.code}" for line in lines if line.status in (0, 429, 503)][:5]
    missed += _judge_process(row, run)
    missed += row.after(run)
    return result


def measure(row: Row, run: Run, report: Report, lines: Sequence[Line]) -> Result:
    """The figures."""
    refusals = [line for line in lines if line.status == 503]
    first, known = [], []
    for fault in run.faults:
        during = [line for line in refusals if fault.at <= line.ended_at <= fault.open_at]
        first += [min(line.ended_at for line in during) - fault.at] if during else []
        if row.known_after_s is not None:
            known += [line.latency_ms for line in during if line.sent_at >= fault.at + row.known_after_s]
    back = [
        report.figures[name] for name in (f"{part} 202 s" for part in (NATS, GATEWAY, FROZEN)) if name in report.figures
    ]
    probed = [] if run.probe is None else run.probe.samples()
    health = [
        sample.ms
        for sample in probed
        if not any(
            fault.name != NATS and sample.at <= fault.open_at and sample.ended_at >= fault.at for fault in run.faults
        )
    ]
    return Result(
        row.name,
        row.says,
        requests=len(lines),
        accepted=sum(line.status == 202 for line in lines),
        refused=len(refusals),
        first_refusal_s=max(first, default=None),
        refuse_p50_ms=percentile(known, 0.5),
        refuse_p99_ms=percentile(known, 0.99),
        recover_s=max(back, default=None),
        lost=len(report.found["lost"]),
        doubled=len(report.found["doubled"]) + len(report.found["repeated_id"]),
        half=len(report.found["half"]),
        late=len(report.found["late"]),
        health_p99_ms=percentile(health, 0.99),
    )


def _judge_process(row: Row, run: Run) -> list[str]:
    """It is the process that it was, as large as it was, and /healthz was answered all along."""
    missed = []
    probed = [] if run.probe is None else run.probe.samples()
    if row.nats and row.nats not in {sample.nats for sample in probed}:
        missed.append(f"/healthz never said {row.nats}")
    if not row.same:
        return missed
    baseline = run.baseline
    if baseline is None or run.gateway.process is None or run.gateway.process.poll() is not None:
        return [*missed, "gatewayd is another process than before"]
    if not any(fault.name != NATS for fault in run.faults):
        missed += [f"/healthz was answered {sample.status}" for sample in probed if sample.status != 200][:5]
    ends_at = time.monotonic() + GONE_S
    while (now := vitals_of(run.gateway)).descriptors > baseline.descriptors + GROWN_DESCRIPTORS:
        if time.monotonic() > ends_at:
            missed.append(f"{now.descriptors} descriptors, {baseline.descriptors} before")
            break
        time.sleep(0.1)
    if now.rss_mib > baseline.rss_mib + GROWN_MIB:
        missed.append(f"{now.rss_mib:.0f} MiB, {baseline.rss_mib:.0f} before")
    return missed
