"""CUDA in use: asked of a torch that may be half imported."""

from __future__ import annotations

import sys
import types

import pytest

from tracecore_train.hooks.cuda import cuda_in_use


@pytest.mark.parametrize(("names", "is_in_use"), [({}, False), ({True}, True), ({False}, False)])
def test_a_module_that_is_being_imported_is_not_in_use(
    names: set[bool], is_in_use: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``is_initialized`` yet nothing is asked; with it its answer holds."""
    cuda = types.ModuleType("torch.cuda")
    for answer in names:
        vars(cuda)["is_initialized"] = lambda answer=answer: answer
    monkeypatch.setitem(sys.modules, "torch.cuda", cuda)
    assert (cuda_in_use() is cuda) == is_in_use
