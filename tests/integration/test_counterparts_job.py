"""A real job, watched by a real Prometheus, VictoriaMetrics and OpenTelemetry Collector."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import counterparts
from tests.support.counterparts import (
    ROOT,
    get,
    otel_collector,
    query,
    running,
    victoria_metrics,
    wait_for,
)
from tests.support.jobs import TRAIN_SLEEP
from tests.support.metrics_page import Metered
from tests.support.recordings import SECOND, SimulatedJob
from tests.support.verdicts import JOB, event_of, hang

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ALERTS = ROOT / "docs" / "alerts"
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: tracecore
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@dataclass(frozen=True)
class Watched:
    """A job with everything that watches it, as far as it is here."""

    prometheus: str = ""
    prometheus_log: Path = Path()
    victoria: str = ""
    collector_log: Path = Path()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A two-rank job in which rank 1 hangs for 20 s.

    Prometheus scrapes the sidecar on loopback TCP. The sidecar forwards metrics to
    VictoriaMetrics and logs to a Collector.
    """
    base = tmp_path_factory.mktemp("watched")
    port, environ = counterparts.free_port(), {"TRACECORE_RUNTIME_DIR": str(base / "rt")}
    environ["TRACECORE_LISTEN"] = f"127.0.0.1:{port}"
    found = Watched()
    with contextlib.ExitStack() as stack:
        if counterparts.find("victoria-metrics"):
            url = stack.enter_context(victoria_metrics(base))
            found = replace(found, victoria=url)
            environ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"] = f"{url}/opentelemetry/v1/metrics"
        if counterparts.find("otelcol"):
            url, log = stack.enter_context(otel_collector(base))
            found = replace(found, collector_log=log)
            environ["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"] = f"{url}/v1/logs"
        if counterparts.find("prometheus"):
            url, log = stack.enter_context(_prometheus(base, scrape_port=port))
            found = replace(found, prometheus=url, prometheus_log=log)
        if found != Watched():
            job = stack.enter_context(_job(base, environ))
            stack.callback(_end, job)
        yield found


