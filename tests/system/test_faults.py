"""
Every fault of the table, met under load, and every promise about it.

The short forms run three at a time and mostly wait; GATEWAYD_TEST_FULL=1 runs the long ones, one after the other.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ledger import acts
from tests.ledger.faults import ROWS, Row, run_row
from tests.ledger.report import Result, markdown
from tests.ledger.run import Run
from tests.ledger.scenes import SCENES
from tests.ledger.soak import Soak

pytest_plugins = ("tests.reporting",)

FULL = os.environ.get("GATEWAYD_TEST_FULL", "") not in ("", "0")
SLACK = 4.0
"""The bounds of what is timed, on a machine that does other things meanwhile."""


@pytest.fixture(scope="module")
def met(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Result]]]:
    """What comes of the faults that this session asks for; the longest begin first."""
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    root = tmp_path_factory.mktemp("faults")

    def meet(row: Row) -> Result:
        return run_row(row, _made(root / row.name), seed=1, full=FULL, slack=SLACK)

    with ThreadPoolExecutor(1 if FULL else 3) as pool:
        rows = sorted((row for row in ROWS if row.name in asked), key=lambda row: -row.seconds)
        made = {row.name: pool.submit(meet, row) for row in rows}
        made |= {one.name: pool.submit(one.play, root / one.name, one.says) for one in SCENES if one.name in asked}
        yield made
    print("\n" + markdown([one.result() for one in made.values() if one.exception() is None]))


def _made(place: Path) -> Path:
    place.mkdir()
    return place


@pytest.mark.parametrize("name", [one.name for one in (*ROWS, *SCENES)])
def test_fault(name: str, met: Mapping[str, Future[Result]], not_run: Callable[[str], None]) -> None:
    """Nothing is lost, doubled or half; answers and recovery come in time; nothing grows; it is one process."""
    result = met[name].result()
    if result.not_run:
        not_run(result.not_run)
        return
    assert result.missed == [], "\n" + markdown([result])


def test_what_is_missed_is_said(tmp_path: Path) -> None:
    """A fault that refuses and restarts, judged by the promises of one that must not: every one of them is missed."""

    def act(run: Run, _: float) -> None:
        acts.kill_nats(run, 0.5)
        run.kill_gateway()

    row = Row(
        "planted",
        "",
        act,
        codes=frozenset({"GW-999"}),
        nats="on fire",
        known_after_s=0.1,
        clean=True,
        answers_ms=0.0,
        seconds=2.0,
        after=lambda _: ["left behind"],
    )
    missed = run_row(row, tmp_path, seed=1, slack=0.0).missed
    for text in (
        "recover s",
        "refuse p99 ms",
        "healthz p99 ms",
        "answers p99 ms",
        "no refusal was GW-999",
        "503 GW-005",
        "/healthz never said on fire",
        "gatewayd is another process than before",
        "left behind",
    ):
        assert any(text in one for one in missed), (text, missed)


def test_soak(tmp_path: Path) -> None:
    """A random fault every few seconds: the same promises at the end."""
    soak = Soak(tmp_path, 600.0 if FULL else 8.0, seed=1)
    result = soak.run(SLACK)
    assert result.missed == [], "\n" + "\n".join((*soak.made, markdown([result])))
    assert soak.made
