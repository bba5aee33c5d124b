"""Timing of NCCL: on where the user asks, said that it stays, blind with a reason elsewhere."""

from __future__ import annotations

import os

import pytest

from tests.support import torch_shapes
from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import Guard
from tracecore_train.hooks.collective_timing import VARIABLE, CollectiveTimingHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

torch = pytest.importorskip("torch")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> CollectiveTimingHook:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    recorder = Recorder(RankPage.in_memory(), rank=0)
    context = HookContext(recorder=recorder, rank=0, socket_path=None)
    return CollectiveTimingHook(context, Guard("collective_timing"))


def test_without_nccl_there_is_nothing_to_time(
    hook: CollectiveTimingHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch without NCCL says why, and no variable is set."""
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(HookUnavailableError, match="gloo has no device time"):
        hook.install()
    assert VARIABLE not in os.environ


def test_it_is_turned_on_and_said_to_stay(
    hook: CollectiveTimingHook,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Groups of NCCL that exist are told, later ones by the variable; gloo's are left alone."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    both = fake.make_group("0", {"cpu": "gloo", "cuda": "nccl"})
    gloo = fake.make_group("1", {"cpu": "gloo"})
    hook.install()
    assert (both.timing_calls, gloo.timing_calls) == (1, 0)
    assert os.environ[VARIABLE] == "1"
    assert "cannot be turned off again in this process" in capsys.readouterr().err
    assert hook.blind() == []
    hook.uninstall()
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("told", ["0", "false"])
def test_a_user_who_turned_it_off_is_heard(
    hook: CollectiveTimingHook, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """The user's variable wins over the hook's name."""
    monkeypatch.setenv(VARIABLE, told)
    with pytest.raises(HookUnavailableError, match=f"{VARIABLE}={told}"):
        hook.install()
    assert os.environ[VARIABLE] == told


def test_a_user_who_turned_it_on_keeps_it(
    hook: CollectiveTimingHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that was there before stays after uninstall."""
    torch_shapes.install(monkeypatch, "2.13")
    monkeypatch.setenv(VARIABLE, "1")
    hook.install()
    hook.uninstall()
    assert os.environ[VARIABLE] == "1"


def test_a_job_on_gloo_is_blind(
    hook: CollectiveTimingHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no group uses NCCL the signal is blind, not measured."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    fake.make_group("0", {"cpu": "gloo"})
    hook.install()
    assert "gloo has no device time" in hook.blind()[0]
    hook.uninstall()


def test_a_group_that_refuses_is_told(
    hook: CollectiveTimingHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that cannot be timed any more gives a reason and no exception."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    pg = fake.make_group("0", {"cuda": "nccl"})

    def refuse() -> None:
        raise RuntimeError("no implementation")

    monkeypatch.setattr(pg, "_enable_collectives_timing", refuse)
    hook.install()
    assert "no implementation" in hook.blind()[0]
    hook.uninstall()
