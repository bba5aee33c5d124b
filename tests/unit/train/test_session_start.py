"""While init() runs: torch's import may start a session, Ctrl-C may come, a hook may fail."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar
from tracecore_train import guard as guard_module
from tracecore_train import hooks, rank, session
from tracecore_train.config import load_config
from tracecore_train.errors import ConfigError
from tracecore_train.hooks.garbage import GarbageHook

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torch")

_IMPORTED_BY_INIT = """
import threading
from tracecore_train import autostart
autostart.arm()
import tracecore_train
session = tracecore_train.init()
from torch.optim import optimizer
print(session.is_active, [t.name for t in threading.enumerate()].count("tracecore-export"),
      len(optimizer._global_optimizer_post_hooks))
tracecore_train.shutdown()
print([t.name for t in threading.enumerate()], len(optimizer._global_optimizer_post_hooks))
"""


def test_init_before_torch_is_one_session_under_the_launcher(tmp_path: Path) -> None:
    """init() imports torch, whose import starts recording: once, and all of it ends."""
    environ = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "TRACECORE_ENDPOINT": f"unix:{tmp_path}/j/otlp.sock",
        "TRACECORE_HOOKS": "optimizer",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED_BY_INIT],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == ["True 1 1", "['MainThread'] 0"], done.stderr


def test_ctrl_c_inside_init_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while hooks are installed reaches the user, and a later init() works."""

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with FakeSidecar(tmp_path / "j") as sidecar:
        with monkeypatch.context() as patched:
            patched.setattr(GarbageHook, "install", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tracecore_train.init(endpoint=sidecar.endpoint)
        assert session._current is None
        assert "tracecore-export" not in [thread.name for thread in threading.enumerate()]
        assert tracecore_train.init(endpoint=sidecar.endpoint).is_active
        tracecore_train.shutdown()


def test_a_hook_that_fails_half_way_is_taken_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had installed does not stay until the end of the job."""
    calls: list[str] = []

    class Failing(GarbageHook):
        def install(self) -> None:
            raise ValueError("half-way")

        def uninstall(self) -> None:
            calls.append("uninstall")

    monkeypatch.setattr(guard_module, "raise_in_tests", False)
    monkeypatch.setattr(rank, "HOOKS", (*hooks.HOOKS, Failing))
    with FakeSidecar(tmp_path / "j") as sidecar:
        assert tracecore_train.init(endpoint=sidecar.endpoint).is_active
        assert calls == ["uninstall"]
        tracecore_train.shutdown()


def test_a_bad_fault_leaves_no_session() -> None:
    """ConfigError while a session starts: the next init() is judged by its own settings."""
    with pytest.raises(ConfigError):
        tracecore_train.init(endpoint="unix:/nowhere/j/otlp.sock", fault="bang:rank=0")
    assert session._current is None


@pytest.mark.parametrize(
    "settings", [{"flush_interval": 10**400}, {"hooks": "--dataloader"}, {"hooks": "+-gc"}]
)
def test_odd_settings_are_refused(settings: dict[str, object]) -> None:
    """A number no float can hold and a sign too many are ConfigErrors, not silence."""
    with pytest.raises(ConfigError):
        load_config(settings, {})
