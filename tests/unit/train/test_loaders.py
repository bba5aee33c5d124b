"""What is told of each loader: its batches, its waits, its queue and its workers."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import types
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks import dataloader, loaders
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import NOT_MEASURED, InputRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

torch = pytest.importorskip("torch")
data = pytest.importorskip("torch.utils.data")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(RankPage.in_memory(), rank=0)


@pytest.fixture
def hook(recorder: Recorder) -> Iterator[DataLoaderHook]:
    guard = Guard("dataloader")
    made = DataLoaderHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    made.install()
    yield made
    guard.close()
    made.uninstall()


class Rows(data.Dataset):  # type: ignore[misc,name-defined]
    """Numbers; ``slow_at`` takes a while."""

    def __init__(self, length: int, slow_at: int = -1) -> None:
        self.length = length
        self.slow_at = slow_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if index == self.slow_at:
            time.sleep(0.2)
        return index


def poll(hook: DataLoaderHook, is_full: bool = True) -> list[InputRecord]:
    records = hook.poll(is_full)
    assert all(isinstance(record, InputRecord) for record in records)
    return records  # type: ignore[return-value]


def workers_loader(length: int = 64, **arguments: Any) -> Any:
    return data.DataLoader(Rows(length), num_workers=2, multiprocessing_context="fork", **arguments)


def until(hook: DataLoaderHook, is_met: Any) -> InputRecord:
    """Poll until the one loader's record meets a condition."""
    deadline = time.monotonic() + 60
    while True:
        (record,) = poll(hook)
        if is_met(record):
            return record
        assert time.monotonic() < deadline, record
        time.sleep(0.01)


def test_first_and_longest_wait_stand_apart(hook: DataLoaderHook) -> None:
    """A slow first batch is no longest wait; a slow later batch is."""
    loader = data.DataLoader(Rows(5, slow_at=0))
    source = iter(loader)
    for _ in range(4):
        next(source)
    (first,) = poll(hook)
    assert first.num_batches == 4
    assert first.first_batch_ns >= 200_000_000 > first.wait_ns
    later = iter(data.DataLoader(Rows(5, slow_at=3)))
    for _ in range(4):
        next(later)
    record = poll(hook)[-1]
    assert record.wait_ns >= record.longest_wait_ns >= 200_000_000 > record.first_batch_ns
    assert (record.num_ready, record.num_workers) == (NOT_MEASURED, NOT_MEASURED)


def test_epochs_of_a_loader_are_one_loader(hook: DataLoaderHook) -> None:
    """A second epoch goes on with the sums of the first, under the same name."""
    loader = data.DataLoader(Rows(3))
    for _ in range(2):
        source = iter(loader)
        assert len(list(source)) == 3
    (record,) = poll(hook)
    assert record.num_batches == 6
    assert record.loader == "_SingleProcessDataLoaderIter#1"


def test_a_quiet_loader_is_told_once(hook: DataLoaderHook) -> None:
    """Between two polls without a batch there is nothing new; a full poll tells it again."""
    source = iter(data.DataLoader(Rows(3)))
    next(source)
    assert len(poll(hook, is_full=False)) == 1
    assert poll(hook, is_full=False) == []
    assert len(poll(hook, is_full=True)) == 1


def test_the_queue_of_a_loader_with_workers(hook: DataLoaderHook) -> None:
    """A consumer that rests finds the queue full: what is ready is what is outstanding."""
    source = iter(workers_loader(prefetch_factor=3))
    next(source)
    record = until(hook, lambda r: r.num_ready == r.num_outstanding)
    assert (record.num_outstanding, record.prefetch_limit) == (6, 6)
    assert (record.num_workers, record.num_workers_alive) == (2, 2)
    assert hook.blind() == []


def test_a_dead_worker_is_seen_and_left_to_torch(hook: DataLoaderHook) -> None:
    """A killed worker counts as dead, is not reaped by us, and torch still raises its error."""
    source = iter(workers_loader(10_000))
    next(source)
    worker = source._workers[1]
    os.kill(worker.pid, signal.SIGSTOP)
    assert until(hook, lambda r: r.num_ready > 0).num_workers_alive == 2
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid"):  # noqa: PT012
        os.kill(worker.pid, signal.SIGKILL)
        until(hook, lambda r: r.num_workers_alive == 1)
        for _ in range(10_000):
            next(source)


def test_persistent_workers_are_one_loader(hook: DataLoaderHook) -> None:
    """With persistent workers one iterator serves all epochs; each epoch's first batch is apart."""
    loader = workers_loader(6, persistent_workers=True)
    for _ in range(3):
        assert sorted(int(batch) for batch in loader) == list(range(6))
    record = poll(hook)[0]
    assert record.num_batches == 18
    assert record.num_workers_alive == 2
    next(iter(loader))
    assert poll(hook)[0].num_batches == 19
    assert poll(hook)[0].first_batch_ns > 0


