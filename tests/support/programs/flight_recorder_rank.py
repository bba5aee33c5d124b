"""A gloo rank with a worker server, steered by lines on its standard input.

``flight_recorder_rank.py STORE_FILE RANK WORLD_SIZE SOCKET``; it answers each command with
``done``. Commands: ``all_reduce``, ``all_reduce_tp`` (in a second group), ``start`` (issue an
all_reduce and do not wait for it), ``finish`` (wait for it), ``exit``.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d


def main(store: str, rank: int, world_size: int, socket: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    group = dist.new_group(list(range(world_size)), group_desc="tp")
    # Shutting the server down early hangs, and a forked child's destructor kills us: leak it.
    server = c10d._WorkerServer(socket, -1)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    values = torch.ones(4, 2)
    work = None
    print("done", flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "all_reduce":
            dist.all_reduce(values)
        elif command == "all_reduce_tp":
            dist.all_reduce(values, group=group)
        elif command == "start":
            work = dist.all_reduce(values, async_op=True)
        elif command == "finish":
            assert work is not None
            work.wait()
        elif command == "exit":
            break
        print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
