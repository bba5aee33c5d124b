"""The same hang under torch's own tools: what they say, and when.

    python tests/campaign/torch_tools.py [--timeout 30]

Plain torchrun, four ranks on gloo, rank 2 asleep. Torch's timeout is set to seconds here; by
default it is 30 minutes. The ranks that time out leave recorder dumps, because on gloo torch
leaves none, and torch's analyzer reads them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = Path(__file__).with_name("job.py")
MAX_LINES = 12


def main() -> None:
    """Run the job, then the analyzer, and print what each says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="torch's timeout in seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        root = Path(directory)
        for name in ("marks", "dumps"):
            (root / name).mkdir()
        said = _job(root, options.timeout)
        waited_s = time.time() - int((root / "marks" / "2").read_text()) / 1e9
        print(f"torchrun: ended {waited_s:.0f} s after rank 2 fell asleep, and said")
        _show([line for line in said.splitlines() if "Error" in line or "imed out" in line])
        for options_text in ((), ("--allow-incomplete-ranks",)):
            command = [
                *(sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace"),
                *(str(root / "dumps"), "-p", "trace_", *options_text),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            flags = " ".join(options_text) or "without options"
            print(f"fr_trace, {flags}: exit code {done.returncode}, and said")
            _show((done.stdout + done.stderr).splitlines())


def _job(root: Path, timeout_s: float) -> str:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", str(JOB)),
        *("--fault", "sleep", "--ranks", "2", "--marks", str(root / "marks")),
        *("--timeout", str(timeout_s), "--dump", str(root / "dumps")),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s + 300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done.stdout + done.stderr


def _show(lines: list[str]) -> None:
    for line in lines[-MAX_LINES:] or ["(nothing)"]:
        print(f"    {line.strip()[:200]}")


if __name__ == "__main__":
    main()
