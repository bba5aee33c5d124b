"""What a rank says it can see, on the shape of each version of torch."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import torch_shapes
from tracecore_sidecar.doctor.diagnosis import Finding, diagnose
from tracecore_sidecar.doctor.trial import Trial
from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import Guard
from tracecore_train.hooks import HOOKS
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.process_groups import RING_VARIABLES
from tracecore_train.identity import read_identity
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.self_report import SelfReport
from tracecore_train.wire import signals
from tracecore_train.wire.records import IdentityRecord, StackRecord
from tracecore_train.wire.signals import SignalState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

torch = pytest.importorskip("torch")

WATCHED = ("process_groups", "worker_server", "exact_collectives")
"""Hooks whose sight depends on torch's version."""
GLOO = {"cpu": "gloo"}
NCCL = {"cuda": "nccl"}
NO_RECORDER = "this torch has no flight recorder of gloo"
NO_HANDLER = "the worker server of this torch has no fr_trace_json (2.10 and newer do)"
NO_CALLBACKS = "this torch has no ProcessGroup.register_pre_hook (2.14 and newer do)"


class Rank:
    """The watching hooks of one rank, on the modules that lie in ``sys.modules``."""

    def __init__(self, fake: torch_shapes.FakeTorch, directory: Path) -> None:
        self.fake = fake
        self.hooks: list[tuple[Any, Guard]] = []
        self.blind: list[str] = []
        context = HookContext(
            recorder=Recorder(RankPage.in_memory(), rank=0),
            rank=0,
            socket_path=directory / "r0.ws",
        )
        for hook_class in HOOKS:
            if hook_class.name in WATCHED:
                guard = Guard(hook_class.name)
                hook = hook_class(context, guard)
                self.hooks.append((hook, guard))
                try:
                    hook.install()
                except HookUnavailableError as error:
                    guard.close()
                    self.blind += signals.explain(signals.given_by(hook.name), str(error))

    def uninstall(self) -> None:
        for hook, _ in reversed(self.hooks):
            hook.uninstall()

    def trains_on(self, backends: Mapping[str, str]) -> None:
        """Make a group, and let its recorder count where there is one."""
        pg = self.fake.make_group("0", backends)
        self.fake.enqueue(pg, next(iter(backends)), 7)

    def identity(self) -> IdentityRecord:
        """Introduce itself after a hand-over."""
        report = SelfReport(
            read_identity(job_id="j", job_name="j", environ={}),
            blind=self.blind,
            off=(),
            hooks=self.hooks,
            guards=[guard for _, guard in self.hooks],
        )
        report(False)
        (identity,) = [r for r in report(True) if isinstance(r, IdentityRecord)]
        return identity

    def findings(self) -> dict[str, Finding]:
        """What the doctor makes of it, as far as the rank's own word goes."""
        stack = StackRecord(
            time_ns=1,
            rank=0,
            pid=1,
            thread="MainThread",
            is_active=False,
            holds_gil=False,
            frames=(),
            error="",
        )
        trial = Trial(records=[self.identity(), stack], said={"torch": "2", "launcher": ""})
        return {finding.signal.name: finding for finding in diagnose(trial)}


@pytest.fixture
def rank(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Rank]:
    """A rank on the version that the test is parametrized with."""
    for name in RING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    fake = torch_shapes.install(monkeypatch, request.param)
    # Starting it is not looked at here: one that does nothing stands for torch's own.
    monkeypatch.setattr(fake.extension, "_WorkerServer", lambda *args: object(), raising=False)
    monkeypatch.setattr(sys.modules["tracecore_train.hooks.worker_server"], "_started", [])
    watching = Rank(fake, tmp_path)
    yield watching
    watching.uninstall()


def reasons(rank: Rank) -> dict[str, str]:
    """Blind signal -> reason."""
    pairs = (text.partition(": ") for text in rank.identity().blind)
    return {name: reason for name, _, reason in pairs}


def test_the_stand_in_is_like_the_installed_torch() -> None:
    """The shape of the version that is installed says what that build really has."""
    extension = pytest.importorskip("torch._C._distributed_c10d")
    version = ".".join(torch.__version__.split(".")[:2]) + ("" if torch.version.cuda else "+cpu")
    if version not in torch_shapes.SHAPES:
        pytest.skip(f"no shape of {version}")
    shape = torch_shapes.SHAPES[version]
    generic = getattr(extension, "_dump_fr_trace_json", None)
    assert shape == dataclasses.replace(
        shape,
        has_generic_dump=generic is not None,
        has_nccl_dump=hasattr(extension, "_dump_nccl_trace_json"),
        takes_backend="backend:" in (getattr(generic, "__doc__", None) or ""),
        has_group_hooks=hasattr(extension.ProcessGroup, "register_pre_hook"),
        has_generic_handler="fr_trace_json" in extension._get_handler_names(),
    )


