"""Device time through a stand-in for ``torch.cuda``: what is marked, read, and left alone."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train import guard as guard_module
from tracecore_train.guard import Guard
from tracecore_train.hooks import device_marks
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.device_time import DeviceTimeHook
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.parts import Point
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import DeviceTimeRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW_STEP = 200_000_000
"""Duration of a step that is measured every time."""


class FakeCuda(types.ModuleType):
    """A device that runs as far behind the host as the test says.

    The stream is a list of commands; ``now`` is the device's clock, in milliseconds, at the end of
    what was queued, and ``done`` how many commands the device has passed.
    """

    def __init__(self) -> None:
        super().__init__("torch.cuda")
        self.now = 0.0
        self.queued = 0
        self.done = 0
        self.is_capturing = False
        self.is_started = True
        self.device = "cuda:0"
        self.num_events = 0
        self.calls: list[str] = []
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing
                cuda.num_events += 1
                self.at: tuple[int, float] | None = None
                self.device: str | None = None

            def record(self, stream: Any) -> None:
                assert not cuda.is_capturing, "an event in a graph capture"
                assert self.device in (None, stream.device), "an event of another device"
                self.device = stream.device
                cuda.queued += 1
                self.at = (cuda.queued, cuda.now)

            def query(self) -> bool:
                assert not cuda.is_capturing, "asked in a graph capture"
                assert self.at is not None
                return self.at[0] <= cuda.done

            def elapsed_time(self, end: Event) -> float:
                assert self.query(), "read before the device came there"
                assert end.query(), "read before the device came there"
                assert self.at is not None
                assert end.at is not None
                return end.at[1] - self.at[1]

            def synchronize(self) -> None:
                raise AssertionError("a synchronisation")

        class CUDAGraph:
            def capture_begin(self) -> str:
                cuda.is_capturing = True
                return "begun"

            def capture_end(self) -> str:
                cuda.is_capturing = False
                return "ended"

        self.Event = Event
        self.CUDAGraph = CUDAGraph

    def is_initialized(self) -> bool:
        return self.is_started

    def current_stream(self) -> Any:
        return types.SimpleNamespace(device=self.device)

    def is_current_stream_capturing(self) -> bool:
        return self.is_capturing

    def synchronize(self) -> None:
        raise AssertionError("a synchronisation")

    def catch_up(self) -> None:
        self.done = self.queued


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    made = FakeCuda()
    torch = types.ModuleType("torch")
    torch.cuda = made  # type: ignore[attr-defined]
    torch.version = types.SimpleNamespace(cuda="12.8", hip=None)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch.cuda", made)
        yield made


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(RankPage.in_memory(), rank=0)


@pytest.fixture
def hook(cuda: FakeCuda, recorder: Recorder) -> Iterator[DeviceTimeHook]:
    guard = Guard("device_time")
    made = DeviceTimeHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    made.install()
    made.poll(True)
    yield made
    guard.close()
    made.uninstall()


def mark(recorder: Recorder, point: int) -> None:
    if recorder.parts.marks is not None:
        recorder.parts.marks.mark(point)


def step(recorder: Recorder, cuda: FakeCuda, number: int, duration: int = SLOW_STEP) -> None:
    """One step of two microbatches: 1 ms for each forward, 2 backward, 4 optimizer, 8 other."""
    for _ in range(2):
        mark(recorder, Point.INPUT_END)
        cuda.now += 1
        mark(recorder, Point.BACKWARD_BEGIN)
        cuda.now += 2
        mark(recorder, Point.BACKWARD_END)
    cuda.now += 8
    mark(recorder, Point.OPTIMIZER_BEGIN)
    cuda.now += 4
    mark(recorder, Point.OPTIMIZER_END)
    if recorder.on_step is not None:
        recorder.on_step(number, duration)


def told(recorder: Recorder) -> dict[int, dict[str, int]]:
    """Milliseconds by step and part."""
    found: dict[int, dict[str, int]] = {}
    for record in recorder.drain():
        assert isinstance(record, DeviceTimeRecord)
        found.setdefault(record.step, {})[record.part] = record.device_ns // 1_000_000
    return found


PARTS = {"forward": 2, "backward": 4, "optimizer": 4, "step": 18}


def test_parts_are_told_when_the_device_passed_them(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """A step gives its parts in milliseconds of the device, and not before it is done there."""
    for number in range(3):
        step(recorder, cuda, number)
    assert told(recorder) == {}
    cuda.catch_up()
    step(recorder, cuda, 3)
    assert told(recorder) == {1: PARTS, 2: PARTS}
    cuda.catch_up()
    step(recorder, cuda, 4)
    assert told(recorder) == {3: PARTS}


def test_no_step_is_begun_while_the_device_lags(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """However far the device lags, the number of events is bounded, and events are reused."""
    for number in range(500):
        step(recorder, cuda, number)
    num_lagging = cuda.num_events
    assert num_lagging <= (device_marks.MAX_IN_FLIGHT + 1) * 12
    for number in range(500, 1_000):
        cuda.catch_up()
        step(recorder, cuda, number)
    assert cuda.num_events == num_lagging
    assert len(told(recorder)) > 400


def test_short_steps_are_sampled(hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda) -> None:
    """Of steps of 1 ms every 128th is measured, by its number, so that ranks measure the same."""
    for number in range(1_000):
        step(recorder, cuda, number, duration=1_000_000)
        cuda.catch_up()
    assert sorted(told(recorder)) == [1, *range(128, 896, 128)]


def test_more_microbatches_than_events_leave_the_total(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """A step with very many microbatches tells its total only, and takes no more events."""
    step(recorder, cuda, 0)
    for _ in range(1_000):
        mark(recorder, Point.BACKWARD_BEGIN)
        cuda.now += 1
        mark(recorder, Point.BACKWARD_END)
    step(recorder, cuda, 1)
    cuda.catch_up()
    step(recorder, cuda, 2)
    assert told(recorder)[1] == {"step": 1_018}
    assert cuda.num_events <= 2 * device_marks.MAX_EVENTS


def test_a_forward_with_a_pause_is_not_told(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """Where a checkpoint lay in a forward, the step has no forward rather than a wrong one."""
    step(recorder, cuda, 0)
    mark(recorder, Point.INPUT_END)
    mark(recorder, Point.PAUSE_END)
    mark(recorder, Point.BACKWARD_BEGIN)
    mark(recorder, Point.BACKWARD_END)
    step(recorder, cuda, 1)
    cuda.catch_up()
    step(recorder, cuda, 2)
    assert sorted(told(recorder)[1]) == ["backward", "optimizer", "step"]


def test_a_closure_is_no_optimizer_time(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """Forward and backward inside the optimizer's step are not in the optimizer's time."""
    step(recorder, cuda, 0)
    mark(recorder, Point.OPTIMIZER_BEGIN)
    cuda.now += 5
    mark(recorder, Point.BACKWARD_BEGIN)
    cuda.now += 6
    mark(recorder, Point.BACKWARD_END)
    cuda.now += 7
    mark(recorder, Point.OPTIMIZER_END)
    assert recorder.on_step is not None
    recorder.on_step(1, SLOW_STEP)
    cuda.catch_up()
    step(recorder, cuda, 2)
    assert told(recorder)[1] == {"forward": 5, "backward": 6, "optimizer": 7, "step": 18}


def test_nothing_is_done_in_a_graph_capture(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """From capture_begin to capture_end no event is recorded or asked, the page says since when,
    and steps are measured again afterwards.
    """
    word = Word.CAPTURE_SINCE
    step(recorder, cuda, 0)
    graph = cuda.CUDAGraph()
    assert recorder.page.words[word] == 0
    assert graph.capture_begin() == "begun"
    assert recorder.page.words[word] > 0
    cuda.catch_up()
    step(recorder, cuda, 1)
    step(recorder, cuda, 2)
    assert graph.capture_end() == "ended"
    assert recorder.page.words[word] == 0
    assert told(recorder) == {}
    for number in range(3, 6):
        step(recorder, cuda, number)
        cuda.catch_up()
    assert told(recorder) == {4: PARTS}


def test_a_capture_we_did_not_see_begin_is_respected(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """Also where only the stream says that it is captured, no event is recorded or asked."""
    step(recorder, cuda, 0)
    cuda.is_capturing = True
    step(recorder, cuda, 1)
    step(recorder, cuda, 2)
    assert told(recorder) == {}


def test_a_failed_capture_begin_is_no_capture(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When capture_begin raises, the user gets the exception and the page says 0."""
    graph = cuda.CUDAGraph()
    with pytest.raises(TypeError):
        graph.capture_begin("unexpected")  # type: ignore[call-arg]
    assert recorder.page.words[Word.CAPTURE_SINCE] == 0
    step(recorder, cuda, 0)
    assert recorder.parts.marks is not None


