"""What is known of each data loader of the training thread, and how its queue stands.

A loader is told from another by its index sampler, which outlives the iterators of its epochs.
Only weak references are kept. The queue is read in the export thread and never waited for: its
length without its lock, its workers by the pipe that closes when they end, so that none is
reaped before torch sees it end.
"""

from __future__ import annotations

import contextlib
import select
import weakref
from typing import Any

from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import NOT_MEASURED, InputRecord

MAX_LOADERS = 64
"""Loaders reported at a time; batches of more are summed in the steps only."""
ATTRIBUTE = "_tracecore_loader"
"""Where an iterator carries its loader, so that a batch costs no look-up."""


class Loader:
    """Sums of one loader; written by the training thread, read by the export thread."""

    __slots__ = (
        "first_batch_ns",
        "is_first",
        "iterator",
        "longest_wait_ns",
        "name",
        "num_batches",
        "num_told",
        "wait_ns",
    )

    def __init__(self, name: str) -> None:
        """Begin with nothing summed."""
        self.name = name
        self.is_first = True
        """Whether the next batch is the first of an iterator or of an epoch."""
        self.iterator: weakref.ref[Any] | None = None
        """Of the latest epoch."""
        self.num_batches = 0
        self.wait_ns = 0
        self.longest_wait_ns = 0
        self.first_batch_ns = NOT_MEASURED
        self.num_told = -1
        """Batches at the last report."""

    def add_first(self, waited_ns: int) -> None:
        """Add a batch that waited for workers to start, or for the first request to come back."""
        self.is_first = False
        self.num_batches += 1
        self.first_batch_ns = waited_ns


class Loaders:
    """The loaders whose batches the training thread takes."""

    def __init__(self, rank: int) -> None:
        """Know none yet."""
        self._rank = rank
        self.had_queue = False
        """A loader with workers has delivered."""
        self._num_named = 0
        self._followed: dict[int, tuple[weakref.ref[Any], Loader]] = {}
        self._marked: weakref.WeakSet[Any] = weakref.WeakSet()

    def adopt(self, iterator: Any) -> Loader:
        """Give the loader of an iterator that carries none yet. For the training thread."""
        loader = self._loader_of(iterator)
        loader.is_first = True
        self.had_queue = self.had_queue or hasattr(iterator, "_workers")
        loader.iterator = weakref.ref(iterator)
        self._marked.add(iterator)
        setattr(iterator, ATTRIBUTE, loader)
        return loader

    def release(self) -> None:
        """Take what we left on the iterators that live."""
        for iterator in list(self._marked):
            with contextlib.suppress(AttributeError):
                delattr(iterator, ATTRIBUTE)
        self._marked.clear()
        self._followed.clear()

    def poll(self, is_full: bool) -> list[InputRecord]:
        """Give the loaders that delivered since the last time, or all. For the export thread."""
        records = []
        for _, loader in list(self._followed.values()):
            iterator = loader.iterator() if loader.iterator is not None else None
            if iterator is not None and (is_full or loader.num_batches != loader.num_told):
                loader.num_told = loader.num_batches
                records.append(self._record(loader, iterator))
        return records

    def _loader_of(self, iterator: Any) -> Loader:
        sampler = getattr(iterator, "_index_sampler", None)
        owner = iterator if sampler is None else sampler
        for key, (ref, _) in list(self._followed.items()):
            if ref() is None:
                del self._followed[key]
        if id(owner) in self._followed:
            return self._followed[id(owner)][1]
        if len(self._followed) >= MAX_LOADERS:
            return Loader("")
        self._num_named += 1
        loader = Loader(f"{type(iterator).__name__[:100]}#{self._num_named}")
        self._followed[id(owner)] = (weakref.ref(owner), loader)
        return loader

    def _record(self, loader: Loader, iterator: Any) -> InputRecord:
        queue = _queue(iterator) if hasattr(iterator, "_data_queue") else {}
        return InputRecord(
            time_ns=now_ns(),
            rank=self._rank,
            loader=loader.name,
            num_batches=loader.num_batches,
            wait_ns=loader.wait_ns,
            longest_wait_ns=loader.longest_wait_ns,
            first_batch_ns=loader.first_batch_ns,
            **queue,
        )


def _queue(iterator: Any) -> dict[str, int]:
    """Read how the queue of a loader with workers stands; what cannot be had is left out."""
    if getattr(iterator, "_shutdown", False):
        return {}
    found: dict[str, int] = {}
    # Private names of torch, and a loader that may end at any moment: what fails is not measured.
    with contextlib.suppress(AttributeError, TypeError, ValueError, OSError, NotImplementedError):
        found["num_workers"] = int(iterator._num_workers)
        found["prefetch_limit"] = int(iterator._prefetch_factor) * found["num_workers"]
        # torch counts a batch that came before its turn as outstanding no more.
        num_early = sum(len(task) == 2 for task in tuple(iterator._task_info.values()))
        found["num_outstanding"] = int(iterator._tasks_outstanding) + num_early
        found["num_workers_alive"] = _num_alive(iterator._workers)
        found["num_ready"] = _num_waiting(iterator._data_queue) + num_early
    return found


def _num_waiting(queue: Any) -> int:
    """Give the length of a queue: of a thread's queue without its lock, which the loader takes."""
    own = getattr(queue, "queue", None)
    return len(own) if own is not None else int(queue.qsize())


def _num_alive(workers: Any) -> int:
    poll = select.poll()
    sentinels = {int(worker.sentinel) for worker in tuple(workers)}
    for sentinel in sentinels:
        poll.register(sentinel, select.POLLIN)
    return len(sentinels) - len(poll.poll(0))
