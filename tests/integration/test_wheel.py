"""The artefact that is shipped works in a clean environment without torch."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and give its output; a failure shows it."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the freshly built wheel and no torch."""
    base = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--outdir", base / "dist", ROOT, cwd=base)
    (wheel,) = (base / "dist").glob("*.whl")
    venv.create(base / "venv", with_pip=True)
    run(base / "venv/bin/pip", "install", "--quiet", wheel, cwd=base)
    return base


def test_the_three_packages_import_without_torch(clean: Path) -> None:
    """Rank side, sidecar and integrations import where torch is not installed."""
    code = (
        "import importlib.util, pkgutil, sys\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "import tracecore_train, tracecore_sidecar, tracecore_integrations\n"
        "names = [m.name for p in (tracecore_train, tracecore_sidecar) "
        "for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.') "
        "if not m.name.endswith(('__main__', 'sitecustomize'))]\n"
        "[importlib.import_module(name) for name in names if '.hooks' not in name]\n"
        "print(len(names))\n"
    )
    assert int(run(clean / "venv/bin/python", "-c", code, cwd=clean)) > 20


def test_the_command_is_installed(clean: Path) -> None:
    """`tracecore --version` and the help of each subcommand answer."""
    tracecore = clean / "venv/bin/tracecore"
    assert "0." in run(tracecore, "--version", cwd=clean)
    assert "Examples" in run(tracecore, "--help", cwd=clean)
    assert "Example" in run(tracecore, "sidecar", "--help", cwd=clean)
    assert "PATH" in run(tracecore, "replay", "--help", cwd=clean)


def test_replay_works_without_torch(clean: Path) -> None:
    """A recorded hang gives its verdict from the installed wheel alone."""
    recording = ROOT / "tests" / "replay" / "recordings" / "hang_backward.jsonl.gz"
    assert "HANG" in run(clean / "venv/bin/tracecore", "replay", recording, cwd=clean)


def test_the_bootstrap_and_type_markers_are_shipped(clean: Path) -> None:
    """Files that are no modules are in the wheel too."""
    (site,) = (clean / "venv" / "lib").glob("python*/site-packages")
    assert (site / "tracecore_train" / "bootstrap" / "sitecustomize.py").is_file()
    assert (site / "tracecore_train" / "py.typed").is_file()
    assert (site / "tracecore_sidecar" / "py.typed").is_file()
