"""What one version of torch shows: the doctor's word, the capture tests, a rehearsed hang."""

from __future__ import annotations

import json
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.matrix.commands import CommandError, output_of, watch
from tests.matrix.rehearsal import rehearse_hang

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    "tests/unit/train/test_torch_versions.py": ("collectives.counters", "collectives.entries"),
    "tests/unit/train/test_collective_timing_hook.py": ("collective_timing",),
    "tests/unit/train/test_exact_collectives_hook.py": ("exact_collectives",),
    "tests/unit/train/test_point_to_point_hook.py": ("point_to_point",),
    "tests/integration/test_sources_flight_recorder.py": ("collectives.entries",),
    "tests/integration/test_rank_job.py": ("steps", "input", "checkpoint", "process_groups"),
}
"""File of tests -> signals that are not to be trusted where one of them fails."""
DOCTOR_LIMIT_S = 300
TESTS_LIMIT_S = 1_200
"""They take 1 to 3 minutes."""


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
    hang: str = ""
    """Who was named in a rehearsed hang of rank 1; empty: not rehearsed."""
    is_hang_wrong: bool = False
    problem: str = ""
    """Why there is no column, or no whole one; empty: there is one."""

    @property
    def is_well(self) -> bool:
        """Whether all of it was tried, and nothing failed."""
        return not (self.problem or self.is_hang_wrong or "fails" in self.states.values())


def examine(python: str, version: str, *, with_tests: bool, with_hang: bool) -> Column:
    """Look at one environment: ask the doctor, run the capture tests, rehearse a hang."""
    column = Column(version=version)
    try:
        command = [python, "-m", "tracecore_sidecar", "doctor", "--json", "--timeout", "120"]
        _read_doctor(column, json.loads(output_of(command, limit_s=DOCTOR_LIMIT_S)))
    except (CommandError, ValueError, KeyError, TypeError) as error:
        column.problem = f"the doctor gave no answer ({error!r})"
        return column
    if with_tests:
        _add_tests(column, python)
    if with_hang:
        sees_entries = column.states.get("collectives.entries") == "measured"
        column.hang, column.is_hang_wrong = rehearse_hang(python, must_name=sees_entries)
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


def _read_doctor(column: Column, document: Any) -> None:
    column.version = document["torch"] or f"{column.version}: no torch"
    column.problem = "; ".join(document["problems"])
    for signal in document["signals"]:
        column.states[signal["name"]] = signal["state"]
        column.reasons[signal["name"]] = signal["reason"]


def _add_tests(column: Column, python: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "tests.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            watch([*command, *CAPTURE_TESTS], limit_s=TESTS_LIMIT_S)
            mark_failures(column, ET.parse(report).getroot())
        except (CommandError, OSError, ET.ParseError) as error:
            column.problem = f"the tests gave no answer ({error})"
