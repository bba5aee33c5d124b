"""Device time of collectives: asks NCCL to time them. Off by default.

NCCL then records one more device event per collective, and its flight recorder tells when each
started and how long it took. **It cannot be turned off again in a process**: groups that exist at
``shutdown()`` keep it. Gloo has no device time; the call that turns timing on does nothing there.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import MAX_REASON, say
from tracecore_train.hooks.group_watch import backends_of, groups_now

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext

VARIABLE = "TORCH_NCCL_ENABLE_TIMING"
"""What torch reads when it makes a group of NCCL."""


class CollectiveTimingHook:
    """Turns the timing of NCCL on."""

    name = "collective_timing"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is set yet."""
        self._is_set = False
        self._blind = ""

    def install(self) -> None:
        """Turn it on for groups made later, and for those there are."""
        try:
            import torch.distributed as dist
        except ImportError as error:
            raise HookUnavailableError(f"no torch ({error})") from None
        if not dist.is_available() or not dist.is_nccl_available():
            raise HookUnavailableError(
                "this torch has no NCCL, and gloo has no device time of collectives"
            )
        told = os.environ.get(VARIABLE)
        if told is not None and told.strip().lower() in ("0", "n", "no", "f", "false"):
            raise HookUnavailableError(f"you turned it off ({VARIABLE}={told})")
        if told is None:
            os.environ[VARIABLE] = "1"
            self._is_set = True
        for pg in groups_now():
            self._turn_on(pg)
        say(
            "collective_timing: NCCL records one more device event per collective from now on; "
            "this cannot be turned off again in this process"
        )

    def uninstall(self) -> None:
        """Take the variable back. Groups that exist keep their timing; torch has no way back."""
        if self._is_set and os.environ.get(VARIABLE) == "1":
            del os.environ[VARIABLE]
        self._is_set = False

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        if self._blind:
            return [f"{self.name}: {self._blind}"]
        if "torch.distributed.distributed_c10d" not in sys.modules:
            return []
        groups = groups_now()
        if groups and not any(_has_nccl(pg) for pg in groups):
            return [f"{self.name}: no group of this rank uses NCCL, and gloo has no device time"]
        return []

    def _turn_on(self, pg: Any) -> None:
        turn_on = getattr(pg, "_enable_collectives_timing", None)
        if turn_on is None or not _has_nccl(pg):
            return
        try:
            turn_on()
        except (RuntimeError, TypeError) as error:
            self._blind = f"a group that was made before refused ({error})"[:MAX_REASON]


def _has_nccl(pg: Any) -> bool:
    return any("nccl" in backend for backend in backends_of(pg).values())
