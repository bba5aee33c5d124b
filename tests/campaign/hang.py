"""The hang campaign: real gloo jobs with real faults, scored.

    python tests/campaign/hang.py                        # everything, about an hour
    python tests/campaign/hang.py --only 'dp_tp.*early'  # cases whose name matches
    python tests/campaign/hang.py --results scores.jsonl # go on where an earlier call was ended
    python tests/campaign/hang.py --jobs 2               # two jobs side by side

Each case is one job under `tracecore run`, ended as soon as a verdict stands. A case is right when
exactly the ranks at fault are named, in the right class; a near miss is right when nobody is.
"s" counts from the moment the fault began to the first verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.campaign.cases import CASES, Case

if TYPE_CHECKING:
    from collections.abc import Iterable

JOB = Path(__file__).with_name("job.py")
START_TIMEOUT_S = 120.0
"""For imports, rendezvous and the steps before the fault."""
SETTLE_S = 3.0
"""A verdict may still change while evidence comes in."""
NOTHING = "nothing"
NO_FAULT = "no fault began"
"""The job ended or was too slow before its fault: it says nothing of the product."""
TAIL = 400
"""Characters of a job's log that are kept."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one case gave."""

    case: str
    definition: str
    """The whole case: a score of another one under the same name is not used again."""
    expected: str
    suspects: list[int]
    num_at_fault: int
    shape: str
    got: str
    named: list[int]
    confidence: str
    summary: str
    seconds: float | None
    exit_code: int | None
    """Of the job, where it ended by itself."""
    log: str
    """The end of its log, then."""
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
        began_ns = 0
        try:
            began_ns = _wait_for_fault(case, process, marks)
            if began_ns:
                _wait_for_verdict(case, process, output)
            exit_code = process.poll()
        finally:
            _end(process, root)
        hangs = [v for v in _verdicts(output) if v["pattern"] == "hang"]
        log = (root / "log").read_text(errors="replace")[-TAIL:]
    return score_of(case, hangs, began_ns, exit_code, log)


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
    """Give the wall-clock time at which the last of the faults began; 0: none did."""
    deadline = time.monotonic() + START_TIMEOUT_S
    num_marks = case.num_ranks if case.fault == "everyone" else len(case.ranks)
    while time.monotonic() < deadline and process.poll() is None:
        found = [path.read_text() for path in marks.iterdir()]
        if len(found) >= num_marks and all(found):
            return max(map(int, found), default=time.time_ns())
        time.sleep(0.1)
    return 0


def _wait_for_verdict(case: Case, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + case.deadline_s
    while time.monotonic() < deadline and process.poll() is None:
        if any(verdict["pattern"] == "hang" for verdict in _verdicts(output)):
            deadline = min(deadline, time.monotonic() + SETTLE_S)
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes], root: Path) -> None:
    """End the launcher, its sidecar and ranks that cannot hear."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    for pid in _processes_of(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _processes_of(root: Path) -> list[int]:
    """Give the processes of one job, also those whose parent is gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{root}/".encode() in arguments:
                found.append(int(entry.name))
    return found


def _verdicts(output: Path) -> list[dict[str, Any]]:
    path = output / "0" / "verdicts.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def score_of(
    case: Case,
    hangs: list[dict[str, Any]],
    began_ns: int,
    exit_code: int | None = None,
    log: str = "",
) -> Score:
    """Judge the verdicts of a job: the last of each cause counts, an innocent in any of them."""
    accused = {rank for verdict in hangs for rank in _ranks(verdict)}
    last = list({verdict["incident_id"]: verdict for verdict in hangs}.values())
    named = {rank for verdict in last for rank in _ranks(verdict)}
    classes = sorted({str(verdict["class"]) for verdict in last})
    got = " + ".join(classes) or (NOTHING if began_ns else NO_FAULT)
    return Score(
        case=case.name,
        definition=repr(case),
        expected="/".join(case.classes) or NOTHING,
        suspects=sorted(case.expected),
        num_at_fault=len(case.ranks),
        shape=case.shape,
        got=got,
        named=sorted(named),
        confidence=" + ".join(sorted({str(verdict["confidence"]) for verdict in last})),
        summary="; ".join(str(verdict["summary"]) for verdict in last),
        seconds=(hangs[0]["emitted_at_ns"] - began_ns) / 1e9 if hangs and began_ns else None,
        exit_code=exit_code,
        log="" if exit_code is None or case.is_near_miss else log,
        is_near_miss=case.is_near_miss,
        is_excused=case.is_excused,
        is_set_right=got != NO_FAULT
        and (named == set(case.expected) or (case.may_be_partial and bool(hangs) and not named)),
        is_class_right=set(classes or [got]) <= set(case.classes or (NOTHING,)),
        accused_innocents=sorted(accused - (case.expected or set(case.ranks))),
    )


def _ranks(verdict: dict[str, Any]) -> set[int]:
    return {s["rank"] for s in verdict["suspects"] if s.get("rank") is not None}


