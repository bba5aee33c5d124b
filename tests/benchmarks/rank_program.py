"""A real rank whose compute is sleep; prints one line of JSON per window, with per-thread CPU.

    rank_program.py NUM_WINDOWS WINDOW_S STEP_MS

Trains a small DDP model on gloo. Run with RANK, WORLD_SIZE and the TRACECORE_* variables set; the
group meets in the file ``store`` of the working directory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset


def thread_cpu_ns(tid: int) -> int:
    """Give the processor time of a thread of this process."""
    return time.clock_gettime_ns((~tid << 3) | 6)


def cpu_by_thread() -> dict[str, int]:
    """Give the processor time of the training thread, of ours, and of all others together."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    times = {"MainThread": 0, "tracecore-export": 0}
    for tid in map(int, os.listdir("/proc/self/task")):
        name = python.get(tid, "others")
        times[name] = times.get(name, 0) + thread_cpu_ns(tid)
    return times


def main(num_windows: int, window_s: float, step_ms: float) -> None:
    """Train through all windows."""
    import tracecore_train

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tracecore_train.init()
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = f"file://{os.getcwd()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(torch.randn(800, 64), torch.randn(800, 1)), batch_size=8)
    batches = (batch for _ in range(1 << 30) for batch in loader)

    def train(duration_s: float) -> int:
        num_steps = round(duration_s * 1e3 / step_ms)
        for _ in range(num_steps):
            x, y = next(batches)
            time.sleep(step_ms / 1e3)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return num_steps

    train(5)  # imports, first looks, the first pull
    for _ in range(num_windows):
        before, began_ns = cpu_by_thread(), time.monotonic_ns()
        num_steps = train(window_s)
        elapsed_ns = time.monotonic_ns() - began_ns
        after = cpu_by_thread()
        print(
            json.dumps(
                {
                    "elapsed_ns": elapsed_ns,
                    "num_steps": num_steps,
                    "cpu_ns": {name: after[name] - before.get(name, 0) for name in after},
                }
            ),
            flush=True,
        )
    tracecore_train.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
