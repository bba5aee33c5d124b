"""What the series of /metrics say about a job and about the sidecar."""

from __future__ import annotations

import itertools

import pytest

from tests.support.metrics_page import Metered
from tests.support.recordings import MS, SECOND, SimulatedJob
from tests.support.verdicts import JOB, event_of, hang
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.engine import Engine
from tracecore_sidecar.telemetry.job_metrics import SILENT_AFTER_NS, STALE_AFTER_NS
from tracecore_train.wire.records import ProcessRecord, SourceKind, StepFlag, StepRecord


def step(rank: int, number: int, *, duration_ms: int = 100, flags: int = 0) -> StepRecord:
    return StepRecord(
        time_ns=number * SECOND,
        rank=rank,
        step=number,
        duration_ns=duration_ms * MS,
        input_ns=10 * MS,
        num_batches=1,
        checkpoint_ns=5 * MS,
        flags=flags,
    )


def look(rank: int, time_ns: int) -> ProcessRecord:
    return ProcessRecord(
        time_ns=time_ns,
        rank=rank,
        pid=100,
        start_ticks=1,
        state="S",
        cpu_ns=7 * SECOND,
        rss_bytes=3 << 30,
        wchan="",
    )


def advanced(job: SimulatedJob, seconds: float) -> Metered:
    """Move a job on and meter it then."""
    job.advance(job.now + int(seconds * SECOND), pull=False)
    return Metered(job)


def names_of(metered: Metered, rank: int) -> set[str]:
    return {s.name for s in metered.samples() if s.labels.get("rank") == str(rank)}


def test_steps_are_summed_by_rank() -> None:
    """Count and sums cover the steps whose duration is known; the first is not."""
    metered = Metered(SimulatedJob(2))
    metered.apply(step(0, 0, flags=StepFlag.FIRST), step(0, 1), step(0, 2), rank=0)
    metered.apply(step(1, 1, duration_ms=300), rank=1)
    duration, wait = "tracecore_rank_step_duration_seconds", "tracecore_rank_input_wait_seconds"
    assert metered.value(f"{duration}_count", rank="0") == 2
    assert metered.value(f"{duration}_sum", rank="0") == pytest.approx(0.2)
    assert metered.value(f"{duration}_sum", rank="1") == pytest.approx(0.3)
    assert metered.value(f"{wait}_sum", rank="0") == pytest.approx(0.02)
    spent = metered.value("tracecore_rank_checkpoint_time_seconds_total", rank="0")
    assert spent == pytest.approx(0.01)


def test_a_rank_cannot_add_to_the_steps_of_another() -> None:
    """A step of rank 1 that rank 0 hands over is not counted."""
    metered = Metered(SimulatedJob(2))
    metered.apply(step(1, 1), rank=0)
    assert metered.series("tracecore_rank_step_duration_seconds_count", rank="1") == []


def test_totals_begin_anew_with_an_attempt() -> None:
    """Steps of an earlier attempt are neither kept nor taken."""
    job = SimulatedJob(1)
    metered = Metered(job)
    metered.apply(step(0, 1), rank=0)
    metered.apply(step(0, 1), step(0, 2), rank=0, attempt=1)
    metered.apply(step(0, 3), rank=0)
    # The state has not heard of attempt 1 yet: its totals are not shown under attempt 0.
    assert metered.series("tracecore_rank_step_duration_seconds_count") == []


def test_a_rank_that_ended_keeps_one_series() -> None:
    """After its exit a rank shows how it ended and nothing else."""
    job = SimulatedJob(3)
    job.advance(job.now + SECOND, pull=False)
    job.end(0, exit_code=0)
    job.end(1, exit_code=None, signal=9)
    metered = Metered(job)
    assert metered.value("tracecore_rank_ended", rank="0", outcome="ok") == 1
    assert metered.value("tracecore_rank_ended", rank="1", outcome="signal") == 1
    assert names_of(metered, 1) == {"tracecore_rank_ended"}
    assert metered.value("tracecore_rank_up", rank="2") == 1
    states = {s.labels["state"]: s.value for s in metered.series("tracecore_job_ranks")}
    assert states == {"up": 1, "silent": 0, "ended": 2, "unseen": 0}


def test_a_silent_rank_shows_only_that_it_is_silent() -> None:
    """A rank that neither beats nor moves loses its values; its ages grow."""
    job = SimulatedJob(2)
    job.ranks[1].beats = False
    job.ranks[1].has_page = False
    metered = advanced(job, SILENT_AFTER_NS / SECOND + 2)
    assert metered.value("tracecore_rank_up", rank="0") == 1
    assert metered.value("tracecore_rank_up", rank="1") == 0
    assert "tracecore_rank_steps_total" in names_of(metered, 0)
    told = names_of(metered, 1)
    # Its process is looked at from outside: that is a fact of now.
    assert told == {
        "tracecore_rank_up",
        "tracecore_rank_progress_age_seconds",
        "tracecore_rank_memory_usage_bytes",
        "tracecore_rank_cpu_time_seconds_total",
    }
    before = metered.value("tracecore_rank_progress_age_seconds", rank="1")
    metered.now += 30 * SECOND
    after = metered.value("tracecore_rank_progress_age_seconds", rank="1")
    assert after - before == pytest.approx(30)


