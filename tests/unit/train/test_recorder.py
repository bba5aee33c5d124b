"""Steps, batches and threads as the recorder sums them."""

from __future__ import annotations

import threading

import pytest

from tracecore_train.recorder import recorder as recorder_module
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.parts import Sum
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import RecordKind, StepFlag, StepRecord


@pytest.fixture
def recorder() -> Recorder:
    made = Recorder(RankPage.in_memory(), rank=3)
    made.claim_training_thread()
    return made


def _steps(recorder: Recorder) -> list[StepRecord]:
    return [record for record in recorder.drain() if isinstance(record, StepRecord)]


def test_first_step_has_no_duration(recorder: Recorder) -> None:
    """The first step is flagged and its duration is 0; the second has one."""
    recorder.end_step(0)
    recorder.end_step(0)
    first, second = _steps(recorder)
    assert (first.step, first.duration_ns, first.flags) == (0, 0, StepFlag.FIRST)
    assert (second.step, second.flags, second.rank) == (1, 0, 3)
    assert second.duration_ns > 0


def test_batches_belong_to_the_step_they_came_in(recorder: Recorder) -> None:
    """Input time and batches are summed within a step and start from 0 in the next."""
    for _ in range(2):
        recorder.parts.sums[Sum.NUM_BATCHES] += 1
        recorder.parts.sums[Sum.INPUT] += 5
    recorder.end_step(0)
    recorder.end_step(0)
    first, second = _steps(recorder)
    assert (first.num_batches, second.num_batches) == (2, 0)
    assert (first.input_ns, second.input_ns) == (10, 0)


def test_page_tells_the_steps(recorder: Recorder) -> None:
    """The page's step words follow the steps that ended."""
    recorder.end_step(0)
    recorder.end_step(0)
    last = _steps(recorder)[-1]
    assert recorder.page.words[Word.STEP] == 2
    assert recorder.page.words[Word.STEP_TIME] == last.time_ns


def test_main_thread_takes_over_as_training_thread() -> None:
    """A prefetch thread that came first loses the training thread to the main thread."""
    recorder = Recorder(RankPage.in_memory(), rank=0)
    answers: list[bool] = []
    other = threading.Thread(target=lambda: answers.append(recorder.claim_training_thread()))
    other.start()
    other.join(10)
    assert answers == [True]
    assert recorder.claim_training_thread()
    another = threading.Thread(target=lambda: answers.append(recorder.claim_training_thread()))
    another.start()
    another.join(10)
    assert answers == [True, False]


def test_rows_of_an_ended_thread_are_kept_and_its_ring_is_not(recorder: Recorder) -> None:
    """What a thread recorded before it ended is drained, then its ring is gone."""
    row = (RecordKind.PHASE, 1, "load", 2)
    thread = threading.Thread(target=recorder.append, args=(row,))
    thread.start()
    thread.join(10)
    del thread
    assert [record.kind for record in recorder.drain()] == [RecordKind.PHASE]
    recorder.drain()
    assert recorder._rings == []


def test_full_ring_is_counted() -> None:
    """Rows beyond the capacity are dropped and the number is known."""
    recorder = Recorder(RankPage.in_memory(), rank=0, capacity=2)
    for _ in range(5):
        recorder.end_step(0)
    assert recorder.num_dropped() == 3
    assert [step.step for step in _steps(recorder)] == [0, 1]


def test_too_many_threads_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads beyond the limit get no ring; their rows count as dropped."""
    monkeypatch.setattr(recorder_module, "MAX_RINGS", 0)
    recorder = Recorder(RankPage.in_memory(), rank=0)
    recorder.end_step(0)
    assert recorder.num_dropped() == 1


def test_explicit_step_takes_over_without_counting_twice(recorder: Recorder) -> None:
    """After hook-counted steps the first explicit call ends none; the next ones do."""
    recorder.end_step(0)
    recorder.end_explicit_step()
    recorder.end_explicit_step()
    steps = _steps(recorder)
    assert [step.flags for step in steps] == [StepFlag.FIRST, StepFlag.EXPLICIT]


def test_explicit_step_counts_from_the_first_call(recorder: Recorder) -> None:
    """Where no hook counted before, the first explicit call ends a step."""
    recorder.end_explicit_step()
    assert [step.flags for step in _steps(recorder)] == [StepFlag.FIRST | StepFlag.EXPLICIT]


def test_microbatches_belong_to_the_step_they_began_in(recorder: Recorder) -> None:
    """A step carries the microbatches since the last one and the last number; then none."""
    recorder.begin_microbatch(40)
    recorder.begin_microbatch(41)
    recorder.end_step(0)
    recorder.end_step(0)
    told = [(step.global_step, step.num_microbatches) for step in _steps(recorder)]
    assert told == [(41, 2), (None, None)]
