"""A rehearsed hang under `tracecore run`: rank 1 of 2 sleeps, and who is named?

What must never happen is that rank 0 is named. That nobody is named is right where the version
does not show what the ranks wait in; a verdict that nothing moves must come all the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.matrix.commands import ROOT

PROGRAM = ROOT / "tests" / "support" / "programs" / "train_sleep.py"
HANGS = 1
"""The rank that hangs."""
LIMIT_S = 240.0
"""To a verdict: start, 60 steps, and the 60 s of quiet before a hang that nobody explains."""
END_S = 90.0
"""To the job's end after SIGTERM; torchrun itself waits for 30 s."""


def rehearse_hang(python: str, *, must_name: bool) -> tuple[str, bool]:
    """Give who is named, in words, and whether that is wrong.

    With ``must_name`` this torch shows what ranks wait in, and it is wrong to name nobody.
    """
    with tempfile.TemporaryDirectory(prefix="tracecore-hang-") as name:
        directory = Path(name)
        command = [python, "-m", "tracecore_sidecar", "run", "--output", str(directory / "out")]
        command += ["--fault", f"hang:rank={HANGS},at=60,for=900", "--standalone"]
        command += ["--nproc-per-node", "2", str(PROGRAM), "--steps", "200", "--step-ms", "45"]
        said = directory / "said"
        with said.open("wb") as sink:
            job = subprocess.Popen(
                command,
                cwd=directory,
                env=os.environ | {"TRACECORE_RUNTIME_DIR": str(directory / "rt")},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        try:
            verdict = _first_verdict(job, directory / "out" / "0" / "verdicts.jsonl")
            status = job.poll()
        finally:
            _end(job)
        if verdict is None:
            how = f"not within {LIMIT_S:.0f} s" if status is None else f"the job ended ({status})"
            lines = said.read_text(errors="replace").rstrip().splitlines()
            return f"no verdict, {how}: {' '.join(lines[-1:])[:200]}", True
        return judge(verdict, must_name=must_name)


def judge(verdict: dict[str, Any], *, must_name: bool) -> tuple[str, bool]:
    """Give who a verdict names, in words, and whether that is wrong."""
    ranks = [suspect["rank"] for suspect in verdict["suspects"]]
    after_s = (verdict["emitted_at_ns"] - verdict["since_ns"]) / 1e9
    named = f"rank {', '.join(map(str, ranks))}" if ranks else "nobody"
    is_wrong = ranks != [HANGS] if must_name else ranks not in ([], [HANGS])
    is_wrong = is_wrong or verdict["pattern"] != "hang"
    return f"{named} after {after_s:.0f} s ({verdict['confidence']})", is_wrong


def _first_verdict(job: subprocess.Popen[bytes], path: Path) -> dict[str, Any] | None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and job.poll() is None:
        text = path.read_text() if path.exists() else ""
        if "\n" in text:
            found: dict[str, Any] = json.loads(text.partition("\n")[0])
            return found
        time.sleep(0.2)
    return None


def _end(job: subprocess.Popen[bytes]) -> None:
    job.send_signal(signal.SIGTERM)
    try:
        job.wait(END_S)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
