"""What our threads cost in a rank: a real rank, ten steps a second, a real sidecar.

The export thread's own processor clock, over windows; the A/A row is one window less the next.
"Other threads" holds torch's worker server, which answers the sidecar's recorder pulls; the same
rank without a sidecar stands beside it, with everything else torch runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import rank_program
from tests.benchmarks.measure import ROOT, Row, extremes
from tests.benchmarks.sidecar_load import JOB_ID, sidecar

GROUP = "rank"
CPU_BUDGET = 0.1
"""Percent of a core, at one hand-over a second."""
STEP_MS = 100


def measure(is_quick: bool) -> list[Row]:
    """Measure the export thread, and the rank's other threads with and without us."""
    num_windows, window_s = (2, 10) if is_quick else (8, 10)
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        root = Path(directory)
        with sidecar(root):
            watched = _windows(root, num_windows, window_s, f"unix:{root}/job/otlp.sock")
        (root / "store").unlink(missing_ok=True)
        alone = _windows(root, num_windows, window_s, None)
    export = [_percent(window, "tracecore-export") for window in watched]
    steps = statistics.fmean(w["num_steps"] / w["elapsed_ns"] * 1e9 for w in watched)
    note = f"{steps:.1f} steps/s, one hand-over a second"
    return [
        extremes(GROUP, "export thread CPU", "%", export, budget=CPU_BUDGET, note=note),
        extremes(
            GROUP,
            "export thread CPU, A/A",
            "%",
            [odd - even for odd, even in zip(export[::2], export[1::2], strict=True)],
            note="one window less the next",
        ),
        extremes(
            GROUP,
            "other threads CPU (recorder pulls answered in C++)",
            "%",
            [_percent(window, "others") for window in watched],
        ),
        extremes(
            GROUP,
            "other threads CPU, without us",
            "%",
            [_percent(window, "others") for window in alone],
        ),
    ]


def _percent(window: dict[str, Any], thread: str) -> float:
    return float(100 * window["cpu_ns"].get(thread, 0) / window["elapsed_ns"])


def _windows(
    root: Path, num_windows: int, window_s: float, endpoint: str | None
) -> list[dict[str, Any]]:
    ours = {"TRACECORE_ENDPOINT": endpoint, "TRACECORE_JOB_ID": JOB_ID} if endpoint else {}
    inherited = {name: text for name, text in os.environ.items() if "TRACECORE" not in name}
    done = subprocess.run(
        [
            *(sys.executable, rank_program.__file__),
            *(str(num_windows), str(window_s), str(STEP_MS)),
        ],
        cwd=root,
        env=inherited | ours | {"RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60 + 2 * num_windows * window_s,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
