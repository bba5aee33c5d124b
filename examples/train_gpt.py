"""Train a small byte-level GPT on the source of the Python standard library.

Data parallel over all ranks, gloo on CPU, nccl on GPU; about a minute on two cores:
torchrun --nproc-per-node 2 examples/train_gpt.py
"""

import argparse
import itertools
import os
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

CONTEXT, WIDTH, HEADS, LAYERS = 128, 128, 4, 3


class Windows(Dataset):  # of bytes, each with the byte that follows it as the target
    def __init__(self, files, stride):
        self.text = torch.tensor(bytearray(b"".join(path.read_bytes() for path in files)))
        self.stride = stride

    def __len__(self):
        return (len(self.text) - CONTEXT - 1) // self.stride

    def __getitem__(self, index):
        window = self.text[index * self.stride :][: CONTEXT + 1].long()
        return window[:-1], window[1:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 512), nn.GELU(), nn.Linear(512, WIDTH))

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, tokens):
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def loss_of(model, batch, device):
    tokens, targets = (tensor.to(device) for tensor in batch)
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model, loader, device):
    model.eval()
    total = sum(loss_of(model, batch, device) for batch in loader) / len(loader)
    model.train()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def endless(loader):
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=8, help="windows per rank")
    parser.add_argument("--checkpoint-every", type=int, default=10**9, help="steps")
    parser.add_argument("--out", type=Path, help="directory for checkpoints (default: a new one)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args = parser.parse_args()
    if "RANK" not in os.environ:  # plain python: a world of one
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    on_gpu = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else "cpu"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1337)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out, train = files[::10], [path for i, path in enumerate(files) if i % 10]
    windows = Windows(train, stride=16)
    sampler = DistributedSampler(windows, seed=1337)
    loader = DataLoader(windows, args.batch_size, sampler=sampler, num_workers=1, drop_last=True)
    test = torch.utils.data.Subset(Windows(held_out, stride=509), range(rank, 256, world_size))
    test_loader = DataLoader(test, batch_size=32)

    model = DistributedDataParallel(GPT().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    out = args.out or Path(tempfile.gettempdir(), f"train_gpt-{os.getpid()}")
    before, began = evaluate(model, test_loader, device), time.perf_counter()
    for step, batch in enumerate(itertools.islice(endless(loader), args.steps), 1):
        loss = loss_of(model, batch, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 20 == 0:
            pace = 1e3 * (time.perf_counter() - began) / step
            print(f"step {step}  loss {loss.item():.3f}  {pace:.0f} ms a step", flush=True)
        if rank == 0 and (step == args.steps or step % args.checkpoint_every == 0):
            out.mkdir(parents=True, exist_ok=True)
            torch.save({"step": step, "model": model.module.state_dict()}, out / f"step{step}.pt")
            print(f"saved {out / f'step{step}.pt'}", flush=True)
    after = evaluate(model, test_loader, device)
    if rank == 0:
        print(f"held-out loss {before:.3f} -> {after:.3f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