def test_a_loader_without_workers_has_no_queue(hook: DataLoaderHook) -> None:
    """Where there is no queue the signal is blind, with the way to one."""
    source = iter(data.DataLoader(Rows(3)))
    next(source)
    assert [text.partition(":")[0] for text in hook.blind()] == ["input.queue"]


def test_a_queue_that_was_seen_is_no_blind_spot_after_its_loader_ended(
    hook: DataLoaderHook,
) -> None:
    """The last word about the queue of a job that has trained is that it was measured."""
    assert hook.blind()
    for _ in workers_loader(4):
        pass
    gc.collect()
    assert hook.blind() == []


def test_ended_loaders_are_forgotten(hook: DataLoaderHook) -> None:
    """A loader that is gone is not told, and nothing of ours keeps it or its iterator."""
    for _ in range(5):
        list(data.DataLoader(Rows(2)))
    gc.collect()
    source = iter(data.DataLoader(Rows(2)))
    next(source)
    assert len(poll(hook)) == 1
    assert len(hook._loaders._followed) == 1


def test_loaders_are_bounded(
    hook: DataLoaderHook, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More loaders than the limit are not told one by one, but their batches count."""
    monkeypatch.setattr(loaders, "MAX_LOADERS", 3)
    kept = [iter(data.DataLoader(Rows(2))) for _ in range(8)]
    for source in kept * 2:
        next(source)
    assert len(poll(hook)) == 3
    assert recorder.page.words[Word.NUM_BATCHES] == 16


def test_nothing_stays_on_an_iterator(recorder: Recorder) -> None:
    """After uninstall the iterators that live carry nothing of ours and go on."""
    guard = Guard("dataloader")
    hook = DataLoaderHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    hook.install()
    source = iter(data.DataLoader(Rows(2)))
    next(source)
    assert loaders.ATTRIBUTE in vars(source)
    guard.close()
    hook.uninstall()
    assert loaders.ATTRIBUTE not in vars(source)
    assert next(source).tolist() == [1]


class Unreadable:
    """An iterator of a torch whose private names are others."""

    _data_queue = None
    _num_workers = 2


def test_unknown_private_names_are_not_measured() -> None:
    """Where torch calls its parts otherwise the queue is not measured, and nothing raises."""
    found = loaders._queue(Unreadable())
    assert found == {"num_workers": 2}


def test_a_queue_without_a_length_is_not_measured(hook: DataLoaderHook) -> None:
    """A platform without qsize gives no number of ready batches, but the rest."""
    source = iter(workers_loader())
    next(source)

    class NoLength:
        def qsize(self) -> int:
            raise NotImplementedError

    queue, source._data_queue = source._data_queue, NoLength()
    (record,) = poll(hook)
    source._data_queue = queue
    assert record.num_ready == NOT_MEASURED
    assert record.num_workers_alive == 2


@pytest.fixture
def torchdata(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the shape of torchdata's, whose iterator overrides ``__next__``."""
    base: Any = data.dataloader._SingleProcessDataLoaderIter

    class _StatefulBaseDataLoaderIter(base):  # type: ignore[misc]
        def __next__(self) -> Any:
            value = self._next_data()
            self._num_yielded += 1
            return value

    module = types.ModuleType(dataloader.STATEFUL[0])
    module._StatefulBaseDataLoaderIter = _StatefulBaseDataLoaderIter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, dataloader.STATEFUL[0], module)
    return module


@pytest.mark.parametrize("is_early", [True, False])
def test_stateful_iterators_are_patched(
    recorder: Recorder, is_early: bool, torchdata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchdata's own ``__next__`` is timed, imported before us or after, and put back."""
    iterator_class = torchdata._StatefulBaseDataLoaderIter
    original = iterator_class.__next__
    if not is_early:
        monkeypatch.delitem(sys.modules, dataloader.STATEFUL[0])
    guard = Guard("dataloader")
    hook = DataLoaderHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    hook.install()
    monkeypatch.setitem(sys.modules, dataloader.STATEFUL[0], torchdata)
    hook.poll(False)
    source = iterator_class(data.DataLoader(Rows(4)))
    assert [next(source).tolist() for _ in range(4)] == [[0], [1], [2], [3]]
    (record,) = poll(hook)
    assert record.num_batches == 4
    assert record.loader.startswith("_StatefulBaseDataLoaderIter#")
    guard.close()
    hook.uninstall()
    assert iterator_class.__next__ is original
