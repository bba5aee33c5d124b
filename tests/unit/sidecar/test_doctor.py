"""The doctor joins what a trial brought with what a node shows, and says nothing it did not see."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from click.testing import CliRunner

from tracecore_sidecar import blindness
from tracecore_sidecar.cli import cli
from tracecore_sidecar.doctor import command, facts, node
from tracecore_sidecar.doctor.diagnosis import (
    NOT_TRIED,
    NOTHING_ARRIVED,
    Finding,
    diagnose,
    is_proven,
)
from tracecore_sidecar.doctor.report import WIDTH, render, to_json
from tracecore_sidecar.doctor.trial import Trial
from tracecore_train import runtime
from tracecore_train.wire import records as rec
from tracecore_train.wire.signals import NOT_READ, SIGNALS, SignalSource, SignalState

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP = rec.StepRecord(
    time_ns=1,
    rank=0,
    step=0,
    duration_ns=0,
    input_ns=0,
    num_batches=1,
    checkpoint_ns=0,
    flags=0,
)
PROCESS = rec.ProcessRecord(
    time_ns=1, rank=0, pid=7, start_ticks=1, state="S", cpu_ns=0, rss_bytes=0, wchan=""
)


def identity(
    measured: Sequence[str] = (), blind: Sequence[str] = (), off: Sequence[str] = ()
) -> rec.IdentityRecord:
    return rec.IdentityRecord(
        time_ns=1,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=1,
        pid=7,
        start_ticks=1,
        device="cpu",
        gpu_uuid=None,
        torch_version="2.13.0",
        blind=tuple(blind),
        measured=tuple(measured),
        off=tuple(off),
    )


def stack(error: str = "") -> rec.StackRecord:
    return rec.StackRecord(
        time_ns=1,
        rank=0,
        pid=7,
        thread="" if error else "MainThread",
        is_active=False,
        holds_gil=False,
        frames=(),
        error=error,
    )


def trial_with(*records: rec.Record, **said: Any) -> Trial:
    return Trial(records=list(records), said={"torch": "2.13.0", "launcher": "", **said})


def finding_of(trial: Trial, name: str, root: Path = Path("/")) -> Finding:
    (finding,) = [f for f in diagnose(trial, root) if f.signal.name == name]
    return finding


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A node that shows nothing."""
    root = tmp_path / "node"
    for name in ("dev", "proc/self", "sys/fs/cgroup"):
        (root / name).mkdir(parents=True)
    return root


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    """A node that shows everything a file can show."""
    root = tmp_path / "node"
    for name in (
        "dev",
        "proc/self",
        "proc/pressure",
        "sys/fs/cgroup/job",
        "sys/class/infiniband/mlx5_0",
        "sys/bus/pci/devices/0000:00:00.0",
    ):
        (root / name).mkdir(parents=True)
    (root / "dev/kmsg").write_text("6,1,1,-;a line\n")
    (root / "proc/self/cgroup").write_text("0::/job\n")
    (root / "proc/pressure/cpu").write_text("some avg10=0.00\n")
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    (root / "sys/fs/cgroup/job/cpu.stat").write_text("usage_usec 1\n")
    return root


FILES = sorted(node.PROBES.keys() - {"gpu"})


@pytest.mark.parametrize("name", FILES)
def test_a_bare_node_says_what_is_missing(bare: Path, name: str) -> None:
    """Each probe of a node without its file gives a reason."""
    assert node.PROBES[name](bare) != ""


@pytest.mark.parametrize("name", FILES)
def test_a_rich_node_has_no_obstacle(rich: Path, name: str) -> None:
    """Each probe of a node with its file gives none."""
    assert node.PROBES[name](rich) == ""


def test_a_container_that_shows_its_own_cgroup_only_is_readable(rich: Path) -> None:
    """The path in /proc may be the host's; the mount's top is then the own group."""
    (rich / "proc/self/cgroup").write_text("0::/kubepods/pod1/c1\n")
    assert "no cpu.stat" in node.cgroup(rich)
    (rich / "sys/fs/cgroup/cpu.stat").write_text("usage_usec 1\n")
    assert node.cgroup(rich) == ""


def test_an_unreadable_kernel_log_names_the_setting(bare: Path) -> None:
    """A log that cannot be read is told from one that is not there."""
    (bare / "dev/kmsg").mkdir()
    assert "dmesg_restrict" in node.kernel_log(bare)


