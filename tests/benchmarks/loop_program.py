"""A two-rank training loop whose compute is sleep; prints how long the loop took.

loop_program.py NUM_STEPS STEP_MS
"""

from __future__ import annotations

import json
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

NUM_FIRST_STEPS = 10
"""Not timed: first allocations, first batches."""


def main(num_steps: int, step_ms: float) -> None:
    """Train."""
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    count = 8 * (num_steps + NUM_FIRST_STEPS)
    loader = DataLoader(TensorDataset(torch.randn(count, 64), torch.randn(count, 1)), batch_size=8)
    began = time.monotonic()
    for step, (x, y) in enumerate(loader):
        if step == NUM_FIRST_STEPS:
            dist.barrier()
            began = time.monotonic()
        time.sleep(step_ms / 1e3)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    line = json.dumps({"loop_s": time.monotonic() - began}) + "\n"
    # In one write: the ranks share the pipe.
    sys.stdout.write(line)
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
