"""The training that every arm runs, and how a rank reports what it used.

Two parts, seeds fixed: first a small model on gloo, compute by computing; then bursts of tiny steps
of next to no compute, in which what a watch adds to the training thread is not lost in the spread
of the compute.

A rank leaves two files in the directory it is given: ``rank-N.json`` with what the loops used, and
``rank-N.sent``, kept up to date until the process ends, with the bytes that Python code put into
sockets and the steps done. gloo and torch's own servers send from C++ and are not in it.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.peer_programs.sent import BURST, SentCounter

Loader: TypeAlias = "DataLoader[tuple[torch.Tensor, ...]]"
WIDTH = 256
BATCH_SIZE = 128
NUM_ITEMS = 4_096
NUM_FIRST_STEPS = 20
"""Of each part. Not timed: first allocations, first batches, first looks of whoever watches."""
BURST_PAUSE_S = 0.15
"""Leaves some 600 steps a second: more than training does, and what every watch keeps up with."""
NUM_TINY_STEPS = 16 * BURST
TINY_WIDTH = 4


def make_model() -> nn.Module:
    """Give the same model in every rank and every run."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    )


def make_tiny_model() -> nn.Module:
    """Give a model that computes next to nothing."""
    return nn.Linear(TINY_WIDTH, 1)


def make_loader() -> Loader:
    """Give the same batches in every run, in the same order."""
    return _loader(WIDTH, BATCH_SIZE)


def make_tiny_loader() -> Loader:
    """Give batches that take next to no time to make."""
    return _loader(TINY_WIDTH, 1)


def _loader(width: int, batch_size: int) -> Loader:
    chance = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_ITEMS, width, generator=chance)
    y = torch.randn(NUM_ITEMS, 1, generator=chance)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, drop_last=True)


class Report:
    """What one rank used. Made first of all, so that no send goes uncounted."""

    def __init__(self, directory: Path) -> None:
        """Count from now on what this process sends."""
        self._path = directory / f"rank-{os.environ['RANK']}.json"
        self._sent = SentCounter(self._path.with_suffix(".sent"))
        self._num_steps = 0
        self._began: dict[str, int] = {}
        self._burst_ends_ns: list[int] = []
        self._used: dict[str, dict[str, object]] = {}

    def step(self) -> None:
        """Note a step."""
        self._sent.step()
        self._num_steps += 1
        if self._num_steps == NUM_FIRST_STEPS:
            dist.barrier()
            self._began = _clocks()
        if self._num_steps % BURST == 0:
            self._burst_ends_ns.append(time.thread_time_ns())

    def end(self, part: str) -> None:
        """Write down what the part used since its first steps; the next part begins."""
        used = {name: ended - self._began[name] for name, ended in _clocks().items()}
        status = Path("/proc/self/status").read_text(encoding="ascii")
        memory = int(status.split("VmHWM:")[1].split()[0]) * 1024
        steps = self._num_steps - NUM_FIRST_STEPS
        ends_ns = self._burst_ends_ns
        self._used[part] = {
            **used,
            "num_steps": steps,
            "memory_bytes": memory,
            "burst_thread_ns": [b - a for a, b in itertools.pairwise(ends_ns)],
        }
        self._num_steps = 0
        self._burst_ends_ns = []
        self._path.write_text(json.dumps(self._used))


def pause(num_steps: int) -> None:
    """Sleep at the end of a burst of tiny steps."""
    if num_steps % BURST == 0:
        time.sleep(BURST_PAUSE_S)


def _clocks() -> dict[str, int]:
    return {
        "loop_ns": time.monotonic_ns(),
        "thread_ns": time.thread_time_ns(),
        "process_ns": time.process_time_ns(),
    }
