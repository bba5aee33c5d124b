"""Device time on a real GPU: plausible, without waiting, and no harm to a graph capture."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks import device_marks
from tracecore_train.hooks.backward import BackwardHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.device_time import DeviceTimeHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import DeviceTimeRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

CYCLES = 40_000_000
"""Of the sleep kernel: some 20 ms."""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """All hooks of a step installed, every step measured."""
    monkeypatch.setattr(device_marks, "SAMPLE_NS", 0)
    torch.cuda.init()
    made = Recorder(RankPage.in_memory(), rank=0)
    hooks: list[tuple[Any, Guard]] = []
    for hook_class in (OptimizerHook, BackwardHook, DeviceTimeHook):
        guard = Guard(hook_class.name)
        hook: Any = hook_class(HookContext(recorder=made, rank=0, socket_path=None), guard)
        hook.install()
        hooks.append((hook, guard))
    hooks[-1][0].poll(True)
    yield made
    for hook, guard in hooks:
        guard.close()
        hook.uninstall()


class _Sleep(torch.autograd.Function):  # type: ignore[misc,name-defined]
    """Sleeps on the device: once in forward, three times as long in backward."""

    @staticmethod
    def forward(ctx: Any, value: Any, cycles: int) -> Any:
        ctx.cycles = cycles
        torch.cuda._sleep(cycles)
        return value * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        torch.cuda._sleep(3 * ctx.cycles)
        return grads[0], None


def make_step(cycles: int) -> Callable[[], None]:
    parameter = torch.nn.Parameter(torch.ones(8, device="cuda"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def step() -> None:
        _Sleep.apply(parameter, cycles).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sleep_ns(cycles: int) -> float:
    """How long the sleep kernel takes, by events of the test's own."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.cuda._sleep(cycles)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end) * 1e6)


def told(recorder: Recorder) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for record in recorder.drain():
        if isinstance(record, DeviceTimeRecord):
            found.setdefault(record.part, []).append(record.device_ns)
    return found


def test_durations_are_those_of_the_device(recorder: Recorder) -> None:
    """Forward, backward and step are as long as the sleep kernels in them, within a fifth."""
    step = make_step(CYCLES)
    expected = min(sleep_ns(CYCLES) for _ in range(3))
    for _ in range(8):
        step()
        torch.cuda.synchronize()
    step()
    found = told(recorder)
    assert len(found["step"]) >= 5
    for part, factor in (("forward", 1), ("backward", 3), ("step", 4)):
        middle = sorted(found[part])[len(found[part]) // 2]
        assert middle == pytest.approx(factor * expected, rel=0.2), part
    assert max(found["optimizer"]) < expected


def test_the_host_never_waits_for_the_device(recorder: Recorder) -> None:
    """The loop runs ahead of the device: issuing steps takes a fraction of what they take."""
    step = make_step(CYCLES)
    step()
    torch.cuda.synchronize()
    began = time.monotonic()
    for _ in range(20):
        step()
    issued = time.monotonic() - began
    torch.cuda.synchronize()
    done = time.monotonic() - began
    assert issued < done / 4
    step()
    assert told(recorder)["step"]


def test_a_sync_would_be_an_error(recorder: Recorder) -> None:
    """Under torch's own check for synchronising calls nothing of ours is one."""
    step = make_step(1_000)
    step()
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_a_graph_capture_is_unharmed(recorder: Recorder) -> None:
    """Whole steps are captured and replayed with us as without us; the page says since when."""
    parameter = torch.nn.Parameter(torch.ones(8, device="cuda"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    seen: list[int] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        (parameter * parameter).sum().backward()
        optimizer.step()
        seen.append(recorder.page.words[Word.CAPTURE_SINCE])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    assert seen[-1] > 0
    assert seen[0] == 0 == recorder.page.words[Word.CAPTURE_SINCE]
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(4):
        graph.replay()
    torch.cuda.synchronize()
    assert parameter.tolist() == pytest.approx([0.8**4] * 8)
    plain = make_step(1_000)
    for _ in range(4):
        plain()
        torch.cuda.synchronize()
    assert told(recorder)["step"]
