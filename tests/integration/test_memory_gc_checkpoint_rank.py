"""Collections and checkpoints of a recording process, through the whole path, and of its child."""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar, wait_until
from tracecore_train.hooks.savers import SAVERS, target_of
from tracecore_train.recorder.page import Word
from tracecore_train.session import current_recorder
from tracecore_train.wire.records import (
    CheckpointRecord,
    GcRecord,
    IdentityRecord,
    MemoryRecord,
    StepRecord,
)

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*single process:UserWarning"),
    # Torch 2.10 and older call what they themselves deprecate.
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.timeout(120),
]


def collect_slowly() -> None:
    """Collect for longer than what is told singly."""

    class Sleeper:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            time.sleep(0.02)

    Sleeper()
    gc.collect()


def test_collections_and_checkpoints_arrive(tmp_path: Path) -> None:
    """A long collection is told and charged to its step, a distributed save is told once, memory
    is blind without CUDA, and afterwards everything is what it was.
    """
    callbacks = list(gc.callbacks)
    points = [(target, vars(target[0])[target[1]]) for s in SAVERS if (target := target_of(s))]
    assert len(points) >= 6
    with FakeSidecar(tmp_path / "j") as sidecar:
        tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=0.1)
        tracecore_train.step()
        collect_slowly()
        dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "c")
        tracecore_train.step()
        tracecore_train.shutdown()
        (pause,) = [r for r in sidecar.records(GcRecord) if r.num_collected]
        assert (pause.step, pause.is_training_thread) == (1, True)
        assert pause.duration_ns >= 20_000_000
        (save,) = sidecar.records(CheckpointRecord)
        assert save.call == "torch.distributed.checkpoint.save"
        step = sidecar.records(StepRecord)[-1]
        assert step.gc_ns >= pause.duration_ns
        assert step.checkpoint_ns == save.duration_ns
        assert sidecar.records(MemoryRecord) == []
        if "torch.cuda" not in sys.modules or not torch.cuda.is_initialized():
            blind = sidecar.records(IdentityRecord)[-1].blind
            assert "memory.device: no CUDA in this process" in blind
    assert gc.callbacks == callbacks
    assert all(vars(owner)[name] is there for (owner, name), there in points)


def test_a_forked_child_collects_and_saves_for_itself(tmp_path: Path) -> None:
    """What a child does is not the rank's: no record, nothing on the page, and it works."""
    with FakeSidecar(tmp_path / "j") as sidecar:
        tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=0.1)
        recorder = current_recorder()
        assert recorder is not None
        tracecore_train.step()
        wait_until(lambda: bool(sidecar.records(IdentityRecord)), 60)
        pid = os.fork()
        if pid == 0:
            try:
                recorder.drain()
                collect_slowly()
                dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path / "child")
                os._exit(0 if recorder.drain() == [] else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert recorder.page.words[Word.GC_SINCE] == 0
        assert recorder.page.words[Word.CHECKPOINT_SINCE] == 0
        tracecore_train.step()
        tracecore_train.shutdown()
        assert sidecar.records(CheckpointRecord) == []
        assert (tmp_path / "child" / ".metadata").exists()
