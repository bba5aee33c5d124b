"""The launcher's way of ending its sidecar."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tracecore_integrations.sidecar_process import SidecarProcess

ENDS_ON_SIGTERM = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)\n"
)


def start(program: str) -> subprocess.Popen[bytes]:
    """A stand-in for a sidecar that is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def test_a_stopped_sidecar_still_writes_its_summary() -> None:
    """One under SIGSTOP goes on and ends by itself, long before it would be killed."""
    process = start(ENDS_ON_SIGTERM)
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    SidecarProcess(process, display="plain").stop(lambda: False, timeout_s=50)
    assert process.returncode == 7
    assert time.monotonic() - began < 40


def test_a_sidecar_that_ignores_sigterm_is_killed() -> None:
    """Nothing it does keeps the launcher longer than the deadline."""
    process = start(ENDS_ON_SIGTERM.replace("lambda *_: sys.exit(7)", "signal.SIG_IGN"))
    SidecarProcess(process, display="plain").stop(lambda: False, timeout_s=0.5)
    assert process.returncode == -signal.SIGKILL
