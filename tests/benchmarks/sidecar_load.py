"""What the sidecar costs: a real sidecar process under synthetic ranks, detectors running.

Processor time and memory are read from outside, per window of ten seconds (two routine pulls).
The A/A row compares the windows with one another: odd ones less even ones. "no ranks" is the same
process with nothing to watch.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks import synthetic_job
from tests.benchmarks.measure import ROOT, Row, extremes, memory_bytes, process_cpu_ns

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "sidecar"
JOB_ID = "bench"
WINDOW_S = 10.0
WARM_UP_S = 12.0
"""Imports, first pulls of whole rings."""
CPU_BUDGETS = {8: 2.0, 72: 15.0}
"""Percent of a core by number of ranks."""
MEMORY_BUDGET_MB = 110.0
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Usage:
    """What the sidecar used, per window."""

    cpu_percent: list[float]
    memory_mb: float
    summary: dict[str, Any]


def measure(is_quick: bool) -> list[Row]:
    """Measure without ranks, with 8 and with 72."""
    num_windows = 2 if is_quick else 8
    rows = [extremes(GROUP, "CPU, no ranks", "%", run(0, num_windows).cpu_percent)]
    for num_ranks, budget in CPU_BUDGETS.items():
        usage = run(num_ranks, num_windows)
        cpu = usage.cpu_percent
        steps = {row["steps"] for row in usage.summary["ranks"].values()}
        note = (
            f"{synthetic_job.STEPS_PER_S} steps/s, "
            f"{synthetic_job.STEPS_PER_S * synthetic_job.COLLECTIVES_PER_STEP} collectives/s a rank"
        )
        if len(usage.summary["ranks"]) != num_ranks or min(steps) < WARM_UP_S:
            raise RuntimeError(f"the sidecar did not see all ranks: {usage.summary}")
        if usage.summary["verdicts"]:
            raise RuntimeError(f"a healthy job got verdicts: {usage.summary['verdicts']}")
        rows += [
            extremes(GROUP, f"CPU, {num_ranks} ranks", "%", cpu, budget=budget, note=note),
            extremes(
                GROUP,
                f"CPU, {num_ranks} ranks, A/A",
                "%",
                [odd - even for odd, even in zip(cpu[::2], cpu[1::2], strict=True)],
                note="one window less the next",
            ),
            extremes(
                GROUP,
                f"memory, {num_ranks} ranks",
                "MB",
                [usage.memory_mb],
                budget=MEMORY_BUDGET_MB if num_ranks == 8 else None,
                note="resident, highest",
            ),
        ]
    return rows


def run(num_ranks: int, num_windows: int) -> Usage:
    """Run a sidecar with its ranks and watch it."""
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        root = Path(directory)
        with sidecar(root) as process, _ranks(root, num_ranks):
            time.sleep(WARM_UP_S)
            cpu = []
            for _ in range(num_windows):
                began_ns, before_ns = time.monotonic_ns(), process_cpu_ns(process.pid)
                time.sleep(WINDOW_S)
                used_ns = process_cpu_ns(process.pid) - before_ns
                cpu.append(100 * used_ns / (time.monotonic_ns() - began_ns))
            memory = memory_bytes(process.pid, "VmHWM") / 1e6
        summary = json.loads((root / "output" / "0" / "summary.json").read_text())
    return Usage(cpu, memory, summary)


@contextlib.contextmanager
def sidecar(root: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``tracecore sidecar`` for the job directory ``root/job``; ended by SIGTERM."""
    options = (
        *("--job-id", JOB_ID, "--job-dir", str(root / "job")),
        *("--output", str(root / "output"), "--display", "plain"),
    )
    with (root / "sidecar.err").open("wb") as errors:
        process = subprocess.Popen(
            [*(command or (sys.executable, "-m", "tracecore_sidecar")), "sidecar", *options],
            cwd=root,
            stderr=errors,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while not (root / "job" / "otlp.sock").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((root / "sidecar.err").read_text())
            time.sleep(0.05)
        yield process
        process.terminate()
        process.wait(30)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _ranks(root: Path, num_ranks: int) -> Iterator[None]:
    if not num_ranks:
        yield
        return
    process = subprocess.Popen(
        [sys.executable, synthetic_job.__file__, str(root / "job"), JOB_ID, str(num_ranks)],
        cwd=ROOT,
    )
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError("the synthetic ranks ended by themselves")
    finally:
        process.kill()
        process.wait()