def test_another_device_ends_the_measurement_of_the_step(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """Times of two devices are never compared: such a step is left out."""
    step(recorder, cuda, 0)
    cuda.device = "cuda:1"
    step(recorder, cuda, 1)
    cuda.catch_up()
    step(recorder, cuda, 2)
    cuda.catch_up()
    step(recorder, cuda, 3)
    assert sorted(told(recorder)) == [2]


def test_steps_that_end_inside_backward_are_blind(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda
) -> None:
    """With the optimizer in backward nothing is marked, and the reason is told."""
    recorder.parts.backward_since = 5
    step(recorder, cuda, 0)
    assert recorder.parts.marks is None
    assert "inside backward" in hook.blind()[0]


def test_without_cuda_it_does_nothing(cuda: FakeCuda, recorder: Recorder) -> None:
    """Until somebody initialises CUDA no step is marked and the reason stands in blind."""
    cuda.is_started = False
    guard = Guard("device_time")
    made = DeviceTimeHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    made.install()
    assert made.poll(True) == []
    assert recorder.on_step is None
    assert made.blind() == ["device_time: no CUDA in this process"]
    cuda.is_started = True
    made.poll(False)
    assert recorder.on_step is not None
    assert made.blind() == []
    guard.close()
    made.uninstall()
    assert recorder.on_step is None
    assert cuda.CUDAGraph.capture_begin.__qualname__.startswith("FakeCuda")


def test_an_error_of_the_device_switches_only_us_off(
    hook: DeviceTimeHook, recorder: Recorder, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When recording an event raises, no step is marked any more and nobody else notices."""
    monkeypatch.setattr(guard_module, "raise_in_tests", False)

    def broken(*args: object) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(cuda.Event, "record", broken)
    step(recorder, cuda, 0)
    assert recorder.on_step is None
    assert recorder.parts.marks is None
    step(recorder, cuda, 1)
