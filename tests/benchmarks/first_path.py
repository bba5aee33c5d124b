"""Scores the whole path on real jobs: who was named, how soon, and whether innocents were.

    python tests/benchmarks/first_path.py [--healthy 10] [--json FILE]

Each row is one real 2-rank gloo job of the shipped example, under `tracecore run`. A row is right
when exactly the expected verdicts came. "s" counts from the moment the fault began (the end of
the last step before it) to the verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.jobs import ROOT, TRAIN_SLEEP, Job, run_job

EXAMPLE = ROOT / "examples" / "train_gpt.py"
Named = set[tuple[str, str, tuple[int, ...]]]
SLOW: Named = {("straggler", "late_arrival", (1,))}
HANG: Named = {("hang", "never_entered", (1,))}


@dataclass(frozen=True)
class Case:
    """One job and what must be said about it."""

    name: str
    faults: tuple[str, ...]
    expected: frozenset[tuple[str, str, tuple[int, ...]]]
    fault_step: int | None = None
    arguments: tuple[str, ...] = ()
    program: Path = EXAMPLE


def cases(num_healthy: int) -> list[Case]:
    """Give the rows of the table."""
    silent: frozenset[tuple[str, str, tuple[int, ...]]] = frozenset()
    slow = [
        Case(
            f"slow 50 ms in {where}",
            (f"slow:rank=1,ms=50,from=40,where={where}",),
            frozenset(SLOW),
            fault_step=40,
        )
        for where in ("forward", "backward", "input", "host")
    ]
    alternating = ("slow:rank=0,ms=50,from=40,every=2", "slow:rank=1,ms=50,from=41,every=2")
    return [
        *(Case(f"healthy {number + 1}", (), silent) for number in range(num_healthy)),
        *slow,
        Case("hang 30 s", ("hang:rank=1,at=60,for=30",), frozenset(HANG), fault_step=60),
        Case(
            "hang 30 s holding the GIL",
            ("hang:rank=1,at=60,for=30,how=gil",),
            frozenset(HANG),
            fault_step=60,
        ),
        Case(
            "hang 30 s stopped",
            ("hang:rank=1,at=60,for=30,how=stop",),
            frozenset(HANG),
            fault_step=60,
        ),
        Case("alternating 50 ms", alternating, silent),
        Case(
            "10 s checkpoint on rank 0",
            ("hang:rank=0,at=60,for=10,where=checkpoint",),
            silent,
            arguments=("--steps", "150", "--step-ms", "95", "--checkpoint-at", "60"),
            program=TRAIN_SLEEP,
        ),
        Case(
            "slow first step (15 s)",
            (),
            silent,
            arguments=("--steps", "150", "--step-ms", "95", "--first-step-s", "15"),
            program=TRAIN_SLEEP,
        ),
    ]


def seconds_to_verdict(job: Job, fault_step: int | None) -> float | None:
    """Give the time from the beginning of the fault to the first verdict."""
    if fault_step is None or not job.verdicts:
        return None
    began_ns = job.step_end_ns(1, fault_step - 1)
    return float((job.verdicts[0]["emitted_at_ns"] - began_ns) / 1e9)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    is_right: bool
    named: list[str]
    seconds: float | None
    returncode: int


def score(case: Case) -> Row:
    """Run one case."""
    with tempfile.TemporaryDirectory(prefix="tc-") as directory:
        job = run_job(Path(directory), *case.arguments, fault=case.faults, program=case.program)
        return Row(
            name=case.name,
            is_right=job.named() == case.expected and job.replayed() == case.expected,
            named=sorted(f"{p}/{c} {list(r)}" for p, c, r in job.named()),
            seconds=seconds_to_verdict(job, case.fault_step),
            returncode=job.returncode,
        )


def main() -> None:
    """Run all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", type=int, default=10, help="number of healthy runs")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    rows = []
    print(f"{'case':<28} {'right':<6} {'s':>6}  named", flush=True)
    for case in cases(args.healthy):
        if args.only not in case.name:
            continue
        row = score(case)
        rows.append(row)
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        right = "yes" if row.is_right and row.returncode == 0 else "NO"
        print(f"{row.name:<28} {right:<6} {seconds:>6}  {', '.join(row.named) or '-'}", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    sys.exit(0 if all(row.is_right and row.returncode == 0 for row in rows) else 1)


if __name__ == "__main__":
    main()
