"""One recording rank, put together: page, recorder, faults, hooks, export thread.

:meth:`Rank.start` builds in the order data flows and :meth:`Rank.stop` undoes it in reverse,
however far it came. What cannot be had is noted as blind, and the rest works without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train.config import DEFAULT_HOOKS
from tracecore_train.errors import HookUnavailableError, TracecoreError
from tracecore_train.export.otlp_http import OtlpHttpClient
from tracecore_train.export.worker import ExportWorker
from tracecore_train.guard import Guard, say
from tracecore_train.hooks import HOOKS, EndingHook
from tracecore_train.hooks.context import HookContext
from tracecore_train.hooks.failure import EXCEPTION_WORD
from tracecore_train.recorder.clock import now_ns, wall_offset_ns
from tracecore_train.recorder.page import RankPage, Text, Word
from tracecore_train.recorder.recorder import Recorder
from tracecore_train.runtime import make_private_dir, rank_page, worker_server_socket
from tracecore_train.self_report import SelfReport
from tracecore_train.wire import signals
from tracecore_train.wire.records import LastWordRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tracecore_train.config import Config
    from tracecore_train.hooks import Hook
    from tracecore_train.identity import Identity
    from tracecore_train.wire.records import Record

NORMAL_WORD = "exit"
"""Last word of a rank that ended by itself; one that an exception ends says ``exception``."""


class Rank:
    """Everything of ours that is alive in a recording process."""

    def __init__(self, config: Config, identity: Identity, socket_path: Path) -> None:
        """Prepare; nothing is made, patched or started yet."""
        self._config = config
        self._identity = identity
        self._socket_path = socket_path
        self._job = socket_path.parent
        self._blind: list[str] = []
        self._off: list[str] = []
        self._guards: list[Guard] = []
        self._hooks: list[tuple[Hook, Guard]] = []
        self._uninstall_faults: Callable[[], None] | None = None
        self._client = OtlpHttpClient(str(socket_path))
        self._worker: ExportWorker | None = None
        self.recorder = Recorder(RankPage.in_memory(), rank=identity.rank)
        """Where hooks write."""

    def start(self, install_faults: Callable[[int, int], Callable[[], None]] | None) -> None:
        """Make the page, install faults and hooks, start the export thread."""
        identity = self._identity
        has_directory = self._make_page()
        if install_faults is not None:
            self._uninstall_faults = install_faults(identity.rank, identity.attempt)
        socket = worker_server_socket(self._job, identity.attempt, identity.rank)
        self._install_hooks(
            HookContext(
                recorder=self.recorder,
                rank=identity.rank,
                socket_path=socket if has_directory else None,
                sidecar=lambda: self._client.peer,
            )
        )
        report = SelfReport(
            identity, blind=self._blind, off=self._off, hooks=self._hooks, guards=self._guards
        )
        self._worker = ExportWorker(
            client=self._client,
            rank=identity.rank,
            source=identity.source,
            recorder=self.recorder,
            report=report,
            interval_s=self._config.flush_interval,
            guard=self._guard("export"),
            last_records=self._last_records,
        )
        self._worker.start()

    def stop(self) -> None:
        """Say the last word, hand over what is left (0.4 s at most), and undo everything."""
        self._note_ends()
        with Guard("shutdown"):
            if not self._is_ended_by_exception():
                self.recorder.page.write_text(Text.LAST_WORD, NORMAL_WORD)
            if self._worker is not None:
                self._worker.stop()
        self._uninstall_hooks()
        with Guard("faults (uninstall)"):
            if self._uninstall_faults is not None:
                self._uninstall_faults()
        self.recorder.page.detach()

    def abandon(self) -> None:
        """Go inert in a forked child without touching what the parent shares with it."""
        for guard in self._guards:
            guard.close()
        self.recorder.page.detach()
        self._client.close()

    def wait_until_forkable(self) -> None:
        """Before a fork: let the export thread finish its imports."""
        if self._worker is not None:
            self._worker.wait_until_forkable()

    def _guard(self, name: str) -> Guard:
        guard = Guard(name)
        self._guards.append(guard)
        return guard

    def _make_page(self) -> bool:
        """Make the rank page; say whether the attempt has a private directory."""
        identity = self._identity
        path = rank_page(self._job, identity.attempt, identity.rank)
        try:
            make_private_dir(path.parent)
        except TracecoreError as error:
            self._blind.append(f"rank_page: {error}")
            return False
        try:
            self.recorder.page = RankPage.create(
                path,
                rank=identity.rank,
                attempt=identity.attempt,
                start_ticks=identity.start_ticks,
                wall_offset_ns=wall_offset_ns(),
            )
        except OSError as error:
            self._blind.append(f"rank_page: cannot make {path} ({error.strerror})")
        return True

    def _install_hooks(self, context: HookContext) -> None:
        is_asked_for = self._config.hooks != DEFAULT_HOOKS
        for hook_class in HOOKS:
            if hook_class.name not in self._config.hooks:
                self._off += signals.given_by(hook_class.name)
                continue
            guard = self._guard(hook_class.name)
            with guard:
                hook = hook_class(context, guard)
                self._hooks.append((hook, guard))
                try:
                    hook.install()
                except HookUnavailableError as error:
                    guard.close()
                    self._blind += signals.explain(signals.given_by(hook.name), str(error))
                    if is_asked_for:
                        say(f"hook {hook.name} is not available: {error}")
            if not guard.is_open:
                self._uninstall_hooks(hook_class.name)

    def _uninstall_hooks(self, name: str = "") -> None:
        """Uninstall every hook, or only the one of a name whose installation failed."""
        for hook, guard in reversed(self._hooks):
            if name in ("", hook.name):
                guard.close()
                with Guard(f"{hook.name} (uninstall)"):
                    hook.uninstall()

    def _note_ends(self) -> None:
        for hook, guard in self._hooks:
            if isinstance(hook, EndingHook) and guard.is_open:
                with guard:
                    hook.before_last_word()

    def _is_ended_by_exception(self) -> bool:
        return bool(self.recorder.page.words[Word.EXCEPTION_TIME])

    def _last_records(self) -> list[Record]:
        word = EXCEPTION_WORD if self._is_ended_by_exception() else NORMAL_WORD
        return [LastWordRecord(time_ns=now_ns(), rank=self._identity.rank, word=word)]
