"""Gathers the contents of one bundle: everything at once, each thing with its own deadline.

A thing that cannot be had is noted with the reason and the rest goes on; only the bundle's own
disk can spoil it.
"""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.bundle import dumps, ras_files
from tracecore_sidecar.bundle.case import Role
from tracecore_sidecar.bundle.folder import NoRoomError
from tracecore_sidecar.bundle.node_facts import node_facts
from tracecore_sidecar.bundle.process_facts import read_environment, read_facts
from tracecore_sidecar.sinks.record_file import segments
from tracecore_sidecar.sources.beside import beside
from tracecore_sidecar.sources.flight_recorder import (
    GLOO_HANDLER,
    NCCL2_HANDLER,
    NCCL_HANDLER,
)
from tracecore_sidecar.sources.nccl_ras import ask_ras
from tracecore_sidecar.sources.rank_pages import copy_pages
from tracecore_sidecar.sources.stacks import dump_stacks
from tracecore_sidecar.sources.worker_server import PullError, fetch
from tracecore_train import runtime
from tracecore_train.errors import WireError
from tracecore_train.recorder.page import PAGE_SIZE, parse_page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from tracecore_sidecar.bundle.case import Case, LocalRank
    from tracecore_sidecar.bundle.folder import BundleFolder
    from tracecore_train.wire.records import StackRecord

    _Step: TypeAlias = Callable[[], Awaitable[None]]

RECORDERS = {GLOO_HANDLER: "gloo", NCCL2_HANDLER: "nccl2", NCCL_HANDLER: "nccl"}
"""Name of each recorder in the bundle, by the handler that gives it."""
DUMP_OF = "flight recorder of rank "
DEADLINE_S = 20.0
"""For everything together. Usual is two seconds; a node of stopped ranks takes longest."""
PULL_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 5.0
"""For facts of one process, the node, pages, records."""
ENVIRON_TIMEOUT_S = 2.0
"""Reading it waits for a lock of the process, which one that hangs in the kernel may hold."""
NATIVE_TIMEOUT_S = 5.0
MAX_PARALLEL = 8
BUSY_SHARE = 0.5
"""Of a core, from which a suspect computes: only its native stack shows in which C call."""
SETTLE_S = 2.5
"""After which the record file holds what led to the verdict: it is flushed once a second."""
RECENT_BYTES = 16 << 20
"""Of record files that are copied, newest first; the first, with the introductions, always."""


