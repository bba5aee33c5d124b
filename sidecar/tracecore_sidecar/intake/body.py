"""The body of a request, read in its bounds, decompressed in its bounds.

A sender may lie about lengths, drip, hang up or send a bomb: what it can cost is the bound, for
the time of the deadline.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from tracecore_sidecar.intake.refusal import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BODY_BYTES = 16 << 20
"""Of one request, as sent and after decompression; a busy rank sends some 30 kB a second."""
BODY_TIMEOUT_S = 10.0
"""For the whole body; a rank sends its own in one piece."""


async def read_body(request: Request, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read the body and undo its compression; raise :class:`RefusedError`."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise RefusedError(415, f"content encoding {encoding[:100]!r}; send gzip or none")
    try:
        body = await asyncio.wait_for(_read_bounded(request, max_bytes), BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise RefusedError(408, f"the body took more than {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise RefusedError(400, "the client hung up before the end of the body") from None
    return _gunzip(body, max_bytes) if encoding == "gzip" else body


async def _read_bounded(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise RefusedError(413, f"a body of more than {max_bytes} bytes")
    return bytes(body)


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        raw = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RefusedError(400, f"the body is not gzip: {error}") from None
    if len(raw) > max_bytes:
        raise RefusedError(413, f"more than {max_bytes} bytes after decompression")
    if not inflate.eof or inflate.unused_data:
        raise RefusedError(400, "the gzip body is cut off or has something behind its end")
    return raw
