"""Input wait: time inside ``next(dataloader)`` on the training thread.

The rank page says "inside since" before the call and 0 after it, also when the call raises, so
that a stalled loader is visible from outside. A loader read by another loader on the same thread
counts once, as the outer call; a loader read by another thread does not count. torchdata's
iterators have a ``__next__`` of their own, patched within one hand-over of torchdata's import.
"""

from __future__ import annotations

import functools
import sys
import threading
from threading import get_ident
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.dynamo import keep_out_of_graphs
from tracecore_train.hooks.loaders import ATTRIBUTE, Loaders
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.recorder.parts import Point, Sum

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.hooks.loaders import Loader
    from tracecore_train.wire.records import Record

STATEFUL = ("torchdata.stateful_dataloader.stateful_dataloader", "_StatefulBaseDataLoaderIter")
"""Module and class of torchdata's own iterators."""
_INPUT_SINCE, _NUM_BATCHES_WORD = int(Word.INPUT_SINCE), int(Word.NUM_BATCHES)
_INPUT, _NUM_BATCHES = Sum.INPUT, Sum.NUM_BATCHES


class DataLoaderHook:
    """Times the batches of every torch ``DataLoader`` and tells how its queue stands."""

    name = "dataloader"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._loaders = Loaders(context.rank)
        self._patches: list[Patch] = []
        self._patching = threading.Lock()
        """Between install and uninstall on one thread and :meth:`poll` on another."""
        self._is_installed = False
        self._wrap_next = self._make_wrap()
        self._is_stateful_patched = False

    def install(self) -> None:
        """Patch the iterators' common base class."""
        try:
            from torch.utils.data.dataloader import _BaseDataLoaderIter
        except ImportError as error:
            raise HookUnavailableError(f"no torch DataLoader ({error})") from None
        with self._patching:
            self._is_installed = True
            self._patch(_BaseDataLoaderIter)
            self._patch_stateful()

    def uninstall(self) -> None:
        """Put the originals back."""
        with self._patching:
            self._is_installed = False
            for patch in self._patches:
                patch.uninstall()
            self._patches = []
        self._loaders.release()

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        if self._loaders.had_queue:
            return []
        return ["input.queue: no DataLoader with workers delivered a batch so far"]

    def poll(self, is_full: bool) -> list[Record]:
        """Give the loaders that delivered since the last time, or all that live."""
        with self._patching:
            if self._is_installed:
                self._patch_stateful()
        return [*self._loaders.poll(is_full)]

    def _patch(self, iterator_class: type) -> None:
        patch = Patch(iterator_class, "__next__", self._wrap_next)
        patch.install()
        self._patches.append(patch)

    def _patch_stateful(self) -> None:
        """Patch torchdata's iterators once they are there, where they override the method."""
        if self._is_stateful_patched:
            return
        iterator_class = getattr(sys.modules.get(STATEFUL[0]), STATEFUL[1], None)
        if iterator_class is not None:
            self._is_stateful_patched = True
            if "__next__" in vars(iterator_class):
                self._patch(iterator_class)

    def _make_wrap(self) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
        """Make what wraps ``__next__``; the wrappers of a hook share whether one is inside.

        Runs for every batch: what it needs is bound once, and errors of ours are caught without
        a ``with``, which would cost a seventh of the whole.
        """
        recorder, parts, page = self._recorder, self._recorder.parts, self._recorder.page
        guard, adopt = self._guard, self._loaders.adopt
        is_inside = False
        num_batches = 0

        def leave_without_batch(loader: Loader, began: int) -> None:
            now = now_ns()
            page.words[_INPUT_SINCE] = 0
            parts.sums[_INPUT] += now - began
            parts.forward_since = now
            loader.is_first = True

        def wrap(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
            @keep_out_of_graphs
            @functools.wraps(original)
            def __next__(self: Any) -> Any:  # noqa: N807  (the name tracebacks show)
                nonlocal is_inside, num_batches
                if (
                    is_inside
                    or not guard.is_open
                    or (
                        get_ident() != recorder.training_thread
                        and not recorder.claim_training_thread()
                    )
                ):
                    return original(self)
                try:
                    loader = getattr(self, ATTRIBUTE, None) or adopt(self)
                    words = page.words
                    words[_INPUT_SINCE] = began = now_ns()
                except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
                    guard.contain(error)
                    return original(self)
                is_inside = True
                try:
                    batch = original(self)
                except BaseException:
                    is_inside = False
                    # A loader may fork its workers inside the call and a worker may leave by
                    # an exception: the guard is closed there, and these sums are not its.
                    if guard.is_open:
                        with guard:
                            leave_without_batch(loader, began)
                    else:
                        page.words[_INPUT_SINCE] = 0
                    raise
                is_inside = False
                if guard.is_open:
                    try:
                        now = now_ns()
                        words[_INPUT_SINCE] = 0
                        waited = now - began
                        num_batches += 1
                        words[_NUM_BATCHES_WORD] = num_batches
                        sums = parts.sums
                        sums[_INPUT] += waited
                        sums[_NUM_BATCHES] += 1
                        parts.forward_since = now
                        if loader.is_first:
                            loader.add_first(waited)
                        else:
                            loader.num_batches += 1
                            loader.wait_ns += waited
                            if waited > loader.longest_wait_ns:
                                loader.longest_wait_ns = waited
                        if parts.marks is not None:
                            parts.marks.mark(Point.INPUT_END)
                    except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
                        guard.contain(error)
                else:
                    # Switched off meanwhile; in a forked child the page's words are its own.
                    page.words[_INPUT_SINCE] = 0
                return batch

            return __next__

        return wrap
