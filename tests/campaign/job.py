"""A gloo job in one of several shapes, with one or two faults of one kind; run by the campaign.

    job.py --shape dp|dp_tp|moe|rooted|pipeline --fault KIND --ranks 1,2 --at STEP --marks DIRECTORY

``--fault input+gil`` gives the first rank one fault and the second another.

Compute is sleep. What goes wrong is made here, by plain torch and Python, not by the product's own
rehearsal: nothing of this file knows what watches it. A rank writes the wall-clock time at which
its fault begins to ``MARKS/RANK``.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime as dt
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.campaign.below import cut_links, mend_links, stop_gloo

FOREVER_S = 600.0
STEP_S = 0.05
LATE_S = 0.7
"""Long enough for the others to wait in the operation already."""
LARGE = 1 << 22
"""Elements from which unequal sizes hang gloo: it cuts what it reduces into pieces of 1 MiB and
exchanges as many as each side believes there are. Smaller ones end the job at once."""
AT_THE_END = ("wrong_op", "wrong_size", "wrong_dtype", "empty", "harmless_dtype")
"""Faults of the operation that ends a step."""
ELSEWHERE = ("none", "input", "late_to_join", "no_new_group", "sleep_after")
"""Faults that are made at another place than the beginning of a step."""


class Numbers(Dataset[int]):
    """Batches that come at once, unless this rank's input is the fault."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self._options = options
        self._rank = rank

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> int:
        options = self._options
        if options.own_fault == "input" and index == options.at:
            mark(options, self._rank)
            time.sleep(options.seconds)
        return index


class Groups:
    """The process groups of a shape."""

    def __init__(self, options: argparse.Namespace) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        self.rank, self.world = rank, world
        self.tensor = self.data = None
        timeout = dt.timedelta(seconds=options.timeout)
        if options.shape in ("dp_tp", "moe"):
            for first in range(0, world, 2):
                members = [first, first + 1]
                group = dist.new_group(members, timeout=timeout)
                if rank in members:
                    self.tensor = group
            for first in (0, 1):
                members = list(range(first, world, 2))
                group = dist.new_group(members, timeout=timeout)
                if rank in members:
                    self.data = group


def mark(options: argparse.Namespace, rank: int) -> None:
    """Say that the fault begins now."""
    (options.marks / str(rank)).write_text(str(time.time_ns()))


def reduce(group: dist.ProcessGroup | None = None, size: int = 64) -> None:
    """One all_reduce."""
    dist.all_reduce(torch.ones(size), group=group)


def send_or_receive(groups: Groups, is_forward: bool) -> None:
    """Pass activations to the next stage, or gradients back."""
    rank, last, data = groups.rank, groups.world - 1, torch.ones(16)
    before, after = (rank - 1, rank + 1) if is_forward else (rank + 1, rank - 1)
    if 0 <= before <= last:
        dist.recv(data, before)
    time.sleep(STEP_S / 4)
    if 0 <= after <= last:
        dist.send(data, after)


def gather(group: dist.ProcessGroup | None) -> None:
    """One all_gather."""
    own = torch.ones(32)
    dist.all_gather([torch.empty(32) for _ in range(dist.get_world_size(group))], own, group=group)


def exchange(groups: Groups) -> None:
    """One all_to_all among all ranks."""
    dist.all_to_all_single(torch.empty(8 * groups.world), torch.ones(8 * groups.world))


