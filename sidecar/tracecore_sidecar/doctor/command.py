"""One run of the doctor: facts, trial, diagnosis, answer, exit code."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING

from tracecore_sidecar.doctor.diagnosis import diagnose, is_proven
from tracecore_sidecar.doctor.facts import gather
from tracecore_sidecar.doctor.report import render, to_json
from tracecore_sidecar.doctor.trial import run_trial

if TYPE_CHECKING:
    from collections.abc import Callable


def examine(*, as_json: bool, timeout_s: float, tell: Callable[[str], None]) -> tuple[str, int]:
    """Give the answer and the exit code: 1 only where the path itself does not work."""
    began = time.monotonic()
    trial = run_trial(
        timeout_s=timeout_s,
        tell=lambda text: tell(f"tracecore doctor: {text} ({time.monotonic() - began:.0f} s)"),
        is_enough=is_proven,
        environ=os.environ,
    )
    facts, findings, host = gather(os.environ), diagnose(trial), socket.gethostname()
    if as_json:
        answer = json.dumps(to_json(trial, facts, findings, host), indent=2)
    else:
        answer = render(trial, facts, findings, host)
    return answer, 1 if trial.problems else 0
