"""Code installed in the framework. Each hook adds records and changes nothing else.

:data:`HOOKS` is the visible list. Hooks import torch only in :meth:`Hook.install`, so this
package can be imported where torch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tracecore_train.hooks.backward import BackwardHook
from tracecore_train.hooks.checkpoint import CheckpointHook
from tracecore_train.hooks.collective_timing import CollectiveTimingHook
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.hooks.device_time import DeviceTimeHook
from tracecore_train.hooks.exact_collectives import ExactCollectivesHook
from tracecore_train.hooks.failure import FailureHook
from tracecore_train.hooks.garbage import GarbageHook
from tracecore_train.hooks.memory import MemoryHook, MemoryPeaksHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.hooks.point_to_point import PointToPointHook
from tracecore_train.hooks.process_groups import ProcessGroupsHook
from tracecore_train.hooks.ptracer import PtracerHook
from tracecore_train.hooks.termination import TerminationHook
from tracecore_train.hooks.worker_server import WorkerServerHook

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.wire.records import Record


class Hook(Protocol):
    """One thing we watch in a rank."""

    name: str
    """As in the ``hooks`` setting; ``given_by`` of its signals."""

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed. Everything the hook runs later runs under ``guard``."""

    def install(self) -> None:
        """Install, or raise ``HookUnavailableError`` with the reason."""

    def uninstall(self) -> None:
        """Undo :meth:`install` exactly. The guard is closed before."""

    def blind(self) -> list[str]:
        """Give which of its signals it cannot give at the moment, each as ``signal: reason``.

        Names and givers of signals stand in ``tracecore_train.wire.signals``.
        """


@runtime_checkable
class PolledHook(Protocol):
    """A hook that also looks at something once per hand-over, in the export thread."""

    def poll(self, is_full: bool) -> list[Record]:
        """Give what is new, or with ``is_full`` everything that still holds."""


@runtime_checkable
class EndingHook(Protocol):
    """A hook that knows something only when the rank ends."""

    def before_last_word(self) -> None:
        """Note it, just before the last word is said."""


HOOKS: tuple[type[Hook], ...] = (
    OptimizerHook,
    DataLoaderHook,
    BackwardHook,
    DeviceTimeHook,
    CheckpointHook,
    MemoryHook,
    GarbageHook,
    CollectiveTimingHook,
    ProcessGroupsHook,
    WorkerServerHook,
    PointToPointHook,
    ExactCollectivesHook,
    FailureHook,
    PtracerHook,
    TerminationHook,
    MemoryPeaksHook,
)
"""Every hook there is, in the order of installation."""
