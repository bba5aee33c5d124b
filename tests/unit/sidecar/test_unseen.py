"""What was not seen is said once, for the ranks it concerns."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from tracecore_sidecar import blindness
from tracecore_sidecar.blindness import NodeSignals, of_the_ranks, of_this_node, standings
from tracecore_sidecar.detectors.unseen import MAX_TEXTS, unseen_texts
from tracecore_sidecar.sources.ptrace import ptrace_obstacle
from tracecore_sidecar.state.store import Store
from tracecore_sidecar.summary import RunSummary, write_summary
from tracecore_train.wire.records import Batch, GroupRecord, IdentityRecord, Source, SourceKind
from tracecore_train.wire.signals import SIGNALS, SignalSource

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_sidecar.state.view import JobView

NO_NODE = NodeSignals(measured=(), blind=(), off=())


def view_of(
    *blind: tuple[str, ...],
    off: tuple[str, ...] = (),
    device: str = "cuda",
    group: GroupRecord | None = None,
) -> JobView:
    """A job whose rank ``i`` says ``blind[i]``."""
    store = Store(job_id="j", node_rank=0, host="a07", boot_id="b")
    for rank, texts in enumerate(blind):
        identity = IdentityRecord(
            time_ns=1,
            rank=rank,
            local_rank=rank,
            node_rank=0,
            world_size=len(blind),
            pid=100 + rank,
            start_ticks=1,
            device=device,
            gpu_uuid=None,
            torch_version=None,
            blind=texts,
            measured=("steps",),
            off=off,
        )
        source = Source(
            kind=SourceKind.RANK,
            host="a07",
            boot_id="b",
            pid=100 + rank,
            job_id="j",
            attempt=0,
            wall_offset_ns=0,
            rank=rank,
            world_size=len(blind),
        )
        groups = (group,) if group is not None and group.rank == rank else ()
        store.apply(Batch(source=source, records=(identity, *groups)))
    view = store.view()
    assert view is not None
    return view


def test_ranks_that_share_a_reason_are_named_together() -> None:
    """One text per signal and reason, with all ranks that say it."""
    view = view_of(("input: a",), ("input: a",), ("input: b",))
    assert unseen_texts(view, (0, 1, 2), ("input",)) == ["ranks 0, 1, input: a", "rank 2, input: b"]


def test_only_what_the_judgement_wants_is_named() -> None:
    """Other signals and other ranks are left out; a name nobody knows is not."""
    view = view_of(("input: a", "gc: b", "export: c"), ("input: d",))
    assert unseen_texts(view, (0,), ("input",)) == ["rank 0, input: a", "rank 0, export: c"]


def test_wanted_signals_that_are_off_are_named() -> None:
    """A hook that the user left out is not silently missing."""
    view = view_of((), (), off=("input", "sigterm"))
    assert unseen_texts(view, (0, 1), ("input", "steps")) == ["ranks 0, 1, input: off"]


def test_a_processor_needs_no_device_time() -> None:
    """Signals of a device are unseen on a rank with a device only."""
    texts = ("device_time: no events", "memory.oom: no CUDA")
    wanted = ("device_time", "memory.oom")
    assert unseen_texts(view_of(texts, device="cpu", off=("memory.device",)), (0,), wanted) == []
    assert len(unseen_texts(view_of(texts), (0,), wanted)) == 2


def test_many_reasons_are_bounded() -> None:
    """A thousand ranks with a thousand reasons do not fill the verdict."""
    view = view_of(*((f"input: {rank}",) for rank in range(100)))
    assert len(unseen_texts(view, range(100), ("input",))) == MAX_TEXTS


def test_the_summary_names_ranks_only_where_they_differ(tmp_path: Path) -> None:
    """What all ranks say stands without ranks; the files hold every list."""
    view = view_of(("input: a", "steps: b"), ("input: a",), off=("sigterm", "point_to_point"))
    assert of_the_ranks(view) == [
        "input: a",
        "rank 0, steps: b",
        f"sigterm, point_to_point: {blindness.OFF}",
    ]
    node = of_this_node(is_launched=False)
    text = write_summary(
        tmp_path / "summary.json",
        RunSummary(),
        verdicts=(),
        view=view,
        blind=(),
        node=node,
        intake={},
        forward={},
        num_dropped={},
        num_pages=0,
    )
    assert "not seen: rank 0, steps: b" in text.splitlines()
    document = json.loads((tmp_path / "summary.json").read_text())
    assert "input: a" in document["not_measured"]
    assert document["signals"]["node"] == json.loads(json.dumps(asdict(node)))
    assert document["signals"]["ranks"] == [
        {
            "ranks": f"rank {rank}",
            "measured": ["steps"],
            "blind": blind,
            "off": ["sigterm", "point_to_point"],
        }
        for rank, blind in enumerate((["input: a", "steps: b"], ["input: a"]))
    ]


def test_an_unread_recorder_is_said_whatever_the_ranks_claim() -> None:
    """A rank offers its entries; the summary says that nobody took those of legacy NCCL."""
    group = GroupRecord(time_ns=1, rank=0, pg_name="0", pg_desc="", backend="nccl", ranks=(0, 1))
    view = view_of((), (), group=group)
    assert of_the_ranks(view) == [
        "collectives.entries: the recorder of nccl gave nothing (number of its groups: 1)"
    ]


def test_a_summary_stays_readable_whatever_ranks_say() -> None:
    """Many ranks with a reason each are counted, not listed without end."""
    texts = of_the_ranks(view_of(*((f"input: {rank}",) for rank in range(100))))
    assert len(texts) == blindness.MAX_TEXTS + 1
    assert texts[-1] == "signals of ranks: 50 more"


def test_a_job_nobody_introduced_has_no_standings() -> None:
    """Without a view there is nothing to stand."""
    assert standings(None) == []


def test_a_node_says_each_of_its_signals_once() -> None:
    """Every signal that no rank gives is measured, blind or off, and in one of them only."""
    node = of_this_node(is_launched=True)
    names = [*node.measured, *(text.partition(":")[0] for text in node.blind), *node.off]
    expected = {signal.name for signal in SIGNALS if signal.source is not SignalSource.RANK}
    assert sorted(names) == sorted(expected)


def test_a_sidecar_started_by_hand_sees_no_exits() -> None:
    """Only a launcher is the parent of the ranks."""
    assert "worker_exits" in of_this_node(is_launched=True).measured
    by_hand = of_this_node(is_launched=False)
    assert "worker_exits: the job was not started by `tracecore run`" in by_hand.blind


def test_without_py_spy_stacks_are_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing program is a blind spot with its name."""
    monkeypatch.setattr(blindness, "find_py_spy", lambda: None)
    assert "stacks: py-spy is not installed" in of_this_node(is_launched=True).blind


