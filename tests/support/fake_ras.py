"""A RAS service as NCCL's answers over TCP, and one that does everything wrong."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HASH = "0xae94423cfbb2ef4a"
TEXT_REPORT = """NCCL version 2.26.2 compiled with CUDA 12.6

Communicators... (0.00s)

Group     Comms     Nodes     Ranks     Ranks     Ranks    Status  Errors
    0         1         1         4         4         4   RUNNING  OK
"""


class End(Enum):
    """What follows the report."""

    CLOSED = "closed"
    SILENT = "silent"
    STREAM = "stream"
    """More, without end."""


@dataclass
class FakeRas:
    """Listens on a free port of this node while it is entered."""

    report: str = ""
    speaks_json: bool = True
    """As from NCCL 2.28.7 on."""
    greeting: str = "SERVER PROTOCOL 2\n"
    num_deaf: int = 0
    """Connections at first that are taken and not greeted, as by a stopped process."""
    end: End = End.CLOSED
    host: str = "127.0.0.1"
    commands: list[str] = field(default_factory=list)
    """All that was said to it."""
    num_connections: int = 0

    def __enter__(self) -> FakeRas:
        """Listen."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, 0), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up and stop listening."""
        self._is_over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    @property
    def address(self) -> str:
        """As ``NCCL_RAS_ADDR`` names it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                is_deaf = self.num_connections <= self.num_deaf
                serve = self._ignore if is_deaf else self._serve
                thread = threading.Thread(target=serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _ignore(self, connection: socket.socket) -> None:
        with connection:
            self._is_over.wait(60)

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(60)
            is_json = False
            for line in connection.makefile("r", encoding="utf-8"):
                command = line.strip()
                self.commands.append(command)
                if command.startswith("CLIENT PROTOCOL "):
                    connection.sendall(self.greeting.encode())
                elif command.startswith("TIMEOUT "):
                    connection.sendall(b"OK\n")
                elif command == "SET FORMAT json" and self.speaks_json:
                    is_json = True
                    connection.sendall(b"OK\n")
                elif command in ("STATUS", "VERBOSE STATUS"):
                    text = self.report or (nccl_report([]) if is_json else TEXT_REPORT)
                    connection.sendall(text.encode("utf-8", "surrogateescape"))
                    self._after(connection)
                    return
                else:
                    connection.sendall(f"ERROR: Unknown command {command}\n".encode())

    def _after(self, connection: socket.socket) -> None:
        if self.end is End.SILENT:
            self._is_over.wait(60)
        while self.end is End.STREAM and not self._is_over.is_set():
            connection.sendall(b"and so on, " * 6_000)


def member(number: int, pid: int, *, host: str = "127.0.0.1", **changes: Any) -> dict[str, Any]:
    """A member the service has heard. ``counts``: by operation; others go into its status."""
    counts = {"Broadcast": 0, "AllGather": 0, "AllReduce": 101} | changes.pop("counts", {})
    return {
        "rank": number,
        "host": host,
        "pid": pid,
        "cuda_dev": number,
        "nvml_dev": number,
        "status": {
            "init_state": 0,
            "async_error": 0,
            "finalize_called": False,
            "destroy_flag": False,
            "abort_flag": False,
            **changes,
        },
        "collective_counts": counts,
    }


def missing(
    number: int, pid: int, *, host: str = "127.0.0.1", unresponsive: bool = True
) -> dict[str, Any]:
    """A member the service has not heard."""
    return {
        "rank": number,
        "host": host,
        "pid": pid,
        "cuda_dev": number,
        "nvml_dev": number,
        "status": {"unresponsive": unresponsive, "considered_dead": False},
    }


def group(
    heard: Sequence[Mapping[str, Any]],
    unheard: Sequence[Mapping[str, Any]] = (),
    *,
    size: int | None = None,
) -> dict[str, Any]:
    """A group of NCCL."""
    return {
        "hash": HASH,
        "secondary_hash": "0xb7e7187447156001:0xb8242ed28a71381e",
        "size": len(heard) + len(unheard) if size is None else size,
        "ranks_count": len(heard),
        "missing_ranks_count": len(unheard),
        "ranks": list(heard),
        "missing_ranks": list(unheard),
    }


def nccl_report(groups: Sequence[Mapping[str, Any]], *, num_timeouts: int = 0) -> str:
    """The answer as NCCL 2.29 writes it."""
    told = {
        "nccl_version": "2.29.1",
        "cuda_runtime_version": 13000,
        "cuda_driver_version": 13000,
        "timestamp": "2026-01-19 13:06:53",
        "communicators_count": len(groups),
        "communicators": list(groups),
        "ras": {"collection_time_sec": 0.0, "timeouts_count": num_timeouts},
    }
    return json.dumps(told, indent=2) + "\n"


def without_commas(report: str) -> str:
    """The answer as NCCL 2.28.9 writes it: a comma is left out of each missing rank."""
    return re.sub(r',(\n *"status": \{\n *"unresponsive")', r"\1", report)
