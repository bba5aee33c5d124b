"""Environments with a chosen torch: thrown away after use, or kept in a folder and used again."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.matrix.commands import CommandError, must

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALL_LIMIT_S = 1_800
"""For each of the steps; torch with its CUDA libraries took 75 to 135 s on a fast line."""
GB = 10**9


@contextlib.contextmanager
def environment(version: str, *, python: str, keep: Path | None, needed_gb: float) -> Iterator[str]:
    """Install a version, and give the environment's interpreter; raises ``CommandError``."""
    with contextlib.ExitStack() as stack:
        if keep is None:
            made = tempfile.TemporaryDirectory(
                prefix=f"tracecore-torch-{version}-", ignore_cleanup_errors=True
            )
            directory = Path(stack.enter_context(made))
        else:
            directory = keep.resolve() / version
        is_new = not (directory / "bin" / "python").exists()
        if is_new:
            directory.mkdir(parents=True, exist_ok=True)
            _check_room(directory, needed_gb)
        try:
            yield _install(version, directory, python, is_new=is_new)
        except CommandError:
            if is_new:
                shutil.rmtree(directory, ignore_errors=True)
            raise


def _check_room(directory: Path, needed_gb: float) -> None:
    # pip unpacks below the temporary folder before it installs.
    for place in (directory, Path(tempfile.gettempdir())):
        free_gb = shutil.disk_usage(place).free / GB
        if free_gb < needed_gb:
            raise CommandError(f"{free_gb:.0f} GB are free in {place}, --needs is {needed_gb:g} GB")


def _install(version: str, directory: Path, python: str, *, is_new: bool) -> str:
    inside = str(directory / "bin" / "python")
    pip = (inside, "-m", "pip", "install", "--quiet")
    steps = [
        (*pip, "--upgrade", "pip>=25.1"),
        (*pip, *_torch(version)),
        (*pip, "--editable", ".", "--group", "test"),
    ]
    if is_new:
        steps.insert(0, (python, "-m", "venv", str(directory)))
    for step in steps:
        began = time.monotonic()
        must(step, limit_s=INSTALL_LIMIT_S)
        took_s = time.monotonic() - began
        sys.stderr.write(f"matrix: {version}: {step[-1]}: {took_s:.0f} s\n")
    return inside


def _torch(version: str) -> tuple[str, ...]:
    if version == "newest":
        return ("--upgrade", "torch")
    return (f"torch=={version}",) if version.count(".") > 1 else (f"torch=={version}.*",)
