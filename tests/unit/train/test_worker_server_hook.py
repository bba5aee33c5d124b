"""A worker server that did not start is a blind spot, also for the next session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support import torch_shapes
from tracecore_train.guard import Guard
from tracecore_train.hooks import worker_server
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.worker_server import WorkerServerHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_failed_start_is_not_taken_for_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a start that failed, a second session on the same path tries again and says why."""

    def refuse(*args: Any) -> None:
        raise RuntimeError("no thread")

    fake = torch_shapes.install(monkeypatch, "2.13")
    monkeypatch.setattr(fake.extension, "_WorkerServer", refuse, raising=False)
    monkeypatch.setattr(worker_server, "_started", [])
    fake.make_group("0", {"cpu": "gloo"})
    context = HookContext(
        recorder=Recorder(RankPage.in_memory(), rank=0), rank=0, socket_path=tmp_path / "r0.ws"
    )
    for _ in range(2):
        hook = WorkerServerHook(context, Guard("worker_server"))
        hook.install()
        hook.poll(True)
        assert [text for text in hook.blind() if "no thread" in text]
