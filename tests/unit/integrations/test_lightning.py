"""The Lightning callback in one process: what it names, and what it must not disturb."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
import types
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar
from tracecore_integrations.lightning import TraceCoreCallback
from tracecore_train import guard, runtime
from tracecore_train.errors import ConfigError
from tracecore_train.recorder.page import read_page
from tracecore_train.wire.records import NOT_MEASURED, PhaseRecord, StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("torch")
NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
for name in NAMESPACES:
    pytest.importorskip(name)
# Lightning's own warnings, about its use of torch and about our tiny loaders, are not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

LIGHTNING = NAMESPACES[0]


@pytest.fixture
def sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSidecar]:
    with FakeSidecar(tmp_path / "j") as started:
        monkeypatch.setenv("TRACECORE_ENDPOINT", started.endpoint)
        yield started


def make_trainer(tmp_path: Path, namespace: str = LIGHTNING, **arguments: Any) -> Any:
    """A quiet trainer with our callback."""
    from tests.support.lightning_parts import QUIET

    trainer = importlib.import_module(namespace).Trainer
    arguments = {"callbacks": [TraceCoreCallback()], "max_epochs": 1, **arguments}
    return trainer(**QUIET, default_root_dir=tmp_path, **arguments)


def make(namespace: str = LIGHTNING) -> tuple[Any, Any, Any]:
    """A module, four training batches and two validation batches."""
    from tests.support.lightning_parts import make_loader, make_module

    return make_module(namespace), make_loader(4), make_loader(2)


def phases(sidecar: FakeSidecar) -> list[str]:
    """Names of the phases, in the order they ended, when all is handed over."""
    tracecore_train.shutdown()
    return [record.name for record in sidecar.records(PhaseRecord)]


def shown(sidecar: FakeSidecar) -> str:
    """The phase on the rank page."""
    return read_page(runtime.rank_page(sidecar.path.parent, 0, 0), 1).phase


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_either_lightning_tells_its_phases_and_steps(
    tmp_path: Path, sidecar: FakeSidecar, namespace: str
) -> None:
    """A fit names its phases and carries Lightning's step number and accumulation."""
    importlib.import_module(namespace)
    trainer = make_trainer(tmp_path, namespace, accumulate_grad_batches=2)
    trainer.fit(*make(namespace))
    assert phases(sidecar) == ["sanity_check", "validation", "epoch", "checkpoint"]
    steps = sidecar.records(StepRecord)
    assert [(step.global_step, step.num_microbatches) for step in steps] == [(0, 2), (1, 2)]


