"""The hang campaign: real gloo jobs with real faults, scored.

    python tests/campaign/hang.py                    # everything, some 35 minutes
    python tests/campaign/hang.py --only pipeline    # cases whose name contains this
    python tests/campaign/hang.py --json scores.json

Each case is one job under `tracecore run`, ended as soon as a verdict stands. A case is right when
exactly the ranks at fault are named, in the right class; a near miss is right when nobody is.
"s" counts from the moment the fault began to the first verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.campaign.cases import CASES, EXCUSED, Case

JOB = Path(__file__).with_name("job.py")
START_TIMEOUT_S = 120.0
"""For imports, rendezvous and the steps before the fault."""
SETTLE_S = 3.0
"""A verdict may still change while evidence comes in."""
NOTHING = "nothing"


@dataclass(frozen=True)
class Score:
    """What one case gave."""

    case: str
    expected: str
    suspects: list[int]
    got: str
    named: list[int]
    confidence: str
    seconds: float | None
    is_near_miss: bool
    is_excused: bool
    is_set_right: bool
    is_class_right: bool
    accused_innocents: list[int]

    @property
    def is_right(self) -> bool:
        """Whether set and class are right."""
        return self.is_set_right and self.is_class_right


def run_case(case: Case) -> Score:
    """Run one job and judge what was said of it."""
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        root = Path(directory)
        marks, output = root / "marks", root / "out"
        marks.mkdir()
        process = _start(case, root, marks, output)
        try:
            began_ns = _wait_for_fault(case, process, marks)
            _wait_for_verdict(case, process, output)
        finally:
            _end(process)
        hangs = [v for v in _verdicts(output) if v["pattern"] == "hang"]
    return _score(case, hangs, began_ns)


def _start(case: Case, root: Path, marks: Path, output: Path) -> subprocess.Popen[bytes]:
    ranks = ",".join(map(str, case.ranks))
    command = [
        *(sys.executable, "-m", "tracecore_sidecar", "run", "--output", str(output), "--quiet"),
        *("--nproc-per-node", str(case.num_ranks), str(JOB)),
        *("--shape", case.shape, "--fault", case.fault, "--ranks", ranks),
        *("--at", str(case.at), "--seconds", str(case.seconds), "--marks", str(marks)),
    ]
    environment = os.environ | {
        "TRACECORE_RUNTIME_DIR": str(root / "rt"),
        "OMP_NUM_THREADS": "1",
    }
    if case.hooks:
        environment["TRACECORE_HOOKS"] = case.hooks
    with (root / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def _wait_for_fault(case: Case, process: subprocess.Popen[bytes], marks: Path) -> int:
    """Give the wall-clock time at which the last of the faults began."""
    deadline = time.monotonic() + START_TIMEOUT_S
    num_marks = case.num_ranks if case.fault == "everyone" else len(case.ranks)
    while time.monotonic() < deadline and process.poll() is None:
        found = [path.read_text() for path in marks.iterdir()]
        if len(found) >= num_marks and all(found):
            return max(map(int, found), default=time.time_ns())
        time.sleep(0.1)
    raise RuntimeError(f"{case.name}: the fault never began")


def _wait_for_verdict(case: Case, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + case.deadline_s
    while time.monotonic() < deadline and process.poll() is None:
        if any(verdict["pattern"] == "hang" for verdict in _verdicts(output)):
            deadline = min(deadline, time.monotonic() + SETTLE_S)
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher, its sidecar and ranks that cannot hear."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _descendants() -> list[int]:
    """Give processes of the campaign's job, also those whose parent is gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(JOB).encode() in arguments:
                found.append(int(entry.name))
    return found


def _verdicts(output: Path) -> list[dict[str, Any]]:
    path = output / "0" / "verdicts.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _score(case: Case, hangs: list[dict[str, Any]], began_ns: int) -> Score:
    accused = {s["rank"] for v in hangs for s in v["suspects"] if s.get("rank") is not None}
    named = {s["rank"] for s in hangs[-1]["suspects"] if s.get("rank") is not None} if hangs else []
    got = str(hangs[-1]["class"]) if hangs else NOTHING
    return Score(
        case=case.name,
        expected="/".join(case.classes) or NOTHING,
        suspects=sorted(case.expected),
        got=got,
        named=sorted(named),
        confidence=str(hangs[-1]["confidence"]) if hangs else "",
        seconds=(hangs[0]["emitted_at_ns"] - began_ns) / 1e9 if hangs else None,
        is_near_miss=case.is_near_miss,
        is_excused=case.fault in EXCUSED,
        is_set_right=set(named) == case.expected or (case.may_be_partial and not named),
        is_class_right=got in (case.classes or (NOTHING,)),
        accused_innocents=sorted(accused - set(case.ranks)),
    )


def summarise(scores: list[Score]) -> str:
    """Give the figures and the confusion matrix as text."""
    faults = [s for s in scores if not s.is_near_miss]
    misses = [s for s in scores if s.is_near_miss]
    seconds = sorted(s.seconds for s in faults if s.seconds is not None and not s.is_excused)
    lines = [""]
    if faults:
        lines += [
            f"detected          {sum(s.got != NOTHING for s in faults)} of {len(faults)}",
            f"exact suspect set {sum(s.is_set_right for s in faults)} of {len(faults)}",
            f"right class       {sum(s.is_class_right for s in faults)} of {len(faults)}",
        ]
    lines += [
        f"innocents accused {sum(bool(s.accused_innocents) for s in scores)} of {len(scores)} jobs",
        f"near misses       {sum(s.is_right for s in misses)} of {len(misses)} silent",
    ]
    if len(seconds) > 1:
        p90 = statistics.quantiles(seconds, n=10, method="inclusive")[-1]
        lines.append(
            f"fault to verdict  p50 {statistics.median(seconds):.1f} s, p90 {p90:.1f} s"
            f" ({len(seconds)} faults nobody excuses)"
        )
    matrix = Counter((s.expected, s.got) for s in scores)
    lines += ["", f"{'expected':<34} {'said':<18} jobs"]
    lines += [f"{e:<34} {g:<18} {count}" for (e, g), count in sorted(matrix.items())]
    return "\n".join(lines)


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--json", type=Path, help="also write the scores here")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.only in case.name]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return
    scores = []
    print(f"{'case':<52} {'right':<6} {'s':>6}  said", flush=True)
    for case in chosen:
        score = run_case(case)
        scores.append(score)
        seconds = "" if score.seconds is None else f"{score.seconds:.1f}"
        said = f"{score.got} {score.named} {score.confidence}"
        print(
            f"{case.name:<52} {'yes' if score.is_right else 'NO':<6} {seconds:>6}  {said}",
            flush=True,
        )
    print(summarise(scores))
    if options.json:
        options.json.write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n")
    sys.exit(0 if all(score.is_right for score in scores) else 1)


if __name__ == "__main__":
    main()
