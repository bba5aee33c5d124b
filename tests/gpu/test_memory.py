"""Device memory on a real GPU: figures, a real failed allocation, peaks, and what looking costs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.memory import MemoryHook, MemoryPeaksHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.page import RankPage, Word, parse_page
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import MemoryRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracecore_train.hooks import PolledHook

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

MIB = 1 << 20


class Watched:
    """The hook, installed, polled from a thread of its own as the export thread does."""

    def __init__(self) -> None:
        self.recorder = Recorder(RankPage.in_memory(), rank=0)
        self.context = HookContext(recorder=self.recorder, rank=0, socket_path=None)
        self.guard = Guard("memory")
        self.hook = MemoryHook(self.context, self.guard)
        self.hook.install()

    def poll(self) -> list[MemoryRecord]:
        self.hook._sampled_ns = self.hook._memory._driver_at = 0
        return polled(self.hook)

    def notice(self) -> tuple[int, str]:
        page = self.recorder.page
        page.words[Word.MAGIC] = int.from_bytes(b"TCPAGE\r\n", "little")
        page.words[Word.VERSION] = 1
        record = parse_page(bytes(page._data), 0)
        return record.num_ooms, record.oom


@pytest.fixture
def watched() -> Iterator[Watched]:
    torch.zeros(1, device="cuda")
    made = Watched()
    yield made
    made.guard.close()
    made.hook.uninstall()
    torch.cuda.empty_cache()


def in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def polled(hook: PolledHook) -> list[MemoryRecord]:
    found: list[MemoryRecord] = []
    in_thread(lambda: found.extend(r for r in hook.poll(False) if isinstance(r, MemoryRecord)))
    return found


def test_figures_are_those_torch_tells(watched: Watched) -> None:
    """Allocated, reserved and their peaks equal torch's own; the driver's free memory is there."""
    kept = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    (record,) = watched.poll()
    assert record.allocated_bytes == torch.cuda.memory_allocated() >= kept.numel()
    assert record.allocated_peak_bytes == torch.cuda.max_memory_allocated()
    assert record.reserved_bytes == torch.cuda.memory_reserved()
    assert record.reserved_peak_bytes == torch.cuda.max_memory_reserved()
    assert 0 < record.device_free_bytes < record.device_total_bytes
    assert watched.hook.blind() == []


def test_pinned_memory_is_seen(watched: Watched) -> None:
    """Pinned memory grows by what is pinned, where torch tells it."""
    before = watched.poll()[0].pinned_bytes
    if before < 0:
        pytest.skip("this torch does not tell pinned memory")
    kept = torch.empty(32 * MIB, dtype=torch.uint8).pin_memory()
    assert watched.poll()[0].pinned_bytes >= before + kept.numel()


def test_a_failed_allocation_leaves_a_notice_and_can_be_caught(watched: Watched) -> None:
    """The user catches torch's own exception and goes on; the page has request and frame."""
    watched.poll()
    num_before = watched.notice()[0]
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    num_ooms, text = watched.notice()
    assert num_ooms == num_before + 1
    assert text.startswith("cuda:0 asked for ")
    assert "(test_memory.py:" in text
    assert int(text.split("asked for ")[1].split()[0]) >= 1 << 50
    assert torch.ones(4, device="cuda").sum().item() == 4
    assert watched.poll()[0].num_ooms >= 1


def test_after_the_end_a_failed_allocation_writes_nothing(watched: Watched) -> None:
    """The observer stays attached, and is inert."""
    watched.poll()
    watched.guard.close()
    watched.hook.uninstall()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    assert watched.notice()[0] == 0


def test_looking_makes_no_context_on_another_device(watched: Watched) -> None:
    """Polling from a thread that never chose a device leaves the other devices untouched."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one device only")
    torch.empty(MIB, dtype=torch.uint8, device="cuda:1")
    free_before = torch.cuda.mem_get_info(0)[0]
    watched.poll()
    assert torch.cuda.mem_get_info(0)[0] == free_before


def test_looking_during_a_graph_capture_breaks_nothing(watched: Watched) -> None:
    """A capture survives samples of another thread; the driver is not asked meanwhile."""
    static = torch.zeros(1024, device="cuda")
    static.add_(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        watched.recorder.page.words[Word.CAPTURE_SINCE] = 1
        static.add_(1)
        watched.poll()
        watched.recorder.add_phase("inside", 1, 2)
        static.add_(1)
    watched.recorder.page.words[Word.CAPTURE_SINCE] = 0
    static.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert static[0].item() == 2


def test_peaks_are_those_of_one_step_where_asked_for(watched: Watched) -> None:
    """A step without a spike has a lower peak than the one with it."""
    guard = Guard("memory_peaks")
    optimizer_hook = OptimizerHook(watched.context, guard)
    peaks = MemoryPeaksHook(watched.context, guard)
    optimizer_hook.install()
    peaks.install()
    try:
        parameter = torch.nn.Parameter(torch.ones(1, device="cuda"))
        parameter.grad = torch.ones(1, device="cuda")
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        optimizer.step()
        polled(peaks)
        optimizer.step()
        torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
        optimizer.step()
        optimizer.step()
        records = polled(peaks)[-2:]
        spike, calm = (record.allocated_peak_bytes for record in records)
        assert spike - calm >= 200 * MIB
    finally:
        guard.close()
        peaks.uninstall()
        optimizer_hook.uninstall()


def test_a_sample_is_cheap(watched: Watched) -> None:
    """A sample costs well below a millisecond, and does not wait for work on the device."""
    watched.poll()
    matrix = torch.randn(8192, 8192, device="cuda")
    for _ in range(20):
        matrix = matrix @ matrix
        matrix /= matrix.norm()
    began = time.perf_counter()
    for _ in range(100):
        watched.hook._memory.sample()
    per_sample_us = (time.perf_counter() - began) * 1e4
    torch.cuda.synchronize()
    print(f"a sample takes {per_sample_us:.1f} µs")
    assert per_sample_us < 500