def test_global_step_goes_on_over_a_resume(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """After a resume our own count starts at 0 and Lightning's goes on."""
    first = make_trainer(tmp_path, callbacks=[])
    first.fit(*make())
    path = str(tmp_path / "first.ckpt")
    first.save_checkpoint(path)
    make_trainer(tmp_path, max_epochs=2).fit(*make(), ckpt_path=path)
    tracecore_train.shutdown()
    told = [(step.step, step.global_step) for step in sidecar.records(StepRecord)]
    assert told == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_page_shows_the_innermost_phase_and_no_epoch(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """In training the page shows none, in validation that, in a checkpoint inside it this."""
    seen: dict[str, str] = {}
    trainer = make_trainer(tmp_path, num_sanity_val_steps=0, enable_checkpointing=False)
    module, *loaders = make()

    def in_validation(model: Any) -> None:
        seen["validation"] = shown(sidecar)
        trainer.save_checkpoint(tmp_path / "inside.ckpt")
        seen["after checkpoint"] = shown(sidecar)

    module.on_training = lambda model: seen.update(training=shown(sidecar))
    module.on_validation = in_validation
    module.on_save_checkpoint = lambda checkpoint: seen.update(checkpoint=shown(sidecar))
    trainer.fit(module, *loaders)
    assert seen == {
        "training": "",
        "validation": "validation",
        "checkpoint": "checkpoint",
        "after checkpoint": "validation",
    }


@pytest.mark.parametrize(
    ("where", "ended"),
    [("on_training", ["sanity_check", "epoch"]), ("on_validation", ["sanity_check"])],
)
def test_an_exception_ends_what_is_open(
    tmp_path: Path, sidecar: FakeSidecar, where: str, ended: list[str]
) -> None:
    """The user's exception arrives, the phases end, and the trainer is what it was."""
    module, *loaders = make()

    def fail(model: Any) -> None:
        raise ZeroDivisionError

    setattr(module, where, fail)
    trainer = make_trainer(tmp_path)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, *loaders)
    assert shown(sidecar) == ""
    assert "save_checkpoint" not in vars(trainer)
    assert phases(sidecar) == ended


def test_an_exception_in_a_validation_ends_the_epoch_around_it(
    tmp_path: Path, sidecar: FakeSidecar
) -> None:
    """Nested phases end from the inside out."""
    module, *loaders = make()

    def fail(model: Any) -> None:
        raise ZeroDivisionError

    module.on_validation = fail
    with pytest.raises(ZeroDivisionError):
        make_trainer(tmp_path, num_sanity_val_steps=0).fit(module, *loaders)
    assert phases(sidecar) == ["validation", "epoch"]


def test_validate_alone_is_a_phase_without_steps(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """`trainer.validate` names its one phase."""
    module, _, loader = make()
    make_trainer(tmp_path).validate(module, loader, verbose=False)
    assert phases(sidecar) == ["validation"]
    assert sidecar.records(StepRecord) == []


def test_fast_dev_run_is_recorded(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """One batch of everything gives one step and no checkpoint."""
    make_trainer(tmp_path, fast_dev_run=True).fit(*make())
    assert phases(sidecar) == ["validation", "epoch"]
    assert [step.global_step for step in sidecar.records(StepRecord)] == [0]


def test_one_callback_serves_one_run_after_another(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """Fit and then validate are one session, and nothing stays on the trainer in between."""
    trainer = make_trainer(tmp_path, enable_checkpointing=False, num_sanity_val_steps=0)
    module, training, validation = make()
    trainer.fit(module, training, validation)
    assert "save_checkpoint" not in vars(trainer)
    trainer.validate(module, validation, verbose=False)
    assert Counter(phases(sidecar)) == {"validation": 2, "epoch": 1}


def test_an_open_session_is_used_as_it_is(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """Where something records already, the callback starts nothing of its own."""
    session = tracecore_train.init()
    make_trainer(tmp_path, fast_dev_run=True).fit(*make())
    assert tracecore_train.init() is session
    tracecore_train.shutdown()
    assert [step.step for step in sidecar.records(StepRecord)] == [0]


def test_without_a_sidecar_nothing_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says that nothing is recorded; the trainer keeps its own methods."""
    seen: list[bool] = []
    trainer = make_trainer(tmp_path, fast_dev_run=True)
    module, *loaders = make()
    module.on_training = lambda model: seen.append("save_checkpoint" in vars(trainer))
    trainer.fit(module, *loaders)
    assert seen == [False]
    assert capsys.readouterr().err.count("no sidecar") == 1


@pytest.mark.usefixtures("sidecar")
def test_our_failure_does_not_reach_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When our code breaks the callback is switched off, said once, and the fit ends well."""
    monkeypatch.setattr(guard, "raise_in_tests", False)
    monkeypatch.setattr(tracecore_train, "microbatch", None)
    trainer = make_trainer(tmp_path)
    trainer.fit(*make())
    assert trainer.global_step == 4
    assert capsys.readouterr().err.count("Lightning callback failed") == 1


def test_a_bad_setting_is_an_error_at_once() -> None:
    """The settings are those of init(), and are checked when the callback is made."""
    with pytest.raises(ConfigError, match="did you mean flush_interval"):
        TraceCoreCallback(flush_intervall=2)


def test_it_is_a_callback_of_every_namespace_in_use() -> None:
    """Each Trainer's `isinstance` accepts it, also given alone instead of in a list."""
    callback = TraceCoreCallback()
    for namespace in NAMESPACES:
        lightning = importlib.import_module(namespace)
        assert isinstance(callback, lightning.Callback)
        trainer = lightning.Trainer(callbacks=callback, accelerator="cpu", logger=False)
        assert callback in trainer.callbacks


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_it_can_be_copied_and_pickled(copied: Any) -> None:
    """Launchers that send the trainer to other processes find a callback with its settings."""
    callback = TraceCoreCallback(flush_interval=3)
    again = copied(callback)
    assert type(again) is type(callback)
    assert again._settings == {"flush_interval": 3}


def test_without_lightning_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither package is installed, making a callback says what to install."""
    for namespace in NAMESPACES:
        monkeypatch.delitem(sys.modules, namespace, raising=False)
        monkeypatch.setitem(sys.modules, namespace.partition(".")[0], None)
    with pytest.raises(ImportError, match=r"pip install 'tracecore-train\[lightning\]'"):
        TraceCoreCallback()


def test_importing_the_callback_imports_no_lightning() -> None:
    """The module can be imported where Lightning is missing, and costs nothing where it is not."""
    code = (
        "import sys, tracecore_integrations.lightning; "
        "print([n for n in ('lightning', 'pytorch_lightning', 'torch') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_transfers_to_a_device_are_told_and_the_patch_leaves(sidecar: FakeSidecar) -> None:
    """On a device each copy of a batch is transfer time of its step; on a CPU nothing is timed."""

    def batch_to_device(batch: int) -> int:
        return batch + 1

    for device in ("cuda", "cpu"):
        callback = TraceCoreCallback()
        strategy = types.SimpleNamespace(
            root_device=types.SimpleNamespace(type=device), batch_to_device=batch_to_device
        )
        trainer: Any = types.SimpleNamespace(save_checkpoint=len, strategy=strategy)
        callback.setup(trainer, None, "fit")
        assert strategy.batch_to_device(1) == 2
        tracecore_train.step()
        callback.teardown(trainer, None, "fit")
        assert strategy.batch_to_device is batch_to_device
        assert trainer.save_checkpoint is len
    tracecore_train.shutdown()
    copied, plain = sorted(sidecar.records(StepRecord), key=lambda step: step.step)
    assert copied.transfer_ns > 0
    assert plain.transfer_ns == NOT_MEASURED
