"""Metric families: described once by OpenTelemetry name and unit, spelled as Prometheus asks.

The translation is OpenTelemetry's own: dots become underscores, the unit becomes a suffix
(``s`` → ``seconds``, ``By`` → ``bytes``, ``{step}`` → nothing), a counter ends in ``_total``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracecore_sidecar.telemetry.durations import Durations

MAX_LABEL = 256
"""Characters of one label value: job ids and host names come from outside."""
_UNITS = {"s": "seconds", "By": "bytes"}

Row: TypeAlias = "tuple[tuple[str, ...], float]"


class Kind(str, Enum):
    """How a reader should take the numbers."""

    GAUGE = "gauge"
    COUNTER = "counter"
    SUMMARY = "summary"
    """Count and sum, without quantiles."""
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Described:
    """The fixed description of one metric."""

    name: str
    """OpenTelemetry's spelling."""
    kind: Kind
    unit: str
    """UCUM; braces are an annotation."""
    text: str
    labels: tuple[str, ...] = ()

    @property
    def unit_suffix(self) -> str:
        """Give the unit in Prometheus spelling; empty for a plain number."""
        return _UNITS.get(self.unit, "")

    @property
    def family(self) -> str:
        """Give the name of the family, without ``_total``."""
        base = self.name.replace(".", "_")
        suffix = self.unit_suffix
        return f"{base}_{suffix}" if suffix and not base.endswith(f"_{suffix}") else base

    @property
    def exposed(self) -> str:
        """Give the name as a query uses it (of a summary or histogram, its stem)."""
        return f"{self.family}_total" if self.kind is Kind.COUNTER else self.family


def numbers(described: Described, rows: Iterable[Row]) -> Metric:
    """Make a gauge or counter from ``(label values, value)``; of equal labels the last counts."""
    make = CounterMetricFamily if described.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(
        described.family, described.text, labels=described.labels, unit=described.unit_suffix
    )
    # Two samples with the same labels would make a reader refuse the whole answer.
    for labels, value in {tuple(map(clean, labels)): value for labels, value in rows}.items():
        family.add_metric(labels, value)
    return family


def summaries(described: Described, rows: Mapping[tuple[str, ...], tuple[int, int]]) -> Metric:
    """Make a summary from ``labels -> (count, sum in nanoseconds)``."""
    family = SummaryMetricFamily(
        described.family, described.text, labels=described.labels, unit=described.unit_suffix
    )
    for labels, (count, total_ns) in rows.items():
        family.add_metric(list(map(clean, labels)), count_value=count, sum_value=total_ns / 1e9)
    return family


def histogram(described: Described, durations: Durations) -> Metric:
    """Make a histogram without labels."""
    family = HistogramMetricFamily(
        described.family, described.text, labels=(), unit=described.unit_suffix
    )
    family.add_metric([], buckets=durations.buckets(), sum_value=durations.total_ns / 1e9)
    return family


def clean(value: str) -> str:
    """Bound a label value and replace what is not printable or not UTF-8."""
    shown = "".join(char if char.isprintable() else "?" for char in value[:MAX_LABEL])
    return shown.encode("utf-8", "replace").decode()
