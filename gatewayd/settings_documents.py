"""
The documents that are made from the table of settings. Pure.

Decides how the README's tables and the sample environment file look. Never says anything about a setting that the
table does not.

`python -m gatewayd.settings_documents markdown` or `env` writes one to standard output.
"""

import sys
from collections.abc import Iterator
from textwrap import wrap

from gatewayd.settings_row import SECRET, Row
from gatewayd.settings_table import GROUPS, IGNORED, SECRET_OF_SOURCE, SOURCE_TABLE, secret_name


def _default(row: Row) -> str:
    return row.otherwise if row.default is None else f"`{row.default}`"


def _marks(row: Row) -> str:
    marks = []
    if row.filed:
        marks.append(f"also `{row.name}_FILE`")
    if row.secret:
        marks.append("or a credential")
    if row.reloadable:
        marks.append("SIGHUP")
    return ", ".join(marks)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown() -> str:
    """The README's tables of settings."""
    lines: list[str] = []
    for group, rows in GROUPS.items():
        lines += [f"#### {group}", "", "| setting | default | meaning | allowed | |", "|---|---|---|---|---|"]
        for row in rows:
            cells = (f"`{row.name}`", _default(row), row.meaning, row.kind.allowed, _marks(row))
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
            if row.name == SECRET:
                cells = (f"`{SECRET_OF_SOURCE}<SOURCE>`", "none", "the same for one source only", "", _marks(row))
                cells = (*cells[:3], "the source in upper case, with `_` for `-`", cells[4].replace("_SECRET_", "_…_"))
                lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        lines.append("")
    lines += ["#### `[sources.<name>]`", "", "| key | default | meaning | allowed |", "|---|---|---|---|"]
    for row in SOURCE_TABLE.values():
        name = f"`{row.name}`, `{row.name}_file`" if row.filed else f"`{row.name}`"
        lines.append(f"| {' | '.join(_cell(cell) for cell in (name, _default(row), row.meaning, row.kind.allowed))} |")
    lines.append("")
    lines += [f"`{name}` is accepted and ignored: {reason}." for name, reason in IGNORED.items()]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return wrap(text, 100, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _sample(rows: tuple[Row, ...]) -> Iterator[str]:
    for row in rows:
        yield from _comment(f"{row.meaning[:1].upper()}{row.meaning[1:]}: {row.kind.allowed}.")
        if row.default is None:
            yield from _comment(f"Not set: {row.otherwise}.")
        yield f"#{row.name}={row.default or ''}"
        if row.filed:
            yield f"#{row.name}_FILE="
        yield ""


def env_example() -> str:
    """The sample environment file: every setting with its default, commented out."""
    lines = [
        "# The settings of gatewayd as an environment file. Every line is commented out and shows the default;",
        f"# an empty value counts as not set (but an empty {SECRET} is refused). Secrets belong into files",
        "# (NAME_FILE) or systemd credentials.",
        "# Made by `python -m gatewayd.settings_documents env`.",
        "",
    ]
    for group, rows in GROUPS.items():
        lines += [f"# {group}", f"# {'-' * len(group)}", *_sample(rows)]
    lines += [
        "# One source's own secrets: the name in upper case, with _ for -.",
        f"#{secret_name('tradingview')}_FILE=",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the document asked for to standard output; 2 when it is none of them."""
    documents = {"markdown": markdown, "env": env_example}
    if len(arguments) != 1 or arguments[0] not in documents:
        sys.stderr.write(f"usage: python -m gatewayd.settings_documents {'|'.join(documents)}\n")
        return 2
    sys.stdout.write(documents[arguments[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
