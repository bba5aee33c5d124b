"""Two ranks that send and receive in every way torch offers; rank 1 waits at a gate before the
last send, so that rank 0 blocks in a recv. Prints JSON: what arrived, and what of torch is ours.
"""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import P2POp, irecv, isend

rank = int(os.environ["RANK"])
peer = 1 - rank
dist.init_process_group(
    "gloo", init_method=f"file://{Path.cwd()}/rendezvous", rank=rank, world_size=2
)
side = dist.new_group([0, 1])
got: list[float] = []


def buffer() -> torch.Tensor:
    return torch.zeros(4)


def value(number: int) -> torch.Tensor:
    return torch.full((4,), float(10 * rank + number))


def pair(group: dist.ProcessGroup | None = None) -> None:
    """One send each way, in opposite orders."""
    received = buffer()
    if rank == 0:
        dist.send(value(1), peer, group=group, tag=7)
        dist.recv(received, peer, group=group)
    else:
        dist.recv(received, peer, group=group, tag=7)
        dist.send(value(1), peer, group=group)
    got.append(received[0].item())


pair()
pair(side)
received = buffer()
works = dist.batch_isend_irecv([P2POp(isend, value(2), peer), P2POp(irecv, received, peer)])
for work in works:
    work.wait()
got.append(received[0].item())
objects = [None]
if rank == 0:
    dist.send_object_list([{"a": 1}], peer)
    dist.recv(received)
    got.append(received[0].item())
    Path("at.0").touch()
    dist.recv(received, peer)
else:
    dist.recv_object_list(objects, peer)
    dist.send(value(3), peer)
    Path("at.1").touch()
    while not Path("go.1").exists():
        time.sleep(0.02)
    dist.send(value(4), peer)
got.append(received[0].item())
dist.barrier()
print(json.dumps({"got": got, "objects": objects}), flush=True)
dist.destroy_process_group()
