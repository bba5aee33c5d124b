"""Runs what may block in a thread of its own, with a deadline, beside the event loop.

Not in the loop's pool: a thread that hangs in a dead file system must neither take a place from
the pulls nor keep the sidecar from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def beside(timeout_s: float, function: Callable[[], T]) -> T:
    """Give what ``function`` gives or raises; raise ``TimeoutError`` after ``timeout_s``."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # T itself, where nothing failed

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as problem:  # noqa: BLE001  (raised again by whoever waits)
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="tracecore-beside", daemon=True).start()
    try:
        # Not wait_for: before Python 3.12 it can swallow a cancellation.
        await asyncio.wait({answer}, timeout=timeout_s)
        if not answer.done():
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return answer.result()
    finally:
        answer.cancel()
