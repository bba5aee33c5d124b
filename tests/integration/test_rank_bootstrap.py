"""An unchanged script under the bootstrap: recorded when it is a rank, and it notices nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar
from tracecore_train.wire.records import StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("torch")

BOOTSTRAP = Path(tracecore_train.__file__).parent / "bootstrap"
RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TRACECORE_BOOTSTRAP": "1"}
STATE = """
import json, sys
def state():
    loaded = sys.modules.get("tracecore_train.session")
    current = loaded._current if loaded else None
    return {
        "path": sys.path, "argv": sys.argv, "main": __name__, "file": __file__,
        "meta": [str(finder) for finder in sys.meta_path],
        "loaded": "tracecore_train" in sys.modules,
        "active": bool(current and current.is_active),
    }
"""


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[FakeSidecar]:
    with FakeSidecar(tmp_path / "j") as started:
        yield started


def _run(
    tmp_path: Path, body: str, sidecar: FakeSidecar | None, **variables: str
) -> dict[str, Any]:
    """Run a script and read the JSON of its last line; without a sidecar, without us."""
    script = tmp_path / "script.py"
    script.write_text(STATE + body)
    environment = {**os.environ, **variables}
    if sidecar is not None:
        path = [str(BOOTSTRAP), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        environment |= {**RANK, "TRACECORE_ENDPOINT": sidecar.endpoint, **variables}
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    run = subprocess.run(
        [sys.executable, str(script), "--lr", "3"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_rank_that_imports_torch_records(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """Importing torch starts the session; steps arrive though the script names us nowhere."""
    body = (
        "import torch\n"
        "p = torch.nn.Parameter(torch.ones(1)); p.grad = torch.ones(1)\n"
        "torch.optim.SGD([p], lr=0.1).step()\n"
        "print(json.dumps(state()))"
    )
    assert _run(tmp_path, body, sidecar)["active"]
    assert len(sidecar.records(StepRecord)) == 1


def test_script_notices_nothing(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """Path, arguments, ``__main__`` and import machinery are what they are without us."""
    body = (
        "import torch\n"
        "found = state(); found['loader'] = type(torch.__spec__.loader).__name__\n"
        "found['own'] = 'exec_module' in vars(torch.__spec__.loader)\n"
        "print(json.dumps(found))"
    )
    with_us, without = _run(tmp_path, body, sidecar), _run(tmp_path, body, None)
    assert with_us["active"]
    for name in ("path", "argv", "main", "file", "loader", "own"):
        assert with_us[name] == without[name], name
    assert [finder for finder in with_us["meta"] if "tracecore" in finder] == []


def test_looking_for_torch_first_does_not_lose_the_start(
    tmp_path: Path, sidecar: FakeSidecar
) -> None:
    """A library that checks whether torch exists before importing it changes nothing."""
    body = (
        "import importlib.util\n"
        "assert importlib.util.find_spec('torch') is not None\n"
        "assert not state()['active']\n"
        "import torch\n"
        "print(json.dumps(state()))"
    )
    assert _run(tmp_path, body, sidecar)["active"]


@pytest.mark.parametrize(
    "variables", [{"TRACECORE_DISABLE": "1"}, {"RANK": ""}, {"TRACECORE_BOOTSTRAP": "0"}]
)
def test_process_that_is_no_rank_runs_no_line_of_ours(
    tmp_path: Path, sidecar: FakeSidecar, variables: dict[str, str]
) -> None:
    """Disabled, without a rank, or outside the launcher, our package is not even imported."""
    found = _run(tmp_path, "import torch\nprint(json.dumps(state()))", sidecar, **variables)
    assert not found["loaded"]


def test_next_sitecustomize_runs(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """A sitecustomize that stands behind ours on the path runs, as the module of that name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("marker = 'theirs'\n")
    body = "import sitecustomize, torch\nfound = state(); found['marker'] = sitecustomize.marker\n"
    body += "print(json.dumps(found))"
    found = _run(tmp_path, body, sidecar, PYTHONPATH=str(tmp_path / "site"))
    assert (found["marker"], found["active"]) == ("theirs", True)


@pytest.mark.parametrize("context", ["spawn", "forkserver", "fork"])
def test_loader_workers_stay_inert(tmp_path: Path, sidecar: FakeSidecar, context: str) -> None:
    """A loader worker of any start method records nothing; its rank does."""
    body = f"""
import torch
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, index): return int(state()["active"])
if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Rows(), num_workers=1, multiprocessing_context="{context}")
    found = [int(batch) for batch in loader]
    print(json.dumps({{**state(), "workers": found}}))
"""
    found = _run(tmp_path, body, sidecar)
    assert (found["active"], found["workers"]) == (True, [0, 0])
    assert len({batch.source.pid for batch in sidecar.batches}) == 1


def test_program_started_by_a_rank_stays_inert(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """A helper that imports torch itself finds the rank claimed and says nothing."""
    (tmp_path / "helper.py").write_text(STATE + "import torch\nprint(json.dumps(state()))")
    body = f"""
import subprocess, torch
run = subprocess.run([sys.executable, {str(tmp_path / "helper.py")!r}], capture_output=True)
print(json.dumps({{"rank": state(), "helper": json.loads(run.stdout), "err": run.stderr.decode()}}))
"""
    found = _run(tmp_path, body, sidecar)
    assert (found["rank"]["active"], found["helper"]["active"]) == (True, False)
    assert found["err"] == ""


def test_bad_setting_is_one_line_and_the_script_runs(tmp_path: Path, sidecar: FakeSidecar) -> None:
    """A bad TRACECORE_ variable under the bootstrap is said on stderr and stops nothing."""
    run = subprocess.run(
        [sys.executable, "-c", "import torch; print('trained')"],
        env={
            **os.environ,
            **RANK,
            "PYTHONPATH": str(BOOTSTRAP),
            "TRACECORE_ENDPOINT": sidecar.endpoint,
            "TRACECORE_FLUSH_INTERVAL": "soon",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "trained\n")
    assert run.stderr.count("\n") == 1
    assert "TRACECORE_FLUSH_INTERVAL" in run.stderr
