"""Step boundaries and the time inside optimizers, from torch's global optimizer hooks.

One step ends when the *leader* optimizer has stepped. The leader is the first optimizer seen;
another takes over when it has fired three times since the leader last did, or at once when the
leader is gone. That covers several optimizers per step, one optimizer per parameter (optimizer
in backward) and replaced optimizers. A subclass whose ``step`` calls ``super().step()`` fires
pre, pre, post, post: only the first post after a pre counts. A step the gradient scaler skips
never reaches the optimizer; it is seen by a patch of ``GradScaler.step`` and flagged. Fused
optimizers that skip inside their kernel cannot be told apart from a normal step.

Timed is the outermost optimizer, on the training thread; one that is stepped from backward runs
in a thread of autograd on a device, while the training thread waits in that backward.
"""

from __future__ import annotations

import functools
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.hooks.dynamo import keep_out_of_graphs
from tracecore_train.hooks.patch import Patch
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Word
from tracecore_train.recorder.parts import Point, Sum
from tracecore_train.wire.records import StepFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext

    _StepHook = Callable[[object, object, object], None]

FIRES_TO_LEAD = 3
"""Times another optimizer fires since the leader last did before it becomes the leader."""
MAX_OPTIMIZERS = 65_536
"""Optimizers told apart between two steps; more (made and dropped in a loop) are forgotten."""
_OPTIMIZER_SINCE = int(Word.OPTIMIZER_SINCE)
_OPTIMIZER = Sum.OPTIMIZER


class OptimizerHook:
    """Ends a step when the leader optimizer stepped, until the user calls ``step()``."""

    name = "optimizer"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._recorder = context.recorder
        self._guard = guard
        self._handles: list[Any] = []
        self._scaler_patch: Patch | None = None
        self._optimizer_class: type = object
        self._fires: dict[int, int] = {}
        self._leader = 0
        self._leader_ref: Callable[[], object] = _gone

    def install(self) -> None:
        """Register the global hooks and patch the gradient scaler where there is one."""
        try:
            from torch.optim import optimizer
        except ImportError as error:
            raise HookUnavailableError(f"torch cannot be imported ({error})") from None
        self._optimizer_class = optimizer.Optimizer
        before, after = self._make_hooks()
        self._handles = [
            optimizer.register_optimizer_step_pre_hook(before),
            optimizer.register_optimizer_step_post_hook(after),
        ]
        try:
            from torch.amp.grad_scaler import GradScaler
        except ImportError:
            return
        self._scaler_patch = Patch(GradScaler, "step", self._wrap_scaler_step)
        self._scaler_patch.install()

    def uninstall(self) -> None:
        """Remove the hooks and the patch."""
        for handle in self._handles:
            handle.remove()
        if self._scaler_patch is not None:
            self._scaler_patch.uninstall()
        self._handles, self._scaler_patch = [], None

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return []

    def _make_hooks(self) -> tuple[_StepHook, _StepHook]:
        """Make what runs before and after every optimizer's step; what they need is bound once."""
        guard, recorder, parts = self._guard, self._recorder, self._recorder.parts
        words, end_step = recorder.page.words, recorder.end_step
        nested: set[int] = set()
        outermost = 0

        @keep_out_of_graphs
        def before(optimizer: object, args: object, kwargs: object) -> None:
            nonlocal outermost
            if not guard.is_open:
                return
            try:
                key = id(optimizer)
                # The same one again: it steps its own base class, or it raised the last time.
                if (parts.optimizer_since and key != outermost) or (
                    get_ident() != recorder.training_thread
                    and not parts.backward_since
                    and not recorder.claim_training_thread()
                ):
                    nested.add(key)
                    return
                outermost = key
                words[_OPTIMIZER_SINCE] = parts.optimizer_since = now_ns()
                parts.is_optimizer_split = False
                if parts.marks is not None and not parts.backward_since:
                    parts.marks.mark(Point.OPTIMIZER_BEGIN)
            except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
                words[_OPTIMIZER_SINCE] = parts.optimizer_since = 0
                guard.contain(error)

        @keep_out_of_graphs
        def after(optimizer: object, args: object, kwargs: object) -> None:
            nonlocal outermost
            if not guard.is_open:
                return
            try:
                key = id(optimizer)
                now = 0
                if key == outermost:
                    outermost = 0
                    words[_OPTIMIZER_SINCE] = 0
                    now = now_ns()
                    since = parts.optimizer_since
                    if since:
                        parts.optimizer_since = 0
                        parts.forward_since = now
                        parts.sums[_OPTIMIZER] += now - since
                        if parts.backward_since or parts.marks is not None:
                            parts.after_optimizer(now - since)
                elif key in nested:
                    nested.discard(key)
                else:
                    return
                if recorder.is_explicit:
                    return
                if key == self._leader:
                    if self._fires:
                        self._fires.clear()
                elif not self._takes_the_lead(key, optimizer):
                    return
                end_step(0, now)
            except Exception as error:  # noqa: BLE001  (hot path; the guard contains it)
                words[_OPTIMIZER_SINCE] = parts.optimizer_since = 0
                guard.contain(error)

        return before, after

    def _takes_the_lead(self, key: int, optimizer: object) -> bool:
        num_fires = self._fires.get(key, 0) + 1
        if self._leader_ref() is not None and num_fires < FIRES_TO_LEAD:
            if len(self._fires) >= MAX_OPTIMIZERS:
                self._fires.clear()
            self._fires[key] = num_fires
            return False
        self._leader = key
        self._leader_ref = weakref.ref(optimizer)
        self._fires.clear()
        return True

    def _wrap_scaler_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @keep_out_of_graphs
        @functools.wraps(original)
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            num_before = self._recorder.num_steps
            result = original(scaler, optimizer, *args, **kwargs)
            if self._guard.is_open and self._recorder.num_steps == num_before:
                with self._guard:
                    self._on_skipped(optimizer)
            return result

        return step

    def _on_skipped(self, optimizer: object) -> None:
        if self._recorder.is_explicit or not isinstance(optimizer, self._optimizer_class):
            return
        if self._leader_ref() is None:
            self._takes_the_lead(id(optimizer), optimizer)
        if self._leader_ref() is optimizer:
            self._recorder.claim_training_thread()
            self._recorder.end_step(StepFlag.SKIPPED)


def _gone() -> None:
    return None
