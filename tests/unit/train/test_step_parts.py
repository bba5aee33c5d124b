"""What a step consists of, told exactly: the clock moves only where a test lets work happen."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import tracecore_train
from tracecore_train import steps
from tracecore_train.guard import Guard
from tracecore_train.hooks import backward, dataloader, optimizer
from tracecore_train.hooks.context import HookContext
from tracecore_train.recorder import recorder as recorder_module
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import NOT_MEASURED, StepFlag, StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(120)

HOOKS = (optimizer.OptimizerHook, dataloader.DataLoaderHook, backward.BackwardHook)


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now

    def work(self, duration: int) -> None:
        self.now += duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (backward, dataloader, optimizer, recorder_module, steps):
        monkeypatch.setattr(module, "now_ns", made)
    return made


@pytest.fixture
def recorder(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    made = Recorder(RankPage.in_memory(), rank=0)
    monkeypatch.setattr(steps, "current_recorder", lambda: made)
    hooks = []
    for hook_class in HOOKS:
        guard = Guard(hook_class.name)
        hook: Any = hook_class(HookContext(recorder=made, rank=0, socket_path=None), guard)
        hook.install()
        hooks.append((hook, guard))
    yield made
    for hook, guard in hooks:
        guard.close()
        hook.uninstall()


@pytest.fixture
def parameter() -> Any:
    return torch.nn.Parameter(torch.ones(2))


class _Work(torch.autograd.Function):  # type: ignore[misc,name-defined]
    """Takes time in forward and in backward."""

    @staticmethod
    def forward(ctx: Any, value: Any, forward: Callable[[], None], back: Callable[[], None]) -> Any:
        ctx.back = back
        forward()
        return value * 1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.back()
        return grads[0], None, None


def loss(parameter: Any, clock: Clock, forward: int = 100, back: int = 200) -> Any:
    """A forward pass of ``forward`` whose backward takes ``back``."""
    return _Work.apply(parameter, lambda: clock.work(forward), lambda: clock.work(back)).sum()


def make_optimizer(parameter: Any, clock: Clock, duration: int = 30) -> Any:
    """An SGD whose step takes ``duration``, after the closure if there is one."""

    class Slow(torch.optim.SGD):  # type: ignore[misc,name-defined]
        def step(self, closure: Any = None) -> Any:
            result = closure() if closure is not None else None
            clock.work(duration)
            return result

    return Slow([parameter], lr=0.1)


class Batches(torch.utils.data.IterableDataset):  # type: ignore[misc,name-defined]
    """Batches that take 10 each."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __iter__(self) -> Iterator[int]:
        while True:
            self.clock.work(10)
            yield 1


def batches(clock: Clock) -> Iterator[Any]:
    return iter(torch.utils.data.DataLoader(Batches(clock), batch_size=None))


def drain(recorder: Recorder) -> list[StepRecord]:
    return [record for record in recorder.drain() if isinstance(record, StepRecord)]


def parts(step: StepRecord) -> tuple[int, ...]:
    """Input, forward, backward, optimizer, duration."""
    return step.input_ns, step.forward_ns, step.backward_ns, step.optimizer_ns, step.duration_ns


