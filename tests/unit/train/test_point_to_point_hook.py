"""Send and recv on a stand-in of torch's classes: what is told, and what must not change."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from typing import Any

import pytest

from tests.support.torch_shapes import FakeBackend, FakeGroup
from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import Guard
from tracecore_train.hooks import open_operations
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.open_operations import MAX_ENDED, MAX_OPEN, MAX_TOLD_AGAIN
from tracecore_train.hooks.point_to_point import PointToPointHook
from tracecore_train.hooks.recorder_counters import EXTENSION
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import CollectiveRecord, GapRecord


class Tensor:
    """What of a tensor may be looked at."""

    def __init__(self, device: str = "cpu") -> None:
        self.shape = (4, 2)
        self.dtype = "torch.float32"
        self.device = types.SimpleNamespace(type=device)


class Work:
    """A work that ends when it is waited for."""

    error: Exception | None = None

    def wait(self, timeout: object = None) -> bool:
        if self.error is not None:
            raise self.error
        return True

    def _source_rank(self) -> int:
        return 1


class Group(FakeGroup):
    """A process group whose calls give a work."""

    result: Any = Work

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> Any:
        return self.result()

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> Any:
        return self.result()

    def recv_anysource(self, tensors: list[Tensor], tag: int) -> Any:
        return self.result()


@pytest.fixture
def guard() -> Guard:
    return Guard("point_to_point")


@pytest.fixture
def hook(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> PointToPointHook:
    extension = types.ModuleType(EXTENSION)
    vars(extension).update(ProcessGroup=Group, Work=Work)
    monkeypatch.setitem(sys.modules, EXTENSION, extension)
    recorder = Recorder(RankPage.in_memory(), rank=0)
    return PointToPointHook(HookContext(recorder=recorder, rank=0, socket_path=None), guard)


@pytest.fixture
def pg() -> Group:
    return Group("3", "side", {"cpu": FakeBackend("gloo", 0), "cuda": FakeBackend("nccl", 0)})


def _told(hook: PointToPointHook, *, is_full: bool = False) -> list[CollectiveRecord]:
    return [record for record in hook.poll(is_full) if isinstance(record, CollectiveRecord)]


def _short(records: list[CollectiveRecord]) -> list[tuple[str, int, bool]]:
    return [(record.op, record.p2p_seq_id, record.is_retired) for record in records]


def test_an_open_recv_is_told_and_then_its_end(hook: PointToPointHook, pg: Group) -> None:
    """What is under way is told once as open, and once more when its wait returned."""
    hook.install()
    work = pg.recv([Tensor()], 2, 9)
    (opened,) = _told(hook)
    assert (opened.op, opened.pg_name, opened.tag, opened.is_p2p) == ("recv 0<-2", "3", 9, True)
    assert (opened.input_sizes, opened.input_dtypes) == ("[[4, 2]]", "['Float']")
    assert (opened.is_retired, opened.completed_ns) == (False, 0)
    assert _told(hook) == []
    work.wait()
    (ended,) = _told(hook)
    assert (ended.record_id, ended.is_retired) == (opened.record_id, True)
    assert ended.completed_ns >= ended.created_ns == opened.created_ns
    assert _told(hook) == []
    hook.uninstall()


def test_order_counts_per_pair_and_direction(hook: PointToPointHook, pg: Group) -> None:
    """The n-th send to a peer is told as the n-th, whatever goes elsewhere between."""
    hook.install()
    for peer in (1, 2, 1):
        pg.send([Tensor()], peer, 0).wait()
    pg.recv([Tensor()], 1, 0).wait()
    assert _short(_told(hook)) == [
        ("send 0->1", 1, True),
        ("send 0->2", 1, True),
        ("send 0->1", 2, True),
        ("recv 0<-1", 1, True),
    ]
    hook.uninstall()


def test_a_recv_from_anybody_names_its_source_at_the_end(hook: PointToPointHook, pg: Group) -> None:
    """While it waits nobody knows from whom; afterwards it counts in the order of that pair."""
    hook.install()
    pg.recv([Tensor()], 1, 0).wait()
    work = pg.recv_anysource([Tensor()], 0)
    assert _short(_told(hook))[-1] == ("recv 0<-any", 1, False)
    work.wait()
    assert _short(_told(hook)) == [("recv 0<-1", 2, True)]
    hook.uninstall()


def test_a_wait_that_fails_ends_it(hook: PointToPointHook, pg: Group) -> None:
    """A recv that times out is over, and the user gets the exception."""
    hook.install()
    work = pg.recv([Tensor()], 1, 0)
    work.error = RuntimeError("timed out")
    with pytest.raises(RuntimeError, match="timed out"):
        work.wait()
    assert _short(_told(hook)) == [("recv 0<-1", 1, True)]
    hook.uninstall()


def test_a_call_that_fails_or_has_no_part_ends_at_once(
    hook: PointToPointHook, pg: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a work there is nothing to wait for."""
    hook.install()

    def fail() -> None:
        raise ValueError("no such rank")

    monkeypatch.setattr(pg, "result", fail)
    with pytest.raises(ValueError, match="no such rank"):
        pg.send([Tensor()], 1, 0)
    monkeypatch.setattr(pg, "result", lambda: None)
    assert pg.send([Tensor()], 1, 0) is None
    assert [is_retired for _, _, is_retired in _short(_told(hook))] == [True, True]
    hook.uninstall()


