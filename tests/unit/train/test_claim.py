"""One process speaks for a rank."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tracecore_train.claim import Claim
from tracecore_train.identity import start_ticks

if TYPE_CHECKING:
    from pathlib import Path


def test_second_claim_of_one_process_holds(tmp_path: Path) -> None:
    """The process that holds a rank may claim it again."""
    assert Claim(tmp_path, 0).take() == 0
    assert Claim(tmp_path, 0).take() == 0


def test_living_claimant_keeps_the_rank(tmp_path: Path) -> None:
    """A claim of another living process names that process."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "r0.claim").write_text(f"{child.pid} {start_ticks(child.pid)}")
        assert Claim(tmp_path, 0).take() == child.pid
        assert Claim(tmp_path, 1).take() == 0
    finally:
        child.communicate(b"\n", timeout=30)


@pytest.mark.parametrize("content", ["", "junk", "1 2 3", f"{os.getpid()} 1", "99999999 5"])
def test_claim_of_nobody_alive_is_taken_over(tmp_path: Path, content: str) -> None:
    """A claim without a living process behind it (also a reused pid) does not count."""
    (tmp_path / "r0.claim").write_text(content)
    assert Claim(tmp_path, 0).take() == 0
    assert (tmp_path / "r0.claim").read_text().split()[0] == str(os.getpid())


def test_release_gives_up_only_what_is_ours(tmp_path: Path) -> None:
    """Releasing removes our claim and leaves somebody else's."""
    claim = Claim(tmp_path, 0)
    claim.take()
    claim.release()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "r0.claim").write_text("1 2")
    claim.release()
    assert (tmp_path / "r0.claim").read_text() == "1 2"


def test_unusable_directory_is_an_error(tmp_path: Path) -> None:
    """Where no file can be made the caller is told."""
    with pytest.raises(OSError, match="No such file"):
        Claim(tmp_path / "missing", 0).take()
