"""The examples run as a user would run them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import run_job
from tracecore_train.wire.records import PhaseRecord, StepFlag, StepRecord

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def run(*arguments: str) -> str:
    """Run Python, and give standard output and error together."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TRACECORE_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
        env={**environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def held_out_losses(output: str) -> tuple[float, float]:
    """Read the last line of the GPT example."""
    last = output.splitlines()[-1]
    found = re.fullmatch(r"held-out loss ([\d.]+) -> ([\d.]+)", last)
    assert found, output
    return float(found.group(1)), float(found.group(2))


def test_the_gpt_learns_under_plain_torchrun(tmp_path: Path) -> None:
    """Sixty steps on two ranks bring the held-out loss down by a fifth, and are saved."""
    out = tmp_path / "checkpoints"
    script = str(EXAMPLES / "train_gpt.py")
    output = run(
        *(*TORCHRUN, script, "--device", "cpu", "--steps", "60"),
        *("--checkpoint-every", "40", "--out", str(out)),
    )
    before, after = held_out_losses(output)
    assert after < 0.8 * before
    assert re.search(r"^step 40  loss [\d.]+  \d+ ms a step$", output, re.MULTILINE)
    assert {path.name for path in out.iterdir()} == {"step40.pt", "step60.pt"}


def test_the_gpt_runs_with_plain_python(tmp_path: Path) -> None:
    """Without a launcher it is a world of one."""
    script = str(EXAMPLES / "train_gpt.py")
    output = run(script, "--device", "cpu", "--steps", "20", "--out", str(tmp_path))
    before, after = held_out_losses(output)
    assert after < before


def test_the_gpt_knows_nothing_of_us() -> None:
    """The example that needs no code change has none."""
    assert "tracecore" not in (EXAMPLES / "train_gpt.py").read_text().lower()


def test_plain_init_runs_without_a_sidecar() -> None:
    """Under plain torchrun each rank says once that there is no sidecar, and trains."""
    output = run(*TORCHRUN, str(EXAMPLES / "plain_init.py"))
    assert "epoch 4  error" in output
    assert 1 <= output.count("no sidecar") <= 2


def test_plain_init_marks_steps_and_phases_itself(tmp_path: Path) -> None:
    """Under `tracecore run` its own words end every step but the first, and name the phases."""
    job = run_job(tmp_path, program=EXAMPLES / "plain_init.py", ranks=1)
    assert job.returncode == 0, job.stderr
    steps = [record for record in job.records() if isinstance(record, StepRecord)]
    assert len(steps) == 5 * 4096 // 32
    assert all(step.flags & StepFlag.EXPLICIT for step in steps[1:])
    phases = [record.name for record in job.records() if isinstance(record, PhaseRecord)]
    assert phases == ["validation"] * 5


@pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="lightning is not installed"
)
def test_the_lightning_gpt_names_its_phases(tmp_path: Path) -> None:
    """A few steps on two ranks under `tracecore run` leave phases and step numbers of both."""
    arguments = ("--steps", "6", "--out", str(tmp_path / "out"))
    environ = {"OMP_NUM_THREADS": "1"}
    job = run_job(tmp_path, *arguments, program=EXAMPLES / "lightning_gpt.py", env=environ)
    assert job.returncode == 0, job.stderr
    assert re.search(r"^step 6  held-out loss [\d.]+$", job.stdout, re.MULTILINE)
    for rank in (0, 1):
        mine = [record for record in job.records() if getattr(record, "rank", None) == rank]
        names = {record.name for record in mine if isinstance(record, PhaseRecord)}
        assert names >= {"sanity_check", "validation", "checkpoint"}
        steps = [record for record in mine if isinstance(record, StepRecord)]
        told = [(step.global_step, step.num_microbatches) for step in steps]
        assert told == [(number, 2) for number in range(6)]
