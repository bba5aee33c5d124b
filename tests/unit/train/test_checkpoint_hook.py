"""torch.save is timed once per call and behaves as before."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks.checkpoint import CheckpointHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import NOT_MEASURED, CheckpointRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")


class Watching(io.BytesIO):
    """A file that looks at the page while it is written."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self.seen = 0

    def write(self, data: Any) -> int:
        self.seen = self._recorder.page.words[Word.CHECKPOINT_SINCE] or self.seen
        return super().write(data)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(RankPage.in_memory(), rank=0)
    guard = Guard("checkpoint")
    hook = CheckpointHook(HookContext(recorder=made, rank=0, socket_path=None), guard)
    hook.install()
    yield made
    guard.close()
    hook.uninstall()


@pytest.mark.parametrize("module", [torch, torch.serialization])
def test_call_is_recorded_once_under_both_names(recorder: Recorder, module: Any) -> None:
    """A save gives one checkpoint record, its time in the step, and a page that says so."""
    file = Watching(recorder)
    module.save({"a": torch.ones(3)}, file)
    recorder.end_step(0)
    checkpoint, step = recorder.drain()
    assert isinstance(checkpoint, CheckpointRecord)
    assert isinstance(step, StepRecord)
    assert step.checkpoint_ns == checkpoint.duration_ns > 0
    assert file.seen == checkpoint.time_ns - checkpoint.duration_ns
    assert recorder.page.words[Word.CHECKPOINT_SINCE] == 0
    file.seek(0)
    assert torch.equal(torch.load(file)["a"], torch.ones(3))


def test_failed_call_raises_and_clears_the_page(recorder: Recorder) -> None:
    """An exception of the save reaches the user; the page does not stay inside."""
    with pytest.raises((RuntimeError, OSError)):
        torch.save({}, "/nonexistent/directory/model.pt")
    assert recorder.page.words[Word.CHECKPOINT_SINCE] == 0


def test_call_on_another_thread_is_not_the_steps(recorder: Recorder) -> None:
    """An asynchronous save gives a record but no time in the step and nothing on the page."""
    recorder.claim_training_thread()
    file = Watching(recorder)
    thread = threading.Thread(target=torch.save, args=({}, file))
    thread.start()
    thread.join(30)
    recorder.end_step(0)
    records = recorder.drain()
    steps = [r for r in records if isinstance(r, StepRecord)]
    assert len(records) == 2
    assert (steps[0].checkpoint_ns, file.seen) == (0, 0)
    assert [r.is_blocking for r in records if isinstance(r, CheckpointRecord)] == [False]


def test_size_is_that_of_the_file_a_path_named(recorder: Recorder, tmp_path: Path) -> None:
    """A path, as text or object, by place or name, gives the bytes; anything else none."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(300)}, path)
    torch.save({"a": torch.ones(300)}, f=str(path))
    torch.save({}, io.BytesIO())
    torch.save({}, "/dev/null")
    size = path.stat().st_size
    sizes = [record.num_bytes for record in checkpoints(recorder)]
    assert sizes == [size, size, NOT_MEASURED, NOT_MEASURED]


def test_failed_call_tells_the_type_of_the_exception(recorder: Recorder) -> None:
    """The record of a save that failed has the exception's type and no size."""
    with pytest.raises(AttributeError):
        torch.save(lambda: 0, "/dev/null", pickle_module=None)
    (record,) = checkpoints(recorder)
    assert (record.error, record.num_bytes) == ("AttributeError", NOT_MEASURED)
    assert record.is_blocking


def checkpoints(recorder: Recorder) -> list[CheckpointRecord]:
    return [record for record in recorder.drain() if isinstance(record, CheckpointRecord)]
