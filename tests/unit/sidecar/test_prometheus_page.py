"""The page behind /metrics: its text, its names, its bounds."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.metrics_page import Metered
from tests.support.recordings import SECOND, SimulatedJob
from tests.support.verdicts import JOB, event_of, hang
from tracecore_sidecar.forward.forwarder import Forwarder
from tracecore_sidecar.receiver import IntakeStats
from tracecore_sidecar.telemetry.families import Described, Kind
from tracecore_sidecar.telemetry.forward_metrics import EXPORTED, FORWARD_METRICS, forward_families
from tracecore_sidecar.telemetry.job_metrics import MAX_RANKS, MAX_VERDICTS
from tracecore_sidecar.telemetry.job_names import JOB_METRICS, RANK_LABELS
from tracecore_sidecar.telemetry.self_metrics import SELF_METRICS
from tracecore_sidecar.verdicts import Severity

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).resolve().parents[3] / "docs"
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def exposed_names() -> set[str]:
    """Every name a query can use, of the metrics that have fixed names."""
    names = set()
    for described in (*JOB_METRICS, *SELF_METRICS):
        stem = described.exposed
        names.add(stem)
        if described.kind in {Kind.SUMMARY, Kind.HISTOGRAM}:
            names |= {f"{stem}_sum", f"{stem}_count"}
    return names


@pytest.mark.parametrize(
    ("accept", "parse", "content_type"),
    [
        ("", parse_text, "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, parse_openmetrics, "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=7", parse_text, "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=x;;=,,;", parse_text, "text/plain; version=0.0.4"),
    ],
    ids=["plain", "openmetrics", "unknown-version", "nonsense"],
)
def test_the_format_follows_the_accept_header(
    accept: str, parse: Callable[[str], Any], content_type: str
) -> None:
    """Both formats parse; a version we do not write gives the plain one."""
    metered = Metered(SimulatedJob(2))
    metered.meter.on_event(event_of(hang(1)), JOB)
    status, headers, body = asyncio.run(metered.get({"accept": accept}))
    assert status == 200
    assert headers["content-type"].startswith(content_type)
    families = {family.name for family in parse(body.decode())}
    assert {"tracecore_rank_up", "tracecore_verdict_open", "process_cpu_time_seconds"} <= families


@pytest.mark.parametrize(
    ("described", "exposed"),
    [
        (Described("a.steps", Kind.COUNTER, "{step}", ""), "a_steps_total"),
        (Described("a.time", Kind.COUNTER, "s", ""), "a_time_seconds_total"),
        (Described("a.usage", Kind.GAUGE, "By", ""), "a_usage_bytes"),
        (Described("a.duration", Kind.SUMMARY, "s", ""), "a_duration_seconds"),
        (Described("a.up", Kind.GAUGE, "", ""), "a_up"),
    ],
)
def test_names_are_translated_as_opentelemetry_does(described: Described, exposed: str) -> None:
    """Dots become underscores, the unit a suffix, and a counter ends in _total."""
    assert described.exposed == exposed


def test_what_is_described_is_what_is_exposed() -> None:
    """The list of names and the page hold the same families."""
    metered = Metered(SimulatedJob(2))
    metered.meter.on_event(event_of(hang(1)), JOB)
    on_page = {family.name for family in metered.meter.collect(metered.now)}
    assert {described.family for described in (*JOB_METRICS, *SELF_METRICS)} <= on_page
    unlisted = on_page - {described.family for described in (*JOB_METRICS, *SELF_METRICS)}
    assert {name for name in unlisted if "_intake_" not in name} == {"target"}


def test_every_metric_is_documented() -> None:
    """metrics.md names every metric of the page."""
    text = (DOCS / "metrics.md").read_text()
    for described in (*JOB_METRICS, *SELF_METRICS, *FORWARD_METRICS):
        assert f"`{described.exposed}`" in text, described.exposed
    for name, value in IntakeStats().as_dict().items():
        assert not isinstance(value, int) or f"`{name.removeprefix('num_')}`" in text, name
    assert f"{MAX_RANKS} ranks" in text
    assert f"{MAX_VERDICTS} series" in text


def test_alert_rules_name_series_that_exist() -> None:
    """Every metric in an expression of the starter rules is one the page can hold."""
    rules = (DOCS / "alerts" / "tracecore.yml").read_text()
    used = set(re.findall(r"\btracecore_[a-z_]+\b", rules))
    intake = {name for name in used if name.startswith("tracecore_sidecar_intake_")}
    assert intake == {"tracecore_sidecar_intake_rejected_total"}
    assert len(used) > 8
    assert used - intake - exposed_names() == set()
    upstream = set(re.findall(r"\botel_sdk_[a-z_]+\b", rules))
    assert upstream == {described.exposed for described in EXPORTED}


def test_the_forwarder_counts_what_the_page_tells(tmp_path: Path) -> None:
    """Every series of the way upstream has its counter in a real forwarder."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    families = forward_families(Forwarder(environ, tmp_path).as_dict())
    assert {family.name for family in families} == {d.family for d in FORWARD_METRICS}


def test_a_hurried_scraper_gets_the_same_page_for_a_second() -> None:
    """The page is made anew after a second, not before."""
    metered = Metered(SimulatedJob(1))
    first = metered.text()
    metered.now += SECOND // 2
    assert metered.text() == first
    metered.now += SECOND
    assert metered.text() != first


def test_the_number_of_rank_series_has_a_bound() -> None:
    """Of more ranks than fit the lowest are shown, and the page says how many are not."""
    metered = Metered(SimulatedJob(MAX_RANKS + 44))
    assert len(metered.series("tracecore_rank_up")) == MAX_RANKS
    assert metered.value("tracecore_rank_up", rank=str(MAX_RANKS - 1)) == 1
    assert metered.value("tracecore_sidecar_metrics_omitted", what="ranks") == 44
    assert metered.value("tracecore_job_ranks", state="up") == MAX_RANKS + 44
    per_rank = [s for s in metered.samples() if set(RANK_LABELS) <= set(s.labels)]
    assert len(per_rank) <= MAX_RANKS * 16


def test_the_number_of_verdict_series_has_a_bound() -> None:
    """Of more verdicts than fit the most severe are shown, and the rest is counted."""
    metered = Metered(SimulatedJob(1))
    many = hang(*range(MAX_VERDICTS + 20), pattern="straggler", severity=Severity.WARNING)
    for number, verdict in enumerate([many, hang(500), many]):
        event = dataclasses.replace(event_of(verdict), incident_id=f"id{number}")
        metered.meter.on_event(event, JOB)
    assert len(metered.series("tracecore_verdict_open")) == MAX_VERDICTS
    assert metered.value("tracecore_verdict_open", rank="500", severity="critical") == 1
    assert metered.value("tracecore_sidecar_metrics_omitted", what="verdicts") == 21


def test_names_from_outside_cannot_break_the_page() -> None:
    """Line ends, quotes, lone surrogates and endless names end up as short clean labels."""
    job = SimulatedJob(1, hosts=['a"}\n# evil 1\ntracecore_rank_up 7\udc80' + "x" * 5000])
    (sample,) = Metered(job).series("tracecore_rank_up")
    assert sample.value == 1
    assert sample.labels["host"].startswith('a"}?# evil 1?tracecore_rank_up 7?x')
    assert len(sample.labels["host"]) == 256
