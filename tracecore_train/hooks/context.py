"""What a hook is given when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tracecore_train.recorder.recorder import Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class HookContext:
    """The recorder hooks write to, and who and where this rank is."""

    recorder: Recorder
    rank: int
    socket_path: Path | None
    """Where the worker server may listen; None: nowhere."""
    sidecar: Callable[[], tuple[int, int] | None] = lambda: None
    """Gives pid and user of the process that takes our records; None: not connected."""
