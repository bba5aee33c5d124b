"""A plain DDP training under one watch; run by a launcher that sets RANK and WORLD_SIZE.

    train.py --steps N --results DIR --output DIR [--watch NAME] [--pace-ms MS]

What is measured alone runs as "nothing", TraceCore too: it needs nothing in the script.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.peer_programs import watches, workload

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--results", type=Path, required=True, help="what the rank used")
    parser.add_argument("--output", type=Path, required=True, help="what the watch writes")
    parser.add_argument("--watch", choices=list(watches.WATCHES), default="nothing")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="sleep this long in each step")
    args = parser.parse_args()
    report = workload.Report(args.results)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(workload.make_model())
    tiny = workload.make_tiny_model()
    # One optimizer for both parts: whose step() ends a step must not depend on the part.
    optimizer = torch.optim.SGD([*model.parameters(), *tiny.parameters()], lr=0.01)

    def train(
        model: nn.Module, loader: workload.Loader, steps: int, pause: Callable[[int], None]
    ) -> None:
        num_steps = 0
        while num_steps < steps:
            for x, y in watch.batches(loader):
                with watch.step(model, num_steps):
                    optimizer.zero_grad()
                    nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                num_steps += 1
                report.step()
                pause(num_steps)
                if num_steps == steps:
                    break

    def pace(num_steps: int) -> None:
        if args.pace_ms:
            time.sleep(args.pace_ms / 1e3)

    with watches.WATCHES[args.watch](args.output) as watch:
        train(model, workload.make_loader(), args.steps, pace)
        report.end("normal")
        loader = workload.make_tiny_loader()
        train(tiny, loader, workload.NUM_TINY_STEPS, workload.pause)
        report.end("tiny")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