def test_neither_work_nor_tensor_is_kept(hook: PointToPointHook, pg: Group) -> None:
    """A dropped work dies at once, which ends its operation; the tensor dies before it."""
    hook.install()
    tensor = Tensor()
    alive = weakref.ref(tensor)
    work = pg.send([tensor], 1, 0)
    del tensor
    gc.collect()
    assert alive() is None
    assert _short(_told(hook)) == [("send 0->1", 1, False)]
    del work
    gc.collect()
    assert _short(_told(hook)) == [("send 0->1", 1, True)]
    hook.uninstall()


def test_what_the_backend_records_is_left_alone(hook: PointToPointHook, pg: Group) -> None:
    """Sends of NCCL stand in its own recorder and are not told twice."""
    hook.install()
    pg.send([Tensor("cuda")], 1, 0).wait()
    assert _told(hook) == []
    hook.uninstall()


def test_a_new_sidecar_hears_what_is_open_and_what_ended(hook: PointToPointHook, pg: Group) -> None:
    """What was told open to a sidecar that missed its end does not stay open for ever."""
    hook.install()
    works = [pg.recv([Tensor()], 1, 0) for _ in range(2)]
    _told(hook)
    works[0].wait()
    _told(hook)  # a hand-over that fails
    assert _short(_told(hook, is_full=True)) == [("recv 0<-1", 1, True), ("recv 0<-1", 2, False)]
    hook.uninstall()


def test_more_than_is_kept_is_counted(hook: PointToPointHook, pg: Group) -> None:
    """Open and ended operations are bounded, and what is left out is told as a gap."""
    hook.install()
    works = [pg.recv([Tensor()], 1, 0) for _ in range(MAX_OPEN + 3)]
    for work in works:
        work.wait()
    pg.send([Tensor()], 1, 0).wait()
    records = hook.poll(False)
    (gap,) = [record for record in records if isinstance(record, GapRecord)]
    assert (gap.num_lost, len(records)) == (3 + MAX_OPEN + 1 - MAX_ENDED, MAX_ENDED + 1)
    assert len(_told(hook, is_full=True)) == MAX_TOLD_AGAIN
    hook.uninstall()


def test_uninstall_puts_back_what_was_there(hook: PointToPointHook) -> None:
    """The methods are the very same objects afterwards."""
    before = [vars(owner)[name] for owner, name in _PATCHED]
    hook.install()
    assert all(
        vars(owner)[name] is not was for (owner, name), was in zip(_PATCHED, before, strict=True)
    )
    hook.uninstall()
    assert [vars(owner)[name] for owner, name in _PATCHED] == before


