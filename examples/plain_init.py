"""Watch a plain script: say where a step ends, and name the phases you want to tell apart.

tracecore run --nproc-per-node 2 examples/plain_init.py, or plain torchrun: without a sidecar
tracecore_train says so once and costs nothing.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tracecore_train

tracecore_train.init()


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(7)
    inputs = torch.randn(4096, 16)
    data = TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))
    loader = DataLoader(data, batch_size=32, sampler=DistributedSampler(data))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    for epoch in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            tracecore_train.step()  # for loops without a torch optimizer; else found by itself
        with tracecore_train.phase("validation"), torch.no_grad():
            error = nn.functional.mse_loss(model(inputs), data.tensors[1])
        if dist.get_rank() == 0:
            print(f"epoch {epoch}  error {error.item():.3f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
