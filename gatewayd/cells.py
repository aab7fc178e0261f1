"""
Counters, gauges and histograms for one thread: what a request pays for a metric is one addition.

Decides how a value is kept and that a scrape sees the very samples that prometheus_client's own classes would give,
in the same order. Never takes a lock: only the reactor's thread may write or collect. Never renders, and never limits
label values: whoever asks for a cell does.
"""

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
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
        if not self._names:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> C:
        """The cell of these label values, made at 0 when it is new; bind it once where requests pass."""
        cell = self._cells.get(values)
        if cell is None:
            if len(values) != len(self._names):
                raise ValueError(f"{self._name} has the labels {self._names}, not {len(values)} of them")
            cell = self._cells[values] = self._make()
        return cell

    def collect(self) -> Iterable[Metric]:
        """The family as a scrape sees it now."""
        return [self._filled(self._cells)]

    def describe(self) -> Iterable[Metric]:
        """The family without samples: the registry looks for names that clash."""
        return [self._filled({})]

    @abstractmethod
    def _make(self) -> C:
        """A cell at 0."""

    @abstractmethod
    def _filled(self, cells: dict[tuple[str, ...], C]) -> Metric:
        """The metric with a sample of each of these."""


class Counters(Family[CounterCell]):
    """A family of counters."""

    def _make(self) -> CounterCell:
        return CounterCell()

    def _filled(self, cells: dict[tuple[str, ...], CounterCell]) -> Metric:
        metric = CounterMetricFamily(self._name, self._text, labels=self._names)
        for values, cell in cells.items():
            metric.add_metric(values, cell.value)
        return metric


class Gauges(Family[GaugeCell]):
    """A family of gauges."""

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
        # prometheus_client's way of writing a bound carries no annotations.
        self._shown = [floatToGoString(bound) for bound in (*self._bounds, inf)]  # type: ignore[no-untyped-call]
        super().__init__(registry, name, text, names)

    def _make(self) -> HistogramCell:
        return HistogramCell(self._bounds)

    def _filled(self, cells: dict[tuple[str, ...], HistogramCell]) -> Metric:
        metric = HistogramMetricFamily(self._name, self._text, labels=self._names)
        for values, cell in cells.items():
            metric.add_metric(values, list(zip(self._shown, accumulate(cell.counts), strict=True)), cell.sum)
        return metric
