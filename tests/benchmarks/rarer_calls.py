"""What comes rarer than a step costs the training thread: pauses, checkpoints, our own calls.

Paired blocks as in ``training_thread``. What a hook is around (a collection of the young, a save,
a send) costs next to nothing here itself. Our own functions are paired with a call of nothing: the
difference is the whole call.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import tempfile
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import tracecore_train
from tests.benchmarks.measure import Row, missing
from tests.benchmarks.training_thread import GROUP, block, differences, pairs, training_recorder
from tracecore_train import scalars, steps
from tracecore_train.hooks.checkpoint import CheckpointHook
from tracecore_train.hooks.garbage import GarbageHook
from tracecore_train.hooks.patch import Patch
from tracecore_train.hooks.point_to_point import PointToPointHook
from tracecore_train.recorder.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracecore_train.recorder.recorder import Recorder


def measure(is_quick: bool) -> list[Row]:
    """Measure a collection, a checkpoint, each of our functions, and send and recv."""
    num_pairs = 30 if is_quick else 150
    with training_recorder() as recorder:
        return [
            *pairs(
                "garbage collection",
                (GarbageHook,),
                functools.partial(gc.collect, 0),
                recorder,
                num_pairs,
            ),
            *_checkpoint(recorder, num_pairs),
            *_own_calls(recorder, num_pairs),
            *_point_to_point(recorder, num_pairs),
        ]


def _checkpoint(recorder: Recorder, num_pairs: int) -> list[Row]:
    """Measure around a ``torch.save`` that saves nothing, into a file whose size is looked up."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile())
        for owner in (torch, torch.serialization):
            patch = Patch(owner, "save", lambda _: _save_nothing)
            patch.install()
            stack.callback(patch.uninstall)
        return pairs(
            "checkpoint (torch.save)",
            (CheckpointHook,),
            lambda: torch.save(None, file.name),
            recorder,
            num_pairs,
        )


def _save_nothing(obj: object, f: object) -> None:
    """Stand in for ``torch.save``."""


def _own_calls(recorder: Recorder, num_pairs: int) -> list[Row]:
    calls: dict[str, Callable[[], object]] = {
        "log(), one number": lambda: tracecore_train.log(loss=0.5),
        "phase()": lambda: _enter(tracecore_train.phase("evaluation")),
        "expect()": lambda: _enter(tracecore_train.expect("export", at_most=600)),
    }
    with _recording_to(recorder):
        rows = [
            differences(
                what,
                functools.partial(block, call, recorder),
                functools.partial(block, lambda: None, recorder),
                num_pairs,
            )
            for what, call in calls.items()
        ]
    return [row for some in rows for row in some]


def _enter(context: contextlib.AbstractContextManager[object]) -> None:
    with context:
        pass


@contextlib.contextmanager
def _recording_to(recorder: Recorder) -> Iterator[None]:
    """Let our functions find ``recorder``, and log as often as a benchmark asks."""
    replaced = (
        Patch(steps, "current_recorder", lambda _: lambda: recorder),
        Patch(scalars, "current_recorder", lambda _: lambda: recorder),
        Patch(scalars, "_pace", lambda _: Pace(sys.maxsize)),
    )
    with contextlib.ExitStack() as stack:
        for patch in replaced:
            patch.install()
            stack.callback(patch.uninstall)
        yield


def _point_to_point(recorder: Recorder, num_pairs: int) -> list[Row]:
    """Measure send and recv of torch's fake backend, which does nothing."""
    try:
        from torch.testing._internal.distributed.fake_pg import FakeStore
    except ImportError as error:
        return [missing(GROUP, "send, recv", f"this torch has no fake backend ({error})")]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    value = torch.ones(4)
    try:
        return [
            *pairs(
                "send (point_to_point, off by default)",
                (PointToPointHook,),
                lambda: dist.send(value, 1),
                recorder,
                num_pairs,
            ),
            *pairs(
                "recv (point_to_point, off by default)",
                (PointToPointHook,),
                lambda: dist.recv(value, 1),
                recorder,
                num_pairs,
            ),
        ]
    finally:
        dist.destroy_process_group()
