"""What our code costs on the training thread, per call, in nanoseconds.

Run ``python tests/benchmarks/hook_cost.py``. Each number is the minimum over blocks of a loop
with the hook less the minimum of the same loop without it, blocks interleaved.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_CALLS = 2_000
NUM_BLOCKS = 60


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


def _recorder(directory: str) -> Recorder:
    page = RankPage.create(
        Path(directory) / "r0.page", rank=0, attempt=0, start_ticks=0, wall_offset_ns=0
    )
    return Recorder(page, rank=0)


def _block(call: Callable[[], object], recorder: Recorder) -> float:
    recorder.drain()
    began = time.perf_counter_ns()
    for _ in range(NUM_CALLS):
        call()
    return (time.perf_counter_ns() - began) / NUM_CALLS


def _measure(
    hook_class: type[DataLoaderHook] | type[OptimizerHook],
    call: Callable[[], object],
    recorder: Recorder,
) -> tuple[float, float]:
    on, off = [], []
    for _ in range(NUM_BLOCKS):
        off.append(_block(call, recorder))
        guard = Guard("benchmark")
        hook = hook_class(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
        hook.install()
        on.append(_block(call, recorder))
        guard.close()
        hook.uninstall()
    return min(off), min(on)


def main() -> None:
    """Measure and print a table."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as d:
        recorder = _recorder(d)
        recorder.claim_training_thread()
        rows = [
            ("step boundary", *_measure(OptimizerHook, optimizer.step, recorder)),
            (
                "next(dataloader)",
                *_measure(DataLoaderHook, functools.partial(next, _Still()), recorder),
            ),
        ]
        explicit = min(_block(recorder.end_explicit_step, recorder) for _ in range(NUM_BLOCKS))
    print(f"{'':18}{'without':>10}{'with':>10}{'ours, ns':>10}")
    for name, off, on in rows:
        print(f"{name:18}{off:10.0f}{on:10.0f}{on - off:10.0f}")
    print(f"{'step()':18}{'':10}{'':10}{explicit:10.0f}")


if __name__ == "__main__":
    main()
