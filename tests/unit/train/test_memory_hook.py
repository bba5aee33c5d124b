"""Device memory, read through torch's own function names from a stand-in of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

import torch

from tests.support.fake_cuda import FakeCuda
from tracecore_train.guard import Guard
from tracecore_train.hooks import device_memory, memory, oom_observer
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.memory import MAX_PER_S, MemoryHook, MemoryPeaksHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.pace import Pace
from tracecore_train.recorder.page import RankPage, Word, parse_page
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import NOT_MEASURED, MemoryRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

GIB = 1 << 30


class Watched:
    """The hook, installed."""

    def __init__(self) -> None:
        self.recorder = Recorder(RankPage.in_memory(), rank=5)
        self.context = HookContext(recorder=self.recorder, rank=5, socket_path=None)
        self.guard = Guard("memory")
        self.hook = MemoryHook(self.context, self.guard)
        self.hook.install()

    def poll(self) -> list[MemoryRecord]:
        return [r for r in self.hook.poll(False) if isinstance(r, MemoryRecord)]

    def end(self) -> None:
        self.guard.close()
        self.hook.uninstall()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(oom_observer, "_is_attached", False)
    monkeypatch.setattr(memory, "SAMPLE_EVERY_NS", 0)
    return FakeCuda(monkeypatch)


@pytest.fixture
def watched(cuda: FakeCuda) -> Iterator[Watched]:
    made = Watched()
    yield made
    made.end()
    assert made.recorder.on_phase is None
    assert oom_observer._listener is None


def notice(recorder: Recorder) -> tuple[int, int, str]:
    page = recorder.page
    page.words[Word.MAGIC] = int.from_bytes(b"TCPAGE\r\n", "little")
    page.words[Word.VERSION] = 1
    record = parse_page(bytes(page._data), 0)
    return record.num_ooms, record.oom_ns, record.oom


def test_cuda_is_not_initialised_for_us(watched: Watched, cuda: FakeCuda) -> None:
    """Before somebody uses CUDA nothing is asked of it, and both signals are blind."""
    assert watched.poll() == []
    watched.recorder.add_phase("validation", 1, 2)
    assert watched.hook.blind() == [
        "memory.device: no CUDA in this process",
        "memory.oom: no CUDA in this process",
    ]
    assert cuda.calls == {}


def test_a_sample_has_the_allocators_figures(watched: Watched, cuda: FakeCuda) -> None:
    """Of the devices in use, and only of those; pinned memory once, not per device."""
    cuda.allocate(1, 3 * GIB)
    cuda.allocate(1, -GIB)
    (record,) = watched.poll()
    assert (record.rank, record.device, record.phase) == (5, 1, "")
    assert (record.allocated_bytes, record.allocated_peak_bytes) == (2 * GIB, 3 * GIB)
    assert (record.reserved_bytes, record.reserved_peak_bytes) == (4 * GIB, 6 * GIB)
    assert record.inactive_split_bytes == 2 * GIB // 10
    assert (record.num_alloc_retries, record.num_ooms, record.num_sync_all_streams) == (3, 0, 4)
    assert (record.device_free_bytes, record.device_total_bytes) == (60 * GIB, 80 * GIB)
    assert record.pinned_bytes == 4096
    assert watched.hook.blind() == []
    assert "reset" not in cuda.calls, "high-water marks are the user's"


def test_a_device_used_later_is_found(
    watched: Watched, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA in use without an allocation gives nothing; a second device joins at the next look."""
    cuda.is_initialized = True
    assert watched.poll() == []
    cuda.allocate(0, GIB)
    assert [record.device for record in watched.poll()] == [0]
    monkeypatch.setattr(watched.hook._memory, "_driver_at", 0)
    cuda.allocate(1, GIB)
    assert [record.pinned_bytes for record in watched.poll()] == [4096, NOT_MEASURED]


