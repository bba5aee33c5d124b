"""Callbacks of torch 2.14 and newer: counted per group and kind, nothing kept of the arguments."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from tests.support import torch_shapes
from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import Guard
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.exact_collectives import MAX_KINDS, ExactCollectivesHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import CollectiveTotalsRecord

torch = pytest.importorskip("torch")


@pytest.fixture
def guard() -> Guard:
    return Guard("exact_collectives")


@pytest.fixture
def hook(guard: Guard) -> ExactCollectivesHook:
    recorder = Recorder(RankPage.in_memory(), rank=0)
    context = HookContext(recorder=recorder, rank=0, socket_path=None)
    return ExactCollectivesHook(context, guard)


def _totals(hook: ExactCollectivesHook, *, is_full: bool = False) -> list[CollectiveTotalsRecord]:
    records = hook.poll(is_full)
    return [record for record in records if isinstance(record, CollectiveTotalsRecord)]


def _issue(pg: Any, op: str) -> None:
    pg.finish(op, pg.begin(op))


@pytest.mark.parametrize("version", ["2.6", "2.13"])
def test_an_older_torch_has_no_callbacks(
    hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Where torch has no callbacks the reason says which versions do, and nothing is patched."""
    fake = torch_shapes.install(monkeypatch, version)
    before = fake.c10d._new_process_group_helper
    with pytest.raises(HookUnavailableError, match=r"register_pre_hook \(2\.14 and newer do\)"):
        hook.install()
    assert fake.c10d._new_process_group_helper == before


@pytest.mark.parametrize("version", ["2.14", "2.15"])
def test_every_collective_is_counted(
    hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Groups made before and after are counted apart, by kind, with the time inside the call."""
    fake = torch_shapes.install(monkeypatch, version)
    early = fake.make_group("0", {"cpu": "gloo"})
    hook.install()
    late = fake.make_group("1", {"cuda": "nccl"})
    for pg, op in ((early, "ALL_REDUCE"), (late, "ALL_REDUCE"), (late, "ALL_REDUCE")):
        _issue(pg, op)
    _issue(late, "BROADCAST")
    found = {(t.pg_name, t.op): t for t in _totals(hook)}
    assert {key: totals.num_issued for key, totals in found.items()} == {
        ("0", "all_reduce"): 1,
        ("1", "all_reduce"): 2,
        ("1", "broadcast"): 1,
    }
    both = found["1", "all_reduce"]
    assert 0 < both.longest_issue_ns <= both.issue_ns
    assert _totals(hook) == []
    assert len(_totals(hook, is_full=True)) == 3
    hook.uninstall()


def test_a_call_that_has_not_returned_is_told(
    hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collective that blocks its caller shows as inside until it returns."""
    fake = torch_shapes.install(monkeypatch, "2.14")
    hook.install()
    pg = fake.make_group("0", {"cpu": "gloo"})
    op_id = pg.begin("BARRIER")
    assert [(t.num_issued, t.num_inside) for t in _totals(hook)] == [(0, 1)]
    pg.finish("BARRIER", op_id)
    assert [(t.num_issued, t.num_inside) for t in _totals(hook)] == [(1, 0)]
    hook.uninstall()


def test_uninstall_leaves_the_users_callbacks(
    hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are gone, the user's stay, and groups are made as before."""
    fake = torch_shapes.install(monkeypatch, "2.14")
    before = fake.c10d._new_process_group_helper
    hook.install()
    pg = fake.make_group("0", {"cpu": "gloo"})
    pg.register_pre_hook(1, lambda _args: None)
    hook.uninstall()
    assert (list(pg.pre), list(pg.post)) == ([1], [])
    assert fake.c10d._new_process_group_helper == before


def test_without_a_way_back_they_do_nothing(
    hook: ExactCollectivesHook, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks that torch does not take back are inert once the guard is closed."""
    monkeypatch.delattr(torch_shapes.HookedGroup, "unregister_pre_hook")
    fake = torch_shapes.install(monkeypatch, "2.14")
    hook.install()
    pg = fake.make_group("0", {"cpu": "gloo"})
    guard.close()
    hook.uninstall()
    _issue(pg, "ALL_REDUCE")
    assert _totals(hook) == []


def test_nothing_of_the_arguments_is_kept(
    hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments, which hold live tensors, die as soon as the callback returns."""
    fake = torch_shapes.install(monkeypatch, "2.14")
    hook.install()
    pg = fake.make_group("0", {"cpu": "gloo"})
    seen: list[weakref.ref[Any]] = []
    pg.register_pre_hook(1, lambda args: seen.append(weakref.ref(args)))
    pg.begin("ALL_REDUCE")
    gc.collect()
    assert [ref() for ref in seen] == [None]
    hook.uninstall()


def test_a_callback_of_ours_that_fails_costs_itself(
    hook: ExactCollectivesHook,
    guard: Guard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Arguments of another form switch the hook off; the collective goes on."""
    monkeypatch.setattr("tracecore_train.guard.raise_in_tests", False)
    monkeypatch.setattr(torch_shapes, "_HookArgs", lambda _name, _op_id: object())
    fake = torch_shapes.install(monkeypatch, "2.14")
    hook.install()
    pg = fake.make_group("0", {"cpu": "gloo"})
    for ours in list(pg.pre.values()):
        ours(object())
    assert (guard.is_open, guard.num_failures) == (False, 1)
    assert "exact_collectives failed and is switched off" in capsys.readouterr().err
    hook.uninstall()


def test_kinds_are_bounded(hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch) -> None:
    """More groups and kinds than are kept apart share one row, and none is lost."""
    fake = torch_shapes.install(monkeypatch, "2.14")
    hook.install()
    pg = fake.make_group("0", {"cpu": "gloo"})
    for number in range(MAX_KINDS + 5):
        _issue(pg, f"OP_{number}")
    found = _totals(hook)
    assert len(found) == MAX_KINDS + 1
    assert found[-1].op == "other"
    assert sum(totals.num_issued for totals in found) == MAX_KINDS + 5
    hook.uninstall()


def test_groups_that_are_gone_are_not_kept(
    hook: ExactCollectivesHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that makes and drops groups for ever costs no memory; each has a number of its own."""
    fake = torch_shapes.install(monkeypatch, "2.14")
    hook.install()
    alive = [fake.make_group(str(number), {"cpu": "gloo"}) for number in range(20)]
    assert len(hook._groups) == 20
    for pg in alive:
        _issue(pg, "ALL_REDUCE")
    assert sum(t.num_issued for t in _totals(hook)) == 20
    for pg in alive:
        fake.destroy(pg)
    del alive, pg
    gc.collect()
    assert len(hook._groups) == 0
    hook.uninstall()
