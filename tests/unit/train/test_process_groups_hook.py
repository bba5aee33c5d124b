"""Process groups and their counters, on this torch and on the shapes of others."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from tests.support import torch_shapes
from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.process_groups import RING_VARIABLES, ProcessGroupsHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import GroupRecord, ProgressRecord

torch = pytest.importorskip("torch")


def make_hook() -> ProcessGroupsHook:
    recorder = Recorder(RankPage.in_memory(), rank=0)
    context = HookContext(recorder=recorder, rank=0, socket_path=None)
    return ProcessGroupsHook(context, Guard("process_groups"))


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ProcessGroupsHook:
    for name in RING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return make_hook()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process look as if it used a device."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


def _variables() -> dict[str, str]:
    return {name: os.environ[name] for name in RING_VARIABLES if name in os.environ}


def _groups(hook: ProcessGroupsHook, *, is_full: bool = False) -> list[GroupRecord]:
    return [record for record in hook.poll(is_full) if isinstance(record, GroupRecord)]


def _enqueued(hook: ProcessGroupsHook, *, is_full: bool = False) -> list[tuple[str, int]]:
    records = hook.poll(is_full)
    return [(r.pg_name, r.enqueued) for r in records if isinstance(r, ProgressRecord)]


def test_explicit_zero_is_respected_and_blind(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder the user turned off stays off, and the reason names the variable."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "0")
    hook.install()
    assert _variables() == {"TORCH_FR_BUFFER_SIZE": "0"}
    reason = "the flight recorder is off (TORCH_FR_BUFFER_SIZE=0)"
    assert hook.blind() == [f"collectives.counters: {reason}", f"collectives.entries: {reason}"]
    hook.uninstall()


def test_the_recorder_is_turned_on_and_the_variable_taken_back(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the user set no size the present name is set, and gone after uninstall."""
    torch_shapes.install(monkeypatch, "2.8")
    hook.install()
    assert _variables() == {"TORCH_FR_BUFFER_SIZE": "2000"}
    hook.uninstall()
    assert _variables() == {}


def test_an_older_torch_gets_the_older_name_too(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no recorder for every backend, both names are set and taken back."""
    torch_shapes.install(monkeypatch, "2.6")
    hook.install()
    assert _variables() == dict.fromkeys(RING_VARIABLES, "2000")
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


def test_making_a_group_is_seen_and_left_as_it_was(hook: ProcessGroupsHook) -> None:
    """Only the function that makes groups is patched, and it is back after uninstall."""
    c10d = sys.modules["torch.distributed.distributed_c10d"]
    before = c10d._new_process_group_helper
    hook.install()
    assert c10d._new_process_group_helper is not before
    hook.uninstall()
    assert c10d._new_process_group_helper is before


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("version", [*torch_shapes.SHAPES])
def test_each_version_shows_what_it_can(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """A job on a device with a gloo side group has the counters of both recorders wherever the
    version has both, and each that is missing is named.
    """
    fake = torch_shapes.install(monkeypatch, version)
    hook.install()
    default = fake.make_group("0", {"cpu": "gloo", "cuda": "nccl"})
    side = fake.make_group("1", {"cpu": "gloo"})
    fake.enqueue(default, "cuda", 11)
    fake.enqueue(side, "cpu", 22)
    has_nccl = fake.shape.nccl == "nccl2" or fake.shape.has_nccl_dump
    nccl = fake.shape.nccl
    expected = [(f"0:{nccl}", 11)] * has_nccl + [("1", 22)] * fake.shape.is_gloo_recorded
    assert _enqueued(hook) == expected
    groups = [(group.pg_name, group.backend) for group in _groups(hook, is_full=True)]
    assert groups == [("0", "gloo"), (f"0:{nccl}", nccl), ("1", "gloo")]
    blind = " ".join(hook.blind())
    assert ("recorder of nccl" in blind) is not has_nccl
    assert ("recorder of gloo" in blind) is not fake.shape.has_generic_dump
    assert all(True not in args for _, args, _ in fake.calls), "entries were asked for"
    hook.uninstall()


def test_counters_are_told_when_they_change(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters that stand still are told once, and again to a new sidecar."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    hook.install()
    group = fake.make_group("0", {"cpu": "gloo"})
    fake.enqueue(group, "cpu", 5)
    assert _enqueued(hook) == [("0", 5)]
    assert _enqueued(hook) == []
    assert _enqueued(hook, is_full=True) == [("0", 5)]
    fake.enqueue(group, "cpu", 6)
    assert _enqueued(hook) == [("0", 6)]
    hook.uninstall()


def test_a_group_that_lived_between_two_looks_keeps_its_number(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group nobody saw alive does not shift the counters of those made after it."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    hook.install()
    fake.make_group("0", {"cpu": "gloo"})
    hook.poll(False)
    fake.destroy(fake.make_group("1", {"cpu": "gloo"}))
    fake.enqueue(fake.make_group("2", {"cpu": "gloo"}), "cpu", 9)
    assert _enqueued(hook) == [("2", 9)]
    hook.uninstall()


def test_counters_that_cannot_be_matched_are_not_told(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where groups were made before we looked and are gone, numbers fit no name: blind."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    fake.destroy(fake.make_group("0", {"cpu": "gloo"}))
    fake.enqueue(fake.make_group("1", {"cpu": "gloo"}), "cpu", 9)
    hook.install()
    assert _enqueued(hook) == []
    assert "counts groups whose making was not seen" in hook.blind()[0]
    hook.uninstall()


def test_a_group_made_again_is_another_one(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Destroyed is said, and made again under the same name is the next generation, with the
    moment it was made; both also to a sidecar that comes later.
    """
    fake = torch_shapes.install(monkeypatch, "2.13")
    hook.install()
    first = fake.make_group("0", {"cpu": "gloo"}, ranks=(3, 1))
    (made,) = _groups(hook)
    assert (made.generation, made.is_destroyed, made.ranks) == (0, False, (3, 1))
    fake.destroy(first)
    (gone,) = _groups(hook)
    assert (gone.generation, gone.is_destroyed) == (0, True)
    again = fake.make_group("0", {"cpu": "gloo"})
    (anew,) = _groups(hook)
    assert (anew.generation, anew.is_destroyed) == (1, False)
    assert made.made_ns < anew.made_ns <= anew.time_ns
    told = [(g.generation, g.is_destroyed) for g in _groups(hook, is_full=True)]
    assert told == [(0, True), (1, False)]
    fake.enqueue(again, "cpu", 2)
    assert _enqueued(hook) == [("0", 2)]
    hook.uninstall()


def test_a_group_replaced_between_two_looks_is_noticed(
    hook: ProcessGroupsHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Destroyed and made again within a second is told as both."""
    fake = torch_shapes.install(monkeypatch, "2.13")
    hook.install()
    fake_group = fake.make_group("0", {"cpu": "gloo"})
    hook.poll(False)
    fake.destroy(fake_group)
    del fake_group
    fake.make_group("0", {"cpu": "gloo"})
    told = [(g.generation, g.is_destroyed) for g in _groups(hook)]
    assert told == [(0, True), (1, False)]
    hook.uninstall()
