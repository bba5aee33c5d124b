"""The version matrix: what it makes of the doctor's answer and of a test report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest

from tests.matrix.column import CAPTURE_TESTS, Column, examine, mark_failures
from tests.matrix.commands import ROOT, CommandError, must, output_of
from tests.matrix.environments import environment
from tests.matrix.rehearsal import judge
from tests.matrix.run import main, render
from tracecore_train.wire.signals import BY_NAME

if TYPE_CHECKING:
    from pathlib import Path

FILE = "tests.unit.train.test_optimizer_hook"
REPORT = f"""<testsuites><testsuite>
<testcase classname="{FILE}" name="test_a"/>
<testcase classname="{FILE}" name="test_b"><failure message="no"/></testcase>
<testcase classname="tests.unit.train.test_dataloader_hook" name="test_c"><skipped/></testcase>
</testsuite></testsuites>"""


def answer(**changes: Any) -> str:
    signals = [
        {"name": "steps", "state": "measured", "reason": ""},
        {"name": "input", "state": "blind", "reason": "no DataLoader"},
    ]
    return json.dumps({"torch": "2.6.0", "problems": [], "signals": signals, **changes})


def python_that_says(directory: Path, text: str) -> str:
    """Give an interpreter that answers every command with ``text``."""
    (directory / "answer").write_text(text)
    python = directory / "python"
    python.write_text(f"#!/bin/sh\nexec cat {directory / 'answer'}\n")
    python.chmod(0o755)
    return str(python)


def doctor(python: str) -> Column:
    return examine(python, "2.6", with_tests=False, with_hang=False)


def verdict(*ranks: int, pattern: str = "hang") -> dict[str, Any]:
    return {
        "pattern": pattern,
        "suspects": [{"rank": rank} for rank in ranks],
        "confidence": "full",
        "since_ns": 0,
        "emitted_at_ns": 6_400_000_000,
    }


def test_every_capture_test_and_signal_exists() -> None:
    """The map from tests to signals names files that are there and signals of the table."""
    for file, signals in CAPTURE_TESTS.items():
        assert (ROOT / file).exists(), file
        assert set(signals) <= BY_NAME.keys(), file


def test_a_failing_test_outweighs_the_doctor() -> None:
    """A signal whose test fails is marked, with the test's name; a skipped test marks nothing."""
    column = Column(version="2.6.0", states={"steps": "measured", "input": "measured"})
    mark_failures(column, ET.fromstring(REPORT))
    assert column.states == {"steps": "fails", "input": "measured"}
    assert column.reasons["steps"].endswith("test_optimizer_hook.py::test_b")
    assert column.num_tests == {"passed": 1, "failed": 1, "skipped": 1}


def test_the_doctor_fills_a_column(tmp_path: Path) -> None:
    """Version, states and reasons are the doctor's."""
    column = doctor(python_that_says(tmp_path, answer()))
    assert (column.version, column.problem) == ("2.6.0", "")
    assert column.states == {"steps": "measured", "input": "blind"}


@pytest.mark.parametrize("said", ["Traceback", "[]", "{}", '{"torch": "2.6.0", "problems": []}'])
def test_no_answer_is_a_problem_not_a_crash(tmp_path: Path, said: str) -> None:
    """An environment in which the doctor does not start, or says something else, has no column."""
    column = doctor(python_that_says(tmp_path, said))
    assert "no answer" in column.problem
    assert not column.is_well


def test_no_interpreter_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    """Where the environment is broken the column says which command could not start."""
    assert "No such file" in doctor(str(tmp_path / "python")).problem


@pytest.mark.parametrize(
    ("ranks", "must_name", "is_wrong"),
    [
        ((1,), True, False),
        ((), True, True),
        ((), False, False),
        ((1,), False, False),
        ((0,), False, True),
        ((0, 1), True, True),
    ],
)
def test_a_rehearsed_hang_is_judged(
    ranks: tuple[int, ...], must_name: bool, is_wrong: bool
) -> None:
    """Naming rank 0 is wrong everywhere, naming nobody only where entries are seen."""
    text, found = judge(verdict(*ranks), must_name=must_name)
    assert found is is_wrong
    assert text.endswith("after 6 s (full)")


def test_another_pattern_is_no_hang() -> None:
    """A straggler named in a hang is wrong, whoever it is."""
    assert judge(verdict(1, pattern="straggler"), must_name=False)[1]


def test_what_a_command_started_ends_at_its_limit(tmp_path: Path) -> None:
    """A command that is not done in time is killed with its children, and that is said."""
    began = time.monotonic()
    with pytest.raises(CommandError, match="not done"):
        # The child holds the pipe: it would be waited for.
        output_of(["/bin/sh", "-c", "sleep 100 & sleep 100"], limit_s=0.5)
    assert time.monotonic() - began < 60


def test_a_failed_installation_says_what_pip_said(tmp_path: Path) -> None:
    """Of all that pip says the last line with an error is kept."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho much\necho 'ERROR: No matching distribution' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(CommandError, match=r"pip install.*No matching") as raised:
        must([str(python), "-m", "pip", "install"], limit_s=60)
    assert "much" not in str(raised.value)


def test_a_version_that_cannot_be_had_stops_no_other(tmp_path: Path) -> None:
    """Each gets a column that says why, the table is written, and nothing is left behind."""
    table, kept = tmp_path / "m.md", tmp_path / "envs"
    options = ["--python", str(tmp_path / "none"), "--keep", str(kept), "--needs", "0"]
    assert main(["1.0", "1.1", *options, "--output", str(table)]) == 1
    assert table.read_text().count("cannot be installed") == 2
    assert list(kept.iterdir()) == []


def test_without_room_nothing_is_installed(tmp_path: Path) -> None:
    """Too small a disk is said before pip starts."""
    room = environment("2.6", python=sys.executable, keep=tmp_path, needed_gb=1e9)
    with pytest.raises(CommandError, match="GB are free"), room:
        pass


def test_the_table_holds_all_versions() -> None:
    """A signal one version does not know is not tried there; reasons stand below."""
    columns = [
        Column(
            version="2.6.0", states={"steps": "measured"}, num_tests={"passed": 3}, hang="rank 1"
        ),
        Column(
            version="2.13.0",
            states={"steps": "measured", "input": "blind"},
            reasons={"steps": "", "input": "no DataLoader"},
            hang="rank 0",
            is_hang_wrong=True,
        ),
        Column(version="9.9", problem="cannot be installed"),
    ]
    lines = render(columns).splitlines()
    assert lines[:2] == ["| signal | 2.6.0 | 2.13.0 | 9.9 |", "|---|---|---|---|"]
    assert "| `input` | not tried | blind | not tried |" in lines
    assert "| tests | 3 passed | none | none |" in lines
    assert "| hang of rank 1: named | rank 1 | fails: rank 0 | not tried |" in lines
    assert "- `input` blind: no DataLoader" in lines
    assert "- not usable: cannot be installed" in lines


def test_the_exit_code_tells_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blind is no failure; a path that does not work is."""
    table = tmp_path / "m.md"
    here = ["--here", "--no-tests", "--no-hang", "--output", str(table)]
    monkeypatch.setattr(sys, "executable", python_that_says(tmp_path, answer()))
    assert main(here) == 0
    assert "2.6.0" in table.read_text()
    python_that_says(tmp_path, answer(problems=["no sidecar"]))
    assert main(here) == 1


def test_help_names_the_versions() -> None:
    """`--help` says what it costs and shows examples."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "matrix" / "run.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "2.6 2.8 2.10 2.13 2.14 newest" in done.stdout
    assert "gigabytes" in done.stdout
