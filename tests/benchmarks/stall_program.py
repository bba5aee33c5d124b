"""A rank that does tiny all_reduces back to back and keeps when each ended.

    stall_program.py RANK WORLD_SIZE SECONDS

Writes ``at.RANK`` when it begins and the times, monotonic nanoseconds, to ``rRANK.npy``.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d


def main(rank: int, world_size: int, seconds: float) -> None:
    """Train on nothing."""
    store = f"file://{os.getcwd()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    # As hooks/worker_server.py does: a server that is shut down can hang.
    server = c10d._WorkerServer(f"{os.getcwd()}/r{rank}.ws", -1)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    value = torch.ones(4)
    dist.all_reduce(value)
    Path(f"at.{rank}").touch()
    times = array("q")
    is_over = torch.zeros(1)
    now = time.monotonic_ns
    end_ns = now() + int(seconds * 1e9)
    while True:
        for _ in range(1_000):
            dist.all_reduce(value)
            times.append(now())
        # All ranks must stop after the same number of operations.
        is_over[0] = float(now() >= end_ns)
        dist.all_reduce(is_over, op=dist.ReduceOp.MAX)
        if is_over[0]:
            break
    np.save(f"r{rank}.npy", np.frombuffer(times, dtype=np.int64))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