def test_forbidden_ptrace_blinds_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """py-spy that may not look is as good as none."""
    monkeypatch.setattr(blindness, "find_py_spy", lambda: "/bin/py-spy")
    monkeypatch.setattr(blindness, "ptrace_obstacle", lambda: "forbidden")
    assert "stacks: forbidden" in of_this_node(is_launched=True).blind


@pytest.mark.parametrize(
    ("scope", "capabilities", "expected"),
    [
        (None, "0", ""),
        ("0", "0", ""),
        ("1", "0", ""),
        ("2", "0", "CAP_SYS_PTRACE"),
        ("2", "80000", ""),
        ("2", "no number", "CAP_SYS_PTRACE"),
        ("3", "80000", "until the next boot"),
    ],
)
def test_the_kernels_settings_are_read(
    tmp_path: Path, scope: str | None, capabilities: str, expected: str
) -> None:
    """Scope 1 is the ranks' to open, 2 needs the capability, 3 is final."""
    (tmp_path / "proc/sys/kernel/yama").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir()
    if scope is not None:
        (tmp_path / "proc/sys/kernel/yama/ptrace_scope").write_text(f"{scope}\n")
    (tmp_path / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities}\n")
    obstacle = ptrace_obstacle(tmp_path)
    assert (expected in obstacle) if expected else obstacle == ""
