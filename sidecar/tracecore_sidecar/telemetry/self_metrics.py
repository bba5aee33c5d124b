"""The sidecar about itself: what came in, what was lost, how long its work takes, what it uses.

Names follow ``otel.sdk.*`` and ``process.*`` where one fits, and are ``tracecore.sidecar.*``
otherwise.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import InfoMetricFamily

from tracecore_sidecar.telemetry.families import (
    Described,
    Kind,
    clean,
    histogram,
    numbers,
    summaries,
)
from tracecore_train.__about__ import __version__
from tracecore_train.wire.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client.core import Metric

    from tracecore_sidecar.telemetry.durations import WorkTimes

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

BUILD = Described(
    "tracecore.build.info",
    Kind.GAUGE,
    "",
    "1; the labels say what runs.",
    ("version", "python", "schema_version"),
)
DROPPED = Described(
    "tracecore.sidecar.state.dropped",
    Kind.COUNTER,
    "{record}",
    "Records taken in and not applied to the state, by reason.",
    ("reason",),
)
SINK_LOST = Described(
    "tracecore.sidecar.sink.lost",
    Kind.COUNTER,
    "{write}",
    "Writes that a file or the terminal did not take.",
    ("sink",),
)
TICK = Described(
    "tracecore.sidecar.tick.duration",
    Kind.HISTOGRAM,
    "s",
    "One tick: read the node, run the detectors, tell the sinks.",
)
DETECTOR = Described(
    "tracecore.sidecar.detector.duration",
    Kind.SUMMARY,
    "s",
    "One evaluation of one detector.",
    ("pattern",),
)
PULL = Described(
    "tracecore.sidecar.pull.duration",
    Kind.SUMMARY,
    "s",
    "One read of a rank's flight recorder; outcome is ok or failed.",
    ("outcome",),
)
OMITTED = Described(
    "tracecore.sidecar.metrics.omitted",
    Kind.GAUGE,
    "",
    "Ranks and verdicts that found no room on this page; 0 when all is shown.",
    ("what",),
)
CPU_TIME = Described(
    "process.cpu.time", Kind.COUNTER, "s", "Processor time of the sidecar.", ("cpu_mode",)
)
MEMORY = Described("process.memory.usage", Kind.GAUGE, "By", "Resident memory of the sidecar.")
UPTIME = Described("process.uptime", Kind.GAUGE, "s", "Since the sidecar started.")

SELF_METRICS = (
    BUILD,
    DROPPED,
    SINK_LOST,
    TICK,
    DETECTOR,
    PULL,
    OMITTED,
    CPU_TIME,
    MEMORY,
    UPTIME,
)
"""The one visible list, less the counters that parts of the sidecar name themselves."""


def work_families(times: WorkTimes) -> list[Metric]:
    """Tell how long ticks, detectors and pulls took."""
    return [
        histogram(TICK, times.tick),
        summaries(
            DETECTOR,
            {(name,): (took.count, took.total_ns) for name, took in times.detectors.items()},
        ),
        summaries(
            PULL,
            {
                ("ok" if is_ok else "failed",): (took.count, took.total_ns)
                for is_ok, took in times.pulls.items()
            },
        ),
    ]


def loss_families(
    num_dropped: Mapping[str, int], num_lost: Mapping[str, int], omitted: Mapping[str, int]
) -> list[Metric]:
    """Tell what the sidecar refused, could not write, and leaves out on this page."""
    return [
        numbers(DROPPED, (((reason,), count) for reason, count in num_dropped.items())),
        numbers(SINK_LOST, (((sink,), count) for sink, count in num_lost.items())),
        numbers(OMITTED, (((what,), count) for what, count in omitted.items())),
    ]


def process_families(uptime_s: float, job_id: str, host: str) -> list[Metric]:
    """Tell what runs here and what it uses."""
    times = os.times()
    target = InfoMetricFamily("target", "The sidecar as an OpenTelemetry resource.")
    target.add_metric(
        [],
        {
            "service_name": "tracecore_sidecar",
            "service_version": __version__,
            "host_name": clean(host),
            "tracecore_job_id": clean(job_id),
        },
    )
    build = (__version__, platform.python_version(), str(SCHEMA_VERSION))
    return [
        target,
        numbers(BUILD, [(build, 1)]),
        numbers(CPU_TIME, [(("user",), times.user), (("system",), times.system)]),
        numbers(MEMORY, [((), _resident_bytes())]),
        numbers(UPTIME, [((), uptime_s)]),
    ]


def counted_families(part: str, counters: Mapping[str, object]) -> list[Metric]:
    """Make a counter of every whole number a part of the sidecar counts, by its name there.

    ``num_refused_requests`` of ``intake`` becomes ``tracecore.sidecar.intake.refused_requests``.
    """
    found = []
    for name, value in counters.items():
        if type(value) is int:
            what = name.removeprefix("num_")
            text = f"{what.replace('_', ' ').capitalize()}, counted by the sidecar's {part}."
            described = Described(f"tracecore.sidecar.{part}.{what}", Kind.COUNTER, "", text)
            found.append(numbers(described, [((), value)]))
    return found


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
