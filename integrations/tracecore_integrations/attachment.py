"""What runs beside torchrun: the sidecar, the worker watch, and the variables the ranks see.

Whatever of it cannot start is said in one line and left out; the job runs. Whatever started is
stopped again in reverse order, however the job ends.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_integrations.launcher_reports import LauncherReports
from tracecore_integrations.sidecar_process import JobDirectory, start_sidecar
from tracecore_integrations.worker_watch import WorkerWatch
from tracecore_train import runtime
from tracecore_train.errors import TracecoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tracecore_integrations.job_identity import JobIdentity

BOOTSTRAP_DIR = Path(runtime.__file__).parent / "bootstrap"
"""Holds the ``sitecustomize`` that lets our code into an unchanged script."""
FLUSH_TIMEOUT_S = 2.0
"""Seconds for the last exits to reach the sidecar after the job ended."""


def say(text: str) -> None:
    """Tell the user one line, on standard error: standard output belongs to the job."""
    sys.stderr.write(f"tracecore: {text}\n")
    sys.stderr.flush()


@contextmanager
def attached(
    job: JobIdentity,
    *,
    output: str | None,
    is_quiet: bool,
    fault: str | None,
    on_hang: str | None = None,
) -> Iterator[None]:
    """Run everything of ours for the time of the block, in which torchrun runs."""
    stack = ExitStack()
    impatience = _Impatience()
    try:
        variables: Mapping[str, str] = {}
        try:
            directory = _start(
                stack, impatience, job, output=output, is_quiet=is_quiet, on_hang=on_hang
            )
            variables = _rank_variables(directory, job.job_id, fault)
        except (TracecoreError, OSError) as error:
            say(f"no sidecar, the job runs without one: {error}")
        with _environment(variables):
            yield
    finally:
        with impatience:
            stack.close()


def _start(
    stack: ExitStack,
    impatience: _Impatience,
    job: JobIdentity,
    *,
    output: str | None,
    is_quiet: bool,
    on_hang: str | None,
) -> Path:
    """Start everything, each with its end on the stack; give the job's runtime directory."""
    directory = JobDirectory.claim(job.job_id)
    stack.callback(directory.remove)
    sidecar = start_sidecar(
        directory.path,
        job_id=job.job_id,
        output=_output(job, output),
        node_rank=job.node_rank or 0,
        display="quiet" if is_quiet else "live" if sys.stderr.isatty() else "plain",
        on_hang=on_hang,
    )
    stack.callback(sidecar.stop, impatience.is_shown)
    if job.num_nodes > 1 and not job.is_shared:
        say(
            "several nodes and no job id: set TRACECORE_JOB_ID to the same text on every node, "
            f"so that they share one (this node made {job.job_id})"
        )
    reports = LauncherReports(
        runtime.sidecar_socket(directory.path),
        job_id=job.job_id,
        sidecar_exit_code=sidecar.exit_code,
        say=say,
    )
    watch = WorkerWatch(reports.emit)
    watch.install()
    if watch.blind:
        say(f"blind: worker_exits: {watch.blind}")
    reports.start(watch.look)
    stack.callback(reports.close, FLUSH_TIMEOUT_S)
    stack.callback(watch.uninstall)
    return directory.path


def _output(job: JobIdentity, given: str | None) -> Path:
    output = Path(given or runtime.job_dir(job.job_id, Path("tracecore-runs")))
    if job.node_rank is not None:
        return output
    # Nodes that share a disk must not write one file, and only the rendezvous tells them apart.
    output = output / socket.gethostname()
    say(f"the node rank is not known before the rendezvous: output goes to {output}")
    return output


def _rank_variables(directory: Path, job_id: str, fault: str | None) -> dict[str, str]:
    """Give the variables the ranks see beside torchrun's."""
    paths = (str(BOOTSTRAP_DIR), os.environ.get("PYTHONPATH"))
    variables = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TRACECORE_BOOTSTRAP": "1",
        "TRACECORE_ENDPOINT": f"unix:{runtime.sidecar_socket(directory)}",
        "TRACECORE_JOB_ID": job_id,
    }
    if fault is not None:
        variables["TRACECORE_FAULT"] = fault
    return variables


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Impatience:
    """During the clean-up, signals of an impatient user or scheduler only set a flag."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._is_shown = False
        self._before: dict[int, Any] = {}

    def is_shown(self) -> bool:
        return self._is_shown

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._show_impatience) for number in self._SIGNALS
            }

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _show_impatience(self, *_: object) -> None:
        self._is_shown = True
