"""Our own code failing inside a rank, others patching beside us, and us switched off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_sidecar import FakeSidecar
from tests.support.launches import Launch
from tests.support.ranks import BOOTSTRAP, PROGRAM, Ranks, assert_unhurt
from tracecore_train.config import HOOK_NAMES
from tracecore_train.wire.records import CheckpointRecord, GapRecord, IdentityRecord, StepRecord
from tracecore_train.wire.signals import given_by

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = PROGRAM.parent
INSIDE = {
    "optimizer": "tracecore_train.recorder.recorder:Recorder.end_step",
    "dataloader": "tracecore_train.hooks.loaders:Loaders.adopt",
    "backward": "tracecore_train.recorder.parts:StepParts.enter_backward",
    "device_time": "tracecore_train.hooks.device_time:DeviceTimeHook.poll",
    "checkpoint": "tracecore_train.hooks.checkpoint:CheckpointHook._enter",
    "memory": "tracecore_train.hooks.memory:MemoryHook.poll",
    "memory_peaks": "tracecore_train.hooks.memory:MemoryPeaksHook.install",
    "gc": "tracecore_train.recorder.recorder:Recorder.add_gc",
    "process_groups": "tracecore_train.hooks.process_groups:ProcessGroupsHook.poll",
    "worker_server": "tracecore_train.hooks.worker_server:WorkerServerHook.poll",
    "failure": "tracecore_train.hooks.failure:FailureHook.poll",
    "ptracer": "tracecore_train.hooks.ptracer:PtracerHook.poll",
    "sigterm": "tracecore_train.hooks.termination:TerminationHook.install",
    "point_to_point": "tracecore_train.hooks.point_to_point:PointToPointHook.poll",
}
"""What raises inside each hook, at its first call."""
ELSEWHERE = {"collective_timing", "exact_collectives"}
"""Hooks that the installed torch cannot have; their own tests break them on stand-ins."""
AROUND = {
    "dataloader": "tracecore_train.hooks.dataloader:DataLoaderHook.install",
    "checkpoint": "tracecore_train.hooks.checkpoint:CheckpointHook.blind",
    "optimizer (uninstall)": "tracecore_train.hooks.optimizer:OptimizerHook.uninstall",
}
"""What raises where a hook is put in, asked, and taken out."""
ORDERS = {
    "ours theirs theirs": True,
    "theirs ours ours": True,
    "theirs ours theirs": True,
    "ours theirs ours": False,
}
"""Who patches first, who second, who leaves first; and whether the originals are back then. The
last order is not clean: theirs puts our wrapper back, which stays in the chain and passes through.
"""
EXPORT = "tracecore_train.export.worker:ExportWorker._hand_over"


def _sabotaged(directory: Path, endpoint: str, *specs: str) -> str:
    """Run the job with parts of us broken, see it unhurt, and give rank 0's standard error."""
    with Ranks(
        directory,
        endpoint=endpoint,
        program=PROGRAMS / "sabotaged_job.py",
        SABOTAGE=",".join(specs),
        TRACECORE_HOOKS=",".join(f"+{name}" for name in INSIDE),
    ) as ranks:
        ended = ranks.finish()
    assert_unhurt(ended)
    return ended[0].stderr


def test_every_hook_may_fail_inside(tmp_path: Path) -> None:
    """With every hook raising on its first call the job computes the same bits; each hook is said
    once, counted, and reported as blind.
    """
    with FakeSidecar(tmp_path / "j") as sidecar:
        stderr = _sabotaged(tmp_path / "run", sidecar.endpoint, *INSIDE.values())
    assert {*INSIDE, *ELSEWHERE} == set(HOOK_NAMES), "every hook is sabotaged"
    for name in INSIDE:
        assert stderr.count(f"tracecore: {name} failed and is switched off") == 1
        gaps = [gap for gap in sidecar.records(GapRecord) if gap.where == name]
        assert {gap.rank for gap in gaps} == {0, 1}
        assert all("sabotaged" in gap.reason for gap in gaps)
    for rank in (0, 1):
        blind = [i.blind for i in sidecar.records(IdentityRecord) if i.rank == rank][-1]
        off = [text.partition(": ") for text in blind if "is switched off after" in text]
        assert {reason.partition(" ")[0] for _, _, reason in off} == set(INSIDE)
        assert {name for name, _, _ in off} == {s for name in INSIDE for s in given_by(name)}
    assert sidecar.records(StepRecord) == []


