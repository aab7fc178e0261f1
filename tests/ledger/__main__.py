"""
Reconcile every answer with the stream. `python -m tests.ledger --count 20000 --connections 32 --seed 1 --faults`.

Prints one row for each kind of violation, and the figures of the run; exit status 1 when there is a violation. Several
seeds make several runs, one after the other. `--fault NAME|all --count N` meets one fault, or each of them in turn with
a share of the requests, and prints one table; `--soak SECONDS` meets a random one every few seconds.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ledger.acts import kill_both
from tests.ledger.faults import ROWS, run_row
from tests.ledger.report import Result, markdown
from tests.ledger.run import Options, Run
from tests.ledger.scenes import SCENES
from tests.ledger.soak import Soak


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="requests, first attempts counted (2000)")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--faults", action="store_true", help="kill -9 nats-server and gatewayd once each")
    parser.add_argument("--fault", metavar="NAME", help=f"all, or one of {', '.join(_names())}")
    parser.add_argument("--full", action="store_true", help="faults in their long form")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="a random fault every few seconds")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for the sending of one run")
    parser.add_argument("--sync-every", type=int, default=0, help="ledger lines between two fsyncs; 0: by the count")
    parser.add_argument("--keep", type=Path, help="a directory for ledgers, logs and stores; kept")
    options = parser.parse_args()
    if options.fault is not None and options.fault not in ("all", *_names()):
        parser.error(f"there is no fault {options.fault}")
    violations = 0
    for seed in options.seed:
        with _directory(options.keep, f"seed-{seed}") as root:
            if options.fault is not None:
                violations += _meet(options, root, seed)
            elif options.soak is not None:
                soak = Soak(root, options.soak, seed)
                result = soak.run()
                print(f"{len(soak.made)} faults: {' '.join(soak.made)}\n\n{markdown([result])}", flush=True)
                violations += len(result.missed)
            else:
                violations += _reconcile(options, root, seed)
    return 1 if violations else 0


def _names() -> list[str]:
    return [one.name for one in (*ROWS, *SCENES)]


@contextmanager
def _directory(keep: Path | None, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made) if keep is None else keep / name
        root.mkdir(parents=True, exist_ok=True)
        yield root


def _reconcile(options: argparse.Namespace, root: Path, seed: int) -> int:
    """One plain run."""
    asked = Options(
        count=options.count or 2000,
        seed=seed,
        connections=options.connections,
        deadline_s=options.deadline,
        sync_every=options.sync_every,
    )
    run = Run(root, asked, kill_both(seed) if options.faults else ())
    try:
        run.send()
        report = run.reconcile()
    finally:
        run.close()
    print(f"seed {seed}: {report.violations} violations\n\n{report.table()}\n", flush=True)
    return report.violations


def _meet(options: argparse.Namespace, root: Path, seed: int) -> int:
    """The faults that are asked for, one after the other."""
    wanted = _names() if options.fault == "all" else [options.fault]
    rows = [row for row in ROWS if row.name in wanted]
    results: list[Result] = []
    for row in rows:
        began = time.monotonic()
        share = options.count // len(rows)
        try:
            results.append(run_row(row, _place(root, row.name), seed=seed, count=share, full=options.full))
        except Exception as error:  # the others are met all the same
            results.append(Result(row.name, row.says, missed=[f"it ended with {error!r}"[:2000]]))
        print(f"{row.name}: {row.says} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    results += [scene.play(_place(root, scene.name), scene.says) for scene in SCENES if scene.name in wanted]
    print(markdown(results), flush=True)
    return sum(len(result.missed) for result in results)


def _place(root: Path, name: str) -> Path:
    place = root / name
    place.mkdir()
    return place


if __name__ == "__main__":
    sys.exit(main())
