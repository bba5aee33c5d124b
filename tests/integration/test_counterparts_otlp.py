"""What a rank sends, taken by a real VictoriaMetrics and a real OpenTelemetry Collector."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import counterparts
from tests.support.counterparts import (
    get,
    otel_collector,
    post,
    query,
    tcp_door,
    victoria_metrics,
    wait_for,
)
from tests.support.real_sidecar import RealSidecar
from tracecore_train.wire.metrics import (
    STEP_DURATION,
    STEPS,
    HistogramValue,
    MetricPoint,
)
from tracecore_train.wire.otlp import encode_logs
from tracecore_train.wire.otlp_metrics import encode_metrics
from tracecore_train.wire.records import (
    Batch,
    IdentityRecord,
    Source,
    SourceKind,
    StepRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

JOB_ID = "short"


def source_of(rank: int) -> Source:
    return Source(
        kind=SourceKind.RANK,
        host="a07",
        boot_id="boot",
        pid=7,
        job_id=JOB_ID,
        attempt=0,
        wall_offset_ns=time.time_ns() - time.monotonic_ns(),
        rank=rank,
        local_rank=rank,
        node_rank=0,
        world_size=2,
    )


def metrics_of(rank: int, num_steps: int) -> bytes:
    """A rank's metrics as its export thread encodes them."""
    buckets = [0] * (len(STEP_DURATION.bounds) + 1)
    buckets[6] = num_steps
    points = [
        MetricPoint(STEPS, num_steps),
        MetricPoint(STEP_DURATION, HistogramValue(num_steps, num_steps * 0.08, tuple(buckets))),
    ]
    now_ns = time.time_ns()
    return encode_metrics(source_of(rank), points, start_ns=now_ns - 60_000_000_000, time_ns=now_ns)


def records_of(rank: int, num_steps: int) -> bytes:
    """A rank's records as its export thread encodes them."""
    identity = IdentityRecord(
        time_ns=1,
        rank=rank,
        local_rank=rank,
        node_rank=0,
        world_size=2,
        pid=7,
        start_ticks=1,
        device="cpu",
        gpu_uuid=None,
        torch_version=None,
        blind=(),
    )
    steps = [
        StepRecord(
            time_ns=time.monotonic_ns(),
            rank=rank,
            step=number,
            duration_ns=80_000_000,
            input_ns=1,
            num_batches=1,
            checkpoint_ns=0,
            flags=0,
        )
        for number in range(num_steps)
    ]
    return encode_logs(Batch(source=source_of(rank), records=(identity, *steps)))


@pytest.fixture
def victoria(tmp_path: Path) -> Iterator[str]:
    """A VictoriaMetrics; gives its address."""
    with victoria_metrics(tmp_path) as url:
        yield url


def test_victoriametrics_takes_a_ranks_metrics(victoria: str) -> None:
    """Sums and histograms of two ranks can be queried by rank, under the translated names."""
    for rank in (0, 1):
        assert post(f"{victoria}/opentelemetry/v1/metrics", metrics_of(rank, 50 + rank)) == 200

    def steps() -> dict[str, str]:
        get(f"{victoria}/internal/force_flush")
        found = query(victoria, "tracecore_steps_total")
        return {item["metric"]["tracecore_rank"]: item["value"][1] for item in found}

    wait_for(lambda: len(steps()) == 2, "both ranks' steps")
    assert steps() == {"0": "50", "1": "51"}
    median = query(victoria, "histogram_quantile(0.5, tracecore_step_duration_seconds_bucket)")
    assert len(median) == 2
    assert all(0.05 < float(item["value"][1]) <= 0.1 for item in median)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """A Collector that prints what it gets and sends it on to a sidecar.

    Gives the Collector's address, its log, and the sidecar's socket.
    """
    counterparts.program("otelcol")
    job_dir = tmp_path / "rt" / JOB_ID
    job_dir.mkdir(parents=True)
    with (
        RealSidecar(job_dir, tmp_path / "output") as sidecar,
        tcp_door(sidecar.socket_path) as door,
        otel_collector(tmp_path, f"http://127.0.0.1:{door}") as (url, log),
    ):
        yield url, log, sidecar.socket_path


def test_a_collector_passes_on_what_a_rank_sends(chain: tuple[str, Path, Path]) -> None:
    """A Collector understands metrics and records, and the sidecar takes what it sends on.

    It sends gzip, as a Collector does by default.
    """
    url, log, socket = chain
    assert post(f"{url}/v1/metrics", metrics_of(1, 50)) == 200
    assert post(f"{url}/v1/logs", records_of(1, 50)) == 200
    printed = log.read_text(errors="replace")
    assert "EventName: tracecore.step" in printed
    assert "tracecore.step.duration" in printed
    assert "tracecore.rank: Int(1)" in printed
    with tcp_door(socket) as door:
        page = get(f"http://127.0.0.1:{door}/metrics")
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.labels.get("rank") in {None, "1"}
    }
    assert values["tracecore_rank_steps_total"] == 50
    assert values["tracecore_sidecar_intake_records_total"] >= 51
    assert values["tracecore_sidecar_intake_metric_points_total"] >= 2
    assert values["tracecore_sidecar_intake_refused_requests_total"] == 0
