"""A DDP training loop whose compute is sleep: timing does not fight over the machine's cores."""

from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset


class SleepyModel(nn.Module):
    """Two layers and a pause."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.first = nn.Linear(64, 256)
        self.second = nn.Linear(256, 1)
        self.pause_s = pause_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause_s)
        out: torch.Tensor = self.second(torch.relu(self.first(x)))
        return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=50)
    parser.add_argument(
        "--first-step-s", type=float, default=0, help="extra time of rank 1's first step"
    )
    parser.add_argument("--checkpoint-at", type=int, default=-1)
    parser.add_argument("--checkpoint-path", default="/dev/null")
    args = parser.parse_args()

    torch.manual_seed(0)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(SleepyModel(args.step_ms / 1e3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = TensorDataset(torch.randn(8 * args.steps, 64), torch.randn(8 * args.steps, 1))
    for step, (x, y) in enumerate(DataLoader(data, batch_size=8)):
        if step == 0 and rank == 1:
            time.sleep(args.first_step_s)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step == args.checkpoint_at and rank == 0:
            torch.save(model.state_dict(), args.checkpoint_path)
    print(f"rank {rank} loss {loss.item():.17g}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
