"""Every answer against the stream, while nats-server and gatewayd are killed."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nats
import pytest

from tests.ledger.acts import kill_both
from tests.ledger.report import Report
from tests.ledger.run import Options, Run, Strike
from tests.streams import read_stream, run

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
COUNT, WITHIN_S = (20_000, 90.0) if FULL else (2_000, 20.0)
RECOVERED_WITHIN_S = 3.5  # what reconnecting and readiness may take, and the Retry-After that every sender sits out


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes runs whose processes are ended."""
    made: list[Run] = []

    def make(options: Options, strikes: Sequence[Strike] = ()) -> Run:
        made.append(Run(tmp_path, options, strikes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def clean(report: Report) -> None:
    """Fail with the whole table when anything was found."""
    assert report.violations == 0, "\n" + report.table()


async def _delete(url: str, sequence: int) -> None:
    client = await nats.connect(url)
    try:
        assert await client.jetstream().delete_msg("trading-events", sequence)
    finally:
        await client.close()


class TestLedger:
    """Good, broken, repeated, replayed and conflicting webhooks over 32 connections."""

    def test_kill_9_of_both(self, make_run: Callable[..., Run]) -> None:
        """No accepted event is lost or doubled, none is half, and both come back within seconds."""
        made = make_run(Options(COUNT, seed=1, deadline_s=WITHIN_S), kill_both(1))
        made.send()
        report = made.reconcile()
        clean(report)
        assert {fault.name for fault in made.faults} == {"nats-server", "gatewayd"}
        assert made.took_s < WITHIN_S
        for fault in made.faults:
            assert report.figures[f"{fault.name} 202 s"] < RECOVERED_WITHIN_S, report.table()

    def test_the_checker_looks_at_the_real_stream(self, make_run: Callable[..., Run]) -> None:
        """Without faults nothing is found, not even an attempt in vain; one message taken out of the stream is."""
        made = make_run(Options(300, seed=2, connections=8))
        made.send()
        report = made.reconcile()
        clean(report)
        assert report.figures["attempts"] == sum(len(step.webhooks) for step in made.plan)
        events = [message for message in read_stream(made.nats_url) if "Gw-Facts" in message.headers]
        run(_delete(made.nats_url, events[0].sequence))
        run(_delete(made.nats_url, events[len(events) // 2].sequence))
        report = made.reconcile()
        assert len(report.found["lost"]) + len(report.found["half"]) >= 2, report.table()
