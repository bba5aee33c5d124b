"""What follows a hang on real jobs: the bundle while the job lives, then what the user wanted."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.jobs import ROOT, TRAIN_SLEEP
from tests.support.live_jobs import LiveJob
from tests.support.small_disk import small_disk
from tracecore_sidecar.replay import replay_path, verdict_json
from tracecore_sidecar.sources.stacks import find_py_spy

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRAIN_ONCE = ROOT / "tests" / "support" / "programs" / "train_once.py"
PREFIX = "comm_lib_trace_rank_"
STEPS = ("--steps", "60", "--step-ms", "45")


def hang(directory: Path, on_hang: str, *, how: str = "sleep", **more: Any) -> LiveJob:
    """A job whose rank 1 stops for ten minutes at step 30."""
    options = ("--on-hang", on_hang, "--fault", f"hang:rank=1,at=30,for=600,how={how}")
    program = more.pop("program", TRAIN_SLEEP)
    return LiveJob(directory, program, *STEPS, options=options, **more)


def manifest_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def analyzed(directory: Path, *options: str) -> str:
    """What torch's own analyzer says about a directory of dumps."""
    command = [sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace"]
    done = subprocess.run(
        [*command, str(directory), "-p", PREFIX, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_hang_leaves_a_bundle_and_the_command_gets_it(tmp_path: Path) -> None:
    """While the job lives the bundle is whole, holds what it must and no secret, and is told."""
    script = tmp_path / "notify.sh"
    script.write_text('#!/bin/sh\necho "told: $2"\ntest -e "$2/manifest.json" && exit 7\n')
    script.chmod(0o755)
    with hang(tmp_path, f"{script} --token=hunter2", WANDB_API_KEY="hunter2") as job:
        job.wait_for_text("On hang  ")
        assert job.is_alive
        (bundle,) = job.bundles
        assert f"Bundle   {bundle}/ (hang," in job.errors
        assert f"{script} ended with exit code 7" in job.errors
        assert job.errors.index("HANG  rank 1") < job.errors.index("Bundle   ")
        (verdict,) = job.verdicts()

    manifest = manifest_of(bundle)
    assert (manifest["kind"], manifest["schema_version"]) == ("tracecore bundle", 1)
    assert bundle.name == manifest["incident_id"] == verdict["incident_id"]
    assert manifest["verdict"] == verdict
    assert manifest["missing"] == []
    roles = [(rank["rank"], rank["role"]) for rank in manifest["ranks"]]
    assert roles == [(1, "suspect"), (0, "waiter")]
    assert manifest["groups"][0]["ranks"] == [0, 1]
    assert manifest["node"]["cpu_count"] == os.cpu_count()
    assert list(manifest["versions"]["torch_by_ranks"].values()) == [[0, 1]]

    listed = {file["path"]: file["num_bytes"] for file in manifest["files"]}
    there = {
        str(path.relative_to(bundle)): path.stat().st_size
        for path in bundle.rglob("*")
        if path.is_file()
    }
    assert {"on_hang.json", "manifest.json"} <= there.keys() - listed.keys()
    del there["on_hang.json"], there["manifest.json"]
    assert there == listed
    assert not any(b"hunter2" in path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    note = json.loads((bundle / "on_hang.json").read_text())
    assert (note["exit_code"], note["output"]) == (7, f"told: {bundle.absolute()}\n")

    process = json.loads((bundle / "process" / "rank1.json").read_text())
    assert (process["rank"], process["state"]) == (1, "S")
    assert process["cpu_share"] < 0.5
    assert process["environment"]["RANK"] == "1"
    assert {"train_sleep.py", "rehearsal.py"} <= {
        word.rpartition("/")[2].partition(":")[0].lstrip("(")
        for word in (bundle / "stacks" / "rank1.txt").read_text().split()
    }
    page = json.loads((bundle / "pages" / "attempt0-r1.json").read_text())
    assert (page["rank"], page["step"]) == (1, 30)

    raw = json.loads(
        gzip.decompress((bundle / "dumps" / "raw" / "rank0.gloo.json.gz").read_bytes())
    )
    loaded = pickle.loads((bundle / "dumps" / "torch" / "gloo" / f"{PREFIX}0").read_bytes())
    assert len(loaded["entries"]) == len(raw["entries"]) > 30
    assert loaded["pg_config"]["0"]["ranks"] == "[0, 1]"
    assert "missing ranks: {1}" in analyzed(bundle / "dumps" / "torch" / "gloo")

    replayed = [verdict_json(item) for item in replay_path(bundle / "records")]
    assert {tuple(s["rank"] for s in found["suspects"]) for found in replayed} == {(1,)}


def test_abort_ends_the_attempt_and_torchrun_starts_the_next(tmp_path: Path) -> None:
    """A stopped rank and the waiting one are ended after the bundle; the next attempt runs."""
    with hang(
        tmp_path, "abort", how="stop", program=TRAIN_ONCE, torchrun=("--max-restarts", "1")
    ) as job:
        assert job.wait_for_end() == 0, job.errors
    assert {"rank 0 of attempt 1", "rank 1 of attempt 1"} <= set(job.text.splitlines())
    (bundle,) = job.bundles
    note = json.loads((bundle / "on_hang.json").read_text())
    assert (note["action"], note["attempt"], note["spared"]) == ("abort", 0, {})
    assert set(note["ended"]) == {"0", "1"}
    assert 1700 < note["seconds_saved"] < 1800
    assert "before torch's own timeout would have" in job.errors
    # A stopped rank answers no pull; that is said, and the rest is there.
    missing = {item["what"]: item["reason"] for item in manifest_of(bundle)["missing"]}
    assert set(missing) == {"gloo flight recorder of rank 1"}
    assert "no answer" in missing["gloo flight recorder of rank 1"]
    # Without that dump torch's analyzer reads the other and can name nobody.
    dumps = bundle / "dumps" / "torch" / "gloo"
    assert "We cannot decide what's wrong" in analyzed(dumps, "--allow-incomplete-ranks")
    # What follows the abort is the same trouble, not a new one.
    assert {verdict["incident_id"] for verdict in job.verdicts()} == {bundle.name}


@pytest.mark.skipif(find_py_spy() is None, reason="py-spy is not installed")
def test_dump_leaves_dumps_for_torch_and_a_busy_suspect_its_native_stack(tmp_path: Path) -> None:
    """Dumps lie in a directory of their own, which torch's analyzer reads as it stands."""
    with hang(tmp_path, "dump", how="gil") as job:
        job.wait_for_text("fr_trace")
        (bundle,) = job.bundles
        directory = job.output / "0" / "dumps" / bundle.name
        wanted = job.errors.partition("fr_trace ")[2].split()
        assert wanted[:3] == [str(directory / "gloo"), "-p", PREFIX]
    names = sorted(path.name for path in (directory / "gloo").iterdir())
    assert names == [f"{PREFIX}0", f"{PREFIX}1"]
    assert "missing ranks: {1}" in analyzed(directory / "gloo")
    native = (bundle / "stacks" / "rank1.native.txt").read_text()
    plain = (bundle / "stacks" / "rank1.txt").read_text()
    assert len(native) > len(plain)
    assert "holds the GIL" in native + plain


def test_a_full_disk_costs_the_bundle_and_not_the_verdict(tmp_path: Path) -> None:
    """Where no bundle can be written the verdict is told all the same, and no action follows."""
    with small_disk(tmp_path / "d") as disk:
        script = tmp_path / "never"
        called = tmp_path / "called"
        script.write_text(f"#!/bin/sh\ntouch {called}\n")
        script.chmod(0o755)
        with hang(tmp_path, str(script), output=disk.path / "out") as job:
            job.wait_for_text("rehearsal active")
            disk.fill()
            job.wait_for_text("Bundle   none: ")
            assert "HANG  rank 1 never joined" in job.errors
            assert "No space left on device; without one, no command" in job.errors
            assert job.is_alive
            assert job.bundles == []
            assert not list((job.output / "0").glob("bundles/.*"))
        assert job.errors.count("no bundle: ") == 1
        assert not called.exists()
