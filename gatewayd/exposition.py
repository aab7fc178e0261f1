"""
What /metrics answers: the registry's text in the format that the client asks for.

Decides the format by Accept, as prometheus_client does, and that all who ask in one turn of the loop get one text. Our
own families write themselves; what they are not (process, platform and collector) prometheus_client writes. Never
keeps a text longer than a turn: a scrape shows what stood in the cells when it was answered.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from gatewayd.cells import Live

_END: Final = b"# EOF\n"
_MAX_KIND_CHARS: Final = 128


class Exposition:
    """
    The text of one registry. `refresh` is called before it is written, for what is only looked at for a scrape; `soon`
    calls a function once everything that is ready in this turn of the loop has run.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        refresh: Callable[[], None],
        soon: Callable[[Callable[[], object]], object],
    ) -> None:
        self._registry = registry
        self._refresh = refresh
        self._soon = soon
        self._texts: dict[bool, bytes] = {}
        self._heads: dict[tuple[bool, str], str] = {}

    def answer(self, accept: bytes) -> tuple[bytes, bytes]:
        """The text for a client that accepts `accept` (b"": it does not say), and its Content-Type."""
        encode, kind = _choose(accept.decode("latin-1"))
        if "escaping=dots" in kind:  # every other escaping and version leaves families like ours as they are
            self._refresh()
            return encode(self._registry), kind.encode("latin-1")
        openmetrics = kind.startswith("application/")
        text = self._texts.get(openmetrics)
        if text is None:
            if not self._texts:
                self._refresh()
                self._soon(self._texts.clear)
            text = self._texts[openmetrics] = self.render(openmetrics=openmetrics)
        return text, kind.encode("latin-1")

    def render(self, *, openmetrics: bool) -> bytes:
        """The whole text, byte for byte prometheus_client's: 0.0.4, or OpenMetrics 1.0."""
        parts: list[str] = []
        foreign: list[Metric] = []
        for metric in self._registry.collect():
            if not isinstance(metric, Live):
                foreign.append(metric)
                continue
            if foreign:
                parts.append(_theirs(foreign, openmetrics=openmetrics))
                foreign = []
            parts.append(self._head(metric, openmetrics=openmetrics))
            metric.lines(parts)
        if foreign:
            parts.append(_theirs(foreign, openmetrics=openmetrics))
        if openmetrics:
            return "".join(parts).encode() + _END
        return "".join(parts).encode()

    def _head(self, metric: Metric, *, openmetrics: bool) -> str:
        """A family's HELP and TYPE; the two formats differ in a counter's name and in what they escape."""
        head = self._heads.get((openmetrics, metric.name))
        if head is None:
            name, text = metric.name, metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
            if openmetrics:
                text = text.replace('"', r"\"")
            elif metric.type == "counter":
                name += "_total"
            head = self._heads[openmetrics, metric.name] = f"# HELP {name} {text}\n# TYPE {name} {metric.type}\n"
        return head


def _choose(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """prometheus_client's choice; its default for a version that it cannot read, or that is not worth repeating."""
    try:
        encode, kind = choose_encoder(accept)
    except TypeError:  # it compares numbers with text
        kind = ""
    if not kind or len(kind) > _MAX_KIND_CHARS:
        encode, kind = choose_encoder("")
    return encode, kind


class _Collected:
    """What was collected already, for prometheus_client to write."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        return self._metrics


def _theirs(metrics: Iterable[Metric], *, openmetrics: bool) -> str:
    collected: Any = _Collected(metrics)
    if not openmetrics:
        return generate_latest(collected).decode()
    # prometheus_client's OpenMetrics writer carries no annotations.
    text: bytes = generate_openmetrics(collected)  # type: ignore[no-untyped-call]
    return text.removesuffix(_END).decode()