class Gathering:
    """One gathering. ``missing`` and ``node`` are complete after :meth:`run`."""

    def __init__(self, case: Case, folder: BundleFolder, job_dir: Path, output: Path) -> None:
        """Prepare; ``output`` is the node's, whose record files are copied from."""
        self.missing: list[dict[str, str]] = []
        self.node: dict[str, Any] = {}
        self.give_up_wall_ns: list[int] = []
        """By rank that waits, when torch itself would give up."""
        self._case = case
        self._folder = folder
        self._job_dir = job_dir
        self._output = output
        self._places = asyncio.Semaphore(MAX_PARALLEL)
        self._computing = threading.Lock()
        """One dump is packed at a time: several would keep the event loop from the interpreter."""

    async def run(self) -> None:
        """Gather; takes :data:`DEADLINE_S` at most.

        Raises :class:`SpoiledError` as soon as the bundle's disk refuses.
        """
        case = self._case
        self._note_what_is_not_asked()
        steps: dict[str, _Step] = {"node": self._node_facts, "rank pages": self._pages}
        for rank in case.ranks:
            if rank.is_looked_at:
                steps[f"stacks and process of rank {rank.rank}"] = partial(self._look_at, rank)
        for rank in case.ranks:
            for handler in rank.plan.handlers:
                what = f"{RECORDERS[handler]} {DUMP_OF}{rank.rank}"
                steps[what] = partial(self._dump, rank, handler)
        if case.has_nccl:
            steps["NCCL RAS"] = self._ras
        tasks = {
            asyncio.ensure_future(self._placed(what, step)): what for what, step in steps.items()
        }
        try:
            done, late = await asyncio.wait(
                tasks, timeout=DEADLINE_S, return_when=asyncio.FIRST_EXCEPTION
            )
        finally:
            for task in tasks:
                task.cancel()
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error
        for task in late:
            self._miss(tasks[task], f"not there within {DEADLINE_S:g} s")
        # Last, so that it takes the room that is left.
        await self._placed("records", self._records)

    async def _placed(self, what: str, step: _Step) -> None:
        async with self._places:
            try:
                await step()
            except (NoRoomError, PullError, OSError) as error:
                self._miss(what, getattr(error, "strerror", None) or str(error))

    def _miss(self, what: str, reason: str) -> None:
        self.missing.append({"what": what, "reason": reason})

    def _note_what_is_not_asked(self) -> None:
        for number, host in self._case.elsewhere.items():
            where = f"on host {host}" if host else "not on this node"
            self._miss(f"everything of rank {number}", f"it runs {where}; see that node's output")
        for rank in self._case.ranks:
            if rank.plan.left_out:
                self._miss(f"nccl {DUMP_OF}{rank.rank}", rank.plan.left_out)
        for text in self._case.unread:
            what, _, reason = text.partition(": ")
            self._miss(what, reason)

    async def _node_facts(self) -> None:
        host = self._case.job.host
        self.node = await beside(READ_TIMEOUT_S, lambda: node_facts(host, self._output))

    async def _pages(self) -> None:
        self.missing += await beside(READ_TIMEOUT_S, self._write_pages)

    def _write_pages(self) -> list[dict[str, str]]:
        now_ns, attempt = time.monotonic_ns(), self._case.job.attempt
        missing: list[dict[str, str]] = []
        for name, raw in self._folder.take("pages", lambda place: copy_pages(self._job_dir, place)):
            try:
                page = parse_page(raw[:PAGE_SIZE], now_ns)
            except WireError as error:
                missing.append({"what": f"decoded pages/{name}", "reason": str(error)})
                continue
            decoded = name.removesuffix(".page") + ".json"
            self._folder.add_json(f"pages/{decoded}", asdict(page), f"pages/{name}, decoded")
        for rank in self._case.ranks:
            if not (self._job_dir / str(attempt) / f"r{rank.rank}.page").exists():
                reason = "it left none: TraceCore does not run in it, or not yet"
                missing.append({"what": f"rank page of rank {rank.rank}", "reason": reason})
        return missing

    async def _dump(self, rank: LocalRank, handler: str) -> None:
        if rank.is_ended:
            raise PullError("the rank has ended")
        await beside(DEADLINE_S, lambda: self._write_dump(rank.rank, handler))

    def _write_dump(self, rank: int, handler: str) -> None:
        path = runtime.worker_server_socket(self._job_dir, self._case.job.attempt, rank)
        raw = fetch(path, handler, PULL_TIMEOUT_S)
        with self._computing:
            self._pack_dump(rank, handler, raw)

    def _pack_dump(self, rank: int, handler: str, raw: bytes | bytearray) -> None:
        packed = gzip.compress(raw, compresslevel=3, mtime=0)
        name, about = RECORDERS[handler], f"{RECORDERS[handler]} recorder of rank {rank}"
        self._folder.add(f"dumps/raw/rank{rank}.{name}.json.gz", packed, f"{about}, as pulled")
        dump = dumps.parse_dump(raw)
        if (give_up_wall_ns := dumps.give_up_wall_ns(dump)) is not None:
            self.give_up_wall_ns.append(give_up_wall_ns)
        pickled = dumps.torch_pickle(dump, self._case.groups, rank)
        place = f"{dumps.DIRECTORY}/{name}/{dumps.FILE_PREFIX}{rank}"
        self._folder.add(place, pickled, f"{about}, for torch's analyzer")

    async def _look_at(self, rank: LocalRank) -> None:
        if rank.is_ended or rank.pid <= 0:
            self._miss(f"stacks and process of rank {rank.rank}", "its process has ended")
            return
        stacks = await dump_stacks(rank.rank, rank.pid, time.monotonic_ns())
        await self._keep_stacks(rank, stacks, "stacks")
        facts = await beside(READ_TIMEOUT_S, lambda: read_facts(rank.rank, rank.pid))
        try:
            found = await beside(ENVIRON_TIMEOUT_S, lambda: read_environment(rank.pid))
            facts["environment"] = found
        except OSError as error:
            facts["not_read"]["environ"] = error.strerror or str(error)
        about = f"/proc of rank {rank.rank}"
        name = f"process/rank{rank.rank}.json"
        await beside(READ_TIMEOUT_S, lambda: self._folder.add_json(name, facts, about))
        for file, reason in facts["not_read"].items():
            self._miss(f"/proc/{rank.pid}/{file} of rank {rank.rank}", reason)
        holds_gil = any(stack.holds_gil for stack in stacks)
        is_busy = facts["cpu_share"] >= BUSY_SHARE
        # A native stack pauses the process: only a suspect's, and only one that runs.
        if rank.role is Role.SUSPECT and (holds_gil or is_busy) and facts["state"] in "RS":
            native = await dump_stacks(
                rank.rank,
                rank.pid,
                time.monotonic_ns(),
                timeout_s=NATIVE_TIMEOUT_S,
                is_native=True,
            )
            await self._keep_stacks(rank, native, "native stacks")

    async def _keep_stacks(self, rank: LocalRank, stacks: Sequence[StackRecord], what: str) -> None:
        if stacks and stacks[0].error:
            self._miss(f"{what} of rank {rank.rank}", stacks[0].error)
            return
        suffix = ".native.txt" if what.startswith("native") else ".txt"
        text = stacks_text(rank, stacks).encode("utf-8", "replace")
        name, about = f"stacks/rank{rank.rank}{suffix}", f"{what} of rank {rank.rank}"
        await beside(READ_TIMEOUT_S, lambda: self._folder.add(name, text, about))

    async def _ras(self) -> None:
        ranks, why_not = ras_files.whom_to_ask(self._case)
        if why_not:
            raise PullError(why_not)
        pids = {rank.pid: rank.rank for rank in ranks}
        answer = await beside(READ_TIMEOUT_S, lambda: ask_ras(tuple(pids)))
        if not answer.text:
            raise PullError(answer.reason)
        files, why_not = await beside(READ_TIMEOUT_S, lambda: ras_files.files_of(answer, pids))
        if answer.reason:
            self._miss("all that NCCL RAS has to say", answer.reason)
        elif why_not:
            self._miss("what NCCL RAS says of this job", why_not)
        for name, (text, about) in files.items():
            data = text.encode("utf-8", "replace")
            await beside(READ_TIMEOUT_S, partial(self._folder.add, name, data, about))

    async def _records(self) -> None:
        age_s = (time.monotonic_ns() - self._case.opened_ns) / 1e9
        await asyncio.sleep(max(0.0, SETTLE_S - age_s))
        await beside(READ_TIMEOUT_S, self._copy_records)

    def _copy_records(self) -> None:
        directory = self._output / "records"
        existing = segments(directory)
        chosen, left = existing[:1], RECENT_BYTES
        for path in reversed(existing[1:]):
            left -= path.stat().st_size
            if left < 0:
                break
            chosen.append(path)
        for path in sorted(chosen):
            about = "what the detectors saw; `tracecore replay` reads it"
            self._folder.add(f"records/{path.name}", path.read_bytes(), about)


def stacks_text(rank: LocalRank, stacks: Sequence[StackRecord]) -> str:
    """Give the stacks of one rank for people, innermost frame first."""
    lines = [f"rank {rank.rank}, pid {rank.pid}, {rank.role.value}"]
    for stack in stacks:
        state = "active" if stack.is_active else "idle"
        gil = ", holds the GIL" if stack.holds_gil else ""
        lines += ["", f"thread {stack.thread} ({state}{gil})"]
        lines += [f"    {frame}" for frame in stack.frames]
    return "\n".join(lines) + "\n"
