"""One training step gives one step record, however optimizers are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import StepFlag, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

torch = pytest.importorskip("torch")


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(RankPage.in_memory(), rank=0)
    guard = Guard("optimizer")
    hook = OptimizerHook(HookContext(recorder=made, rank=0, socket_path=None), guard)
    hook.install()
    yield made
    guard.close()
    hook.uninstall()


def _flags(recorder: Recorder) -> list[int]:
    return [r.flags & ~StepFlag.FIRST for r in recorder.drain() if isinstance(r, StepRecord)]


def _parameter() -> Any:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return parameter


def _sgd() -> Any:
    return torch.optim.SGD([_parameter()], lr=0.1)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_one_step_is_one_record(recorder: Recorder, name: str) -> None:
    """Three steps of a plain optimizer give three records."""
    optimizer = getattr(torch.optim, name)([_parameter()], lr=0.1)
    for _ in range(3):
        optimizer.step()
    assert _flags(recorder) == [0, 0, 0]


def test_subclass_that_calls_super_counts_once(recorder: Recorder) -> None:
    """A subclass whose step calls super().step(), which fires twice, gives one record per step."""

    class Twice(torch.optim.SGD):  # type: ignore[misc,name-defined]
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    _sgd()  # only after a plain base instance was built does the subclass fire twice
    optimizer = Twice([_parameter()], lr=0.1)
    for _ in range(3):
        optimizer.step()
    assert _flags(recorder) == [0, 0, 0]


def test_failed_step_is_no_step(recorder: Recorder) -> None:
    """A step that raises is not recorded, and the next one is recorded once."""
    optimizer = _sgd()

    def explode() -> float:
        raise RuntimeError("closure")

    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(explode)
    optimizer.step()
    assert _flags(recorder) == [0]


def test_several_optimizers_make_one_step(recorder: Recorder) -> None:
    """Two optimizers stepped in turn give as many records as there are turns."""
    first, second = _sgd(), _sgd()
    for _ in range(4):
        first.step()
        second.step()
    assert len(_flags(recorder)) == 4


def test_optimizer_in_backward_makes_one_step(recorder: Recorder) -> None:
    """One optimizer per parameter, stepped from backward, gives one record per backward."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
    assert len(_flags(recorder)) == 3


def test_another_optimizer_takes_over_when_the_leader_rests(recorder: Recorder) -> None:
    """When only the second optimizer goes on, its third firing ends a step again."""
    first, second = _sgd(), _sgd()
    first.step()
    for _ in range(5):
        second.step()
    assert len(_flags(recorder)) == 1 + 3


def test_replaced_optimizer_leads_at_once(recorder: Recorder) -> None:
    """When the leader is gone, the next optimizer's first step counts."""
    optimizer = _sgd()
    optimizer.step()
    del optimizer
    _sgd().step()
    assert len(_flags(recorder)) == 2


def test_scaler_skip_is_flagged(recorder: Recorder) -> None:
    """A step the gradient scaler skips is recorded as skipped, the others are not."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for value in (float("inf"), 1.0, float("nan"), 1.0):
        optimizer.zero_grad()
        scaler.scale((parameter * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    skipped = StepFlag.SKIPPED
    assert _flags(recorder) == [skipped, 0, skipped, 0]


def test_scaler_step_of_a_side_optimizer_is_no_step(recorder: Recorder) -> None:
    """A skipped step of an optimizer that is not the leader records nothing."""
    leader = _sgd()
    leader.step()
    parameter = torch.nn.Parameter(torch.ones(2))
    side = torch.optim.SGD([parameter], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale((parameter * float("inf")).sum()).backward()
    scaler.step(side)
    assert len(_flags(recorder)) == 1


def test_explicit_steps_silence_the_hook(recorder: Recorder) -> None:
    """After the user's first step() the optimizer ends no steps."""
    optimizer = _sgd()
    recorder.end_explicit_step()
    optimizer.step()
    assert _flags(recorder) == [StepFlag.EXPLICIT]


def test_uninstalled_hook_is_gone() -> None:
    """After uninstall no global hook and no patch is left, and steps are not recorded."""
    recorder = Recorder(RankPage.in_memory(), rank=0)
    guard = Guard("optimizer")
    hook = OptimizerHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)
    before = torch.amp.grad_scaler.GradScaler.step
    hook.install()
    guard.close()
    hook.uninstall()
    _sgd().step()
    assert recorder.drain() == []
    assert torch.amp.grad_scaler.GradScaler.step is before
