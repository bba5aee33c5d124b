"""Whole jobs with and without us: real gloo ranks under `tracecore run` and under torchrun.

Runs come in blocks. A block runs every arm once, in an order shuffled anew, and an arm is compared
with its baseline of the same block; "nothing" stands twice in a block, and the second compared with
the first is what chance alone does (A/A). The loop is clocked inside the ranks after its first
steps, so that starting and ending is not in it; the whole command has rows of its own.

`peers.py` runs further arms through the same blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measure import ROOT, Row, missing, row
from tests.benchmarks.peer_programs.sent import BURST, SENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import IO

TIMEOUT_S = 180.0
MAX_TRIES = 3
"""gloo now and then aborts a job at its exit; a port may be taken by somebody else meanwhile."""
TRAIN = ROOT / "tests" / "benchmarks" / "peer_programs" / "train.py"
PARTS = ("normal", "tiny")
"""Of what a rank reports."""
SEED = 20
"""Of the order of the runs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Where and how large one run is."""

    directory: Path
    num_ranks: int
    num_steps: int
    python: Path
    ports: tuple[int, int]

    @property
    def results(self) -> Path:
        """Where the ranks report."""
        return self.directory / "results"

    @property
    def output(self) -> Path:
        """Where whoever watches writes."""
        return self.directory / "output"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to run the training."""

    name: str
    launcher: str = "torchrun"
    program: Path = TRAIN
    options: tuple[str, ...] = ()
    """Of the program."""
    environ: Mapping[str, str] = field(default_factory=dict)
    baseline: str = "nothing"
    """The arm it is compared with."""
    is_watched: bool = True
    """Whether somebody watches, who then must have sent or written something."""

    def command(self, job: Job) -> list[str]:
        """Give the command line."""
        program = str(self.program)
        arguments = ["--steps", str(job.num_steps), "--results", str(job.results)]
        arguments += ["--output", str(job.output), *self.options]
        return LAUNCHERS[self.launcher](job, program, arguments)


def _torchrun(job: Job, program: str, arguments: list[str]) -> list[str]:
    return [*(str(job.python), "-m", "torch.distributed.run"), *_size(job), program, *arguments]


def _tracecore(job: Job, program: str, arguments: list[str]) -> list[str]:
    ours = ("-m", "tracecore_sidecar", "run", "--output", str(job.output))
    return [*(str(job.python), *ours), *_size(job), program, *arguments]


def _traceml(job: Job, program: str, arguments: list[str]) -> list[str]:
    return [
        *(str(job.python.with_name("traceml")), "run", *_size(job)),
        *("--aggregator-port", str(job.ports[1]), "--logs-dir", str(job.output)),
        *("--run-name", "benchmark", program, "--args", *arguments),
    ]


def _size(job: Job) -> tuple[str, ...]:
    return ("--nproc-per-node", str(job.num_ranks), "--master-port", str(job.ports[0]))


LAUNCHERS: dict[str, Callable[[Job, str, list[str]], list[str]]] = {
    "torchrun": _torchrun,
    "tracecore": _tracecore,
    "traceml": _traceml,
}
NOTHING = Arm(name="nothing", is_watched=False)
NOTHING_AGAIN = Arm(name="nothing again (A/A)", is_watched=False)
TRACECORE = Arm(name="TraceCore", launcher="tracecore")
ARMS = (NOTHING, NOTHING_AGAIN, TRACECORE)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one job used; of a rank where it says so, as the mean over the ranks."""

    loop_s: float
    """Ordinary steps, as the slowest rank saw them."""
    thread_us: float
    """Processor time of a rank's training thread, per step."""
    tiny_us: float
    """The same in steps of next to no compute; first quartile of bursts of a hundred: what
    else the machine does lengthens bursts, and shortens none."""
    process_us: float
    """The same of the whole process of a rank, in ordinary steps."""
    memory_mib: float
    """Resident memory of a rank, at its highest until the end of the loops."""
    sent_bytes: float
    """What Python code of a rank sent from start to exit, per step."""
    file_bytes: float
    """What stood in the output directory afterwards, per step and rank."""
    start_exit_s: float
    """The whole command without the timed loops."""
    command_cpu_s: float
    """Processor time of the whole command: ranks, launcher, sidecar; start and exit included."""


