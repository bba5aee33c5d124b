"""Whole jobs with and without us: two real gloo ranks under `tracecore run` and under torchrun.

The same program, seeds fixed, compute by sleep. Runs come in fours, on, off, off, on: each four
gives two A/B pairs and an A/A pair of the two runs without. Ratios are on over off, of the
training loop as the slower rank saw it and of the whole command from start to exit.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from tests.benchmarks import loop_program
from tests.benchmarks.measure import Row, row

GROUP = "whole job"
TIMEOUT_S = 240.0
STEP_MS = 20
MAX_TRIES = 3


@dataclass(frozen=True)
class Run:
    """How long one job took."""

    loop_s: float
    command_s: float


def measure(is_quick: bool) -> list[Row]:
    """Run the jobs in fours."""
    num_fours, num_steps = (2, 150) if is_quick else (8, 500)
    _run(True, num_steps)  # the caches of files
    pairs: list[tuple[Run, Run]] = []
    noise: list[tuple[Run, Run]] = []
    for index in range(num_fours):
        on: list[Run] = []
        off: list[Run] = []
        for is_on in (True, False, False, True):
            (on if is_on else off).append(_run(is_on, num_steps))
        pairs += zip(on, off, strict=True)
        noise.append((off[0], off[1]) if index % 2 else (off[1], off[0]))
    rows = []
    for field, what in (("loop_s", "training loop"), ("command_s", "whole command")):
        ratios = [getattr(a, field) / getattr(b, field) for a, b in pairs]
        rows.append(
            row(GROUP, f"{what}, on / off", "x", ratios, note=f"{num_steps} steps of {STEP_MS} ms")
        )
        ratios = [getattr(a, field) / getattr(b, field) for a, b in noise]
        rows.append(row(GROUP, f"{what}, A/A", "x", ratios, note="off / off"))
    extra = [a.command_s - a.loop_s - (b.command_s - b.loop_s) for a, b in pairs]
    rows.append(row(GROUP, "start and exit, on less off", "s", extra, note="once a job"))
    return rows


def _run(is_on: bool, num_steps: int) -> Run:
    """Run one job; again where torch itself aborted it, as gloo now and then does at exit."""
    for _ in range(MAX_TRIES - 1):
        with contextlib.suppress(subprocess.CalledProcessError):
            return _try(is_on, num_steps)
    return _try(is_on, num_steps)


def _try(is_on: bool, num_steps: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        launcher = (
            ("-m", "tracecore_sidecar", "run", "--output", f"{directory}/output")
            if is_on
            else ("-m", "torch.distributed.run")
        )
        inherited = {name: text for name, text in os.environ.items() if "TRACECORE" not in name}
        began = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, *launcher, "--nproc-per-node", "2"),
                *(loop_program.__file__, str(num_steps), str(STEP_MS)),
            ],
            cwd=directory,
            env=inherited | {"TRACECORE_RUNTIME_DIR": f"{directory}/rt", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        command_s = time.monotonic() - began
    loops = [json.loads(line)["loop_s"] for line in done.stdout.splitlines() if "loop_s" in line]
    return Run(max(loops), command_s)
