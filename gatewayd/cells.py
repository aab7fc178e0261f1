"""
Counters, gauges and histograms for one thread: what a request pays for a metric is one addition.

Decides how a value is kept, how a sample's line is written, and that a scrape sees the very samples that
prometheus_client's own classes would give, in the same order. Never takes a lock: only the reactor's thread may write
or collect. Never decides what a whole scrape is (exposition does), and never limits label values: whoever asks for a
cell does.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Any, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString


class CounterCell:
    """One counter. The hot path adds to `value` itself: 0.03 us, a call of inc() 0.06, prometheus_client's 0.4."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class GaugeCell:
    """One gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """It stands at `value` now."""
        self.value = value


class HistogramCell:
    """
    One histogram over ascending upper bounds, each of which includes its own value.

    `counts` holds how many values fell between two bounds, above all of them last: not cumulative, unlike a scrape.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value (a number: not NaN)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


C = TypeVar("C", CounterCell, GaugeCell, HistogramCell)

_FEW: Final = 1_000_000
"""From here on a number is not written digit by digit: Go's exponents begin."""


def number(value: float) -> str:
    """A sample's value as prometheus_client writes it; small counts, which most are, without asking it."""
    if type(value) is int and -_FEW < value < _FEW:
        return f"{value}.0"
    # prometheus_client's way of writing numbers carries no annotations.
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Live(Metric):
    """
    A family as the registry collects it, always of the same object: `samples` and lines() say what stands in the cells
    when they are asked for.
    """

    def __init__(self, empty: Metric, family: "Family[Any]") -> None:
        self._family = family
        super().__init__(empty.name, empty.documentation, empty.type)

    @property
    def samples(self) -> list[Sample]:
        """The samples of every cell, made anew."""
        return self._family.filled().samples

    @samples.setter
    def samples(self, _: list[Sample]) -> None:
        """Assigned by Metric's own constructor, and by nobody else."""

    def lines(self, parts: list[str]) -> None:
        """Append the samples' lines, in pieces."""
        self._family.lines(parts)


class Family(Collector, Generic[C]):
    """
    Every cell of one metric, by its label values; registers itself. ValueError when the registry has the name already.

    Without label names there is one cell, from the start. Cells are never dropped.
    """

    def __init__(self, registry: CollectorRegistry, name: str, text: str, names: Sequence[str] = ()) -> None:
        self._name = name
        self._text = text
        self._names: Final = tuple(names)
        self._cells: dict[tuple[str, ...], C] = {}
        self._heads: list[tuple[C, tuple[str, ...]]] = []
        if not self._names:
            self.labels()
        empty = self._filled({})
        self._live = Live(empty, self)
        registry.register(self)

    def labels(self, *values: str) -> C:
        """The cell of these label values, made at 0 when it is new; bind it once where requests pass."""
        cell = self._cells.get(values)
        if cell is None:
            if len(values) != len(self._names):
                raise ValueError(f"{self._name} has the labels {self._names}, not {len(values)} of them")
            cell = self._cells[values] = self._make()
            self._heads.append((cell, tuple(self._starts(dict(zip(self._names, values, strict=True))))))
        return cell

    def collect(self) -> Iterable[Metric]:
        """The family as a scrape sees it."""
        return [self._live]

    def describe(self) -> Iterable[Metric]:
        """The family without samples: the registry looks for names that clash."""
        return [self._filled({})]

    def filled(self) -> Metric:
        """The metric with a sample of every cell, as they stand now."""
        return self._filled(self._cells)

    @abstractmethod
    def lines(self, parts: list[str]) -> None:
        """Append the lines of every cell's samples, in pieces."""

    @abstractmethod
    def _make(self) -> C:
        """A cell at 0."""

    def _starts(self, labels: Mapping[str, str]) -> Iterable[str]:
        """What the lines of a cell with these labels begin with, up to their values."""
        return (_start(self._name, labels),)

    @abstractmethod
    def _filled(self, cells: dict[tuple[str, ...], C]) -> Metric:
        """The metric with a sample of each of these."""


def _start(name: str, labels: Mapping[str, str]) -> str:
    shown = ",".join([f'{label}="{_escape(value)}"' for label, value in sorted(labels.items())])
    return f"{name}{{{shown}}} " if labels else f"{name} "


class Counters(Family[CounterCell]):
    """A family of counters, whose name ends in `_total`."""

    def lines(self, parts: list[str]) -> None:
        """See Family."""
        for cell, (start,) in self._heads:
            parts += (start, number(cell.value), "\n")

    def _make(self) -> CounterCell:
        return CounterCell()

    def _filled(self, cells: dict[tuple[str, ...], CounterCell]) -> Metric:
        metric = CounterMetricFamily(self._name, self._text, labels=self._names)
        for values, cell in cells.items():
            metric.add_metric(values, cell.value)
        return metric


class Gauges(Family[GaugeCell]):
    """A family of gauges."""

    def lines(self, parts: list[str]) -> None:
        """See Family."""
        for cell, (start,) in self._heads:
            parts += (start, number(cell.value), "\n")

    def _make(self) -> GaugeCell:
        return GaugeCell()

    def _filled(self, cells: dict[tuple[str, ...], GaugeCell]) -> Metric:
        metric = GaugeMetricFamily(self._name, self._text, labels=self._names)
        for values, cell in cells.items():
            metric.add_metric(values, cell.value)
        return metric


class Histograms(Family[HistogramCell]):
    """A family of histograms with the same bounds, ascending."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, names: Sequence[str] = (), *, bounds: Sequence[float]
    ) -> None:
        self._bounds = tuple(bounds)
        self._shown = [number(bound) for bound in (*self._bounds, inf)]
        super().__init__(registry, name, text, names)

    def lines(self, parts: list[str]) -> None:
        """See Family."""
        for cell, starts in self._heads:
            total = 0
            for start, count in zip(starts, cell.counts, strict=False):  # two more: the count and the sum
                total += count
                parts += (start, number(total), "\n")
            parts += (starts[-2], number(total), "\n", starts[-1], number(cell.sum), "\n")

    def _starts(self, labels: Mapping[str, str]) -> Iterable[str]:
        for bound in self._shown:
            yield _start(f"{self._name}_bucket", {**labels, "le": bound})
        yield _start(f"{self._name}_count", labels)
        yield _start(f"{self._name}_sum", labels)

    def _make(self) -> HistogramCell:
        return HistogramCell(self._bounds)

    def _filled(self, cells: dict[tuple[str, ...], HistogramCell]) -> Metric:
        metric = HistogramMetricFamily(self._name, self._text, labels=self._names)
        for values, cell in cells.items():
            metric.add_metric(values, list(zip(self._shown, accumulate(cell.counts), strict=True)), cell.sum)
        return metric