def test_a_plain_step_is_told_apart(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """Input, forward, backward and optimizer are what each took; the rest is in none of them."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(3):
        clock.work(5)
        next(source)
        loss(parameter, clock).backward()
        clock.work(7)
        slow.step()
    found = drain(recorder)
    assert [parts(step) for step in found[1:]] == [(10, 100, 200, 30, 352)] * 2
    assert {step.num_backwards for step in found} == {1}
    assert {step.transfer_ns for step in found} == {NOT_MEASURED}


def test_the_page_says_since_when(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """Inside backward and inside the optimizer the page holds the moment of entry, then 0."""
    words = recorder.page.words
    seen: list[tuple[int, int]] = []

    def look() -> float:
        seen.append((words[Word.BACKWARD_SINCE], words[Word.OPTIMIZER_SINCE]))
        return 0.0

    value = _Work.apply(parameter, lambda: None, look).sum()
    began = clock.now
    value.backward()
    clock.work(50)
    torch.optim.SGD([parameter], lr=0.1).step(look)
    assert seen == [(began, 0), (0, began + 50)]
    assert words[Word.BACKWARD_SINCE] == words[Word.OPTIMIZER_SINCE] == 0


def test_microbatches_add_up(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """With gradient accumulation a step has the sum of its forwards and counts its backwards."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(2):
        for _ in range(4):
            next(source)
            loss(parameter, clock).backward()
        slow.step()
    step = drain(recorder)[1]
    assert parts(step) == (40, 400, 800, 30, 1270)
    assert step.num_backwards == 4


def test_microbatches_of_one_batch_add_up(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """A forward that follows a backward without a new batch begins where that ended."""
    slow = make_optimizer(parameter, clock)
    for _ in range(2):
        for _ in range(3):
            loss(parameter, clock).backward()
        slow.step()
    assert parts(drain(recorder)[1]) == (0, 300, 600, 30, 930)


def test_a_skipped_step_has_no_optimizer(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """Where the gradient scaler skips, forward and backward are told, the optimizer is not."""
    slow = make_optimizer(parameter, clock)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (1.0, float("inf"), 1.0):
        slow.zero_grad()
        scaler.scale(loss(parameter, clock) * factor).backward()
        scaler.step(slow)
        scaler.update()
    _, skipped, normal = drain(recorder)
    assert skipped.flags == StepFlag.SKIPPED
    assert parts(skipped) == (0, 100, 200, NOT_MEASURED, 300)
    assert parts(normal) == (0, 100, 200, 30, 330)


def test_several_optimizers_are_summed(recorder: Recorder, clock: Clock) -> None:
    """Two models in turn (a GAN): one step has both forwards, backwards and optimizers."""
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizers = [make_optimizer(first, clock), make_optimizer(second, clock, duration=40)]
    for _ in range(3):
        for parameter, slow in zip((first, second), optimizers, strict=True):
            loss(parameter, clock).backward()
            slow.step()
    assert parts(drain(recorder)[2]) == (0, 200, 400, 70, 670)


def test_a_closure_is_no_optimizer_time(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """Where the optimizer calls forward and backward, as under Lightning, each counts once."""
    slow = make_optimizer(parameter, clock)

    def closure() -> Any:
        value = loss(parameter, clock)
        value.backward()
        return value

    for _ in range(2):
        slow.step(closure)
    assert parts(drain(recorder)[1]) == (0, 100, 200, 30, 330)


def test_an_optimizer_in_backward_counts_once(recorder: Recorder, clock: Clock) -> None:
    """Optimizers stepped from backward are no backward time; nothing is lost over two steps."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizers = {p: make_optimizer(p, clock) for p in parameters}
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    for _ in range(4):
        sum(loss(p, clock) for p in parameters).backward()
    found = drain(recorder)
    assert len(found) == 4
    for step in found[1:]:
        assert parts(step) == (0, 300, 600, 90, 990)
        assert step.num_backwards == 1


def test_an_optimizer_that_steps_another_counts_once(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """An optimizer around another one, as ZeRO is, takes the time both took, once."""
    inner = make_optimizer(parameter, clock)

    class Around(torch.optim.SGD):  # type: ignore[misc,name-defined]
        def step(self, closure: Any = None) -> Any:
            clock.work(3)
            inner.step()
            clock.work(4)

    outer = Around([parameter], lr=0.1)
    for _ in range(3):
        loss(parameter, clock).backward()
        outer.step()
    assert [step.optimizer_ns for step in drain(recorder)[1:]] == [37, 37]


def test_an_optimizer_that_raised_is_forgotten(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """After a step that raised and was caught, another optimizer's time is its own again."""

    def explode() -> float:
        raise RuntimeError("closure")

    with pytest.raises(RuntimeError, match="closure"):
        make_optimizer(parameter, clock).step(explode)
    slow = make_optimizer(parameter, clock)
    for _ in range(6):
        loss(parameter, clock).backward()
        slow.step()
    assert parts(drain(recorder)[-1]) == (0, 100, 200, 30, 330)


def test_pauses_are_no_forward(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """A checkpoint or a named phase between input and backward is taken out, nested ones once."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(2):
        next(source)
        with tracecore_train.phase("logging"):
            clock.work(1_000)
            with tracecore_train.phase("images"):
                clock.work(500)
            recorder.add_checkpoint(300)
        clock.work(2_000)
        recorder.add_checkpoint(2_000)
        loss(parameter, clock).backward()
        slow.step()
    step = drain(recorder)[1]
    assert step.forward_ns == 100
    assert step.checkpoint_ns == 2_300


def test_a_validation_is_no_forward(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """Batches and forwards of a named validation do not become the next step's forward."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(2):
        with tracecore_train.phase("validation"):
            for _ in range(3):
                next(source)
                clock.work(700)
        loss(parameter, clock).backward()
        slow.step()
    assert drain(recorder)[1].forward_ns == 100


def test_phases_of_training_itself_take_nothing_out(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """A phase around the whole step, or one called forward, leaves the forward as it is."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(2):
        with tracecore_train.phase("train"):
            next(source)
            loss(parameter, clock).backward()
            slow.step()
    for _ in range(2):
        next(source)
        with tracecore_train.phase("forward"):
            value = loss(parameter, clock)
        value.backward()
        slow.step()
    assert [step.forward_ns for step in drain(recorder)] == [100] * 4


def test_transfer_is_a_part(recorder: Recorder, clock: Clock, parameter: Any) -> None:
    """A phase called transfer is the step's transfer time and no forward."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(2):
        next(source)
        with tracecore_train.phase("transfer"):
            clock.work(15)
        loss(parameter, clock).backward()
        slow.step()
    step = drain(recorder)[1]
    assert (step.transfer_ns, step.forward_ns) == (15, 100)


def test_transfer_inside_a_phase_counts_once(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """Also inside a phase around the step, transfer is no forward."""
    source, slow = batches(clock), make_optimizer(parameter, clock)
    for _ in range(2):
        with tracecore_train.phase("train"):
            next(source)
            with tracecore_train.phase("transfer"):
                clock.work(15)
            loss(parameter, clock).backward()
            slow.step()
    step = drain(recorder)[1]
    assert (step.transfer_ns, step.forward_ns) == (15, 100)


def test_very_many_pauses_are_bounded(recorder: Recorder, clock: Clock) -> None:
    """A loop of phases without a backward keeps a bounded number of them."""
    recorder.end_step(0)
    for _ in range(2_000):
        with tracecore_train.phase("serve"):
            clock.work(1)
        clock.work(1)
    assert len(recorder.parts.pauses) <= 256


def test_a_failing_backward_reaches_the_user(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """The exception comes out unchanged, the page says 0, and the time until then counts."""

    def fail() -> None:
        clock.work(9)
        raise KeyError("gradient")

    with pytest.raises(KeyError, match="gradient"):
        _Work.apply(parameter, lambda: None, fail).sum().backward()
    assert recorder.page.words[Word.BACKWARD_SINCE] == 0
    recorder.end_step(0)
    assert drain(recorder)[0].backward_ns == 9


def test_a_backward_inside_backward_counts_once(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """A reentrant checkpoint, whose backward runs another one, is one backward pass."""
    from torch.utils.checkpoint import checkpoint

    value = checkpoint(lambda p: loss(p, clock), parameter, use_reentrant=True)
    value.backward()
    recorder.end_step(0)
    step = drain(recorder)[0]
    assert step.num_backwards == 1
    assert step.backward_ns == 300, "the forward is computed again inside backward"


def test_another_threads_backward_does_not_count(
    recorder: Recorder, clock: Clock, parameter: Any
) -> None:
    """A helper thread that trains something of its own leaves the sums alone."""
    loss(parameter, clock).backward()
    thread = threading.Thread(target=lambda: loss(parameter, clock).backward())
    thread.start()
    thread.join(30)
    recorder.end_step(0)
    assert drain(recorder)[0].num_backwards == 1


def test_what_nobody_watches_is_not_measured(clock: Clock, parameter: Any) -> None:
    """Without the hooks no part is 0: each is not measured."""
    made = Recorder(RankPage.in_memory(), rank=0)
    loss(parameter, clock).backward()
    made.end_step(0)
    step = drain(made)[0]
    told = (step.forward_ns, step.backward_ns, step.optimizer_ns, step.gc_ns, step.num_backwards)
    assert set(told) == {NOT_MEASURED}


def test_a_failing_hook_takes_its_parts_back(
    recorder: Recorder, clock: Clock, parameter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error of ours inside backward the user's pass goes on and nothing is claimed."""
    from tracecore_train import guard
    from tracecore_train.recorder.parts import StepParts

    def broken(self: StepParts, now: int) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(guard, "raise_in_tests", False)
    monkeypatch.setattr(StepParts, "enter_backward", broken)
    loss(parameter, clock).backward()
    assert parameter.grad.tolist() == [1.0, 1.0]
    recorder.end_step(0)
    step = drain(recorder)[0]
    assert (step.backward_ns, step.num_backwards) == (NOT_MEASURED, NOT_MEASURED)


def test_a_collection_is_summed_where_a_hook_watches(recorder: Recorder) -> None:
    """GC time stands in the step only while somebody says that it is timed."""
    recorder.add_gc(5)
    recorder.end_step(0)
    recorder.parts.is_gc_timed = True
    assert drain(recorder)[0].gc_ns == 5
    recorder.end_step(0)
    recorder.end_step(0)
    recorder.parts.is_gc_timed = False
    assert drain(recorder)[0].gc_ns == NOT_MEASURED


COMPILED = """
import sys, warnings
import torch, torch._dynamo
from torch._dynamo.utils import counters
from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.backward import BackwardHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

recorder = Recorder(RankPage.in_memory(), rank=0)

def play():
    torch._dynamo.reset()
    counters.clear()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="aot_eager")
    def step(x):
        value = model(x).sum()
        value.backward()
        optimizer.step()
    whole = torch.compile(step, backend="eager")
    for _ in range(4):
        compiled(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    for _ in range(4):
        whole(torch.ones(2, 4))
    found = dict(counters["stats"])
    return found, sum(counters["graph_break"].values()), dict(counters["recompiles"])

before = play()
for hook_class in (OptimizerHook, BackwardHook):
    hook_class(HookContext(recorder=recorder, rank=0, socket_path=None), Guard("x")).install()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    after = play()
assert after[0] == before[0], (before, after)
assert after[1] <= before[1], (before, after)
assert after[2] == before[2], (before, after)
ours = [str(w.message) for w in caught if "Dynamo" in str(w.message)]
assert not ours, ours
records = recorder.drain()
assert len(records) == 8
assert all(r.backward_ns > 0 and r.optimizer_ns > 0 for r in records)
assert all(r.forward_ns > 0 for r in records[1:])
"""


@pytest.mark.slow
def test_compiled_models_get_no_graph_of_ours() -> None:
    """With torch.compile around the model or the whole step, the compiler captures the same graphs
    with no more breaks, recompiles or warnings than without us, and the parts are told.
    """
    run = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=110, check=False
    )
    assert run.returncode == 0, run.stderr
