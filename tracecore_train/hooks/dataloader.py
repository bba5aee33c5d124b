"""Input wait: time inside ``next(dataloader)`` on the training thread.

The rank page says "inside since" before the call and 0 after it, also when the call raises, so
that a stalled loader is visible from outside. A loader read by another loader on the same thread
counts once, as the outer call; a loader read by another thread does not count.
"""

from __future__ import annotations

import functools
from threading import get_ident
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.patch import Patch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext


class DataLoaderHook:
    """Times the batches of every torch ``DataLoader``."""

    name = "dataloader"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._patch: Patch | None = None

    def install(self) -> None:
        """Patch the iterators' common base class."""
        try:
            from torch.utils.data.dataloader import _BaseDataLoaderIter
        except ImportError as error:
            raise HookUnavailableError(f"input: no torch DataLoader ({error})") from None
        self._patch = Patch(_BaseDataLoaderIter, "__next__", self._wrap_next)
        self._patch.install()

    def uninstall(self) -> None:
        """Put the original back."""
        if self._patch is not None:
            self._patch.uninstall()
        self._patch = None

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return []

    def _wrap_next(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        recorder, guard = self._recorder, self._guard

        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807  (the name tracebacks show)
            if (
                not guard.is_open
                or (
                    get_ident() != recorder.training_thread and not recorder.claim_training_thread()
                )
                or recorder.is_in_input
            ):
                return original(self)
            began = num_batches = 0
            try:
                with guard:
                    began = recorder.enter_input()
                batch = original(self)
                num_batches = 1
                return batch
            finally:
                # A loader may fork its workers inside the call and a worker may leave by
                # an exception: the guard is closed there, and this rank's sums are not its.
                if began and guard.is_open:
                    with guard:
                        recorder.leave_input(began, num_batches)

        return __next__
