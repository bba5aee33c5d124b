"""A short gloo job to be mistreated. Prints JSON: digest, seconds, when it ended, when it was gone.

Runs without torchrun: RANK and WORLD_SIZE come from the environment, the ranks meet through a file
in the working directory. Before the step ``--gate`` each rank leaves ``at.<rank>`` and waits for
``go.<rank>``, so that a test can do something in the middle; the wait counts as no training time.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import hashlib
import io
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch, with which recording starts: callbacks run in reverse order, so this one is last.
atexit.register(lambda: print(json.dumps({"gone_s": time.monotonic()}), flush=True))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ACTIONS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "crash": lambda: ctypes.string_at(0),
}


def wait_at_gate(rank: int) -> float:
    """Wait until the test lets this rank go on; give the seconds it took."""
    began = time.monotonic()
    Path(f"at.{rank}").touch()
    while not Path(f"go.{rank}").exists():
        time.sleep(0.02)
    return time.monotonic() - began


def batches(num_steps: int, num_workers: int, context: str | None) -> Iterator[list[torch.Tensor]]:
    """Give the same batches whatever loads them."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(8 * num_steps, 64, generator=generator),
        torch.randn(8 * num_steps, 1, generator=generator),
    )
    yield from DataLoader(
        data, batch_size=8, num_workers=num_workers, multiprocessing_context=context
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-ms", type=float, default=20)
    parser.add_argument("--gate", type=int, default=-1)
    parser.add_argument("--do", choices=ACTIONS, default="nothing", help="on the last rank")
    parser.add_argument("--do-at", type=int, default=30)
    parser.add_argument("--context", help="start method of loader workers; none without it")
    args = parser.parse_args()

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = Path("store").absolute()
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 1))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    source = batches(args.steps, 1 if args.context else 0, args.context)
    began = time.monotonic()
    for step, (x, y) in enumerate(source):
        if step == args.gate:
            began += wait_at_gate(rank)
        if step == args.do_at and rank == world_size - 1:
            ACTIONS[args.do]()
        time.sleep(args.step_ms / 1e3)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    train_s = time.monotonic() - began
    digest = hashlib.sha256()
    for tensor in (*model.parameters(), torch.rand(4)):
        digest.update(tensor.detach().numpy().tobytes())
    torch.save(model.state_dict(), io.BytesIO())
    dist.barrier()
    dist.destroy_process_group()
    report = {"digest": digest.hexdigest(), "train_s": train_s, "end_s": time.monotonic()}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
