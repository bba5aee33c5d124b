"""What the hooks cost on the training thread: paired differences in one process.

A pair is a block of calls with the hook on and a block with it off, side by side, the order
alternating; the A/A row pairs two blocks with the hook off. Both blocks of a pair run on the same
thread within milliseconds, so what the machine does meanwhile cancels out.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data.dataloader import _BaseDataLoaderIter

import tracecore_train
from tests.benchmarks.measure import Row, row
from tracecore_train.guard import Guard
from tracecore_train.hooks.backward import BackwardHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from tracecore_train.hooks import Hook

GROUP = "training thread"
NUM_CALLS = 1_000
STEP_BUDGET_US = 3.0
BATCH_BUDGET_US = 1.0
NUM_COLLECTIVES = 200
_LEAF = torch.ones(1, requires_grad=True)
_GRADIENT = torch.ones(1)


class _Still(_BaseDataLoaderIter):
    """An iterator whose own part costs next to nothing."""

    def __init__(self) -> None:
        self._profile_name = "still"
        self._sampler_iter = ()
        self._num_yielded = 0
        self._dataset_kind = 0
        self._IterableDataset_len_called = None

    def _next_data(self) -> Any:
        return 0


def measure(is_quick: bool) -> list[Row]:
    """Measure a step with its backward, a batch, an explicit step, and collectives."""
    num_pairs = 60 if is_quick else 300
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with training_recorder() as recorder:
        rows = [
            *_step_pairs(optimizer, recorder, num_pairs),
            *pairs("of that, optimizer", (OptimizerHook,), optimizer.step, recorder, num_pairs),
            *pairs(
                "next(dataloader)",
                (DataLoaderHook,),
                functools.partial(next, _Still()),
                recorder,
                num_pairs,
                BATCH_BUDGET_US,
            ),
            row(
                GROUP,
                "explicit step()",
                "us",
                [block(recorder.end_explicit_step, recorder) for _ in range(num_pairs)],
                budget=STEP_BUDGET_US,
                note="whole call",
            ),
        ]
    return [*rows, _per_collective()]


def _step_pairs(optimizer: torch.optim.Optimizer, recorder: Recorder, num_pairs: int) -> list[Row]:
    """Measure backward and optimizer together: our instructions, and those with cold caches.

    The budgeted row lets the engine do nothing, so that what is measured is our code. Behind a
    real engine, which fills the caches, the same code is slower, as any code there is.
    """

    def step() -> None:
        torch.autograd.backward(_LEAF, _GRADIENT)
        optimizer.step()

    hooks = (OptimizerHook, BackwardHook)
    patch = Patch(torch.autograd, "_engine_run_backward", lambda _: lambda *args, **kwargs: None)
    patch.install()
    try:
        rows = pairs("step boundary", hooks, step, recorder, num_pairs, STEP_BUDGET_US)
    finally:
        patch.uninstall()
    return rows + pairs("step behind a real engine", hooks, step, recorder, num_pairs)


def pairs(
    what: str,
    hook_classes: tuple[type[Hook], ...],
    call: Callable[[], object],
    recorder: Recorder,
    num_pairs: int,
    budget: float | None = None,
) -> list[Row]:
    """Measure what hooks add to a call."""

    def off() -> float:
        return block(call, recorder)

    def on() -> float:
        guard = Guard("benchmark")
        context = HookContext(recorder=recorder, rank=0, socket_path=None)
        hooks = [hook_class(context, guard) for hook_class in hook_classes]
        for hook in hooks:
            hook.install()
        try:
            return block(call, recorder)
        finally:
            guard.close()
            for hook in hooks:
                hook.uninstall()

    return differences(what, on, off, num_pairs, budget)


def differences(
    what: str,
    on: Callable[[], float],
    off: Callable[[], float],
    num_pairs: int,
    budget: float | None = None,
) -> list[Row]:
    """Make the rows of paired blocks, and of blocks that differ in nothing."""
    found, noise = [], []
    for index in range(num_pairs):
        first, second = (on, off) if index % 2 else (off, on)
        values = {first: first(), second: second()}
        found.append(values[on] - values[off])
        earlier, later = off(), off()
        noise.append(earlier - later if index % 2 else later - earlier)
    return [
        row(GROUP, what, "us", found, budget=budget, note="on less off"),
        row(GROUP, f"{what}, A/A", "us", noise, note="off less off"),
    ]


def block(call: Callable[[], object], recorder: Recorder) -> float:
    """Give microseconds of processor time a call: being preempted is not our cost."""
    recorder.drain()
    call()
    gc.disable()
    began = time.thread_time_ns()
    for _ in range(NUM_CALLS):
        call()
    ended = time.thread_time_ns()
    gc.enable()
    return (ended - began) / NUM_CALLS / 1e3


@contextlib.contextmanager
def training_recorder() -> Iterator[Recorder]:
    """Give a recorder whose page is a file in memory, and whose training thread this is."""
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shm) as directory:
        page = RankPage.create(
            Path(directory) / "r0.page", rank=0, attempt=0, start_ticks=0, wall_offset_ns=0
        )
        recorder = Recorder(page, rank=0)
        recorder.claim_training_thread()
        yield recorder


def _per_collective() -> Row:
    """Count Python frames of ours that run while collectives run, with every hook installed."""
    ours = str(Path(tracecore_train.__file__).parent) + os.sep
    frames: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ours):
            frames.append(frame.f_code.co_name)

    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        tracecore_train.init(endpoint=f"unix:{directory}/job/otlp.sock")
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{directory}/store", rank=0, world_size=1
            )
            value = torch.ones(4)
            dist.all_reduce(value)
            sys.setprofile(profile)
            for _ in range(NUM_COLLECTIVES):
                dist.all_reduce(value)
                dist.broadcast(value, 0)
            sys.setprofile(None)
            dist.destroy_process_group()
        finally:
            tracecore_train.shutdown()
    return Row(
        group=GROUP,
        what="Python frames of ours per collective",
        unit="frames",
        measured=len(frames) / (2 * NUM_COLLECTIVES),
        low=0,
        high=len(frames) / (2 * NUM_COLLECTIVES),
        num_samples=2 * NUM_COLLECTIVES,
        budget=0,
        note="sys.setprofile, all hooks on; " + (", ".join(sorted(set(frames))) or "none seen"),
    )
