"""
Reconcile every answer with the stream. `python -m tests.ledger --count 20000 --connections 32 --seed 1 --faults`.

Prints one row for each kind of violation, and the figures of the run; exit status 1 when there is a violation. Several
seeds make several runs, one after the other.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.ledger.run import Options, Run


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="requests, first attempts counted")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seed", type=int, nargs="+", default=[1])
    parser.add_argument("--faults", action="store_true", help="kill -9 nats-server and gatewayd once each")
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for the sending of one run")
    parser.add_argument("--sync-every", type=int, default=0, help="ledger lines between two fsyncs; 0: by the count")
    parser.add_argument("--keep", type=Path, help="a directory for ledgers, logs and stores; kept")
    options = parser.parse_args()
    violations = 0
    for seed in options.seed:
        with tempfile.TemporaryDirectory() as made:
            root = Path(made) if options.keep is None else options.keep / f"seed-{seed}"
            root.mkdir(parents=True, exist_ok=True)
            run = Run(
                root,
                Options(
                    count=options.count,
                    seed=seed,
                    connections=options.connections,
                    faults=options.faults,
                    deadline_s=options.deadline,
                    sync_every=options.sync_every,
                ),
            )
            try:
                run.send()
                report = run.reconcile()
            finally:
                run.close()
        print(f"seed {seed}: {report.violations} violations\n\n{report.table()}\n", flush=True)
        violations += report.violations
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
