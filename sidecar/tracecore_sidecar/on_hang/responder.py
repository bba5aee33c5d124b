"""From an incident to its bundle, and from the bundle to what the user wanted then.

The verdict has been told before any of this begins, and nothing of it can hold the verdict up.
Only hangs are followed by an action; a bundle is made for every pattern in :data:`BUNDLED`.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.bundle import dumps
from tracecore_sidecar.bundle.bundler import BundleError
from tracecore_sidecar.bundle.case import open_case
from tracecore_sidecar.bundle.folder import json_bytes
from tracecore_sidecar.on_hang.abort import RankProcess, end_ranks
from tracecore_sidecar.on_hang.choice import Action
from tracecore_sidecar.on_hang.command import run_command
from tracecore_sidecar.sources.beside import beside
from tracecore_sidecar.verdicts import Confidence
from tracecore_train import runtime
from tracecore_train.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from tracecore_sidecar.bundle.bundler import Bundle, Bundler
    from tracecore_sidecar.bundle.case import Case
    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.on_hang.choice import OnHang
    from tracecore_sidecar.pull_policy import NcclPull
    from tracecore_sidecar.state.view import JobView
    from tracecore_sidecar.verdicts import Verdict

BUNDLED = frozenset({"hang"})
"""Patterns whose incidents get a bundle."""
HANG = "hang"
MAX_PENDING = 4
"""Bundles that wait or are made; more troubles at once are told by their verdicts alone."""
CLOSE_WAIT_S = 3.0
"""How long the end of the job waits for a bundle or a command under way."""
DISK_TIMEOUT_S = 10.0
DUMPS = "dumps"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A hang with its bundle in place, whose attempt is to be ended."""

    case: Case
    bundle: Bundle


