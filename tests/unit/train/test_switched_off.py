"""A hook that is switched off while the training thread is inside says "inside" no longer.

A page that said so for ever would excuse this rank, or accuse it, of what ended long ago.
"""

from __future__ import annotations

import gc
import io
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fake_sidecar import FakeSidecar
from tracecore_train import guard as guard_module
from tracecore_train import steps
from tracecore_train.guard import Guard
from tracecore_train.hooks.backward import BackwardHook
from tracecore_train.hooks.checkpoint import CheckpointHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.dataloader import DataLoaderHook
from tracecore_train.hooks.device_time import DeviceTimeHook
from tracecore_train.hooks.garbage import GarbageHook
from tracecore_train.hooks.optimizer import OptimizerHook
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.session import init, shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")
data = pytest.importorskip("torch.utils.data")


class Watched:
    """One hook, its guard and its recorder."""

    def __init__(self, hook_class: Any) -> None:
        self.recorder = Recorder(RankPage.in_memory(), rank=0)
        self.guard = Guard(hook_class.name)
        self.hook = hook_class(
            HookContext(recorder=self.recorder, rank=0, socket_path=None), self.guard
        )
        self.hook.install()

    def is_inside(self, word: Word) -> bool:
        return bool(self.recorder.page.words[word])


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Watched]]:
    monkeypatch.setattr(guard_module, "raise_in_tests", False)
    made: list[Watched] = []

    def start(hook_class: Any) -> Watched:
        made.append(Watched(hook_class))
        return made[-1]

    yield start
    for watched in made:
        watched.guard.close()
        watched.hook.uninstall()


class Rows(data.Dataset):  # type: ignore[misc,name-defined]
    def __init__(self, on_row: Callable[[], object]) -> None:
        self._on_row = on_row

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        self._on_row()
        return index


@pytest.mark.parametrize("error", [None, KeyError("row")])
def test_inside_next(watch: Callable[[Any], Watched], error: Exception | None) -> None:
    """The hook failed elsewhere while a batch was made, which then came, or did not."""
    watched = watch(DataLoaderHook)
    seen: list[bool] = []

    def on_row() -> None:
        seen.append(watched.is_inside(Word.INPUT_SINCE))
        watched.guard.contain(ValueError("in the export thread"))
        if error is not None:
            raise error

    loader = iter(data.DataLoader(Rows(on_row)))
    if error is None:
        next(loader)
    else:
        with pytest.raises(KeyError):
            next(loader)
    assert seen == [True]
    assert not watched.is_inside(Word.INPUT_SINCE)


def test_inside_backward(watch: Callable[[Any], Watched]) -> None:
    """The hook was switched off by somebody else during a backward."""
    watched = watch(BackwardHook)
    seen: list[bool] = []
    loss = torch.ones(1, requires_grad=True).sum()

    def look(_: object) -> None:
        seen.append(watched.is_inside(Word.BACKWARD_SINCE))
        watched.guard.contain(ValueError("elsewhere"))

    loss.register_hook(look)
    loss.backward()
    assert seen == [True]
    assert not watched.is_inside(Word.BACKWARD_SINCE)


def test_entering_backward_fails(
    watch: Callable[[Any], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails after the page said so takes it back at once, and backward runs."""
    watched = watch(BackwardHook)

    def broken(self: Any, now: int) -> None:
        raise ValueError

    monkeypatch.setattr(type(watched.recorder.parts), "enter_backward", broken)
    weight = torch.ones(1, requires_grad=True)
    weight.sum().backward()
    assert weight.grad is not None
    assert not watched.is_inside(Word.BACKWARD_SINCE)


def test_entering_the_optimizer_fails(watch: Callable[[Any], Watched]) -> None:
    """What fails after the page said so takes it back at once, and the optimizer steps."""
    watched = watch(OptimizerHook)
    watched.recorder.parts.marks = object()  # type: ignore[assignment]
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    torch.optim.SGD([weight], lr=1.0).step()
    assert weight.item() == 0.0
    assert not watched.guard.is_open
    assert not watched.is_inside(Word.OPTIMIZER_SINCE)
    assert watched.recorder.parts.optimizer_since == 0


def test_inside_a_checkpoint(watch: Callable[[Any], Watched]) -> None:
    """Looking for savers failed in the export thread while a checkpoint was written."""
    watched = watch(CheckpointHook)
    seen: list[bool] = []

    class File(io.BytesIO):
        def write(self, data: Any) -> int:
            seen.append(watched.is_inside(Word.CHECKPOINT_SINCE))
            watched.guard.contain(ValueError("elsewhere"))
            return super().write(data)

    torch.save({}, File())
    assert seen[0]
    assert not watched.is_inside(Word.CHECKPOINT_SINCE)


def test_inside_a_collection(watch: Callable[[Any], Watched]) -> None:
    """The hook was switched off during a collection."""
    watched = watch(GarbageHook)
    seen: list[bool] = []

    class Dying:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            seen.append(watched.is_inside(Word.GC_SINCE))
            watched.guard.contain(ValueError("elsewhere"))

    Dying()
    gc.collect()
    assert seen == [True]
    assert not watched.is_inside(Word.GC_SINCE)


def test_inside_a_capture(watch: Callable[[Any], Watched]) -> None:
    """The hook was switched off while a graph was captured."""
    watched = watch(DeviceTimeHook)
    end = watched.hook._wrap_end(lambda: None)

    def begin() -> None:
        watched.guard.contain(ValueError("marks failed"))

    watched.hook._wrap_begin(begin)()
    assert watched.is_inside(Word.CAPTURE_SINCE)
    end()
    assert not watched.is_inside(Word.CAPTURE_SINCE)


def test_inside_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase whose name cannot be told switches phases off; the pause around it still ends."""
    monkeypatch.setattr(guard_module, "raise_in_tests", False)
    monkeypatch.setattr(steps, "_phase_guard", Guard("phase()"))

    class Nameless:
        def __str__(self) -> str:
            raise ValueError

    with FakeSidecar(tmp_path / "j") as sidecar:
        session = init(endpoint=sidecar.endpoint, flush_interval=60)
        assert session.recorder is not None
        words = session.recorder.page.words
        with steps.expect("export", at_most=60):
            with steps.phase(Nameless()):  # type: ignore[arg-type]
                pass
            assert words[Word.PHASE_SINCE]
            assert words[Word.EXPECT_UNTIL]
        assert not words[Word.PHASE_SINCE]
        assert not words[Word.EXPECT_UNTIL]
        shutdown()