@pytest.mark.parametrize("rank", ["2.6"], indirect=True)
def test_2_6_on_gloo_shows_groups_but_no_collectives(rank: Rank) -> None:
    """Without a recorder for gloo both the counters and the entries are blind, with that reason."""
    rank.trains_on(GLOO)
    assert reasons(rank) == {
        "collectives.counters": NO_RECORDER,
        "collectives.entries": NO_RECORDER,
        "exact_collectives": NO_CALLBACKS,
    }
    assert "process_groups" in rank.identity().measured


@pytest.mark.parametrize("rank", ["2.6", "2.8", "2.10", "2.13"], indirect=True)
def test_legacy_nccl_is_counted_up_to_2_13(rank: Rank) -> None:
    """NCCL's own recorder is read by every version that has it."""
    rank.trains_on(NCCL)
    assert set(reasons(rank)) == {"exact_collectives"}
    assert "collectives.counters" in rank.identity().measured


@pytest.mark.parametrize("rank", ["2.8"], indirect=True)
def test_2_8_on_gloo_counts_what_cannot_be_pulled(rank: Rank) -> None:
    """The recorder counts, and its entries are blind: the worker server has no way to them."""
    rank.trains_on(GLOO)
    assert reasons(rank) == {"collectives.entries": NO_HANDLER, "exact_collectives": NO_CALLBACKS}
    assert "collectives.counters" in rank.identity().measured


@pytest.mark.parametrize("rank", ["2.10", "2.13", "2.13+cpu"], indirect=True)
def test_gloo_is_seen_whole_from_2_10_on(rank: Rank) -> None:
    """Counters and entries are there; only the callbacks of later versions are missing."""
    rank.trains_on(GLOO)
    assert reasons(rank) == {"exact_collectives": NO_CALLBACKS}


@pytest.mark.parametrize("rank", ["2.14", "2.15"], indirect=True)
@pytest.mark.parametrize("backends", [GLOO, NCCL], ids=["gloo", "nccl"])
def test_from_2_14_on_nothing_is_blind(rank: Rank, backends: Mapping[str, str]) -> None:
    """Groups take callbacks, and what `nccl` means since 2.15 is found by its name."""
    rank.trains_on(backends)
    assert reasons(rank) == {}
    assert {"collectives.counters", "exact_collectives"} <= set(rank.identity().measured)


@pytest.mark.parametrize("rank", torch_shapes.SHAPES, indirect=True)
def test_a_recorder_that_counts_nothing_is_blind(rank: Rank) -> None:
    """A group whose counters never come is not called measured on any version."""
    rank.fake.make_group("0", GLOO)
    assert "collectives.counters" in reasons(rank)


@pytest.mark.parametrize("rank", ["2.13"], indirect=True)
def test_an_unknown_backend_is_blind_by_name(rank: Rank) -> None:
    """A backend nobody reads is named, and its entries are not claimed."""
    rank.fake.make_group("0", {"cuda": "fancy"})
    reason = "the backend fancy has no flight recorder that is read"
    found = reasons(rank)
    assert (found["collectives.counters"], found["collectives.entries"]) == (reason, reason)


@pytest.mark.parametrize("rank", ["2.13"], indirect=True)
def test_a_torch_without_a_worker_server_has_no_entries(
    rank: Rank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When the private class is gone the reason says so; counters go on."""
    monkeypatch.delattr(rank.fake.extension, "_WorkerServer")
    other = Rank(rank.fake, tmp_path)
    other.trains_on(GLOO)
    found = reasons(other)
    assert "no worker server" in found["collectives.entries"]
    assert "collectives.counters" not in found
    other.uninstall()


@pytest.mark.parametrize("rank", ["2.6"], indirect=True)
def test_the_doctor_hands_on_what_the_version_lacks(rank: Rank) -> None:
    """Reason and way of the table stand in the finding of an old version."""
    rank.trains_on(GLOO)
    finding = rank.findings()["collectives.counters"]
    assert (finding.state, finding.reason) == (SignalState.BLIND, NO_RECORDER)
    assert "torch 2.8 or newer" in finding.way
