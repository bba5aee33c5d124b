"""What every test gets: our failures fail the test, and nothing of ours outlives it."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tracecore_train import guard

if TYPE_CHECKING:
    from collections.abc import Iterator

_LAUNCHER_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "SLURM_JOB_ID",
)


@pytest.fixture(autouse=True)
def contained_failures_fail_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "raise_in_tests", True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TRACECORE_", "TORCHELASTIC_", "OTEL_")) or name in _LAUNCHER_VARIABLES:
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_left_patched() -> Iterator[None]:
    """Fail a test after which torch is not what it was, or our thread still runs."""
    if "torch" in sys.modules:
        _import_patched_modules()
    before = _patch_points()
    yield
    if session := sys.modules.get("tracecore_train.session"):
        session.shutdown()
    after = _patch_points()
    assert {name: after[name] for name in before} == before
    if not before and "torch" in sys.modules:
        ours = [name for name, value in after.items() if _is_ours(value)]
        assert not ours
    assert not [t for t in threading.enumerate() if t.name == "tracecore-export"]


def _import_patched_modules() -> None:
    import torch.amp.grad_scaler
    import torch.utils.data.dataloader  # noqa: F401


def _patch_points() -> dict[str, object]:
    torch = sys.modules.get("torch")
    loader = sys.modules.get("torch.utils.data.dataloader")
    scaler = sys.modules.get("torch.amp.grad_scaler")
    optimizer = sys.modules.get("torch.optim.optimizer")
    if torch is None or loader is None or scaler is None or optimizer is None:
        return {}
    return {
        "torch.save": torch.save,
        "torch.autograd.backward": torch.autograd.backward,
        "torch.serialization.save": torch.serialization.save,
        "next": loader._BaseDataLoaderIter.__next__,
        "scaler": scaler.GradScaler.step,
        "pre hooks": tuple(optimizer._global_optimizer_pre_hooks.values()),
        "post hooks": tuple(optimizer._global_optimizer_post_hooks.values()),
        "meta path": tuple(sys.meta_path),
    }


def _is_ours(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return any(
        getattr(getattr(v, "__code__", None), "co_filename", "").find("tracecore_train") >= 0
        for v in values
    )
