"""A small DDP job on gloo. Prints a digest of every parameter, so that runs can be compared."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

if "--init" in sys.argv:
    import tracecore_train

    tracecore_train.init(flush_interval=0.2)

dist.init_process_group("gloo")
rank = dist.get_rank()
odd = dist.new_group([1], group_desc="odd")
both = dist.new_group([0, 1], group_desc="both")
torch.manual_seed(7)
model = torch.nn.parallel.DistributedDataParallel(
    torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1))
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
generator = torch.Generator().manual_seed(rank)
rows = TensorDataset(torch.randn(48, 8, generator=generator))
loader = DataLoader(rows, batch_size=4, shuffle=True, num_workers=1)
losses = []
for (batch,) in loader:
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.detach())
    time.sleep(0.02)
dist.all_reduce(torch.ones(3), group=both)
if rank == 0:
    torch.save(model.state_dict(), io.BytesIO())
time.sleep(float(os.environ.get("REST_S", "0")))
digest = hashlib.sha256()
for tensor in (*losses, *model.parameters(), torch.rand(4)):
    digest.update(tensor.detach().numpy().tobytes())
print(f"digest {rank} {digest.hexdigest()}", flush=True)
dist.barrier()
dist.destroy_process_group()
