"""Whether this process uses CUDA, asked without importing or initialising anything."""

from __future__ import annotations

import sys
from typing import Any

NO_CUDA = "no CUDA in this process"
"""Why a signal of the device is blind where nothing uses one."""


def cuda_in_use() -> Any | None:
    """Give ``torch.cuda`` where somebody has initialised it; a module half imported is not yet."""
    cuda = sys.modules.get("torch.cuda")
    is_initialized = getattr(cuda, "is_initialized", None)
    return cuda if is_initialized is not None and is_initialized() else None