@dataclass(frozen=True)
class Metric:
    """One figure of a run and how it is compared."""

    name: str
    what: str
    unit: str
    """Of the comparison."""
    base_unit: str
    """Of the figure."""

    @property
    def is_ratio(self) -> bool:
        """Whether it is compared by division, not by difference."""
        return self.unit == "x"


METRICS = (
    Metric("loop_s", "training loop", "x", "s"),
    Metric("thread_us", "training thread CPU a step", "us", "us"),
    Metric("tiny_us", "training thread CPU a tiny step", "us", "us"),
    Metric("process_us", "rank process CPU a step", "us", "us"),
    Metric("memory_mib", "memory of a rank", "MiB", "MiB"),
    Metric("sent_bytes", "sent by a rank, a step", "B", "B"),
    Metric("file_bytes", "files, a rank-step", "B", "B"),
    Metric("start_exit_s", "start and exit", "s", "s"),
    Metric("command_cpu_s", "whole command CPU", "s", "s"),
)
"""Each of an arm over its baseline."""
Block = dict[str, Run]
"""The runs of one block by name of their arm."""


@dataclass(frozen=True)
class Outcome:
    """All blocks, and why an arm is not in them."""

    blocks: list[Block]
    failures: dict[str, str]


def measure(
    is_quick: bool, ranks: Sequence[int] = (2,), num_blocks: int | None = None
) -> list[Row]:
    """Run the jobs with and without us."""
    rows = []
    for num_ranks in ranks:
        num_steps = steps_of(is_quick, num_ranks)
        blocks = num_blocks or (2 if is_quick else 8)
        outcome = run_blocks(ARMS, num_ranks, blocks, num_steps)
        rows += compare(f"whole job, {num_ranks} ranks", ARMS, outcome, f"{num_steps} steps")
    return rows


def steps_of(is_quick: bool, num_ranks: int) -> int:
    """Give the steps of a run: fewer where more ranks share the cores."""
    return (400 if is_quick else 2_000) // num_ranks


def run_blocks(
    arms: Sequence[Arm],
    num_ranks: int,
    num_blocks: int,
    num_steps: int,
    python: Path = Path(sys.executable),
) -> Outcome:
    """Run every arm once a block; an arm that cannot run is left out from then on."""
    chance = random.Random(SEED)
    run(NOTHING, num_ranks, num_steps, python)  # the caches of files
    blocks: list[Block] = []
    failures: dict[str, str] = {}
    for _ in range(num_blocks):
        block: Block = {}
        for arm in chance.sample(arms, len(arms)):
            if arm.name in failures:
                continue
            try:
                block[arm.name] = run(arm, num_ranks, num_steps, python)
            except RunError as error:
                failures[arm.name] = str(error)
        blocks.append(block)
    return Outcome(blocks, failures)


def compare(group: str, arms: Sequence[Arm], outcome: Outcome, note: str = "") -> list[Row]:
    """Make the rows: for every figure, every arm against its baseline."""
    rows = [
        missing(group, arm.name, outcome.failures[arm.name])
        for arm in arms
        if arm.name in outcome.failures
    ]
    for metric in METRICS:
        for arm in arms:
            values = over(outcome.blocks, arm, metric)
            if values:
                base = [getattr(b[arm.baseline], metric.name) for b in _with(outcome.blocks, arm)]
                against = f"{arm.baseline}: {statistics.median(base):.4g} {metric.base_unit}"
                name = f"{metric.what}, {arm.name}"
                rows.append(row(group, name, metric.unit, values, note=f"{against}; {note}"))
    return rows


def over(blocks: Sequence[Block], arm: Arm, metric: Metric) -> list[float]:
    """Compare an arm with its baseline, block by block; blocks that lack either give nothing."""
    if arm.name == arm.baseline:
        return []
    pairs = [
        (getattr(block[arm.name], metric.name), getattr(block[arm.baseline], metric.name))
        for block in _with(blocks, arm)
    ]
    return [of / to if metric.is_ratio else of - to for of, to in pairs]


def _with(blocks: Sequence[Block], arm: Arm) -> list[Block]:
    return [block for block in blocks if {arm.name, arm.baseline} <= block.keys()]


