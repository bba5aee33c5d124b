"""The TCP connections of the ranks, and what waits in them, as the kernel counts it.

``/proc/PID/net/tcp`` and ``tcp6`` say of each connection how many bytes were sent and not
acknowledged, how many came and were not read, and how often the oldest was sent again
(``Documentation/networking/proc_net_tcp.rst``). Whose connection it is tell the sockets under
``/proc/PID/fd``. Nothing is sent and nothing is stopped by looking.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracecore_train.wire.records import NOT_MEASURED, ConnectionsRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_BYTES = 16 << 20
"""Of one table of connections: some 100,000 lines."""
MAX_FDS = 65_536
"""Open files of one rank that are looked at."""
MAX_CONNECTIONS = 64
"""Connections of one rank that are told: those with the most that waits."""
_ESTABLISHED = "01"
_RETRANSMIT_TIMER = "01"
_MAPPED = "0000000000000000FFFF0000"

_End = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table of connections."""

    local: _End
    """Address as the kernel writes it, and port."""
    remote: _End
    inode: int
    num_unacknowledged: int
    """Bytes that were sent."""
    num_unread: int
    """Bytes that came."""
    num_retransmits: int
    """How often the oldest bytes were sent again without an answer."""

    @property
    def is_idle(self) -> bool:
        """Nothing waits in it."""
        return not (self.num_unacknowledged or self.num_unread or self.num_retransmits)


def read_connections(
    ranks_by_pid: Mapping[int, int], now_ns: int, proc: Path = Path("/proc")
) -> list[ConnectionsRecord]:
    """Give one record per rank of this node. Never raises: a rank not shown has a reason."""
    owners: dict[int, int] = {}
    errors: dict[int, str] = {}
    for pid, rank in ranks_by_pid.items():
        inodes, errors[rank] = _sockets(proc / str(pid))
        owners |= dict.fromkeys(inodes, rank)
    waiting: dict[int, list[tuple[Row, int]]] = {rank: [] for rank in ranks_by_pid.values()}
    for network in _networks(ranks_by_pid, proc):
        rows = [row for name in ("tcp", "tcp6") for row in _table(network / name)]
        ranks = {(r.local, r.remote): owners[r.inode] for r in rows if r.inode in owners}
        for row in rows:
            if not row.is_idle and (row.local, row.remote) in ranks:
                peer = ranks.get((row.remote, row.local), NOT_MEASURED)
                waiting[ranks[row.local, row.remote]].append((row, peer))
    return [
        connections_of(rank, now_ns, rows, errors[rank]) for rank, rows in sorted(waiting.items())
    ]


def connections_of(
    rank: int, now_ns: int, waiting: Sequence[tuple[Row, int]], error: str
) -> ConnectionsRecord:
    """Make the record of a rank: rows in which something waits, each with the rank at its end."""
    told = sorted(waiting, key=lambda item: -(item[0].num_unacknowledged + item[0].num_unread))
    del told[MAX_CONNECTIONS:]
    return ConnectionsRecord(
        time_ns=now_ns,
        rank=rank,
        peers=tuple(peer for _, peer in told),
        addresses=tuple(address_text(row.remote) for row, _ in told),
        num_unacknowledged=tuple(row.num_unacknowledged for row, _ in told),
        num_unread=tuple(row.num_unread for row, _ in told),
        num_retransmits=tuple(row.num_retransmits for row, _ in told),
        error=error,
    )


def parse_table(text: str) -> Iterator[Row]:
    """Read a table of connections; lines that are not of it are left out."""
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != _ESTABLISHED:
            continue
        with contextlib.suppress(ValueError):
            sent, _, unread = words[4].partition(":")
            is_retransmitting = words[5].partition(":")[0] == _RETRANSMIT_TIMER
            yield Row(
                local=_end(words[1]),
                remote=_end(words[2]),
                inode=int(words[9]),
                num_unacknowledged=int(sent, 16),
                num_unread=int(unread, 16),
                num_retransmits=int(words[6], 16) if is_retransmitting else 0,
            )


def address_text(end: _End) -> str:
    """Write an end as ``192.0.2.1:4312``."""
    # The kernel writes each word of 32 bits in the machine's order, which on all that run
    # CUDA is little-endian.
    raw = b"".join(bytes.fromhex(end[0][i : i + 8])[::-1] for i in range(0, len(end[0]), 8))
    address = ipaddress.ip_address(raw)
    return f"[{address}]:{end[1]}" if address.version == 6 else f"{address}:{end[1]}"


def _end(text: str) -> _End:
    address, _, port = text.partition(":")
    if len(address) not in {8, 32}:
        raise ValueError(text[:40])
    int(address, 16)
    # An IPv4 peer of an IPv6 socket is the same machine.
    return address.upper().removeprefix(_MAPPED), int(port, 16)


def _sockets(process: Path) -> tuple[list[int], str]:
    """Give the inodes of the sockets a process has open, or why they are not shown."""
    found: list[int] = []
    try:
        names = os.listdir(process / "fd")[:MAX_FDS]
    except OSError as error:
        return found, f"its sockets are not shown: {error.strerror}"
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            kind, _, inode = os.readlink(process / "fd" / name).partition(":[")
            if kind == "socket":
                found.append(int(inode.rstrip("]")))
    return found, ""


def _networks(pids: Iterable[int], proc: Path) -> list[Path]:
    """Give where the tables of each network lie: processes of one network share them."""
    found: dict[str, Path] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found.setdefault(os.readlink(proc / str(pid) / "ns" / "net"), proc / str(pid) / "net")
    return list(found.values())


def _table(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return
    yield from parse_table(text)
