"""init() and shutdown(): harmless twice, inert without a sidecar, undone completely."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar, wait_until
from tracecore_train import guard, runtime, steps
from tracecore_train.config import HOOK_NAMES
from tracecore_train.errors import ConfigError
from tracecore_train.recorder.page import read_page
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.wire.records import (
    GapRecord,
    IdentityRecord,
    LastWordRecord,
    PhaseRecord,
    StepFlag,
    StepRecord,
)
from tracecore_train.wire.signals import BY_NAME, SIGNALS, SignalSource, name_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")

NOT_HERE = {signal.name for signal in SIGNALS if signal.is_of_device} | {"input.queue"}
"""Signals that this process cannot give: it has neither a device nor a loader with workers."""


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[FakeSidecar]:
    with FakeSidecar(tmp_path / "j") as started:
        yield started


def test_no_endpoint_is_inert_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a sidecar nothing starts, and one line names both ways out."""
    num_threads = threading.active_count()
    first, second = tracecore_train.init(), tracecore_train.init()
    assert first is second
    assert not first.is_active
    assert threading.active_count() == num_threads
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "tracecore run" in said
    assert "TRACECORE_ENDPOINT" in said


def test_disabled_says_and_does_nothing(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRACECORE_DISABLE=1 wins over an endpoint, silently."""
    monkeypatch.setenv("TRACECORE_DISABLE", "1")
    assert not tracecore_train.init(endpoint=sidecar.endpoint).is_active
    assert capsys.readouterr().err == ""
    assert not (sidecar.path.parent / "0").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"endpont": "unix:/x"}, "endpoint"),
        ({"endpoint": "tcp:1"}, "unix:/absolute"),
        ({"flush_interval": 0}, "0.1 to 60"),
        ({"hooks": ["optimiser"]}, "did you mean optimizer"),
    ],
)
def test_bad_setting_is_an_error_that_names_the_way_out(
    settings: dict[str, object], named: str
) -> None:
    """An unknown name or a bad value raises ConfigError with what is accepted."""
    with pytest.raises(ConfigError, match=named):
        tracecore_train.init(**settings)


def test_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt TRACECORE_ variable is named with the nearest known one."""
    monkeypatch.setenv("TRACECORE_ENDPOIN", "unix:/x")
    with pytest.raises(ConfigError, match="TRACECORE_ENDPOINT"):
        tracecore_train.init()


def test_init_twice_is_one_session(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second call gives the first session; other settings are one line, the same are none."""
    first = tracecore_train.init(endpoint=sidecar.endpoint)
    assert tracecore_train.init() is first
    assert tracecore_train.init(endpoint=sidecar.endpoint) is first
    assert capsys.readouterr().err == ""
    assert tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=5) is first
    assert "first call hold" in capsys.readouterr().err


def test_first_hand_over_is_prompt_and_introduces_the_rank(
    sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity arrives long before the first interval is over, and names this process."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=60)
    wait_until(lambda: sidecar.records(IdentityRecord))
    identity = sidecar.records(IdentityRecord)[0]
    assert (identity.rank, identity.world_size, identity.pid) == (3, 4, os.getpid())
    assert identity.torch_version == torch.__version__
    assert {name_in(text) for text in identity.blind} <= NOT_HERE
    assert sidecar.batches[0].source.job_id == "j"


def test_shutdown_hands_over_and_says_the_last_word(sidecar: FakeSidecar) -> None:
    """What was recorded before shutdown arrives, and page and records end with ``exit``."""
    with tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=60):
        for _ in range(3):
            tracecore_train.step()
        with tracecore_train.phase("evaluation"):
            pass
    assert [step.flags for step in sidecar.records(StepRecord)] == [
        StepFlag.FIRST | StepFlag.EXPLICIT,
        StepFlag.EXPLICIT,
        StepFlag.EXPLICIT,
    ]
    assert [phase.name for phase in sidecar.records(PhaseRecord)] == ["evaluation"]
    assert [word.word for word in sidecar.records(LastWordRecord)] == ["exit"]
    page = read_page(runtime.rank_page(sidecar.path.parent, 0, 0), 1)
    assert (page.last_word, page.step, page.pid) == ("exit", 3, os.getpid())
    assert sidecar.num_metric_points > 0


def test_session_can_be_started_again(sidecar: FakeSidecar) -> None:
    """After shutdown a new init() records again."""
    first = tracecore_train.init(endpoint=sidecar.endpoint)
    tracecore_train.shutdown()
    second = tracecore_train.init(endpoint=sidecar.endpoint)
    assert second is not first
    assert second.is_active
    assert not first.is_active


def test_page_shows_nested_phases(sidecar: FakeSidecar) -> None:
    """The page names the inner phase while it lasts, then the outer one, then none."""
    path = runtime.rank_page(sidecar.path.parent, 0, 0)
    tracecore_train.init(endpoint=sidecar.endpoint)
    with tracecore_train.phase("evaluation"):
        outer = read_page(path, 1)
        with tracecore_train.phase("generation"):
            assert read_page(path, 1).phase == "generation"
        again = read_page(path, 1)
    after = read_page(path, 1)
    assert (outer.phase, outer.phase_since_ns > 0) == ("evaluation", True)
    assert (again.phase, again.phase_since_ns) == ("evaluation", outer.phase_since_ns)
    assert (after.phase, after.phase_since_ns) == ("", 0)


def test_phase_that_is_not_shown_leaves_the_page_alone(sidecar: FakeSidecar) -> None:
    """It is recorded like any other, and the page shows what is around and inside it."""
    path = runtime.rank_page(sidecar.path.parent, 0, 0)
    tracecore_train.init(endpoint=sidecar.endpoint)
    with tracecore_train.phase("training"):
        with tracecore_train.phase("epoch", is_shown=False):
            assert read_page(path, 1).phase == "training"
            with tracecore_train.phase("validation"):
                assert read_page(path, 1).phase == "validation"
            assert read_page(path, 1).phase == "training"
        assert read_page(path, 1).phase == "training"
    tracecore_train.shutdown()
    names = [phase.name for phase in sidecar.records(PhaseRecord)]
    assert names == ["validation", "epoch", "training"]


@pytest.mark.parametrize("number", [-1, 2**63, "seven"])
def test_impossible_global_step_is_contained(
    sidecar: FakeSidecar,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: Any,
) -> None:
    """A number the wire cannot carry is one line, and the steps still arrive."""
    monkeypatch.setattr(guard, "raise_in_tests", False)
    monkeypatch.setattr(steps, "_microbatch_guard", guard.Guard("microbatch()"))
    tracecore_train.init(endpoint=sidecar.endpoint)
    tracecore_train.microbatch(global_step=number)
    tracecore_train.step()
    tracecore_train.shutdown()
    assert capsys.readouterr().err.count("microbatch() failed") == 1
    assert [step.global_step for step in sidecar.records(StepRecord)] == [None]


def test_phase_lets_exceptions_through(sidecar: FakeSidecar) -> None:
    """An exception inside a phase reaches the user and ends the phase."""
    tracecore_train.init(endpoint=sidecar.endpoint)
    with pytest.raises(ZeroDivisionError), tracecore_train.phase("evaluation"):
        raise ZeroDivisionError
    assert read_page(runtime.rank_page(sidecar.path.parent, 0, 0), 1).phase == ""


def test_words_without_a_session_do_nothing() -> None:
    """step(), microbatch() and phase() are harmless when nothing is recorded."""
    tracecore_train.step()
    with tracecore_train.phase("evaluation"):
        tracecore_train.microbatch()
        tracecore_train.step()


def test_foreign_directory_is_blind_not_fatal(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """Where no private directory can be had the rank records without page, and says so."""
    (sidecar.path.parent / "0").write_text("in the way")
    assert tracecore_train.init(endpoint=sidecar.endpoint).is_active
    wait_until(lambda: sidecar.records(IdentityRecord))
    blind = sidecar.records(IdentityRecord)[0].blind
    unseen = {name_in(text) for text in blind} - NOT_HERE
    assert unseen == {"rank_page", "collectives.entries"}


def test_living_claimant_makes_others_inert(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rank another process records is left alone, and both processes are named."""
    program = (
        "import sys, tracecore_train\n"
        f"s = tracecore_train.init(endpoint={sidecar.endpoint!r})\n"
        "print(s.is_active, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"True\n"
        assert not tracecore_train.init(endpoint=sidecar.endpoint).is_active
        assert f"process {child.pid} records rank 0" in capsys.readouterr().err
    finally:
        child.communicate(timeout=60)


def test_failing_hook_is_switched_off_and_reported(
    sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hook that breaks leaves the optimizer working, is said once, and becomes a blind spot."""
    monkeypatch.setattr(guard, "raise_in_tests", False)
    monkeypatch.setattr(Recorder, "end_step", None)
    tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=0.1)
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    optimizer.step()
    optimizer.step()
    assert parameter.item() == -1.0
    assert capsys.readouterr().err.count("optimizer failed") == 1
    wait_until(lambda: sidecar.records(GapRecord))
    (gap,) = sidecar.records(GapRecord)
    assert (gap.where, gap.num_lost) == ("optimizer", 1)
    wait_until(
        lambda: any(
            text.startswith("steps: optimizer is switched off after ")
            for text in sidecar.records(IdentityRecord)[-1].blind
        )
    )


def test_impossible_rank_leaves_training_alone(
    sidecar: FakeSidecar, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A RANK that makes no sense is one line, not an exception."""
    monkeypatch.setattr(guard, "raise_in_tests", False)
    monkeypatch.setenv("RANK", "seven")
    assert not tracecore_train.init(endpoint=sidecar.endpoint).is_active
    assert "RANK='seven'" in capsys.readouterr().err


def test_new_sidecar_is_told_everything_again(tmp_path: Path) -> None:
    """After the sidecar died and another took its place the identity comes again, and the gap."""
    with FakeSidecar(tmp_path / "j") as first:
        # Without gc: a long collection of the test process would be a second row that is lost.
        session = tracecore_train.init(endpoint=first.endpoint, flush_interval=0.1, hooks="-gc")
        wait_until(lambda: first.records(IdentityRecord))
    recorder = session.recorder
    assert recorder is not None
    tracecore_train.step()
    wait_until(lambda: not len(recorder._rings[0][1]))
    first.path.unlink()
    with FakeSidecar(tmp_path / "j") as second:
        wait_until(lambda: second.records(IdentityRecord))
        wait_until(lambda: second.records(GapRecord))
        tracecore_train.shutdown()
    assert [(gap.where, gap.num_lost) for gap in second.records(GapRecord)] == [("export", 1)]


def test_heart_beats_without_a_sidecar(tmp_path: Path) -> None:
    """With nobody at the socket the page's heartbeat goes on."""
    job = tmp_path / "j"
    tracecore_train.init(endpoint=f"unix:{job}/otlp.sock", flush_interval=0.1)
    path = runtime.rank_page(job, 0, 0)
    began = read_page(path, 1).heartbeat_ns
    wait_until(lambda: read_page(path, 1).heartbeat_ns > began + 500_000_000)


def test_every_signal_of_every_hook_stands_somewhere(sidecar: FakeSidecar) -> None:
    """With every hook asked for, each signal a rank can give is measured, blind or off, once, and
    no reason is given for a signal that does not exist.
    """
    with tracecore_train.init(endpoint=sidecar.endpoint, hooks=HOOK_NAMES, flush_interval=0.1):
        wait_until(lambda: sidecar.records(IdentityRecord))
    for identity in sidecar.records(IdentityRecord):
        blind = {name_in(text) for text in identity.blind}
        assert blind <= BY_NAME.keys()
        names = sorted([*identity.measured, *blind, *identity.off])
        assert names == sorted(s.name for s in SIGNALS if s.source is SignalSource.RANK)


def test_hooks_left_out_are_off_not_blind(sidecar: FakeSidecar) -> None:
    """What the user did not ask for is no blind spot."""
    with tracecore_train.init(endpoint=sidecar.endpoint, hooks=["optimizer"]):
        wait_until(lambda: sidecar.records(IdentityRecord))
    (identity,) = sidecar.records(IdentityRecord)[:1]
    assert (identity.measured, identity.blind) == (("rank_page", "steps"), ())
    expected = [s.name for s in SIGNALS if s.source is SignalSource.RANK]
    assert sorted((*identity.off, "rank_page", "steps")) == sorted(expected)
