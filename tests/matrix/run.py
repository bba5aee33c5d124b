"""What TraceCore sees on each version of torch: a table of version by signal, really tried.

Outside CI: each version is installed into a throwaway environment (gigabytes, minutes). There the
doctor says how every signal stands, and the tests of the capturing code run; a signal whose tests
fail is marked so, whatever the doctor says.

    python tests/matrix/run.py                      # 2.6 2.8 2.10 2.13 newest
    python tests/matrix/run.py 2.6 newest --output matrix.md
    python tests/matrix/run.py --here --no-tests    # this very environment, the doctor only

pip's own variables (PIP_INDEX_URL and the like) choose where torch comes from; the CPU builds are
a tenth of the size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("2.6", "2.8", "2.10", "2.13", "newest")
CAPTURE_TESTS: Mapping[str, tuple[str, ...]] = {
    "tests/unit/train/test_optimizer_hook.py": ("steps",),
    "tests/unit/train/test_dataloader_hook.py": ("input", "input.queue"),
    "tests/unit/train/test_checkpoint_hook.py": ("checkpoint",),
    "tests/unit/train/test_checkpoint_savers.py": ("checkpoint",),
    "tests/unit/train/test_garbage_hook.py": ("gc",),
    "tests/unit/train/test_memory_hook.py": ("memory.device", "memory.oom"),
    "tests/unit/train/test_loaders.py": ("input.queue",),
    "tests/unit/train/test_step_parts.py": ("step_parts",),
    "tests/unit/train/test_device_time.py": ("device_time",),
    "tests/unit/train/test_failure_hook.py": ("exceptions", "exceptions.distributed"),
    "tests/unit/train/test_termination_hook.py": ("sigterm",),
    "tests/unit/train/test_ptracer_hook.py": ("ptrace_grant",),
    "tests/unit/train/test_process_groups_hook.py": ("process_groups", "collectives.counters"),
    "tests/unit/train/test_collective_timing_hook.py": ("collective_timing",),
    "tests/unit/train/test_exact_collectives_hook.py": ("exact_collectives",),
    "tests/unit/train/test_point_to_point_hook.py": ("point_to_point",),
    "tests/integration/test_sources_flight_recorder.py": ("collectives.entries",),
    "tests/integration/test_rank_job.py": ("steps", "input", "checkpoint", "process_groups"),
}
"""File of tests -> signals that are not to be trusted where one of them fails."""
INSTALL_TIMEOUT_S = 3_600
DOCTOR_TIMEOUT_S = 300
TESTS_TIMEOUT_S = 1_800


@dataclass
class Column:
    """One version of torch."""

    version: str
    """As torch itself says it; as asked for where it could not be installed."""
    states: dict[str, str] = field(default_factory=dict)
    """Signal -> ``measured``, ``blind``, ``off``, ``fails``."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Signal -> why it is not measured, or which test fails."""
    num_tests: dict[str, int] = field(default_factory=dict)
    """``passed``, ``failed``, ``skipped`` -> count; empty: none ran."""
    problem: str = ""
    """Why there is no column; empty: there is one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; exit code 1 where a version could not be tried or a test fails."""
    args = _parser().parse_args(argv)
    if args.here:
        columns = [examine(sys.executable, "here", with_tests=args.tests)]
    else:
        columns = [_in_throwaway(version, args) for version in args.versions or VERSIONS]
    table = render(columns)
    sys.stdout.write(table)
    if args.output is not None:
        args.output.write_text(table)
    return int(any(c.problem or "fails" in c.states.values() for c in columns))


def examine(python: str, version: str, *, with_tests: bool) -> Column:
    """Ask the doctor of one environment, and run the capture tests in it."""
    column = Column(version=version)
    try:
        done = subprocess.run(
            [python, "-m", "tracecore_sidecar", "doctor", "--json", "--timeout", "120"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            timeout=DOCTOR_TIMEOUT_S,
            check=False,
        )
        document = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        column.problem = f"the doctor gave no answer ({error})"
        return column
    column.version = document["torch"] or f"{version}: no torch"
    column.problem = "; ".join(document["problems"])
    for signal in document["signals"]:
        column.states[signal["name"]] = signal["state"]
        column.reasons[signal["name"]] = signal["reason"]
    if with_tests:
        _add_tests(column, python)
    return column


def mark_failures(column: Column, report: ET.Element) -> None:
    """Count the tests of a JUnit report, and mark the signals of files with a failure."""
    counts: Counter[str] = Counter()
    for case in report.iter("testcase"):
        tags = {child.tag for child in case}
        ending = "failed" if tags & {"failure", "error"} else "skipped"
        counts[ending if tags & {"failure", "error", "skipped"} else "passed"] += 1
        if ending == "failed":
            name = case.get("classname", "")
            for file, signals in CAPTURE_TESTS.items():
                if name == file.removesuffix(".py").replace("/", "."):
                    column.states.update(dict.fromkeys(signals, "fails"))
                    column.reasons.update(dict.fromkeys(signals, f"{file}::{case.get('name')}"))
    column.num_tests = dict(counts)


def render(columns: Sequence[Column]) -> str:
    """Give the table and the reasons below it, as Markdown."""
    names = list(dict.fromkeys(name for column in columns for name in column.states))
    lines = [
        f"| signal | {' | '.join(column.version for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        cells = " | ".join(column.states.get(name, "not tried") for column in columns)
        lines.append(f"| `{name}` | {cells} |")
    lines.append(f"| tests | {' | '.join(_tests_text(column) for column in columns)} |")
    for column in columns:
        lines += ["", f"**{column.version}**", ""]
        if column.problem:
            lines.append(f"- not usable: {column.problem}")
        lines += [
            f"- `{name}` {state}: {column.reasons[name]}"
            for name, state in column.states.items()
            if state in {"blind", "fails"}
        ]
    return "\n".join(lines) + "\n"


def _in_throwaway(version: str, args: argparse.Namespace) -> Column:
    with tempfile.TemporaryDirectory(prefix=f"tracecore-torch-{version}-") as directory:
        python = f"{directory}/bin/python"
        wanted = "torch" if version == "newest" else f"torch=={version}.*"
        steps = (
            [args.python, "-m", "venv", directory],
            [python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1"],
            [python, "-m", "pip", "install", "--quiet", wanted],
            [python, "-m", "pip", "install", "--quiet", "--editable", ".", "--group", "test"],
        )
        for step in steps:
            sys.stderr.write(f"matrix: {version}: {' '.join(step[-2:])}\n")
            try:
                subprocess.run(step, cwd=ROOT, timeout=INSTALL_TIMEOUT_S, check=True)
            except (OSError, subprocess.SubprocessError) as error:
                return Column(version=version, problem=f"cannot be installed ({error})")
        return examine(python, version, with_tests=args.tests)


def _add_tests(column: Column, python: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "tests.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            subprocess.run(
                [*command, *CAPTURE_TESTS],
                cwd=ROOT,
                stdout=sys.stderr,
                timeout=TESTS_TIMEOUT_S,
                check=False,
            )
            mark_failures(column, ET.parse(report).getroot())
        except (OSError, ET.ParseError, subprocess.TimeoutExpired) as error:
            column.problem = f"the tests gave no answer ({error})"


def _tests_text(column: Column) -> str:
    counts = column.num_tests
    return (
        ", ".join(f"{counts[e]} {e}" for e in ("passed", "failed", "skipped") if e in counts)
        or "none"
    )


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="2.6, 2.13, newest ...")
    parser.add_argument("--here", action="store_true", help="this environment, installing nothing")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="the doctor only")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter to make the environments with"
    )
    return parser


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
