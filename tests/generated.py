"""
What the documents take from the code: tables between markers, whole pages, copies of the schemas.

Decides how the codes, settings, metrics and schema members look in Markdown, and where they stand. A page keeps every
other word that people wrote in it. `python -m tests.generated` (or `make docs`) rewrites what differs; a unit test
compares. Never says anything that the code does not.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry

from gatewayd import settings_documents
from gatewayd.edge_metrics import OTHER, EdgeMetrics
from gatewayd.errors import TABLE, Row
from gatewayd.metrics import Metrics
from gatewayd.stores.redismetrics import RedisMetrics, fallback_gauge

ROOT: Final = Path(__file__).parents[1]
SCHEMAS: Final = "docs/schemas"


def plain(text: str) -> str:
    """Text that Markdown shows as it stands: outside of code `<source>` would be taken for HTML."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the cells' own pipes are escaped."""
    lines = [list(head)]
    lines.append(["---"] * len(lines[0]))
    lines += [[plain(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# The codes.


def _statuses(row: Row) -> str:
    return ", ".join(str(status) for status in row.statuses or (row.status,))


def codes() -> str:
    """The README's table: what each code means and what to do."""
    return table(
        ("code", "HTTP", "`error`", "meaning", "what to do"),
        ((f"`{row.code}`", _statuses(row), f"`{row.slug}`", row.message, row.remedy) for row in TABLE.values()),
    )


_LABELS: Final = {"validation_errors": "type", "nats_errors": "type", "store_errors": "kind"}
_CODES_INTRODUCTION: Final = """\
# Codes

Every refusal carries one of these codes in `code`, its word in `error`, and what is known of this very request in
`details`. 429 and 503 always carry `Retry-After`. The same texts: `gatewayctl explain GW-005`.

This page is generated from the table that the answers are made from.
"""


def codes_page() -> str:
    """docs/codes.md: each code with its cause, remedy and metric."""
    parts = [_CODES_INTRODUCTION]
    for row in TABLE.values():
        metric = "none" if row.counted is None else f"`gateway_{row.counted[0]}_total`"
        if row.counted is not None and row.counted[0] in _LABELS:
            metric = f'`gateway_{row.counted[0]}_total{{{_LABELS[row.counted[0]]}="{row.counted[1]}"}}`'
        parts.append(
            f"## {row.code} `{row.slug}`\n\n- HTTP: {_statuses(row)}\n- Meaning: {row.message}\n"
            f"- Cause: {plain(row.cause)}\n- What to do: {plain(row.remedy)}\n- Metric: {metric}\n"
        )
    return "\n".join(parts)


# The metrics.


Families: TypeAlias = Mapping[str, tuple[str, str, tuple[str, ...]]]


def families() -> Families:
    """Every metric of this product by its name as it is scraped: type, text, names of its labels."""
    registry = CollectorRegistry()
    Metrics(registry, version="0", subjects=("s",), consumer="c").know([("s", 1)])
    RedisMetrics(registry)
    fallback_gauge(registry)
    return _families(registry)


def edge_families() -> Families:
    """Those of the edge."""
    registry = CollectorRegistry()
    metrics = EdgeMetrics(registry)
    metrics.closed("overflow")
    metrics.command(OTHER, "ok")
    for stream in ("sessions", "events", "signals"):
        metrics.lag(stream, 0.0)
        metrics.entry(stream, "ok")
    return _families(registry)


def _families(registry: CollectorRegistry) -> Families:
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for family in registry.collect():
        if family.name.startswith(("gateway", "redis_", "edge_")):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
            found[name] = (family.type, family.documentation, tuple(labels))
    return found


def metrics(known: Callable[[], Families] = families) -> str:
    """The table of metrics."""
    return table(
        ("metric", "type", "labels", "meaning"),
        (
            (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), text)
            for name, (kind, text, labels) in known().items()
        ),
    )


# The schemas.


def schemas() -> dict[str, bytes]:
    """The schemas in the package, by file name."""
    found = (file for file in files("gatewayd.schemas").iterdir() if file.name.endswith(".json"))
    return {file.name: file.read_bytes() for file in sorted(found, key=lambda file: file.name)}


def _form(member: Mapping[str, Any]) -> str:
    if "const" in member:
        return f"`{json.dumps(member['const'])}`"
    if "enum" in member:
        return ", ".join(f"`{json.dumps(value)}`" for value in member["enum"])
    kinds = member["type"] if isinstance(member["type"], list) else [member["type"]]
    text = " or ".join("time" if member.get("format") == "date-time" else kind for kind in kinds)
    if "exclusiveMinimum" in member:
        text += f" above {member['exclusiveMinimum']}"
    if "maximum" in member:
        text += f", {member['minimum']} to {member['maximum']}"
    return text


def members(name: str) -> str:
    """The members of one schema as a table."""
    schema = json.loads(schemas()[name])
    required = set(schema["required"])
    return table(
        ("member", "form", "", "meaning"),
        (
            (f"`{key}`", _form(member), "always" if key in required else "when known", member.get("description", ""))
            for key, member in schema["properties"].items()
        ),
    )


# The files.


def between(text: str, name: str, content: str) -> str:
    """
    `text` with what stands between `<!-- name -->` and `<!-- /name -->` replaced.

    ValueError unless there is just one such pair.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    if text.count(opening) != 1 or text.count(closing) != 1 or text.index(closing) < text.index(opening):
        raise ValueError(f"the markers of {name} must stand there once each, the opening one first")
    before, rest = text.split(opening)
    return f"{before}{opening}\n{content.strip()}\n\n{closing}{rest.split(closing)[1]}"


PARTS: Final[Mapping[str, Mapping[str, Callable[[], str]]]] = {
    "README.md": {"codes": codes, "settings": settings_documents.markdown},
    "docs/operations.md": {"metrics": metrics},
    "docs/edge-operations.md": {"edge-metrics": lambda: metrics(edge_families)},
    "docs/schemas.md": {
        "raw": lambda: members("signals.raw-1.1.0.json"),
        "normalised": lambda: members("signals.normalized-1.1.0.json"),
    },
}
"""The generated parts of pages that people wrote: page -> marker -> what stands there."""

WHOLE: Final[Mapping[str, Callable[[], str]]] = {
    "docs/codes.md": codes_page,
    "etc/gatewayd.env.example": settings_documents.env_example,
}
"""The files that are generated from their first to their last byte."""


def wanted(root: Path = ROOT) -> dict[str, bytes]:
    """What each file with a generated part should be, given what people wrote in it."""
    found = {f"{SCHEMAS}/{name}": content for name, content in schemas().items()}
    found |= {name: make().encode() for name, make in WHOLE.items()}
    for name, parts in PARTS.items():
        text = (root / name).read_text("utf-8")
        for marker, make in parts.items():
            text = between(text, marker, make())
        found[name] = text.encode()
    return found


def stale(root: Path = ROOT) -> dict[str, bytes | None]:
    """The files under `root` that are not what they should be, with what they should be; None for those to remove."""
    kept = wanted(root)
    found: dict[str, bytes | None] = {}
    for name, content in kept.items():
        path = root / name
        if not path.is_file() or path.read_bytes() != content:
            found[name] = content
    for path in sorted((root / SCHEMAS).glob("*.json")):
        if f"{SCHEMAS}/{path.name}" not in kept:
            found[f"{SCHEMAS}/{path.name}"] = None
    return found


def rewrite(root: Path = ROOT) -> list[str]:
    """Bring every file under `root` up to date; the names of those that were not."""
    changed = stale(root)
    for name, content in changed.items():
        path = root / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(changed)


if __name__ == "__main__":
    for changed_file in rewrite():
        print(changed_file)
    sys.exit(0)
