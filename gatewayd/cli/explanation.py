"""
`gatewayctl explain`: the table of codes, for people.

Decides how a row of the table reads. Never says anything that the table does not.
"""

import re
from textwrap import wrap
from typing import Any, Final

import click

from gatewayd.cli.console import Code, Failed, json_option, show_as
from gatewayd.errors import TABLE, Row

_CODE: Final = re.compile(r"(?:gw-?)?0*(\d{1,3})", re.ASCII | re.IGNORECASE)


@click.command()
@click.argument("code", required=False)
@json_option
def explain(code: str | None, as_json: bool) -> None:
    """
    Say what CODE (GW-005, gw-5, 5 or nats_unavailable) means, what causes it and what to do.

    Without CODE, list every code.
    """
    if code is None:
        lines = (f"{row.code}  {statuses(row):<33}  {row.slug:<22}  {row.message}" for row in TABLE.values())
        show_as(as_json, [members(row) for row in TABLE.values()], lines)
        return
    row = find(code)
    if row is None:
        raise Failed(Code.WRONG, f"{code!r} is no code; `gatewayctl explain` lists them all")
    show_as(as_json, members(row), text(row))


def find(code: str) -> Row | None:
    """The row that a code, its number or its slug names."""
    found = _CODE.fullmatch(code.strip())
    if found is not None:
        return TABLE.get(f"GW-{int(found[1]):03d}")
    return next((row for row in TABLE.values() if row.slug == code.strip().lower()), None)


def statuses(row: Row) -> str:
    """The HTTP statuses that may carry the code."""
    return ", ".join(str(status) for status in row.statuses or (row.status,))


def metric(row: Row) -> str | None:
    """The metric that a refusal with this code adds to, without its labels."""
    return None if row.counted is None else f"gateway_{row.counted[0]}_total"


def members(row: Row) -> dict[str, Any]:
    """The row as JSON members."""
    return {
        "code": row.code,
        "statuses": list(row.statuses or (row.status,)),
        "slug": row.slug,
        "message": row.message,
        "cause": row.cause,
        "remedy": row.remedy,
        "metric": metric(row),
    }


def text(row: Row) -> list[str]:
    """The row as lines."""
    lines = [f"{row.code} {row.slug} (HTTP {statuses(row)})", ""]
    counted = metric(row)
    parts = (("", row.message), ("Cause: ", row.cause), ("What to do: ", row.remedy), ("Metric: ", counted or "none"))
    for title, part in parts:
        lines += wrap(title + part, 100, break_on_hyphens=False, break_long_words=False)
    return lines
