"""Code installed in the framework. Each hook adds records and changes nothing else.

:data:`HOOKS` is the visible list. Hooks import torch only in :meth:`Hook.install`, so this
package can be imported where torch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tracecore_train.hooks.checkpoint import CheckpointHook
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.hooks.process_groups import ProcessGroupsHook
from tracecore_train.hooks.worker_server import WorkerServerHook

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record


class Hook(Protocol):
    """One thing we watch in a rank."""

    name: str
    """As in the ``hooks`` setting."""

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed. Everything the hook runs later runs under ``guard``."""

    def install(self) -> None:
        """Install, or raise ``HookUnavailableError`` with the reason."""

    def uninstall(self) -> None:
        """Undo :meth:`install` exactly. The guard is closed before."""

    def blind(self) -> list[str]:
        """Give what this hook cannot see at the moment, each as ``signal: reason``."""


@runtime_checkable
class PolledHook(Protocol):
    """A hook that also looks at something once per hand-over, in the export thread."""

    def poll(self, is_full: bool) -> list[Record]:
        """Give what is new, or with ``is_full`` everything that still holds."""


HOOKS: tuple[type[Hook], ...] = (
    OptimizerHook,
    DataLoaderHook,
    CheckpointHook,
    ProcessGroupsHook,
    WorkerServerHook,
)
"""Every hook there is, in the order of installation."""
