"""Checkpoints saved by other calls than torch.save: once each, whatever they call inside."""

from __future__ import annotations

import gc
import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fake_sidecar import wait_until
from tracecore_train.guard import Guard
from tracecore_train.hooks.checkpoint import CheckpointHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.savers import SAVERS, target_of
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import NOT_MEASURED, CheckpointRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")
saver = pytest.importorskip("torch.distributed.checkpoint.state_dict_saver")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*single process:UserWarning"),
    # Torch 2.10 and older call what they themselves deprecate.
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]
SAVE = "torch.distributed.checkpoint.save"
ASYNC_SAVE = "torch.distributed.checkpoint.async_save"


class Saving:
    """The hook, installed."""

    def __init__(self) -> None:
        self.recorder = Recorder(RankPage.in_memory(), rank=0)
        self.guard = Guard("checkpoint")
        context = HookContext(recorder=self.recorder, rank=0, socket_path=None)
        self.hook = CheckpointHook(context, self.guard)
        self.hook.install()
        self.recorder.claim_training_thread()

    def end(self) -> None:
        self.guard.close()
        self.hook.uninstall()

    def records(self) -> list[CheckpointRecord]:
        found = self.recorder.drain()
        return [record for record in found if isinstance(record, CheckpointRecord)]

    def wait_for(self, count: int) -> list[CheckpointRecord]:
        """Wait for records; the end of an asynchronous save comes a moment after its result."""
        found: list[CheckpointRecord] = []

        def is_there() -> bool:
            found.extend(self.records())
            return len(found) >= count

        wait_until(is_there, 60)
        return found


@pytest.fixture
def saving() -> Iterator[Saving]:
    points = [(target, vars(target[0])[target[1]]) for s in SAVERS if (target := target_of(s))]
    made = Saving()
    yield made
    made.end()
    assert all(vars(owner)[name] is there for (owner, name), there in points)


def slow_writer(directory: Path, going: threading.Event) -> Any:
    """Give a writer that writes when it may."""
    writer = dcp.FileSystemWriter(directory / "c")
    write_data = writer.write_data

    def wait_and_write(*args: Any) -> Any:
        going.wait(60)
        return write_data(*args)

    writer.write_data = wait_and_write
    return writer


def fail(*args: object) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_distributed_save_counts_once(saving: Saving, tmp_path: Path, num_threads: int) -> None:
    """A save is one record, though it saves its parts by torch.save, in threads too."""
    state = {name: torch.ones(5) for name in "abcdefgh"} | {"object": [1, 2]}
    writer = dcp.FileSystemWriter(
        tmp_path / "c", thread_count=num_threads, single_file_per_rank=False
    )
    dcp.save(state, storage_writer=writer)
    (record,) = saving.records()
    assert (record.call, record.is_blocking, record.error) == (SAVE, True, "")
    assert record.num_bytes == NOT_MEASURED
    saving.recorder.end_step(0)
    (step,) = saving.recorder.drain()
    assert isinstance(step, StepRecord)
    assert step.checkpoint_ns == record.duration_ns
    assert saving.recorder.page.words[Word.CHECKPOINT_SINCE] == 0
    assert saving.hook._distributed == set()


def test_a_save_held_by_its_own_name_counts(tmp_path: Path) -> None:
    """What a script imported from the module before us is seen by what it calls."""
    held = dcp.save
    made = Saving()
    try:
        held({"a": torch.ones(2)}, checkpoint_id=tmp_path / "c")
        assert [record.call for record in made.records()] == [SAVE]
    finally:
        made.end()


