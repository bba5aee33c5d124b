"""The version matrix: what it makes of the doctor's answer and of a test report."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

from tests.matrix.run import CAPTURE_TESTS, ROOT, Column, examine, main, mark_failures, render
from tracecore_train.wire.signals import BY_NAME

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FILE = "tests.unit.train.test_optimizer_hook"
REPORT = f"""<testsuites><testsuite>
<testcase classname="{FILE}" name="test_a"/>
<testcase classname="{FILE}" name="test_b"><failure message="no"/></testcase>
<testcase classname="tests.unit.train.test_dataloader_hook" name="test_c"><skipped/></testcase>
</testsuite></testsuites>"""


def answer(**changes: Any) -> bytes:
    signals = [
        {"name": "steps", "state": "measured", "reason": ""},
        {"name": "input", "state": "blind", "reason": "no DataLoader"},
    ]
    return json.dumps({"torch": "2.6.0", "problems": [], "signals": signals, **changes}).encode()


def doctor_says(monkeypatch: pytest.MonkeyPatch, stdout: bytes) -> None:
    done = subprocess.CompletedProcess(args=[], returncode=0, stdout=stdout)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)


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


def test_the_doctor_fills_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, states and reasons are the doctor's."""
    doctor_says(monkeypatch, answer())
    column = examine("python", "2.6", with_tests=False)
    assert (column.version, column.problem) == ("2.6.0", "")
    assert column.states == {"steps": "measured", "input": "blind"}


def test_no_answer_is_a_problem_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which the doctor does not even start has no column."""
    doctor_says(monkeypatch, b"Traceback")
    column = examine("python", "2.6", with_tests=False)
    assert column.version == "2.6"
    assert "no answer" in column.problem


def test_the_table_holds_all_versions() -> None:
    """A signal one version does not know is not tried there; reasons stand below."""
    columns = [
        Column(version="2.6.0", states={"steps": "measured"}, num_tests={"passed": 3}),
        Column(
            version="2.13.0",
            states={"steps": "measured", "input": "blind"},
            reasons={"steps": "", "input": "no DataLoader"},
        ),
        Column(version="9.9", problem="cannot be installed"),
    ]
    lines = render(columns).splitlines()
    assert lines[:2] == ["| signal | 2.6.0 | 2.13.0 | 9.9 |", "|---|---|---|---|"]
    assert "| `input` | not tried | blind | not tried |" in lines
    assert "| tests | 3 passed | none | none |" in lines
    assert "- `input` blind: no DataLoader" in lines
    assert "- not usable: cannot be installed" in lines


def test_the_exit_code_tells_failures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blind is no failure; a path that does not work is."""
    doctor_says(monkeypatch, answer())
    assert main(["--here", "--no-tests", "--output", str(tmp_path / "m.md")]) == 0
    assert "2.6.0" in (tmp_path / "m.md").read_text()
    doctor_says(monkeypatch, answer(problems=["no sidecar"]))
    assert main(["--here", "--no-tests"]) == 1


def test_help_names_the_versions() -> None:
    """`--help` says what it costs and shows examples."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "matrix" / "run.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "2.6 2.8 2.10 2.13 newest" in done.stdout
    assert "gigabytes" in done.stdout
