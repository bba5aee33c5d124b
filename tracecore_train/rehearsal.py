"""Makes rehearsed faults happen inside a rank, where real ones would: see ``faults.py``.

Steps are counted here, by torch's global optimizer hooks, because faults must not depend on what
they are meant to test. ``forward`` waits before the outermost training module of a step,
``backward`` inside the autograd engine (a hook on the loss), ``input`` below
``next(dataloader)``, ``checkpoint`` inside ``torch.save``, ``host`` after a step ended. Nothing
is computed differently, and :meth:`Rehearsal.uninstall` puts back what was replaced; where
somebody wrapped it since, our wrapper stays and only passes through.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from tracecore_train.guard import Guard
from tracecore_train.hooks.patch import Patch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracecore_train.faults import Fault

_SEND_SIGCONT = """
import os, select, signal, sys
pid, seconds = int(sys.argv[1]), float(sys.argv[2])
while not select.select([0], [], [], seconds)[0]:
    os.kill(pid, signal.SIGCONT)
    seconds = 0.05
"""
"""Continues a stopped rank, again and again until it closes the pipe; ends with the rank."""


class Rehearsal:
    """The armed faults of one rank."""

    def __init__(self, faults: Sequence[Fault], *, rank: int) -> None:
        """Prepare; nothing is installed yet."""
        self._faults = tuple(faults)
        self._rank = rank
        self._pid = os.getpid()
        self._step = 0
        self._acted_in: dict[int, int] = {}
        """Step each fault (by index) acted in last."""
        self._leader: Callable[[], object | None] = _gone
        self._is_pending = False
        self._is_active = False
        self._guard = Guard("rehearsal")
        self._undo: list[Callable[[], object]] = []

    def install(self) -> None:
        """Install what the places of the faults need, and say that a rehearsal is active."""
        from torch.optim import optimizer

        self._is_active = True
        handle = optimizer.register_optimizer_step_pre_hook(self._before_step)
        self._undo.append(handle.remove)
        places = {fault.where for fault in self._faults}
        for place, install in (
            ("forward", self._install_forward),
            ("backward", self._install_backward),
            ("input", self._install_input),
            ("checkpoint", self._install_checkpoint),
        ):
            if place in places:
                install()
        described = "; ".join(fault.describe() for fault in self._faults)
        sys.stderr.write(f"tracecore: rehearsal active on rank {self._rank}: {described}\n")
        sys.stderr.flush()

    def uninstall(self) -> None:
        """Take everything out again."""
        self._is_active = False
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _before_step(self, optimizer: Any, args: object, kwargs: object) -> None:
        # The post hook is registered in the first step, to run after every other one: a rank
        # that hangs on the host hangs after its step was seen to end.
        if self._leader is _gone:
            from torch.optim.optimizer import register_optimizer_step_post_hook

            self._undo.append(register_optimizer_step_post_hook(self._after_step).remove)
        if self._leader() is None:
            self._leader = weakref.ref(optimizer)
        if self._leader() is optimizer:
            self._is_pending = True

    def _after_step(self, optimizer: Any, args: object, kwargs: object) -> None:
        # A subclass that calls super().step() comes here twice, with one pending step.
        if self._is_pending and self._leader() is optimizer:
            self._is_pending = False
            self._step += 1
            self._act("host")

    def _install_forward(self) -> None:
        import torch
        from torch.nn.modules.module import register_module_forward_pre_hook

        def before_forward(module: Any, args: object) -> None:
            # The first module called in a step is the outermost; evaluation is left alone.
            if module.training and torch.is_grad_enabled():
                self._act("forward")

        self._undo.append(register_module_forward_pre_hook(before_forward).remove)

    def _install_backward(self) -> None:
        import torch

        def make_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def backward(loss: Any, *args: Any, **kwargs: Any) -> Any:
                if not (self._is_active and loss.requires_grad):
                    return original(loss, *args, **kwargs)
                handle = loss.register_hook(lambda _: self._act("backward"))
                try:
                    return original(loss, *args, **kwargs)
                finally:
                    handle.remove()

            return backward

        self._patch(torch.Tensor, "backward", make_wrapper)

    def _install_input(self) -> None:
        from torch.utils.data import dataloader

        def make_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def next_data(iterator: Any) -> Any:
                self._act("input")
                return original(iterator)

            return next_data

        for name in ("_SingleProcessDataLoaderIter", "_MultiProcessingDataLoaderIter"):
            self._patch(getattr(dataloader, name), "_next_data", make_wrapper)

    def _install_checkpoint(self) -> None:
        import torch

        def make_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def save(*args: Any, **kwargs: Any) -> Any:
                self._act("checkpoint")
                return original(*args, **kwargs)

            return save

        for module in (torch, torch.serialization):
            self._patch(module, "save", make_wrapper)

    def _patch(self, target: Any, name: str, make_wrapper: Callable[[Any], Any]) -> None:
        patch = Patch(target, name, make_wrapper)
        patch.install()
        self._undo.append(patch.uninstall)

    def _act(self, place: str) -> None:
        """Make the trouble that is due at a place and has not happened in this step yet."""
        if not (self._is_active and self._guard.is_open) or os.getpid() != self._pid:
            return
        for index, fault in enumerate(self._faults):
            if fault.where != place or not fault.is_due(self._step):
                continue
            acted_in = self._acted_in.get(index)
            if acted_in == self._step or (acted_in is not None and fault.kind != "slow"):
                continue
            self._acted_in[index] = self._step
            with self._guard:
                _make_trouble(fault)


def _make_trouble(fault: Fault) -> None:
    if fault.kind == "kill":
        os.kill(os.getpid(), fault.signal)
    elif fault.how == "gil":
        _hold_gil(fault.duration_ns)
    elif fault.how == "stop":
        _stop_process(fault.duration_ns)
    else:
        time.sleep(fault.duration_ns / 1e9)


def _hold_gil(duration_ns: int) -> None:
    """Sleep like an extension that does not release the GIL."""
    poll = ctypes.PyDLL(None).poll
    deadline = time.monotonic_ns() + duration_ns
    while (left_ns := deadline - time.monotonic_ns()) > 0:
        poll(None, 0, max(1, left_ns // 1_000_000))


def _stop_process(duration_ns: int) -> None:
    """Stop this process until a detached child continues it."""
    command = [sys.executable, "-I", "-S", "-c", _SEND_SIGCONT]
    child = subprocess.Popen(
        [*command, str(os.getpid()), str(duration_ns / 1e9)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.kill(os.getpid(), signal.SIGSTOP)
    child.communicate()


def _gone() -> None:
    return None