def test_nvml_is_looked_up_by_name_only(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that loads is enough; one that does not is told with the driver's presence."""
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    assert node.gpu(bare) == ""
    assert loaded == [node.NVML]

    def refuse(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert "no NVIDIA driver" in node.gpu(bare)
    (bare / "dev/nvidiactl").touch()
    assert "a driver is there" in node.gpu(bare)


def test_what_this_version_does_not_read_is_off(bare: Path) -> None:
    """It is never measured, and the reason says whether it could be read here."""
    finding = finding_of(trial_with(identity()), "pressure", bare)
    assert finding.state is SignalState.OFF
    assert finding.reason == f"{NOT_READ}, and /proc/pressure is not there"
    assert "psi=1" in finding.way


def test_what_could_be_read_needs_no_way(rich: Path) -> None:
    """There is nothing for the user to do about a reader that is not built."""
    finding = finding_of(trial_with(identity()), "pressure", rich)
    assert (finding.state, finding.way) == (SignalState.OFF, "")
    assert "can be read here" in finding.reason


def test_a_claim_needs_a_record() -> None:
    """What the rank calls measured is blind when the trial brought none of it."""
    claimed = identity(measured=("steps", "input", "gc"))
    assert finding_of(trial_with(claimed), "steps").reason == NOTHING_ARRIVED
    assert finding_of(trial_with(claimed, STEP), "steps").state is SignalState.MEASURED
    assert finding_of(trial_with(claimed), "gc").state is SignalState.MEASURED


def test_a_failed_pull_gives_its_reason() -> None:
    """The sidecar's own words are better than "nothing arrived"."""
    pull = rec.PullRecord(
        time_ns=1, rank=0, is_ok=False, reason="no socket", num_entries=0, num_lost=0
    )
    finding = finding_of(
        trial_with(identity(measured=("collectives.entries",)), pull), "collectives.entries"
    )
    assert (finding.state, finding.reason) == (SignalState.BLIND, "no socket")


def test_a_stack_that_was_refused_is_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """py-spy is there and may not look: the trial tells, with the way out."""
    monkeypatch.setattr(blindness, "find_py_spy", lambda: "/bin/py-spy")
    finding = finding_of(trial_with(identity(), stack("ptrace is denied")), "stacks")
    assert (finding.state, finding.reason) == (SignalState.BLIND, "ptrace is denied")
    assert "SYS_PTRACE" in finding.way
    assert finding_of(trial_with(identity(), stack()), "stacks").state is SignalState.MEASURED


def test_the_ranks_reasons_are_handed_on() -> None:
    """Blind and off of the identity appear as they were said."""
    said = identity(blind=("steps: no torch: really",), off=("sigterm",))
    blind, off = (finding_of(trial_with(said), name) for name in ("steps", "sigterm"))
    assert (blind.state, blind.reason) == (SignalState.BLIND, "no torch: really")
    assert off.state is SignalState.OFF
    assert "+sigterm" in off.way


def test_a_hook_this_rank_does_not_have_is_off() -> None:
    """A signal the rank says nothing about is not measured."""
    finding = finding_of(trial_with(identity()), "device_time")
    assert (finding.state, finding.reason) == (SignalState.OFF, NOT_READ)


def test_a_trial_that_failed_measures_nothing() -> None:
    """Without an identity no signal that something gives is measured."""
    findings = diagnose(Trial(problems=["no"], records=[STEP, PROCESS, stack()]))
    assert {f.reason for f in findings if f.signal.given_by} == {NOT_TRIED}
    assert all(finding.state is not SignalState.MEASURED for finding in findings)


def test_the_launcher_is_judged_by_the_ranks_torch() -> None:
    """Exits are blind where torchrun looks different, and where there is none."""
    broken = trial_with(identity(), launcher="this torch has no _start_workers")
    assert finding_of(broken, "worker_exits").reason == "this torch has no _start_workers"
    missing = Trial(records=[identity()], said={"torch_error": "No module named 'torch'"})
    assert finding_of(missing, "worker_exits").state is SignalState.BLIND
    assert finding_of(trial_with(identity()), "worker_exits").state is SignalState.MEASURED


def test_every_signal_gets_one_finding() -> None:
    """The table of the doctor is the table of signals."""
    assert [f.signal for f in diagnose(trial_with(identity()))] == list(SIGNALS)


def test_the_wait_ends_when_every_claim_is_proven() -> None:
    """Not before the rank spoke, not before its stack was tried, not before its records came."""
    claimed = identity(measured=("steps", "gc"))
    assert not is_proven([STEP, PROCESS, stack()])
    assert not is_proven([claimed, PROCESS, stack()])
    assert not is_proven([claimed, STEP, PROCESS])
    assert is_proven([claimed, STEP, PROCESS, stack("denied")])


def test_the_text_names_everything_and_stays_narrow() -> None:
    """Every signal has a line, no line is too wide, and the last says whether the path works."""
    trial = trial_with(identity(measured=("steps",), blind=("input: \x1b[31mred",)), STEP)
    text = render(trial, facts.gather({}), diagnose(trial), "a07")
    lines = text.splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    for signal in SIGNALS:
        assert any(line.startswith(f"{signal.name} ") for line in lines), signal.name
    assert lines[-1].startswith("The path works")
    assert "torch 2.13.0" in lines[0]
    assert "\x1b" not in text


def test_the_text_says_that_torch_is_missing() -> None:
    """A missing torch is the first thing said, and no failure of the path."""
    trial = Trial(records=[identity()], said={"torch_error": "No module named 'torch'"})
    text = render(trial, facts.gather({}), diagnose(trial), "a07")
    assert "torch cannot be imported (No module named 'torch')" in text.splitlines()[0]
    assert "The path works" in text


def test_a_broken_path_is_said_last() -> None:
    """The problem stands at the end, where a reader of a long table looks."""
    trial = Trial(problems=["the sidecar did not start: no socket"])
    text = render(trial, facts.gather({}), diagnose(trial), "a07")
    assert text.splitlines()[-2:] == [
        "The path does NOT work:",
        "  the sidecar did not start: no socket",
    ]


def test_a_job_that_cannot_train_is_said_and_no_broken_path() -> None:
    """Records that arrive prove the path, whatever torch could not do."""
    trial = trial_with(identity(), error="RuntimeError: gloo has no interface")
    text = render(trial, facts.gather({}), diagnose(trial), "a07")
    assert "could not train: RuntimeError: gloo has no interface" in text
    assert text.splitlines()[-1].startswith("The path works")


def test_the_json_form_is_plain() -> None:
    """Every value survives JSON, and signals carry name, state, reason and way."""
    trial = trial_with(identity())
    document = to_json(trial, facts.gather({}), diagnose(trial), "a07")
    assert json.loads(json.dumps(document)) == document
    assert document["works"] is True
    assert {signal["state"] for signal in document["signals"]} <= {"measured", "blind", "off"}
    assert set(document["signals"][0]) == {"name", "source", "shows", "state", "reason", "way"}


@pytest.mark.parametrize(
    ("environ", "is_good"),
    [
        ({}, True),
        ({"TORCH_FR_BUFFER_SIZE": "2000"}, True),
        ({"TORCH_FR_BUFFER_SIZE": "0"}, False),
        ({"TORCH_FR_BUFFER_SIZE": "0", "TORCH_NCCL_TRACE_BUFFER_SIZE": "500"}, True),
    ],
)
def test_a_recorder_that_is_off_is_no_good(environ: dict[str, str], is_good: bool) -> None:
    """The variables torch reads decide, as they decide in the rank."""
    (fact,) = [f for f in facts.gather(environ) if f.name == "flight recorder"]
    assert (fact.is_good, fact.way == "") == (is_good, is_good)


def test_a_long_runtime_directory_is_no_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory in which a rank's socket would not fit is found before any job is started."""
    monkeypatch.setenv("TRACECORE_RUNTIME_DIR", str(tmp_path / ("d" * 90)))
    (fact,) = [f for f in facts.gather({}) if f.name == "socket path"]
    assert not fact.is_good
    assert "shorter" in fact.way


def test_a_foreign_runtime_directory_is_no_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of another user is told with the owner's number."""
    monkeypatch.setenv("TRACECORE_RUNTIME_DIR", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (fact,) = [f for f in facts.gather({}) if f.name == "runtime directory"]
    assert not fact.is_good
    assert f"belongs to uid {owner}" in fact.text


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_small_shared_memory_is_no_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's default of 64 MiB is told before it kills a loader worker."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 << 20, 0, 64 << 20))
    (fact,) = [f for f in facts.gather({}) if f.name == "/dev/shm"]
    assert (fact.is_good, fact.text) == (False, "64 MiB free")


def test_a_slow_clock_is_no_good(bare: Path) -> None:
    """A clock source that goes through the kernel is told."""
    path = bare / "sys/devices/system/clocksource/clocksource0"
    path.mkdir(parents=True)
    (path / "current_clocksource").write_text("hpet\n")
    (fact,) = [f for f in facts.gather({}, bare) if f.name == "clock"]
    assert not fact.is_good
    assert fact.text.startswith("hpet, ")


@pytest.mark.parametrize(("problems", "exit_code"), [([], 0), (["broken"], 1)])
def test_the_exit_code_is_about_the_path_only(
    monkeypatch: pytest.MonkeyPatch, problems: list[str], exit_code: int
) -> None:
    """Blind spots end with 0, a broken path with 1; JSON is all there is on standard output."""
    blind = [f"{s.name}: no" for s in SIGNALS if s.source is SignalSource.RANK]
    trial = Trial(problems=problems, records=[identity(blind=blind)], said={"torch": "2"})
    monkeypatch.setattr(command, "run_trial", lambda **_: trial)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["works"] is not bool(problems)


def test_a_runtime_directory_that_cannot_be_had_ends_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started where there is no place to meet."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(runtime, "runtime_root", lambda: tmp_path / "file")
    answer, exit_code = command.examine(as_json=True, timeout_s=5, tell=lambda text: None)
    assert exit_code == 1
    assert "TRACECORE_RUNTIME_DIR" in json.loads(answer)["problems"][0]
