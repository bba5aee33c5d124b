"""Forks a child that exits normally while torch's worker server of this rank runs.

The argument is the server's socket. Prints the child's exit code, and whether the server still
answers after the child's clean-up. Without a process group: torch's own clean-up of a gloo group
hangs in such a child, with and without us.
"""

import os
import socket
import sys
import time

import torch
import torch.distributed as dist

path = sys.argv[1]
dist.init_process_group("gloo", f"file://{os.path.abspath('store')}", rank=0, world_size=1)
dist.all_reduce(torch.ones(1))
deadline = time.monotonic() + 60
while not os.path.exists(path) and time.monotonic() < deadline:
    time.sleep(0.02)
dist.destroy_process_group()
pid = os.fork()
if pid == 0:
    sys.exit(7)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(30)
    connection.connect(path)
    connection.sendall(b"POST /handler/ping HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    answer = connection.recv(100)
print(code, answer.startswith(b"HTTP/1.1 200"), flush=True)
