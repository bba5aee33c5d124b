"""Faults below an operation: a thread of gloo that stops, a link between two ranks that is dead.

The process lives on, and whoever asks it for its recorder is answered. Both are made inside the
rank and need no rights: a signal whose handler never returns, and a filter on the rank's own
sockets that drops whatever arrives, acknowledgements included.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
from pathlib import Path

GLOO_THREAD = "gloo_tcp_loop"
"""What gloo calls the thread that receives; one for each process group."""
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
KEEP_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""The one instruction of a filter: take no byte of the packet."""


def stop_gloo() -> None:
    """Stop the threads that receive for gloo, for good."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGUSR2, ctypes.cast(libc.pause, ctypes.c_void_p))
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == GLOO_THREAD:
            libc.tgkill(os.getpid(), int(task.name), signal.SIGUSR2)


def cut_links(ranks: set[int]) -> list[socket.socket]:
    """Drop all that arrives here from some ranks, in every group; give the dead sockets."""
    own = _sockets(os.getpid())
    by_ends = _inodes_by_ends()
    dead = []
    for rank in ranks:
        theirs = set(_sockets(_pid_of(rank)))
        for (local, remote), inode in by_ends.items():
            if inode in own and by_ends.get((remote, local)) in theirs:
                dead.append(socket.socket(fileno=os.dup(own[inode])))
                drop_all(dead[-1])
    if not dead:
        raise RuntimeError(f"no connection to ranks {sorted(ranks)} was found")
    return dead


def drop_all(end: socket.socket) -> None:
    """Have the kernel drop every packet that arrives on a connection."""
    code = ctypes.create_string_buffer(KEEP_NOTHING)
    program = struct.pack("HL", 1, ctypes.addressof(code))
    end.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def mend_links(dead: list[socket.socket]) -> None:
    """Let packets through again; what was sent meanwhile is sent again."""
    for end in dead:
        end.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        end.close()


def _pid_of(rank: int) -> int:
    """Find another rank among the children of the launcher."""
    launcher = os.getppid()
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for pid in children:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(pid)
    raise RuntimeError(f"rank {rank} is not a child of {launcher}: {children}")


def _sockets(pid: int) -> dict[str, int]:
    """Give the sockets of a process: inode to file descriptor."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if target.startswith("socket:["):
                found[target[8:-1]] = int(entry.name)
    return found


def _inodes_by_ends() -> dict[tuple[str, str], str]:
    """Give all connections of this machine: both ends to inode."""
    found = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
                columns = line.split()
                found[columns[1], columns[2]] = columns[9]
    return found
