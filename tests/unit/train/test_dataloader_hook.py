"""Batches are timed, the page says when a rank waits for one, and the loader notices nothing."""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

torch = pytest.importorskip("torch")
data = pytest.importorskip("torch.utils.data")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(RankPage.in_memory(), rank=0)
    guard = Guard("dataloader")
    hook = DataLoaderHook(HookContext(recorder=made, rank=0, socket_path=None), guard)
    hook.install()
    yield made
    guard.close()
    hook.uninstall()


class Rows(data.Dataset):  # type: ignore[misc,name-defined]
    """A dataset that calls back for every row."""

    def __init__(self, length: int, on_row: Callable[[int], object] = int) -> None:
        self._length = length
        self._on_row = on_row

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        self._on_row(index)
        return index


def _step(recorder: Recorder) -> StepRecord:
    recorder.end_step(0)
    (record,) = recorder.drain()
    assert isinstance(record, StepRecord)
    return record


def test_batches_are_counted_and_timed(recorder: Recorder) -> None:
    """A loop over four batches gives four batches and the time they took."""
    assert [batch.tolist() for batch in data.DataLoader(Rows(4))] == [[0], [1], [2], [3]]
    step = _step(recorder)
    assert step.num_batches == 4
    assert step.input_ns > 0


def test_page_says_since_when_inside_next(recorder: Recorder) -> None:
    """While a batch is made the page holds the time of entry, and 0 after it."""
    seen: list[int] = []
    dataset = Rows(1, lambda _: seen.append(recorder.page.words[Word.INPUT_SINCE]))
    next(iter(data.DataLoader(dataset)))
    assert seen[0] > 0
    assert recorder.page.words[Word.INPUT_SINCE] == 0


def test_failing_batch_reaches_the_user_and_clears_the_page(recorder: Recorder) -> None:
    """The dataset's exception comes out unchanged; it is no batch; the page says 0."""

    def fail(index: int) -> None:
        raise KeyError("row")

    with pytest.raises(KeyError, match="row"):
        next(iter(data.DataLoader(Rows(1, fail))))
    assert recorder.page.words[Word.INPUT_SINCE] == 0
    assert _step(recorder).num_batches == 0


def test_loader_inside_a_loader_counts_once(recorder: Recorder) -> None:
    """A dataset that reads another loader is one batch for the outer call."""
    inner = data.DataLoader(Rows(8))
    outer = data.DataLoader(Rows(2, lambda _: next(iter(inner))))
    assert len(list(outer)) == 2
    assert _step(recorder).num_batches == 2


def test_loader_of_another_thread_does_not_count(recorder: Recorder) -> None:
    """Batches taken by a helper thread leave the training thread's sums alone."""
    next(iter(data.DataLoader(Rows(1))))
    thread = threading.Thread(target=lambda: list(data.DataLoader(Rows(5))))
    thread.start()
    thread.join(30)
    assert _step(recorder).num_batches == 1


def test_worker_processes_deliver_the_same_batches(recorder: Recorder) -> None:
    """With forked workers every batch comes, counted once, in the rank only."""
    loader = data.DataLoader(Rows(6), num_workers=2, multiprocessing_context="fork")
    assert [int(batch) for batch in loader] == list(range(6))
    assert _step(recorder).num_batches == 6


def test_signature_is_the_originals(recorder: Recorder) -> None:
    """The wrapper looks like the method it replaced."""
    method: Any = data.dataloader._BaseDataLoaderIter.__next__
    assert list(inspect.signature(method).parameters) == ["self"]
    assert method.__name__ == "__next__"