@contextlib.contextmanager
def _prometheus(base: Path, *, scrape_port: int) -> Iterator[tuple[str, Path]]:
    port = counterparts.free_port()
    url, log, config = f"http://127.0.0.1:{port}", base / "prometheus.log", base / "prometheus.yml"
    config.write_text(CONFIG.format(rules=ALERTS / "tracecore.yml", port=scrape_port))
    command = [counterparts.program("prometheus"), f"--config.file={config}"]
    command += [f"--storage.tsdb.path={base / 'data'}", "--log.level=warn"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with running(command, log, f"{url}/-/ready"):
        yield url, log


def _job(base: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tracecore_sidecar", "run", "--job-id", "watched", "--quiet"]
    command += ["--output", str(base / "output"), "--fault", "hang:rank=1,at=100,for=20"]
    command += ["--nproc-per-node", "2", str(TRAIN_SLEEP), "--steps", "300", "--step-ms", "45"]
    return subprocess.Popen(
        command,
        cwd=base,
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _end(job: subprocess.Popen[bytes]) -> None:
    """Let the launcher end its workers; by force only if it does not."""
    job.terminate()
    try:
        job.wait(30)
    except subprocess.TimeoutExpired:
        job.kill()


def test_prometheus_takes_every_sample(watched: Watched) -> None:
    """Scrapes succeed, and Prometheus says of no sample that it is a duplicate or out of order."""
    counterparts.program("prometheus")
    promql = "max_over_time(scrape_samples_scraped[5m]) > 50"
    wait_for(lambda: query(watched.prometheus, promql), "a scrape")
    assert "Error on ingesting" not in watched.prometheus_log.read_text()
    assert query(watched.prometheus, 'max_over_time(up{job="tracecore"}[5m]) == 1')


@pytest.mark.parametrize(
    "series",
    [
        "tracecore_rank_steps_total",
        "tracecore_rank_step_duration_seconds_sum",
        "tracecore_rank_input_wait_seconds_sum",
        "tracecore_rank_memory_usage_bytes",
    ],
)
def test_prometheus_sees_both_ranks(watched: Watched, series: str) -> None:
    """Steps, their time, input and memory of both ranks can be queried."""
    counterparts.program("prometheus")
    promql = f'max_over_time({series}{{job_id="watched",attempt="0"}}[5m]) > 0'
    wait_for(lambda: len(query(watched.prometheus, promql)) == 2, series)


@pytest.mark.parametrize(
    "series",
    [
        'tracecore_sidecar_detector_duration_seconds_count{pattern="hang"}',
        'tracecore_sidecar_pull_duration_seconds_count{outcome="ok"}',
        "tracecore_sidecar_tick_duration_seconds_count",
        "tracecore_sidecar_intake_records_total",
    ],
)
def test_prometheus_sees_the_sidecars_own_work(watched: Watched, series: str) -> None:
    """Detectors, pulls, ticks and intake of a live sidecar are counted."""
    counterparts.program("prometheus")
    wait_for(lambda: query(watched.prometheus, f"max_over_time({series}[5m]) > 0"), series)


def test_prometheus_sees_the_way_upstream(watched: Watched) -> None:
    """What the endpoint took is counted under OpenTelemetry's name, and nothing was refused."""
    counterparts.program("prometheus")
    counterparts.program("victoria-metrics")
    exported = "otel_sdk_exporter_metric_data_point_exported_total"
    promql = f'max_over_time({exported}{{error_type=""}}[5m]) > 0'
    wait_for(lambda: query(watched.prometheus, promql), "forwarded points")
    assert not query(watched.prometheus, f'max_over_time({exported}{{error_type!=""}}[5m]) > 0')


def test_the_alert_names_the_rank(watched: Watched) -> None:
    """The starter rules fire for the hang, and for rank 1 only."""
    counterparts.program("prometheus")
    promql = 'max_over_time(ALERTS{alertname="TraceCoreVerdict",alertstate="firing"}[5m])'
    wait_for(lambda: query(watched.prometheus, promql), "the alert", 90)
    alerts = [alert["metric"] for alert in query(watched.prometheus, promql)]
    assert {(alert["pattern"], alert["rank"]) for alert in alerts} == {("hang", "1")}


def test_victoriametrics_gets_the_ranks_metrics(watched: Watched) -> None:
    """The metrics both ranks send arrive upstream, told apart by rank."""
    counterparts.program("victoria-metrics")

    def ranks() -> set[str]:
        get(f"{watched.victoria}/internal/force_flush")
        found = query(watched.victoria, "max_over_time(tracecore_steps_total[5m]) > 0")
        return {item["metric"]["tracecore_rank"] for item in found}

    wait_for(lambda: ranks() == {"0", "1"}, "both ranks' steps")


def test_a_collector_gets_the_verdict(watched: Watched) -> None:
    """The hang arrives at a Collector as an event that names the rank; our tables do not."""
    counterparts.program("otelcol")
    wait_for(lambda: "EventName: tracecore.verdict" in printed(watched), "the verdict", 90)
    assert "HANG  rank 1 never joined" in printed(watched)
    assert "EventName: tracecore.step" not in printed(watched)


def printed(watched: Watched) -> str:
    """What the Collector printed so far."""
    return watched.collector_log.read_text(errors="replace")


def test_promtool_accepts_the_starter_rules() -> None:
    """The rules are valid, and fire when their tests say so."""
    promtool = counterparts.program("promtool")
    for command in (["check", "rules", "tracecore.yml"], ["test", "rules", "tracecore.test.yml"]):
        done = subprocess.run(
            [promtool, *command],
            cwd=ALERTS,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def test_promtool_finds_nothing_to_say_about_the_page() -> None:
    """The page follows the conventions promtool checks: types, units, suffixes, help."""
    promtool = counterparts.program("promtool")
    job = SimulatedJob(2)
    job.advance(job.now + SECOND, pull=True)
    metered = Metered(job)
    metered.meter.on_event(event_of(hang(1)), JOB)
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=metered.text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