class RunError(RuntimeError):
    """A job that did not end well, with the last it said."""


def run(arm: Arm, num_ranks: int, num_steps: int, python: Path) -> Run:
    """Run one job, a few times where it fails."""
    for _ in range(MAX_TRIES - 1):
        with contextlib.suppress(RunError):
            return _try(arm, num_ranks, num_steps, python)
    return _try(arm, num_ranks, num_steps, python)


def _try(arm: Arm, num_ranks: int, num_steps: int, python: Path) -> Run:
    with tempfile.TemporaryDirectory(
        prefix="tc-", dir="/tmp", ignore_cleanup_errors=True
    ) as directory:
        job = make_job(Path(directory), num_ranks, num_steps, python)
        cpu_s, began = _children_cpu_s(), time.monotonic()
        execute(arm, job)
        command_s, cpu_s = time.monotonic() - began, _children_cpu_s() - cpu_s
        reports = [json.loads(path.read_text()) for path in job.results.glob("*.json")]
        if len(reports) != num_ranks:
            raise RunError(f"{len(reports)} of {num_ranks} ranks reported")
        sent = sent_by_rank(job.results)
        num_sent, num_written = sum(num_bytes for num_bytes, _ in sent), _bytes_in(job.output)
        if arm.is_watched and not num_sent + num_written:
            raise RunError("it ran, but nothing was sent or written")
        rank_steps = sum(steps for _, steps in sent)
        loops_s = [max(report[part]["loop_ns"] for report in reports) / 1e9 for part in PARTS]
        return Run(
            loop_s=loops_s[0],
            thread_us=statistics.fmean(_per_step_us(r, "thread_ns") for r in reports),
            tiny_us=statistics.fmean(_tiny_us(report["tiny"]) for report in reports),
            process_us=statistics.fmean(_per_step_us(r, "process_ns") for r in reports),
            memory_mib=statistics.fmean(r["tiny"]["memory_bytes"] for r in reports) / 2**20,
            sent_bytes=num_sent / rank_steps,
            file_bytes=num_written / rank_steps,
            start_exit_s=command_s - sum(loops_s),
            command_cpu_s=cpu_s,
        )


def _per_step_us(report: dict[str, Any], clock: str) -> float:
    used_ns: int = report["normal"][clock]
    num_steps: int = report["normal"]["num_steps"]
    return used_ns / num_steps / 1e3


def _tiny_us(tiny: dict[str, Any]) -> float:
    bursts_ns: list[int] = tiny["burst_thread_ns"]
    return statistics.quantiles(bursts_ns, n=4)[0] / BURST / 1e3


def execute(arm: Arm, job: Job) -> None:
    """Run the command of an arm to its end."""
    log = job.directory / "log"
    with log.open("wb") as file:
        process = start(arm, job, file)
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"not done after {TIMEOUT_S:.0f} s") from None
        finally:
            stop(process)
    if process.returncode:
        lines = log.read_text(errors="replace").splitlines()
        # The first is the rank's own, the later ones are the launcher's about it.
        said = next((line.strip() for line in lines if "Error: " in line), "nothing about it")
        raise RunError(f"exit code {process.returncode}, said: {said[:200]}")


def start(arm: Arm, job: Job, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the command of an arm, with nothing of TraceCore inherited."""
    job.results.mkdir()
    job.output.mkdir()
    inherited = {name: text for name, text in os.environ.items() if "TRACECORE" not in name}
    return subprocess.Popen(
        arm.command(job),
        cwd=job.directory,
        env={
            **inherited,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TRACECORE_RUNTIME_DIR": str(job.directory / "rt"),
            **arm.environ,
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher that has not ended; it ends its ranks."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def sent_by_rank(results: Path) -> list[tuple[int, int]]:
    """Give bytes sent and steps done of every rank, also while it runs."""
    return [SENT.unpack(path.read_bytes()) for path in sorted(results.glob("*.sent"))]


def make_job(directory: Path, num_ranks: int, num_steps: int, python: Path) -> Job:
    """Prepare a run in an empty directory."""
    ports = (_free_port(), _free_port())
    return Job(
        directory=directory, num_ranks=num_ranks, num_steps=num_steps, python=python, ports=ports
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
