"""Backward time, and with it the forward: time inside ``torch.autograd.backward``.

``Tensor.backward`` calls that function, and so do compiled models, DDP, FSDP, pipelines and
Lightning. Only the outermost call on the training thread counts; a checkpointed segment that
runs backward inside backward is part of it. ``torch.autograd.grad`` is not watched: it is no
training by itself (gradient penalties), so a loop built on it has no backward here.
"""

from __future__ import annotations

import functools
from threading import get_ident
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.cuda import NO_CUDA, cuda_in_use
from tracecore_train.hooks.dynamo import keep_out_of_graphs
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.recorder.parts import Sum

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext

NO_TRANSFER = (
    "step_parts.transfer: copies of batches to the device are not told; use the Lightning callback"
    ' or `with tracecore_train.phase("transfer")`'
)
"""``Tensor.to`` is called for much else than batches, so it is not patched."""
_BACKWARD_SINCE = int(Word.BACKWARD_SINCE)
_BACKWARD = Sum.BACKWARD


class BackwardHook:
    """Times the backward passes of the training thread."""

    name = "backward"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._patch: Patch | None = None

    def install(self) -> None:
        """Patch the function every backward pass goes through."""
        try:
            import torch.autograd
        except ImportError as error:
            raise HookUnavailableError(f"no torch ({error})") from None
        self._patch = Patch(torch.autograd, "backward", self._wrap_backward)
        self._patch.install()
        self._recorder.parts.is_backward_timed = True

    def uninstall(self) -> None:
        """Put the original back."""
        if self._patch is not None:
            self._patch.uninstall()
        self._patch = None
        self._recorder.parts.forget_backward()

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        if cuda_in_use() is None:
            return [f"step_parts.transfer: {NO_CUDA}"]
        return [] if self._recorder.is_transfer_seen else [NO_TRANSFER]

    def _wrap_backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        recorder, parts, guard = self._recorder, self._recorder.parts, self._guard
        page, words = recorder.page, recorder.page.words

        def give_up(error: Exception) -> None:
            words[_BACKWARD_SINCE] = 0
            parts.forget_backward()
            guard.contain(error)

        @keep_out_of_graphs
        @functools.wraps(original)
        def backward(*args: Any, **kwargs: Any) -> Any:
            if (
                not guard.is_open
                or parts.backward_since
                or (
                    get_ident() != recorder.training_thread and not recorder.claim_training_thread()
                )
            ):
                return original(*args, **kwargs)
            try:
                words[_BACKWARD_SINCE] = now = now_ns()
                parts.enter_backward(now)
            except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
                give_up(error)
            try:
                return original(*args, **kwargs)
            finally:
                if guard.is_open:
                    try:
                        now = now_ns()
                        words[_BACKWARD_SINCE] = 0
                        parts.sums[_BACKWARD] += now - parts.backward_since
                        parts.backward_since = 0
                        parts.forward_since = now
                        if parts.optimizer_since or parts.marks is not None:
                            parts.after_backward(now)
                    except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
                        give_up(error)
                else:
                    # Switched off meanwhile; in a forked child the page's words are its own.
                    page.words[_BACKWARD_SINCE] = 0

        return backward