def test_the_driver_is_asked_seldom_and_never_in_a_capture(
    watched: Watched, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many samples make one driver call; while a graph is captured there is none."""
    cuda.allocate(0, GIB)
    for _ in range(20):
        watched.poll()
    assert cuda.calls["driver"] == 1
    watched.recorder.page.words[Word.CAPTURE_SINCE] = 1
    monkeypatch.setattr(watched.hook._memory, "_driver_at", 0)
    assert watched.poll()[0].device_free_bytes == 60 * GIB
    assert cuda.calls["driver"] == 1


def test_periodic_samples_are_not_closer_than_their_interval(
    watched: Watched, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hand-over ten times a second does not sample ten times a second."""
    monkeypatch.setattr(memory, "SAMPLE_EVERY_NS", 3_600_000_000_000)
    cuda.allocate(0, GIB)
    assert sum(len(watched.poll()) for _ in range(10)) <= 1


def test_the_end_of_a_phase_is_sampled_within_a_budget(watched: Watched, cuda: FakeCuda) -> None:
    """A sample carries the phase that ended; a loop of phases is sampled a few times a second."""
    cuda.allocate(0, GIB)
    watched.poll()
    num_before = cuda.calls["stats"]
    for _ in range(10 * MAX_PER_S):
        watched.recorder.add_phase("validation", 1, 2)
    assert 1 <= cuda.calls["stats"] - num_before <= 2 * MAX_PER_S
    phases = [record.phase for record in watched.poll()]
    assert phases[0] == "validation"
    assert phases[-1] == ""


def test_an_allocator_without_figures_is_blind_with_the_reason(
    watched: Watched, cuda: FakeCuda
) -> None:
    """A pluggable allocator that refuses costs no exception and is told."""
    cuda.allocate(0, GIB)
    cuda.has_figures = False
    assert watched.poll() == []
    (text,) = watched.hook.blind()
    assert text.startswith("memory.device: the allocator in use gives no figures (pluggable")


def test_a_missing_name_costs_only_its_figures(
    watched: Watched, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without host figures, driver and observer the allocator's own figures still come."""
    monkeypatch.delattr(torch._C, "_cuda_hostMemoryStats")
    monkeypatch.delattr(torch._C, "_cuda_attach_out_of_memory_observer")
    monkeypatch.delattr(torch.cuda, "mem_get_info")
    cuda.allocate(0, GIB)
    (record,) = watched.poll()
    assert record.allocated_bytes == GIB
    assert record.pinned_bytes == record.device_free_bytes == NOT_MEASURED
    assert watched.hook.blind() == ["memory.oom: this torch has no out-of-memory observer"]


def test_a_failed_allocation_stands_on_the_page_and_stays_the_users(
    watched: Watched, cuda: FakeCuda
) -> None:
    """Count, time and text: device, request, what there was, and the user's own frame. The user
    catches the exception as without us.
    """
    cuda.allocate(0, GIB)
    watched.poll()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            cuda.fail(0, 7 * GIB)
    num_ooms, time_ns, text = notice(watched.recorder)
    assert num_ooms == 2
    assert time_ns > 0
    assert text.startswith(f"cuda:0 asked for {7 * GIB} bytes in fail (fake_cuda.py:")
    assert f"free {60 * GIB} of {80 * GIB}" in text
    assert f"allocated {GIB}, reserved {2 * GIB}" in text
    assert watched.poll()[0].num_ooms == 2


def test_the_observer_is_attached_once_and_inert_after_the_end(
    watched: Watched, cuda: FakeCuda
) -> None:
    """It cannot be taken out: a second session uses the first one's, and after the end a failure
    writes nothing anywhere.
    """
    cuda.allocate(0, GIB)
    watched.poll()
    watched.end()
    second = Watched()
    second.poll()
    assert len(cuda.observers) == 1
    with pytest.raises(torch.OutOfMemoryError):
        cuda.fail(0, 1)
    assert notice(watched.recorder)[0] == 0
    assert notice(second.recorder)[0] == 1
    second.end()
    with pytest.raises(torch.OutOfMemoryError):
        cuda.fail(0, 1)
    assert notice(second.recorder)[0] == 1


def test_a_listener_that_goes_meanwhile_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """shutdown() in another thread must not turn an allocation's failure into a TypeError."""

    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(oom_observer, "_listener", lambda *args: calls.append(args))

    def leave(frame: Any, event: str, arg: object) -> Any:
        if event == "line" and frame.f_lineno == last_line:
            monkeypatch.setattr(oom_observer, "_listener", None)
        return leave

    code = oom_observer._observe.__code__
    last_line = max(line for *_, line in code.co_lines() if line is not None)
    before = sys.gettrace()
    sys.settrace(leave)
    try:
        oom_observer._observe(0, 1, 2, 3)
    finally:
        sys.settrace(before)
    assert calls == [(0, 1, 2, 3)]


def test_a_notice_that_fails_is_contained(
    watched: Watched, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocation's own exception reaches the user, and nothing of ours."""
    from tracecore_train import guard

    def broken(device: int) -> str:
        raise ValueError("ours")

    monkeypatch.setattr(guard, "raise_in_tests", False)
    monkeypatch.setattr(oom_observer, "allocator_text", broken)
    cuda.allocate(0, GIB)
    watched.poll()
    with pytest.raises(torch.OutOfMemoryError):
        cuda.fail(0, 1)
    assert not watched.guard.is_open


def test_peaks_become_those_of_one_step_where_asked_for(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step's record has the peak of that step alone; a step over the budget is summed into
    the next one's peak, and never lost.
    """
    recorder = Recorder(RankPage.in_memory(), rank=0)
    context = HookContext(recorder=recorder, rank=0, socket_path=None)
    guard = Guard("memory_peaks")
    hooks = (OptimizerHook(context, guard), MemoryPeaksHook(context, guard))
    for hook in hooks:
        hook.install()
    peaks = hooks[1]
    assert isinstance(peaks, MemoryPeaksHook)
    assert peaks.blind() == ["memory.peaks: no CUDA in this process"]
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.step()
    assert cuda.calls == {}
    cuda.allocate(0, GIB)
    peaks.poll(False)
    for spike in (5, 2, 3):
        cuda.allocate(0, spike * GIB)
        cuda.allocate(0, -spike * GIB)
        optimizer.step()
    records = peaks.poll(False)
    found = [(r.phase, r.allocated_peak_bytes) for r in records if isinstance(r, MemoryRecord)]
    assert found == [("step", 6 * GIB), ("step", 3 * GIB), ("step", 4 * GIB)]
    monkeypatch.setattr(peaks, "_pace", Pace(1))
    for spike in (2, 9, 1):
        cuda.allocate(0, spike * GIB)
        cuda.allocate(0, -spike * GIB)
        optimizer.step()
    assert len(peaks.poll(False)) == 1
    assert cuda.peak[0] == 10 * GIB
    guard.close()
    for hook in reversed(hooks):
        hook.uninstall()


def test_figures_are_looked_up_by_name() -> None:
    """Where torch's private functions are not there at all, nothing is known and nothing raised."""
    assert device_memory.allocator_text(0) == ""
    recorder = Recorder(RankPage.in_memory(), rank=0)
    assert device_memory.DeviceMemory(recorder, 0).look_around() is False
