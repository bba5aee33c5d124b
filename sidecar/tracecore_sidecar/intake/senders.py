"""Who sends, and how much: a token bucket of bytes per sender.

On the unix socket a sender is a process, which the kernel names; on loopback TCP all senders
share one bucket, because a new connection costs them nothing.
"""

from __future__ import annotations

import math
import socket
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    import asyncio

BYTES_PER_S = 4 << 20
"""Of one sender over time; a busy rank sends some 30 kB a second."""
BURST_BYTES = 64 << 20
"""What a sender may send at once: four of the longest bodies."""
MAX_SENDERS = 1024
"""Buckets kept; beyond, the one unused for longest is forgotten."""
HEAD_TIMEOUT_S = 10.0
"""From a connection's start, or from the first bytes of a later request, to the end of its head."""
LOCAL_PREFIX = "pid:"
_UCRED = struct.Struct("3i")


class TokenBuckets:
    """Bytes per sender. ``now_s`` is any clock that only goes forward."""

    def __init__(self, rate: float = BYTES_PER_S, burst: float = BURST_BYTES) -> None:
        """Start with full buckets."""
        self._rate = rate
        self._burst = burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, sender: str, now_s: float) -> int:
        """Give the whole seconds until ``sender`` may send again; 0: now."""
        level = self._level(sender, now_s)
        return 0 if level > 0 else max(1, math.ceil(-level / self._rate))

    def spend(self, sender: str, num_bytes: int, now_s: float) -> None:
        """Take bytes that came; a bucket may go below zero by one request."""
        self._levels[sender] = (self._level(sender, now_s) - num_bytes, now_s)
        self._levels.move_to_end(sender)
        if len(self._levels) > MAX_SENDERS:
            self._levels.popitem(last=False)

    def _level(self, sender: str, now_s: float) -> float:
        level, at_s = self._levels.get(sender, (self._burst, now_s))
        return min(self._burst, level + (now_s - at_s) * self._rate)


def is_local(sender: str) -> bool:
    """Say whether a sender came by the unix socket, which only our own user can open."""
    return sender.startswith(LOCAL_PREFIX)


class SenderProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # h11's or httptools'
    """uvicorn's HTTP protocol that names the process at the other end of a unix socket.

    A connection that does not get to its first request, or does not finish the head of a later
    one, is closed: an idle one must not take the place of a rank's.
    """

    client: tuple[str, int] | None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Note who is there."""
        super().connection_made(transport)
        if self.client is None:
            self.client = (f"{LOCAL_PREFIX}{_peer_pid(transport)}", 0)
        self._limit_head()

    def data_received(self, data: bytes) -> None:
        """Take what came; usually a whole head, so that no timer is needed."""
        last = self.cycle
        is_new_request = last is not None and last.response_complete
        super().data_received(data)
        if is_new_request and self.cycle is last:
            self._limit_head()

    def _limit_head(self) -> None:
        self.loop.call_later(HEAD_TIMEOUT_S, self._close_if_still_at, self.cycle)

    def _close_if_still_at(self, last: object) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.abort()


def _peer_pid(transport: asyncio.Transport) -> int:
    peer = transport.get_extra_info("socket")
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError:
        return 0
    pid: int = _UCRED.unpack(raw)[0]
    return pid