def summarise(scores: list[Score]) -> str:
    """Give the figures, the classes and the confusion matrix as text."""
    faults = [s for s in scores if not s.is_near_miss]
    singles = [s for s in faults if s.num_at_fault < 2]
    doubles = [s for s in faults if s.num_at_fault > 1]
    misses = [s for s in scores if s.is_near_miss]
    seconds = sorted(s.seconds for s in faults if s.seconds is not None and not s.is_excused)
    num_accused = sum(bool(s.accused_innocents) for s in scores)
    detected = [s for s in faults if s.got not in (NOTHING, NO_FAULT)]
    lines = [
        "",
        f"detected                  {_share(detected, faults)}",
        f"exact set, one at fault   {_share([s for s in singles if s.is_set_right], singles)}",
        f"exact set, two at fault   {_share([s for s in doubles if s.is_set_right], doubles)}",
        f"right class               {_share([s for s in faults if s.is_class_right], faults)}",
        f"innocents accused         in {num_accused} of {len(scores)} jobs",
        f"near misses silent        {_share([s for s in misses if s.is_right], misses)}",
        f"jobs without their fault  {sum(s.got == NO_FAULT for s in scores)}",
    ]
    if len(seconds) > 1:
        p90 = statistics.quantiles(seconds, n=10, method="inclusive")[-1]
        lines.append(
            f"fault to verdict          p50 {statistics.median(seconds):.1f} s, p90 {p90:.1f} s,"
            f" longest {seconds[-1]:.1f} s ({len(seconds)} faults nobody excuses)"
        )
    lines += [
        "",
        *_table("expected", "layout", [(s.expected, s.shape, s.is_right) for s in scores]),
    ]
    matrix = Counter((s.expected, s.got) for s in scores)
    lines += ["", f"{'expected':<46} {'said':<18} jobs"]
    lines += [f"{e:<46} {g:<18} {count}" for (e, g), count in sorted(matrix.items())]
    return "\n".join(lines)


def _share(part: list[Score], whole: list[Score]) -> str:
    percent = f" ({len(part) / len(whole):.0%})" if whole else ""
    return f"{len(part)} of {len(whole)}{percent}"


def _table(rows: str, columns: str, cells: list[tuple[str, str, bool]]) -> list[str]:
    """Count what is right of what there is, by row and column."""
    names = sorted({column for _, column, _ in cells})
    lines = [f"{f'{rows} by {columns}, right/jobs':<46} " + " ".join(f"{n:>8}" for n in names)]
    for row in sorted({row for row, _, _ in cells}):
        line = f"{row:<46}"
        for name in names:
            found = [is_right for r, c, is_right in cells if (r, c) == (row, name)]
            line += f" {f'{sum(found)}/{len(found)}' if found else '':>8}"
        lines.append(line)
    return lines


def earlier_scores(path: Path | None, cases: Iterable[Case]) -> dict[str, Score]:
    """Give the scores of an interrupted call, by name: those of cases that are still the same."""
    if path is None or not path.exists():
        return {}
    wanted = {case.name: repr(case) for case in cases}
    found = {}
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError, TypeError):  # The last line may be half a line.
            score = Score(**json.loads(line))
            if wanted.get(score.case) == score.definition and score.got != NO_FAULT:
                found[score.case] = score
    return found


def _tell(score: Score, num_done: int, num_all: int, left_s: float) -> None:
    seconds = "" if score.seconds is None else f"{score.seconds:.1f}"
    said = f"{score.got} {score.named} {score.confidence}"
    print(
        f"{num_done:>3}/{num_all} ~{left_s / 60:>3.0f} min  {score.case:<70}"
        f" {'yes' if score.is_right else 'NO':<4} {seconds:>6}  {said}",
        flush=True,
    )
    if not score.is_right and score.log:
        print(f"    the job ended with {score.exit_code}: {score.log.strip()!r}", flush=True)


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="run the cases whose name matches this pattern")
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    parser.add_argument("--jobs", type=int, default=1, help="jobs side by side (default: 1)")
    parser.add_argument(
        "--results", type=Path, help="write a line of JSON per case here; cases in it are not rerun"
    )
    options = parser.parse_args()
    chosen = [case for case in CASES if re.search(options.only, case.name)]
    if not chosen:
        parser.error(f"no case matches {options.only!r}; --list shows them")
    if options.list:
        print("\n".join(case.name for case in chosen))
        return
    scores = earlier_scores(options.results, chosen)
    if scores:
        print(f"{len(scores)} of {len(chosen)} cases are in {options.results}", flush=True)
    missing = [case for case in chosen if case.name not in scores]
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(run_case, case) for case in missing]
        try:
            for number, future in enumerate(as_completed(running), 1):
                score = future.result()
                scores[score.case] = score
                if options.results:
                    with options.results.open("a") as file:
                        file.write(json.dumps(asdict(score)) + "\n")
                left_s = (time.monotonic() - began) / number * (len(missing) - number)
                _tell(score, len(scores), len(chosen), left_s)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = [scores[case.name] for case in chosen]
    print(summarise(ordered))
    sys.exit(0 if all(score.is_right for score in ordered) else 1)


if __name__ == "__main__":
    main()
