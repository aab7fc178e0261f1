"""Figures as Markdown and as a drawing. Pure: takes rows, gives text."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.plot import Panel, draw

Row = dict[str, Any]

PUSH = "\n## Push\n\n"
"""What the part of the document begins with that the push bench writes; it is the last one."""

COLUMNS: dict[str, tuple[str, int]] = {
    "accepted/s": ("per_second", 0),
    "CPU us": ("cpu_us", 0),
    "p50 ms": ("p50_ms", 2),
    "p99 ms": ("p99_ms", 2),
    "p99.9 ms": ("p999_ms", 2),
    "RSS MiB": ("rss_mib", 0),
    "busy": ("busy", 2),
}


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def with_push(document: str, push: str) -> str:
    """The document with this part on push."""
    before, _, _ = document.partition(PUSH)
    return f"{before}{PUSH}{push}"


def push_of(document: str) -> str:
    """The document's part on push with its heading; empty when there is none."""
    return "".join(document.partition(PUSH)[1:])


def _median(rows: Sequence[Row], name: str) -> float:
    return statistics.median(float(row[name]) for row in rows)


def main_table(rows: Sequence[Row], shapes: Sequence[str], names: Sequence[str]) -> str:
    """
    A line for each shape of load and server: medians over the rounds.

    The last column is CPU for each request against the first server's of the same round, again the median.
    """
    lines = []
    for shape in shapes:
        first = {row["round"]: row for row in rows if row["shape"] == shape and row["name"] == names[0]}
        for name in names:
            found = [row for row in rows if row["shape"] == shape and row["name"] == name]
            ratio = statistics.median(row["cpu_us"] / first[row["round"]]["cpu_us"] for row in found)
            cells = [f"{_median(found, column):,.{digits}f}" for column, digits in COLUMNS.values()]
            lines.append([shape, name, *cells, f"{ratio:.2f}"])
    return table(["load", "server", *COLUMNS, "CPU, ratio"], lines)


def grid(rows: Sequence[Row], key: str, title: str, cell: Callable[[Row], str]) -> str:
    """One line for each value of `key`, one column for each server."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    values = list(dict.fromkeys(row[key] for row in rows))
    found = {(row[key], row["name"]): row for row in rows}
    return table([title, *names], ([f"{value:,}", *(cell(found[value, name]) for name in names)] for value in values))


def rate_and_tail(row: Row) -> str:
    """Accepted a second and p99, and how many were refused when any were."""
    refused = f", {row['refused']} refused" if row["refused"] else ""
    return f"{row['per_second']:,.0f}/s, {row['p99_ms']:.1f} ms{refused}"


def drawing(rows: Sequence[Row]) -> str:
    """Rate and p99 against connections."""
    names = list(dict.fromkeys(row["name"] for row in rows))

    def lines(column: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(row["connections"], row[column]) for row in rows if row["name"] == name] for name in names}

    return draw(
        [
            Panel("accepted webhooks a second", "connections", "1/s", lines("per_second")),
            Panel("p99 of the answer", "connections", "ms", lines("p99_ms")),
        ]
    )
