"""What ``import tracecore_train`` costs over the bare interpreter, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.benchmarks.measure import Row, row

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = "import"
CPU_BUDGET_MS = 30.0
MEMORY_BUDGET_MIB = 5.0

_REPORT = """
import sys, time
before = set(sys.modules)
{statement}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
cpu_ns = time.process_time_ns()
status = open("/proc/self/status").read()
rss_kib = int(status.split("VmRSS:")[1].split()[0])
import json
print(json.dumps([cpu_ns / 1e6, rss_kib / 1024, sorted(new - sys.stdlib_module_names)]))
"""
_STATEMENTS = {"bare": "", "ours": "import tracecore_train"}
Sample = tuple[float, float, list[str]]


def measure(is_quick: bool) -> list[Row]:
    """Measure processor time, memory and foreign modules."""
    num_pairs = 15 if is_quick else 60
    for statement in _STATEMENTS.values():
        _run(statement)
    ours: list[tuple[Sample, Sample]] = []
    noise: list[tuple[Sample, Sample]] = []
    for index in range(num_pairs):
        names = ("bare", "ours") if index % 2 else ("ours", "bare")
        samples = {name: _run(_STATEMENTS[name]) for name in names}
        ours.append((samples["ours"], samples["bare"]))
        again = (_run(""), _run(""))
        noise.append(again if index % 2 else (again[1], again[0]))
    foreign = sorted(set(ours[0][0][2]) - {"tracecore_train"})
    rows = []
    for place, what, unit, budget in (
        (0, "CPU", "ms", CPU_BUDGET_MS),
        (1, "memory", "MiB", MEMORY_BUDGET_MIB),
    ):
        rows.append(row(GROUP, what, unit, _differences(ours, place), budget=budget))
        rows.append(row(GROUP, f"{what}, A/A", unit, _differences(noise, place), note="bare twice"))
    count = float(len(foreign))
    rows.append(
        Row(
            group=GROUP,
            what="modules outside the standard library",
            unit="modules",
            measured=count,
            low=count,
            high=count,
            num_samples=1,
            budget=0,
            note=", ".join(foreign),
        )
    )
    return rows


def _differences(pairs: Sequence[tuple[Sample, Sample]], place: int) -> list[float]:
    return [float(first[place]) - float(second[place]) for first, second in pairs]  # type: ignore[arg-type]


def _run(statement: str) -> Sample:
    done = subprocess.run(
        [sys.executable, "-c", _REPORT.format(statement=statement)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    cpu_ms, memory_mib, foreign = json.loads(done.stdout)
    return cpu_ms, memory_mib, foreign