def test_an_asynchronous_save_tells_what_was_waited_for_and_the_whole(
    saving: Saving, tmp_path: Path
) -> None:
    """Staging is blocking; the end is not, is as long as it took, and holds no checkpoint."""
    tensor = torch.ones(5)
    alive = weakref.ref(tensor)
    going = threading.Event()

    future = dcp.async_save({"a": tensor}, storage_writer=slow_writer(tmp_path, going))
    (staged,) = saving.records()
    assert (staged.call, staged.is_blocking) == (ASYNC_SAVE, True)
    del tensor
    torch.save({}, tmp_path / "other")
    assert [record.call for record in saving.records()] == ["torch.save"]
    going.set()
    future.result(60)
    (whole,) = saving.wait_for(1)
    assert (whole.call, whole.is_blocking, whole.error) == (ASYNC_SAVE, False, "")
    assert whole.duration_ns > staged.duration_ns
    assert saving.hook._distributed == set()
    del future
    gc.collect()
    assert alive() is None


def test_an_asynchronous_save_that_fails_says_so(saving: Saving, tmp_path: Path) -> None:
    """The type of what its future raises is told; the user gets it as before."""
    writer = dcp.FileSystemWriter(tmp_path / "c")
    writer.write_data = fail
    future = dcp.async_save({"a": torch.ones(2)}, storage_writer=writer)
    raised = future.exception(60)
    assert raised is not None
    found = [(record.is_blocking, record.error) for record in saving.wait_for(2)]
    assert found == [(True, ""), (False, type(raised).__name__)]


def test_shutdown_while_a_save_runs_asynchronously(tmp_path: Path) -> None:
    """A save that ends after we left ends as without us."""
    going = threading.Event()

    made = Saving()
    future = dcp.async_save({"a": torch.ones(2)}, storage_writer=slow_writer(tmp_path, going))
    made.records()
    made.end()
    going.set()
    assert future.result(60) is not None
    assert made.records() == []


@pytest.mark.parametrize("package", ["lightning.fabric", "lightning_fabric"])
def test_lightning_counts_the_write_after_the_buffer(
    saving: Saving, tmp_path: Path, package: str
) -> None:
    """Its writer is one record with the size of the file, once its module was seen."""
    io = pytest.importorskip(f"{package}.plugins.io.torch_io")
    saving.hook.poll(False)
    path = tmp_path / "last.ckpt"
    io.TorchCheckpointIO().save_checkpoint({"a": torch.ones(100)}, path)
    (record,) = saving.records()
    assert record.call == "lightning TorchCheckpointIO.save_checkpoint"
    assert record.num_bytes == path.stat().st_size > 400


def test_what_is_imported_later_is_patched_later(
    saving: Saving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer imported after us is seen from the next look on, and restored exactly; one that
    is still being imported is left alone.
    """

    class Trainer:
        def _save_checkpoint(self, model: object, trial: object) -> str:
            torch.save({}, "/dev/null")
            return f"{model} saved"

    original = Trainer._save_checkpoint
    module = types.ModuleType("transformers.trainer")
    module.Trainer = Trainer  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(_initializing=True)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "transformers.trainer", module)
    saving.hook.poll(False)
    assert Trainer._save_checkpoint is original
    module.__spec__ = None
    saving.hook.poll(False)
    assert Trainer()._save_checkpoint("model", None) == "model saved"
    assert [record.call for record in saving.records()] == ["transformers Trainer._save_checkpoint"]
    saving.guard.close()
    saving.hook.uninstall()
    assert Trainer._save_checkpoint is original
    saving.hook.poll(False)
    assert Trainer._save_checkpoint is original, "nothing is patched after the end"


def test_somebody_who_wrapped_us_keeps_working(saving: Saving, tmp_path: Path) -> None:
    """A foreign wrapper around ours stays, and ours passes through."""
    ours = dcp.save

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    original = vars(saver)["save"].__wrapped__
    dcp.save = theirs
    try:
        saving.guard.close()
        saving.hook.uninstall()
        assert dcp.save is theirs
        assert dcp.save({"a": torch.ones(1)}, checkpoint_id=tmp_path / "c") is not None
    finally:
        dcp.save = original
    assert saving.records() == []