def test_a_hook_may_fail_at_its_start_its_end_and_when_asked(tmp_path: Path) -> None:
    """A hook that cannot be installed, asked or removed costs itself; the others record on."""
    with FakeSidecar(tmp_path / "j") as sidecar:
        stderr = _sabotaged(tmp_path / "run", sidecar.endpoint, *AROUND.values())
    for name in AROUND:
        assert stderr.count(f"tracecore: {name} failed and is switched off") == 1
    steps = {(record.rank, record.step) for record in sidecar.records(StepRecord)}
    assert steps == {(rank, step) for rank in (0, 1) for step in range(60)}
    assert {step.num_batches for step in sidecar.records(StepRecord)} == {0}
    blind = " ".join(sidecar.records(IdentityRecord)[-1].blind)
    assert "input: dataloader is switched off after RuntimeError: sabotaged install" in blind
    assert "checkpoint: checkpoint is switched off after RuntimeError: sabotaged blind" in blind


def test_the_export_thread_may_fail(tmp_path: Path) -> None:
    """An export that raises is said once and sends nothing; the job notices nothing."""
    with FakeSidecar(tmp_path / "j") as sidecar:
        stderr = _sabotaged(tmp_path / "run", sidecar.endpoint, EXPORT)
    assert stderr.count("tracecore: export failed and is switched off") == 1
    assert sidecar.batches == []


def test_two_patchers_leave_in_either_order(tmp_path: Path) -> None:
    """Whoever patched first and whoever leaves first: every call gives what it gives without
    both, one save is one record, and nobody's patch comes back.
    """
    with FakeSidecar(tmp_path / "j") as sidecar:
        run = subprocess.run(
            [sys.executable, str(PROGRAMS / "two_patchers.py"), *ORDERS],
            env={**os.environ, "TRACECORE_ENDPOINT": sidecar.endpoint},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert (run.returncode, run.stderr) == (0, "")
    found = json.loads(run.stdout)
    for order, is_clean in ORDERS.items():
        assert found[order] == {"same": True, "num_their_calls_after": 0, "is_clean": is_clean}
    # We are there for two saves where theirs leave first, unless they cut us off, else for one.
    assert len(sidecar.records(CheckpointRecord)) == 2 + 1 + 1 + 1


def test_disabled_runs_not_one_line_of_ours(tmp_path: Path) -> None:
    """With TRACECORE_DISABLE=1 the rank of `tracecore run` has none of our modules, none of our
    directories on its path, no finder of ours and no variable of ours but the switch itself.
    """
    launch = Launch(tmp_path)
    script = launch.script(
        "import json, os, sys, torch, torch.utils.data\n"
        "ours = [n for n in sys.modules if 'tracecore' in n]\n"
        "files = [str(getattr(m, '__file__', '')) for m in list(sys.modules.values())]\n"
        "print(json.dumps([ours, [f for f in files if 'tracecore' in f],\n"
        "    [p for p in sys.path if p.endswith('bootstrap')],\n"
        "    [str(f) for f in sys.meta_path if 'tracecore' in str(f)],\n"
        "    sorted(k for k in os.environ if 'TRACECORE' in k)]))\n"
    )
    ended = launch.run("--nproc-per-node", "1", str(script), TRACECORE_DISABLE="1")
    assert ended.returncode == 0, ended.stderr
    expected = [[], [], [], [], ["TRACECORE_DISABLE", "TRACECORE_RUNTIME_DIR"]]
    assert json.loads(ended.stdout) == expected


def test_disabled_beside_the_bootstrap_imports_only_the_sitecustomize(tmp_path: Path) -> None:
    """Where the bootstrap is on the path all the same, the switch leaves it at that one file: no
    module of ours is imported, not even for a moment.
    """
    script = tmp_path / "script.py"
    script.write_text("import torch\n")
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(script)],
        env={
            **os.environ,
            "PYTHONPATH": str(BOOTSTRAP),
            "TRACECORE_BOOTSTRAP": "1",
            "TRACECORE_DISABLE": "1",
            "TRACECORE_ENDPOINT": f"unix:{tmp_path}/otlp.sock",
            "RANK": "0",
            "WORLD_SIZE": "1",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "torch" in imported
    assert "sitecustomize" in imported
    assert [name for name in imported if "tracecore" in name] == []
