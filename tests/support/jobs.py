"""Runs real jobs under `tracecore run` and reads what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.replay import replay_path, verdict_json
from tracecore_sidecar.sinks.record_file import read_records
from tracecore_train.wire.records import StepRecord

if TYPE_CHECKING:
    from tracecore_train.wire.records import Batch, Record

ROOT = Path(__file__).resolve().parents[2]
TRAIN_SLEEP = ROOT / "tests" / "support" / "programs" / "train_sleep.py"


@dataclass(frozen=True)
class Job:
    """A finished job."""

    returncode: int
    stdout: str
    stderr: str
    duration_s: float
    output: Path

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """Lines of verdicts.jsonl of node 0."""
        return _json_lines(self.output / "0" / "verdicts.jsonl")

    @property
    def incidents(self) -> list[dict[str, Any]]:
        """Lines of incidents.jsonl of node 0."""
        return _json_lines(self.output / "0" / "incidents.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json of node 0."""
        found: dict[str, Any] = json.loads((self.output / "0" / "summary.json").read_text())
        return found

    def named(self) -> set[tuple[str, str, tuple[int, ...]]]:
        """(pattern, class, suspected ranks) of every verdict."""
        return {_named(verdict) for verdict in self.verdicts}

    def replayed(self) -> set[tuple[str, str, tuple[int, ...]]]:
        """The same, judged again from the recording."""
        items = replay_path(self.output)
        return {_named(verdict_json(item)) for item in items if item.event.change != "closed"}

    def batches(self) -> list[Batch]:
        """Every batch of the recording."""
        items = read_records(self.output / "0" / "records")
        return [batch for _, batch in items if batch is not None]

    def records(self) -> list[Record]:
        """Every record of the recording."""
        return [record for batch in self.batches() for record in batch.records]

    def step_end_ns(self, rank: int, step: int) -> int:
        """Wall-clock time at which a rank ended a step."""
        return next(
            record.time_ns + batch.source.wall_offset_ns
            for batch in self.batches()
            for record in batch.records
            if isinstance(record, StepRecord) and (record.rank, record.step) == (rank, step)
        )


def run_job(
    tmp_path: Path,
    *arguments: str,
    fault: tuple[str, ...] = (),
    ranks: int = 2,
    torchrun: tuple[str, ...] = (),
    program: Path = TRAIN_SLEEP,
    timeout_s: float = 240,
    env: dict[str, str] | None = None,
) -> Job:
    """Run a program under `tracecore run` to its end."""
    output = tmp_path / "output"
    command = [sys.executable, "-m", "tracecore_sidecar", "run", "--output", str(output)]
    command += [word for spec in fault for word in ("--fault", spec)]
    command += ["--nproc-per-node", str(ranks), *torchrun, str(program), *arguments]
    started = time.monotonic()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "TRACECORE_RUNTIME_DIR": str(tmp_path / "rt"), **(env or {})},
    )
    return Job(
        returncode=done.returncode,
        stdout=done.stdout,
        stderr=done.stderr,
        duration_s=time.monotonic() - started,
        output=output,
    )


def _named(verdict: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    ranks = tuple(sorted(suspect["rank"] for suspect in verdict["suspects"]))
    return (verdict["pattern"], verdict["class"], ranks)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
