"""`tracecore doctor` on this machine: a real sidecar, a real rank, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tracecore_sidecar.sources.ptrace import ptrace_obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROVEN = {
    "rank_page",
    "steps",
    "input",
    "checkpoint",
    "process_groups",
    "collectives.counters",
    "collectives.entries",
    "host.process",
}
"""What a rank on a CPU build of torch shows wherever these tests run."""


class Answer(NamedTuple):
    """What the doctor said."""

    exit_code: int
    document: dict[str, Any]
    progress: str

    def states(self) -> dict[str, str]:
        return {signal["name"]: signal["state"] for signal in self.document["signals"]}

    def reason(self, name: str) -> str:
        return next(str(s["reason"]) for s in self.document["signals"] if s["name"] == name)


def ask(runtime_dir: Path, **environ: str) -> Answer:
    """Run it with a runtime directory of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "tracecore_sidecar", "doctor", "--json", "--timeout", "120"],
        cwd=runtime_dir.parent,
        env={**os.environ, "TRACECORE_RUNTIME_DIR": str(runtime_dir), **environ},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.stdout, run.stderr
    return Answer(run.returncode, json.loads(run.stdout), run.stderr)


def processes_under(directory: Path) -> list[str]:
    """Processes that were given a path in ``directory``."""
    pids = [path.name for path in Path("/proc").glob("[0-9]*") if path.name != str(os.getpid())]
    return [pid for pid in pids if str(directory).encode() in environ_of(pid)]


def environ_of(pid: str) -> bytes:
    """The environment a process was started with; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def problems_of(answer: Answer) -> Mapping[str, object]:
    """What a failed assertion should show."""
    return {key: answer.document[key] for key in ("problems", "torch")}


def test_the_trial_proves_what_this_machine_can_show(tmp_path: Path) -> None:
    """Exit code 0, the signals every machine has are proven, and nothing is left behind."""
    answer = ask(tmp_path / "r")
    assert answer.exit_code == 0, problems_of(answer)
    states = answer.states()
    assert {name: states[name] for name in PROVEN} == dict.fromkeys(PROVEN, "measured")
    if not ptrace_obstacle():
        assert states["stacks"] == "measured", answer.reason("stacks")
    assert all(
        signal["reason"] for signal in answer.document["signals"] if signal["state"] == "blind"
    )
    assert answer.progress.count("tracecore doctor: ") == 3
    assert list((tmp_path / "r").iterdir()) == []
    assert processes_under(tmp_path / "r") == []


def test_what_the_user_turned_off_is_told_with_its_reason(tmp_path: Path) -> None:
    """A recorder of size 0 and a hook left out show as in a job: blind, and off."""
    answer = ask(tmp_path / "r", TORCH_FR_BUFFER_SIZE="0", TRACECORE_HOOKS="-checkpoint")
    assert answer.exit_code == 0, problems_of(answer)
    states = answer.states()
    assert states["collectives.counters"] == "blind"
    assert "TORCH_FR_BUFFER_SIZE=0" in answer.reason("collectives.counters")
    assert states["collectives.entries"] == "blind"
    assert states["checkpoint"] == "off"
    assert states["steps"] == "measured"


def test_without_torch_the_rest_is_shown(tmp_path: Path) -> None:
    """The path works, torch's absence is named, and its signals are blind for that reason."""
    broken = tmp_path / "broken"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise ImportError('no torch for this test')\n")
    inherited = os.environ.get("PYTHONPATH", "")
    answer = ask(tmp_path / "r", PYTHONPATH=f"{broken}{os.pathsep}{inherited}".rstrip(os.pathsep))
    assert answer.exit_code == 0, problems_of(answer)
    assert answer.document["torch"] is None
    states = answer.states()
    assert states["steps"] == "blind"
    assert "no torch for this test" in answer.reason("steps")
    assert (states["rank_page"], states["host.process"]) == ("measured", "measured")


def test_bad_settings_of_the_user_are_a_broken_path(tmp_path: Path) -> None:
    """What would stop every rank of a job stops the trial, with the same words."""
    answer = ask(tmp_path / "r", TRACECORE_HOOKS="optimiser")
    assert answer.exit_code == 1
    assert "did you mean optimizer" in answer.document["problems"][0]
    assert answer.states()["steps"] == "blind"


def test_a_disabled_rank_is_a_broken_path(tmp_path: Path) -> None:
    """TRACECORE_DISABLE=1 records nothing, and the doctor does not call that health."""
    answer = ask(tmp_path / "r", TRACECORE_DISABLE="1")
    assert answer.exit_code == 1
    assert "TRACECORE_DISABLE" in answer.document["problems"][0]
