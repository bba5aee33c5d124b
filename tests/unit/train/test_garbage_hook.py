"""Pauses of the garbage collector are charged to the step and, when long, told singly."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks import garbage
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.garbage import MAX_TOLD_PER_S, GarbageHook
from tracecore_train.recorder import pace
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import NOT_MEASURED, GcRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator


class Looking:
    """Dies in a collection and looks at the page while it runs."""

    def __init__(self, recorder: Recorder, seen: list[int]) -> None:
        self._recorder, self._seen = recorder, seen
        self.me = self

    def __del__(self) -> None:
        self._seen.append(self._recorder.page.words[Word.GC_SINCE])


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(RankPage.in_memory(), rank=3)
    guard = Guard("gc")
    hook = GarbageHook(HookContext(recorder=made, rank=3, socket_path=None), guard)
    made.end_step(0)
    num_before = len(gc.callbacks)
    gc.disable()
    hook.install()
    yield made
    guard.close()
    hook.uninstall()
    gc.enable()
    assert len(gc.callbacks) == num_before


def steps(recorder: Recorder) -> list[StepRecord]:
    recorder.end_step(0)
    return [record for record in recorder.drain() if isinstance(record, StepRecord)]


def test_a_collection_is_charged_to_the_step_it_fell_into(recorder: Recorder) -> None:
    """The step with a collection has its time, the next has none, and both are measured."""
    gc.collect()
    assert steps(recorder)[-1].gc_ns > 0
    assert steps(recorder)[-1].gc_ns == 0


def test_the_page_says_inside_since(recorder: Recorder) -> None:
    """While a collection runs the page shows since when, and 0 after it."""
    seen: list[int] = []
    Looking(recorder, seen)
    gc.collect()
    assert len(seen) == 1
    assert seen[0] > 0
    assert recorder.page.words[Word.GC_SINCE] == 0


def test_a_long_pause_is_told(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause from the limit on is a record with generation, count and step; a short one is not."""
    gc.collect(0)
    recorder.end_step(0)
    assert not [record for record in recorder.drain() if isinstance(record, GcRecord)]
    monkeypatch.setattr(garbage, "TELL_FROM_NS", 1)
    Looking(recorder, [])
    gc.collect(1)
    (pause,) = recorder.drain()
    assert isinstance(pause, GcRecord)
    assert (pause.rank, pause.generation, pause.is_training_thread) == (3, 1, True)
    assert pause.num_collected >= 1
    assert pause.step == recorder.num_steps == 2


def test_another_thread_is_not_the_step(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection another thread triggered is told as its own and charged to no step."""
    monkeypatch.setattr(garbage, "TELL_FROM_NS", 1)
    recorder.claim_training_thread()
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join(30)
    recorder.end_step(0)
    records = recorder.drain()
    assert [r.is_training_thread for r in records if isinstance(r, GcRecord)] == [False]
    assert [r.gc_ns for r in records if isinstance(r, StepRecord)][-1] == 0


def test_told_pauses_are_bounded(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that collects all the time tells some of it a second, and charges all of it."""
    monkeypatch.setattr(garbage, "TELL_FROM_NS", 1)
    monkeypatch.setattr(pace, "SECOND_NS", 3_600_000_000_000)
    for _ in range(3 * MAX_TOLD_PER_S):
        gc.collect(0)
    records = recorder.drain()
    assert sum(isinstance(record, GcRecord) for record in records) == MAX_TOLD_PER_S


def test_nothing_of_ours_is_left_for_the_collector(recorder: Recorder) -> None:
    """A collection that times itself leaves no garbage of its own behind."""
    gc.collect()
    assert gc.collect() == 0


def test_theirs_survive_whoever_leaves_first(recorder: Recorder) -> None:
    """A callback of the user is called before and after ours leaves."""
    num_calls = 0

    def theirs(phase: str, info: dict[str, Any]) -> None:
        nonlocal num_calls
        num_calls += 1

    gc.callbacks.append(theirs)
    try:
        gc.collect()
        assert num_calls == 2
    finally:
        gc.callbacks.remove(theirs)


def test_an_emptied_list_is_a_blind_spot_and_no_error() -> None:
    """Where the user clears gc.callbacks we say so, and uninstalling is still quiet."""
    made = Recorder(RankPage.in_memory(), rank=0)
    guard = Guard("gc")
    hook = GarbageHook(HookContext(recorder=made, rank=0, socket_path=None), guard)
    before = list(gc.callbacks)
    hook.install()
    assert hook.blind() == []
    gc.callbacks[:] = before
    assert hook.blind()[0].startswith("gc: ")
    guard.close()
    hook.uninstall()
    assert gc.callbacks == before
    made.end_step(0)
    made.end_step(0)
    assert [r.gc_ns for r in made.drain() if isinstance(r, StepRecord)] == [NOT_MEASURED] * 2


def test_a_closed_guard_passes_through(recorder: Recorder) -> None:
    """With the guard closed, as in a forked child, a collection writes and charges nothing."""
    guard = Guard("gc")
    hook = GarbageHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    callback = hook._make_callback()
    guard.close()
    callback("start", {})
    callback("stop", {"generation": 2, "collected": 0})
    assert recorder.page.words[Word.GC_SINCE] == 0
    assert steps(recorder)[-1].gc_ns == 0


def test_installed_in_the_middle_of_a_collection_counts_nothing(recorder: Recorder) -> None:
    """A stop whose start we did not see is no pause since the epoch."""
    hook = GarbageHook(HookContext(recorder=recorder, rank=0, socket_path=None), Guard("gc"))
    hook._make_callback()("stop", {"generation": 2, "collected": 0})
    assert steps(recorder)[-1].gc_ns == 0