_PATCHED = (
    (Group, "send"),
    (Group, "recv"),
    (Group, "recv_anysource"),
    (Work, "wait"),
)


@pytest.mark.parametrize("who_first", ["ours", "theirs"])
@pytest.mark.parametrize("who_leaves", ["ours", "theirs"])
def test_another_patch_lives_beside_ours(
    hook: PointToPointHook,
    guard: Guard,
    pg: Group,
    monkeypatch: pytest.MonkeyPatch,
    who_first: str,
    who_leaves: str,
) -> None:
    """Whoever patches first and whoever leaves first: each call is made once and sees both that
    are there.
    """
    calls: list[str] = []

    def patch_theirs() -> Any:
        original = Group.send

        def send(self: Group, *args: Any) -> Any:
            calls.append("theirs")
            return original(self, *args)

        monkeypatch.setattr(Group, "send", send)
        return original

    if who_first == "ours":
        hook.install()
    before = patch_theirs()
    if who_first == "theirs":
        hook.install()
    pg.send([Tensor()], 1, 0).wait()
    assert (calls, len(_told(hook))) == (["theirs"], 1)
    if who_leaves == "ours":
        guard.close()
        hook.uninstall()
    else:
        monkeypatch.setattr(Group, "send", before)
    pg.send([Tensor()], 1, 0).wait()
    assert calls.count("theirs") == (2 if who_leaves == "ours" else 1)
    guard.close()
    hook.uninstall()


def test_a_forked_child_records_nothing(hook: PointToPointHook, guard: Guard, pg: Group) -> None:
    """With the guard closed, as a child has it, calls go straight through."""
    hook.install()
    work = pg.recv([Tensor()], 1, 0)
    guard.close()
    work.wait()
    pg.send([Tensor()], 1, 0).wait()
    assert _short(_told(hook)) == [("recv 0<-1", 1, False)]
    hook.uninstall()


def test_a_failure_of_ours_costs_the_hook(
    hook: PointToPointHook,
    guard: Guard,
    pg: Group,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Arguments we do not understand switch the hook off, and the call is made all the same."""
    monkeypatch.setattr("tracecore_train.guard.raise_in_tests", False)
    hook.install()
    assert isinstance(pg.send([], 1, 0), Work)
    assert not guard.is_open
    assert "point_to_point failed and is switched off" in capsys.readouterr().err
    hook.uninstall()


def test_a_torch_without_these_methods_is_left_as_it_is(
    hook: PointToPointHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one method is missing nothing stays patched, and the reason names it."""
    before = Group.send
    monkeypatch.delattr(Group, "recv_anysource")
    with pytest.raises(HookUnavailableError, match="recv_anysource"):
        hook.install()
    assert Group.send is before


def test_works_that_a_job_keeps_for_ever_cost_nothing(hook: PointToPointHook, pg: Group) -> None:
    """A work that was waited for is forgotten, though the job still holds it."""
    hook.install()
    kept = [pg.send([Tensor()], 1, 0) for _ in range(10)]
    assert len(hook._works) == 10
    for work in kept:
        work.wait()
    assert hook._works == {}
    assert all(record.is_retired for record in _told(hook))
    hook.uninstall()


def test_pairs_are_bounded(
    hook: PointToPointHook, pg: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs beyond the limit are counted as lost; those that are numbered go on in order."""
    monkeypatch.setattr(open_operations, "MAX_ORDERS", 2)
    hook.install()
    for peer in (1, 2, 3, 1):
        pg.send([Tensor()], peer, 0).wait()
    records = hook.poll(False)
    told = [record for record in records if isinstance(record, CollectiveRecord)]
    assert [(record.op, record.p2p_seq_id) for record in told] == [
        ("send 0->1", 1),
        ("send 0->2", 1),
        ("send 0->1", 2),
    ]
    assert [gap.num_lost for gap in records if isinstance(gap, GapRecord)] == [1]
    hook.uninstall()
