"""The flight recorder is the user's to switch off, and ours to switch on where torch does not."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.process_groups import RING_VARIABLES, ProcessGroupsHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

torch = pytest.importorskip("torch")


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ProcessGroupsHook:
    for name in RING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    recorder = Recorder(RankPage.in_memory(), rank=0)
    context = HookContext(recorder=recorder, rank=0, socket_path=None)
    return ProcessGroupsHook(context, Guard("process_groups"))


def _variables() -> dict[str, str]:
    return {name: os.environ[name] for name in RING_VARIABLES if name in os.environ}


def test_explicit_zero_is_respected_and_blind(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder the user turned off stays off, and the reason names the variable."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "0")
    hook.install()
    assert _variables() == {"TORCH_FR_BUFFER_SIZE": "0"}
    assert hook.blind() == ["collectives: the flight recorder is off (TORCH_FR_BUFFER_SIZE=0)"]
    hook.uninstall()


def test_the_recorder_is_turned_on_and_the_variable_taken_back(hook: ProcessGroupsHook) -> None:
    """Where the user set no size the present name is set, and gone after uninstall."""
    hook.install()
    assert _variables() == {"TORCH_FR_BUFFER_SIZE": "2000"}
    hook.uninstall()
    assert _variables() == {}


def test_an_older_torch_gets_the_older_name_too(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no recorder for every backend, both names are set and taken back."""
    c10d = sys.modules["torch._C._distributed_c10d"]
    monkeypatch.delattr(c10d, "_dump_fr_trace_json")
    hook.install()
    assert _variables() == dict.fromkeys(RING_VARIABLES, "2000")
    assert "2.8 and newer" in hook.blind()[0]
    hook.uninstall()
    assert _variables() == {}


def test_a_size_of_the_user_stays(hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size the user set under either name is neither changed nor joined by the other name."""
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "500")
    hook.install()
    assert (_variables(), hook.blind()) == ({"TORCH_NCCL_TRACE_BUFFER_SIZE": "500"}, [])
    hook.uninstall()
    assert _variables() == {"TORCH_NCCL_TRACE_BUFFER_SIZE": "500"}


def test_no_process_group_gives_nothing(hook: ProcessGroupsHook) -> None:
    """Without a process group there is neither a group nor a counter to report."""
    hook.install()
    assert hook.poll(True) == []
    hook.uninstall()


def test_a_group_destroyed_while_it_is_looked_at_is_passed_over(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group torch no longer knows gives no record and does not switch the hook off."""
    hook.install()
    ghost = torch.nn.Module()  # any object that can be a key and be referenced weakly
    known_no_more: dict[object, object] = {}
    world = SimpleNamespace(
        pg_names={ghost: "7"},
        pg_group_ranks=known_no_more,
        pg_backend_config=known_no_more,
        pg_map=known_no_more,
        default_pg=None,
    )
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_world", world)
    assert hook.poll(True) == []
    hook.uninstall()
