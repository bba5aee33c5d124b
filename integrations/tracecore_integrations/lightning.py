"""Lightning tells what plain hooks cannot know: its phases, its step number, its accumulation.

    trainer = Trainer(callbacks=[TraceCoreCallback()])

Under ``tracecore run`` recording has begun before the callback exists, and the callback only adds
to it; elsewhere it calls ``tracecore_train.init()`` as soon as Lightning has made its processes.
Works with the ``Trainer`` of ``lightning`` and of ``pytorch_lightning``. After construction no
exception of ours leaves a method.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import tracecore_train
from tracecore_integrations.lightning_namespaces import with_callback_bases
from tracecore_train.config import load_config
from tracecore_train.guard import Guard
from tracecore_train.hooks.patch import Patch

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Callback
else:
    Callback = object


class TraceCoreCallback(Callback):
    """Names validation, epoch, checkpoint and the like; numbers steps; times batch transfers."""

    def __new__(cls, **settings: object) -> TraceCoreCallback:
        """Derive from the ``Callback`` of the Lightning in use; ``ImportError`` without one."""
        made: TraceCoreCallback = object.__new__(with_callback_bases(cls))
        return made

    def __init__(self, **settings: object) -> None:
        """Keep the settings for ``tracecore_train.init()``.

        Raises ``ConfigError`` when one is unknown or bad.
        """
        load_config(settings)
        self._settings = settings
        self._guard = Guard("Lightning callback")
        self._is_active = False
        self._phases: list[tuple[str, tracecore_train.phase]] = []
        self._patches: list[Patch] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a callback that is not in use yet."""
        state = {**vars(self), "_is_active": False, "_phases": [], "_patches": []}
        return _remake, (getattr(type(self), "_template", type(self)),), state

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Record from here on, if nobody did before: now every process knows its rank."""
        if self._guard.is_open:
            with self._guard:
                self._let_go()
                self._is_active = tracecore_train.init(**self._settings).is_active
                if self._is_active:
                    self._install(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End what is open; recording goes on until the process ends."""
        if self._guard.is_open:
            with self._guard:
                self._let_go()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End what is open: Lightning calls neither the ends of its loops nor ``teardown``."""
        if self._guard.is_open:
            with self._guard:
                self._let_go()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the microbatch, with the number of the step it belongs to."""
        if self._is_active and self._guard.is_open:
            with self._guard:
                tracecore_train.microbatch(global_step=trainer.global_step)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the sanity check."""
        self._begin("sanity_check")

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """End the sanity check."""
        self._end("sanity_check")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an epoch, in which training goes on as usual."""
        self._begin("epoch", is_shown=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End an epoch."""
        self._end("epoch")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a validation, unless it is the one of the sanity check."""
        if not any(name == "sanity_check" for name, _ in self._phases):
            self._begin("validation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """End a validation."""
        self._end("validation")

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a test."""
        self._begin("test")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """End a test."""
        self._end("test")

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a prediction."""
        self._begin("predict")

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """End a prediction."""
        self._end("predict")

    def _begin(self, name: str, *, is_shown: bool = True) -> None:
        if self._is_active and self._guard.is_open:
            with self._guard:
                phase = tracecore_train.phase(name, is_shown=is_shown)
                phase.__enter__()
                self._phases.append((name, phase))

    def _end(self, name: str) -> None:
        """End a phase and what was begun inside it and never ended."""
        if self._guard.is_open and any(name == open_name for open_name, _ in self._phases):
            with self._guard:
                while self._end_innermost() != name:
                    pass

    def _end_innermost(self) -> str:
        name, phase = self._phases.pop()
        phase.__exit__(None, None, None)
        return name

    def _let_go(self) -> None:
        while self._phases:
            self._end_innermost()
        while self._patches:
            self._patches.pop().uninstall()

    def _install(self, trainer: Any) -> None:
        self._patches = [Patch(trainer, "save_checkpoint", self._wrap_save)]
        # On a CPU there is nothing to copy, and a phase for every batch would cost for nothing.
        if getattr(getattr(trainer.strategy, "root_device", None), "type", "cpu") != "cpu":
            self._patches.append(Patch(trainer.strategy, "batch_to_device", self._wrap_transfer))
        for patch in self._patches:
            patch.install()

    def _wrap_transfer(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def batch_to_device(*args: Any, **kwargs: Any) -> Any:
            with tracecore_train.phase("transfer"):
                return original(*args, **kwargs)

        return batch_to_device

    def _wrap_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
            # Every rank comes here and waits at the end, whichever of them writes.
            with tracecore_train.phase("checkpoint"):
                return original(*args, **kwargs)

        return save_checkpoint


def _remake(cls: type[TraceCoreCallback]) -> TraceCoreCallback:
    return TraceCoreCallback.__new__(cls)