def end_step(options: argparse.Namespace, groups: Groups, fault: str) -> None:
    """Reduce the gradients, or what the rank at fault takes for them."""
    group = groups.data if options.shape == "dp_tp" else None
    size = LARGE if {"wrong_size", "wrong_dtype"} & set(options.fault.split("+")) else 64
    data = torch.ones(size)
    if fault == "wrong_op":
        dist.broadcast(data, src=groups.rank, group=group)
        return
    if fault == "wrong_size":
        data = torch.ones(size // 2 * 3)
    elif fault == "wrong_dtype":
        data = torch.ones(size, dtype=torch.float64)
    elif fault == "empty":
        data = torch.ones(0)
    elif fault == "harmless_dtype":
        # As many bytes: gloo does not notice.
        data = torch.ones(size, dtype=torch.int32)
    dist.all_reduce(data, group=group)


def step(options: argparse.Namespace, groups: Groups, fault: str) -> None:
    """One step's communication and compute."""
    if options.shape == "dp":
        time.sleep(STEP_S)
        for size in (64, 256):
            reduce(size=size)
    elif options.shape == "dp_tp":
        for _ in range(2):
            time.sleep(STEP_S / 2)
            reduce(groups.tensor)
    elif options.shape == "moe":
        time.sleep(STEP_S)
        exchange(groups)
        gather(groups.tensor)
    elif options.shape == "rooted":
        time.sleep(STEP_S)
        dist.broadcast(torch.ones(16), src=0)
    else:
        send_or_receive(groups, True)
        send_or_receive(groups, False)
    end_step(options, groups, fault)


def misbehave(options: argparse.Namespace, groups: Groups) -> None:
    """Do what the fault says; most never come back within the campaign's patience."""
    kind, seconds = options.own_fault, options.seconds
    if kind in ELSEWHERE:
        return
    if kind.startswith("late_"):
        time.sleep(LATE_S)
        kind = kind.removeprefix("late_")
    mark(options, groups.rank)
    if kind in AT_THE_END:
        return
    if kind in ("sleep", "pause"):
        time.sleep(seconds)
    elif kind == "left_the_loop":
        raise StopIteration
    elif kind == "gil":
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "spin":
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
    elif kind == "checkpoint":
        torch.save({"slow": _SlowToPickle(seconds)}, os.devnull)
    elif kind == "exception":
        try:
            raise ValueError("bad batch")
        except ValueError:
            time.sleep(seconds)
    elif kind == "died_with_a_thread":
        # The main thread ends in an exception, another one keeps the process.
        threading.Thread(target=time.sleep, args=(seconds,)).start()
        raise ValueError("bad batch")
    elif kind == "lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire(timeout=seconds)
    elif kind == "child":
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
            child.wait(seconds)
    elif kind == "service":
        # A service that takes the connection and never answers.
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname(), timeout=seconds)
        client.recv(1)
    elif kind == "validation":
        end = time.monotonic() + seconds
        for _ in DataLoader(Numbers(options, groups.rank), batch_size=None):
            time.sleep(STEP_S)
            if time.monotonic() > end:
                break
    elif kind == "gc_callback":
        gc.callbacks.append(lambda phase, info: time.sleep(seconds) if phase == "start" else None)
        gc.collect()
    elif kind == "wrong_order":
        # What the others do last comes first.
        dist.all_reduce(torch.ones(64))
    elif kind == "skipped_op":
        if options.shape == "moe":
            gather(groups.tensor)
        dist.all_reduce(torch.ones(64))
    elif kind == "wrong_group":
        # The data-parallel group first, while its peer is in the tensor-parallel one.
        reduce(groups.data)
    elif kind == "extra_recv":
        dist.recv(torch.ones(16), (groups.rank + 1) % groups.world)
    elif kind == "extra_send":
        dist.send(torch.ones(16), (groups.rank + 1) % groups.world)
    elif kind == "wrong_tag":
        dist.send(torch.ones(16), (groups.rank + 1) % groups.world, tag=99)
    elif kind == "thread":
        stop_gloo()
    elif kind == "link":
        cut_links(set(options.ranks) - {groups.rank})
    elif kind == "links":
        cut_links(set(range(groups.world)) - {groups.rank})
    elif kind == "flap":
        dead = cut_links(set(options.ranks) - {groups.rank})
        threading.Timer(seconds, mend_links, (dead,)).start()
    elif kind == "stop_inside":
        work = dist.all_reduce(torch.ones(64), async_op=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        work.wait()
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise SystemExit(f"unknown fault {kind}")


class _SlowToPickle:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __reduce__(self) -> tuple[type, tuple[()]]:
        time.sleep(self._seconds)
        return (list, ())


def main() -> None:
    """Join, train, misbehave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="dp")
    parser.add_argument("--fault", default="none")
    parser.add_argument("--ranks", default="")
    parser.add_argument("--at", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=FOREVER_S)
    parser.add_argument("--marks", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=FOREVER_S, help="of torch, in seconds")
    parser.add_argument("--dump", type=Path, help="where to leave recorder dumps on an error")
    options = parser.parse_args()
    options.ranks = [int(word) for word in options.ranks.split(",") if word]
    rank = int(os.environ["RANK"])
    is_faulty = rank in options.ranks
    kinds = options.fault.split("+")
    options.own_fault = kinds[options.ranks.index(rank) % len(kinds)] if is_faulty else "none"
    if options.fault == "late_to_join" and is_faulty:
        mark(options, rank)
        time.sleep(options.seconds)
    dist.init_process_group("gloo", timeout=dt.timedelta(seconds=options.timeout))
    groups = Groups(options)
    if options.fault == "no_new_group" and is_faulty:
        mark(options, rank)
        time.sleep(options.seconds)
    elif options.fault == "no_new_group":
        dist.new_group(timeout=dt.timedelta(seconds=options.timeout))
    try:
        train(options, groups)
    except StopIteration:
        time.sleep(options.seconds)
    except RuntimeError:
        if options.dump is not None:
            # What a user of torch's analyzer does on gloo, which writes no dump of its own.
            c10d = sys.modules["torch._C._distributed_c10d"]
            raw = c10d._dump_fr_trace(True, True, False)
            (options.dump / f"trace_{rank}").write_bytes(raw)
        raise
    dist.destroy_process_group()


def train(options: argparse.Namespace, groups: Groups) -> None:
    """Take all steps."""
    rank = groups.rank
    parameter = torch.nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    batches = iter(DataLoader(Numbers(options, rank), batch_size=None))
    for number in range(options.steps):
        next(batches)
        parameter.grad = torch.ones(8)
        fault = options.own_fault if number == options.at else "none"
        if fault != "none":
            misbehave(options, groups)
        step(options, groups, fault)
        if number == options.at and (options.fault == "everyone" or fault == "sleep_after"):
            mark(options, rank)
            time.sleep(options.seconds)
        optimizer.step()


if __name__ == "__main__":
    main()
