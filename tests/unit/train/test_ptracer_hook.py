"""The sidecar is named as tracer where Yama asks for it, and so is its successor."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar, wait_until
from tracecore_train.guard import Guard
from tracecore_train.hooks import ptracer
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.ptracer import PtracerHook
from tracecore_train.recorder.page import RankPage
from tracecore_train.recorder.recorder import Recorder

if TYPE_CHECKING:
    from pathlib import Path

UID = os.getuid()


class Kernel:
    """Stands for ``prctl`` and for the other end of the socket."""

    def __init__(self) -> None:
        self.peer: tuple[int, int] | None = None
        self.named: list[int] = []
        self.error = 0

    def set_ptracer(self, pid: int) -> int:
        self.named.append(pid)
        return self.error


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(ptracer, "set_ptracer", made.set_ptracer)
    return made


def hook_under(
    scope: str | None, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PtracerHook:
    path = tmp_path / "ptrace_scope"
    if scope is not None:
        path.write_text(f"{scope}\n")
    monkeypatch.setattr(ptracer, "SCOPE_FILE", path)
    context = HookContext(
        recorder=Recorder(RankPage.in_memory(), rank=0),
        rank=0,
        socket_path=None,
        sidecar=lambda: kernel.peer,
    )
    hook = PtracerHook(context, Guard("ptracer"))
    hook.install()
    return hook


def test_a_restricted_rank_names_its_sidecar_and_the_next_one(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scope 1: nobody before the connection, each sidecar once, nobody after the end."""
    hook = hook_under("1", kernel, tmp_path, monkeypatch)
    hook.poll(True)
    assert kernel.named == []
    for kernel.peer in [(41, UID), (41, UID), (42, 0)]:
        hook.poll(False)
    assert kernel.named == [41, 42]
    hook.uninstall()
    assert kernel.named == [41, 42, 0]
    assert hook.blind() == []


@pytest.mark.parametrize(
    ("scope", "blind"), [(None, ""), ("0", ""), ("2", "CAP_SYS_PTRACE"), ("3", "starts anew")]
)
def test_elsewhere_nothing_is_asked_of_the_kernel(
    kernel: Kernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scope: str | None,
    blind: str,
) -> None:
    """Without Yama, or where naming cannot help, nobody is named; 2 and 3 are said as blind."""
    hook = hook_under(scope, kernel, tmp_path, monkeypatch)
    kernel.peer = (41, UID)
    hook.poll(True)
    hook.uninstall()
    assert kernel.named == []
    assert [blind in text for text in hook.blind()] == ([True] if blind else [])


@pytest.mark.parametrize("peer", [(0, UID), (41, UID + 1 or 1)])
def test_a_stranger_is_not_named(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: tuple[int, int]
) -> None:
    """A peer of another pid namespace or another user may not trace, and the rank says so."""
    hook = hook_under("1", kernel, tmp_path, monkeypatch)
    kernel.peer = peer
    hook.poll(True)
    assert kernel.named == []
    assert "another" in hook.blind()[0]


def test_a_refusal_of_the_kernel_is_blindness(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seccomp filter that forbids the call is a reason, and it is tried again."""
    hook = hook_under("1", kernel, tmp_path, monkeypatch)
    kernel.peer, kernel.error = (41, UID), errno.EPERM
    hook.poll(True)
    assert "refused" in hook.blind()[0]
    kernel.error = 0
    hook.poll(False)
    assert hook.blind() == []


def test_this_kernel_takes_or_refuses_the_real_call() -> None:
    """The call itself ends in success, or in the error of a kernel without Yama."""
    assert ptracer.set_ptracer(os.getpid()) in {0, errno.EINVAL}
    assert ptracer.set_ptracer(0) in {0, errno.EINVAL}


def test_the_peer_of_the_socket_is_who_listens(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session under scope 1 names the process that holds the sidecar's socket."""
    path = tmp_path / "ptrace_scope"
    path.write_text("1")
    monkeypatch.setattr(ptracer, "SCOPE_FILE", path)
    with FakeSidecar(tmp_path / "j") as sidecar:
        tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=0.1, hooks="ptracer")
        wait_until(lambda: kernel.named)
        tracecore_train.shutdown()
    assert kernel.named == [os.getpid(), 0]