@pytest.mark.parametrize(("age_ns", "is_shown"), [(5 * SECOND, True), (STALE_AFTER_NS, False)])
def test_an_old_look_at_a_process_is_not_told(age_ns: int, is_shown: bool) -> None:
    """Memory and processor time come from a look of the last seconds, or not at all."""
    job = SimulatedJob(1)
    job.apply(0, look(0, job.now), kind=SourceKind.SIDECAR)
    metered = Metered(job)
    metered.now += age_ns
    shown = [sample.value for sample in metered.series("tracecore_rank_memory_usage_bytes")]
    assert shown == ([3 << 30] if is_shown else [])
    assert len(metered.series("tracecore_rank_cpu_time_seconds_total")) == is_shown


def test_waiting_for_input_grows_while_it_lasts() -> None:
    """Inside next(dataloader) the wait is told while it lasts; outside it is 0."""
    job = SimulatedJob(2)
    job.ranks[1].spans.append(("input", job.now + SECOND, None))
    metered = advanced(job, 10)
    name = "tracecore_rank_input_current_wait_seconds"
    assert metered.value(name, rank="1") == pytest.approx(9)
    assert metered.value(name, rank="0") == 0


def test_an_open_verdict_is_a_series_until_it_closes() -> None:
    """A verdict is 1 by suspect while its incident is open; the count of opened ones stays."""
    metered = Metered(SimulatedJob(2))
    metered.meter.on_event(event_of(hang(0, 1)), JOB)
    names = {s.labels["rank"] for s in metered.series("tracecore_verdict_open", pattern="hang")}
    assert names == {"0", "1"}
    metered.meter.on_event(event_of(hang(1), "updated"), JOB)
    assert metered.value("tracecore_verdict_open", host="a07", severity="critical") == 1
    metered.meter.on_event(event_of(hang(1), "closed"), JOB)
    assert metered.series("tracecore_verdict_open") == []
    assert metered.value("tracecore_incidents_total", pattern="hang") == 1


def test_a_verdict_without_a_suspect_is_told() -> None:
    """Nobody at fault is a legal verdict: its rank is empty."""
    metered = Metered(SimulatedJob(2))
    metered.meter.on_event(event_of(hang()), JOB)
    (sample,) = metered.series("tracecore_verdict_open")
    assert (sample.labels["rank"], sample.labels["class"]) == ("", "never_entered")


def test_the_sidecar_counts_itself() -> None:
    """Intake, drops, lost writes, ticks, detectors and pulls are told."""
    job = SimulatedJob(1)
    metered = Metered(job)
    metered.intake.num_rejected = 4
    job.store.num_dropped["other job"] = 2
    metered.meter.times.ticked(20 * MS, {"hang": 5 * MS, "straggler": 1 * MS})
    metered.meter.times.ticked(2000 * MS, {"hang": 7 * MS})
    metered.meter.times.pulled(False, 2000 * MS)
    assert metered.value("tracecore_sidecar_intake_rejected_total") == 4
    assert metered.value("tracecore_sidecar_state_dropped_total", reason="other job") == 2
    assert metered.value("tracecore_sidecar_sink_lost_total", sink="records") == 3
    tick = "tracecore_sidecar_tick_duration_seconds"
    assert metered.value(f"{tick}_bucket", le="0.03") == 1
    assert metered.value(f"{tick}_bucket", le="+Inf") == metered.value(f"{tick}_count") == 2
    detector = "tracecore_sidecar_detector_duration_seconds"
    assert metered.value(f"{detector}_sum", pattern="hang") == pytest.approx(0.012)
    assert metered.value(f"{detector}_count", pattern="straggler") == 1
    assert metered.value("tracecore_sidecar_pull_duration_seconds_sum", outcome="failed") == 2
    assert metered.value("process_memory_usage_bytes") > 10 << 20
    metered.now += 7 * SECOND
    assert metered.value("process_uptime_seconds") == 7


def test_the_way_upstream_is_told_by_signal() -> None:
    """What was forwarded, refused, dropped and waits is told; without forwarding nothing is."""
    metered = Metered(SimulatedJob(1))
    assert not [s for s in metered.samples() if "forward" in s.name or "otel_sdk" in s.name]
    metered.lanes["logs"] = {
        "num_items": 100,
        "num_sent": 70,
        "num_rejected": 2,
        "num_refused": 8,
        "num_dropped": 5,
        "num_requests": 9,
        "num_retries": 3,
        "last_problem": "no",
        "waiting_bytes": 4096,
        "endpoint": "http://up",
    }
    outcomes = metered.series("otel_sdk_exporter_log_exported_total")
    assert {s.labels["error_type"]: s.value for s in outcomes} == {
        "": 70,
        "rejected": 2,
        "refused": 8,
        "queue_full": 5,
    }
    assert metered.value("tracecore_sidecar_forward_retries_total", signal="logs") == 3
    assert metered.value("tracecore_sidecar_forward_queue_usage_bytes", signal="logs") == 4096
    assert metered.series("otel_sdk_exporter_span_exported_total") == []


def test_the_engine_measures_detectors_with_the_clock_it_is_given() -> None:
    """Each evaluation takes one reading of the given clock; without one it takes none."""
    job = SimulatedJob(1)
    readings = itertools.count(0, 3)
    engine = Engine(job.store, (HangDetector(),), wall_offset_ns=0, clock=lambda: next(readings))
    assert engine.tick(job.now).detector_ns == {"hang": 3}
    unmeasured = Engine(job.store, (HangDetector(),), wall_offset_ns=0)
    assert unmeasured.tick(job.now).detector_ns == {"hang": 0}