class Responder:
    """Follows the incidents of one sidecar. A sink that also wants the view."""

    def __init__(
        self,
        on_hang: OnHang,
        bundler: Bundler,
        *,
        job_dir: Path,
        output: Path,
        wall_offset_ns: int,
        nccl_pull: NcclPull,
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` shows a block of text to the user."""
        self._nccl_pull = nccl_pull
        self._on_hang = on_hang
        self._bundler = bundler
        self._job_dir = job_dir
        self._output = output
        self._wall_offset_ns = wall_offset_ns
        self._tell = tell
        self._guard = Guard("bundles and --on-hang")
        self._tasks: set[asyncio.Task[None]] = set()
        self._followed: set[str] = set()
        """Incidents that are open and whose bundle is being made."""
        self._ready: dict[str, _Ready] = {}
        self._is_told_partial = False
        self._is_closing = False

    @property
    def num_pending(self) -> int:
        """Bundles and actions under way."""
        return len(self._tasks)

    def on_event(self, event: IncidentEvent, view: JobView) -> None:
        """Take a change of an incident; needs a running event loop."""
        is_followed = event.verdict.pattern in BUNDLED and not self._is_closing
        if is_followed and self._guard.is_open:
            with self._guard:
                self._changed(event, view)

    def _changed(self, event: IncidentEvent, view: JobView) -> None:
        if event.change == "closed":
            self._followed.discard(event.incident_id)
            if self._ready.pop(event.incident_id, None):
                self._tell("On hang  the attempt was not ended: the job moves again")
        elif event.change == "opened" and len(self._tasks) < MAX_PENDING:
            self._followed.add(event.incident_id)
            with_page = runtime.rank_pages(self._job_dir, view.job.attempt)
            self._start(self._follow(open_case(event, view, with_page, self._nccl_pull)))

    def on_tick(self, verdicts: Sequence[Verdict], attempt: int) -> None:
        """Take the verdicts that hold now: an attempt is ended only while its hang lasts."""
        for incident_id, ready in list(self._ready.items()):
            if ready.case.job.attempt != attempt:
                del self._ready[incident_id]
                continue
            holds = [verdict for verdict in verdicts if verdict.pattern == HANG]
            if any(verdict.confidence is Confidence.FULL for verdict in holds):
                del self._ready[incident_id]
                self._start(self._abort(ready))
            elif holds and not self._is_told_partial:
                self._is_told_partial = True
                self._tell(
                    "On hang  the attempt is not ended yet: the verdict is partial, and only one "
                    "of full confidence ends an attempt"
                )

    async def close(self) -> None:
        """Let what is under way finish for a moment, then stop it."""
        self._is_closing = True
        tasks = list(self._tasks)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=CLOSE_WAIT_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CLOSE_WAIT_S)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        with self._guard:
            await work

    async def _follow(self, case: Case) -> None:
        action = self._on_hang.action if case.verdict.pattern == HANG else Action.REPORT
        try:
            bundle = await self._bundler.make(case)
        except BundleError as error:
            without = "" if action is Action.REPORT else f"; without one, no {action.value}"
            self._tell(f"Bundle   none: {error}{without}")
            return
        size, missing = f"{bundle.num_bytes / 1024:,.0f} KiB", bundle.num_missing
        things = f", {missing} thing{'s' if missing > 1 else ''} missing" if missing else ""
        self._tell(f"Bundle   {bundle.path}/ ({case.verdict.pattern}, {size}{things})")
        if action is Action.DUMP:
            await self._dump(case, bundle)
        elif action is Action.COMMAND:
            await self._command(bundle)
        elif action is Action.ABORT and case.incident_id in self._followed:
            self._ready[case.incident_id] = _Ready(case=case, bundle=bundle)
        self._followed.discard(case.incident_id)

    async def _dump(self, case: Case, bundle: Bundle) -> None:
        target = self._output / DUMPS / case.incident_id
        try:
            recorders = await beside(DISK_TIMEOUT_S, lambda: _copy_dumps(bundle.path, target))
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or error
            self._tell(f"On hang  no dumps in {target}: {reason}")
            return
        allow = "" if bundle.has_all_dumps else " --allow-incomplete-ranks"
        lines = [
            f"         python -m torch.distributed.flight_recorder.fr_trace {directory} "
            f"-p {dumps.FILE_PREFIX}{allow}"
            for directory in recorders
        ]
        self._tell("\n".join([f"On hang  dumps for torch's analyzer in {target}/", *lines]))
        await self._note(bundle, {"action": Action.DUMP.value, "directory": str(target)})

    async def _command(self, bundle: Bundle) -> None:
        started = time.monotonic()
        end = await run_command(self._on_hang.command(str(bundle.path.absolute())))
        self._tell(f"On hang  {end.text}")
        await self._note(
            bundle,
            {
                "action": Action.COMMAND.value,
                "program": end.program,
                "exit_code": end.exit_code,
                "is_late": end.is_late,
                "seconds": round(time.monotonic() - started, 3),
                "output": end.output,
                "error": end.error,
            },
        )

    async def _abort(self, ready: _Ready) -> None:
        case, bundle = ready.case, ready.bundle
        saved_s = self._saved_s(bundle)
        processes = [
            RankProcess(rank=rank.rank, pid=rank.pid, start_ticks=rank.start_ticks)
            for rank in case.ranks
            if not rank.is_ended
        ]
        self._tell(f"On hang  ending attempt {case.job.attempt}: {_saved_text(case, saved_s)}")
        aborted = await end_ranks(processes)
        ended = ", ".join(f"rank {rank} ({name})" for rank, name in aborted.ended.items())
        spared = "".join(f"; rank {rank}: {why}" for rank, why in aborted.spared.items())
        self._tell(f"On hang  ended {ended or 'no rank'}{spared}")
        await self._note(
            bundle,
            {
                "action": Action.ABORT.value,
                "attempt": case.job.attempt,
                "ended": {str(rank): name for rank, name in aborted.ended.items()},
                "spared": {str(rank): why for rank, why in aborted.spared.items()},
                "seconds_saved": saved_s,
            },
        )

    def _saved_s(self, bundle: Bundle) -> float | None:
        if bundle.give_up_wall_ns is None:
            return None
        now_wall_ns = time.monotonic_ns() + self._wall_offset_ns
        return round(max(0, bundle.give_up_wall_ns - now_wall_ns) / 1e9, 1)

    async def _note(self, bundle: Bundle, value: dict[str, Any]) -> None:
        """Leave in the bundle what was done."""
        try:
            await beside(DISK_TIMEOUT_S, lambda: _write_note(bundle.path, value))
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or error
            self._tell(f"On hang  on_hang.json could not be written: {reason}")


def _saved_text(case: Case, saved_s: float | None) -> str:
    if saved_s is None:
        return "when torch's own timeout would have ended it is not known"
    hours = saved_s * case.job.world_size / 3600
    return (
        f"{saved_s:,.0f} s before torch's own timeout would have; "
        f"{hours:.2g} rank-hours saved on {case.job.world_size} ranks"
    )


def _copy_dumps(bundle: Path, target: Path) -> list[Path]:
    """Copy the pickles; give the directory of each recorder."""
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(bundle / dumps.DIRECTORY, aside)
        aside.rename(target)
        return sorted(target.iterdir())
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write_note(bundle: Path, value: dict[str, Any]) -> None:
    aside = bundle / ".on_hang.json.tmp"
    try:
        aside.write_bytes(json_bytes(value))
        aside.rename(bundle / "on_hang.json")
    except OSError:
        aside.unlink(missing_ok=True)
        raise
