"""The examples run as a user would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
