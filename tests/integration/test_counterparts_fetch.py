"""The script that fetches the counterparts never stands in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.counterparts import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(120)
NOBODY_LISTENS = "http://127.0.0.1:9"


def fetch(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in a checkout of its own, without a network."""
    (checkout / ".ci").mkdir(exist_ok=True)
    shutil.copy(ROOT / ".ci" / "counterparts", checkout / ".ci")
    return subprocess.run(
        [checkout / ".ci" / "counterparts"],
        env={**os.environ, "http_proxy": NOBODY_LISTENS, "https_proxy": NOBODY_LISTENS},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_without_a_network_it_gives_up_and_says_so(tmp_path: Path) -> None:
    """It succeeds, fetches nothing, and its last line says what follows."""
    done = fetch(tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith("tests that need them are skipped")
    assert not list(tmp_path.glob(".counterparts/bin/*"))


def test_with_everything_there_it_does_nothing(tmp_path: Path) -> None:
    """It is silent when the programs are there, also without a network."""
    there = tmp_path / ".counterparts" / "bin"
    there.mkdir(parents=True)
    for name in ("prometheus", "promtool", "victoria-metrics"):
        (there / name).touch(0o755)
    done = fetch(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
