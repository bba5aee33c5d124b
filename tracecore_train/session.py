"""``init()`` to ``shutdown()``: one session per process, recording or inert.

A session that has nothing to do (disabled, no sidecar, another process speaks for the rank, a
forked child) is inert: nothing installed, no thread, every call a no-op. Only bad settings raise;
every other failure is contained, said once, and leaves training alone.
"""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tracecore_train.claim import Claim
from tracecore_train.config import load_config
from tracecore_train.errors import TracecoreError
from tracecore_train.guard import Guard, say
from tracecore_train.identity import read_identity
from tracecore_train.rank import Rank
from tracecore_train.runtime import make_private_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tracecore_train.config import Config
    from tracecore_train.identity import Identity
    from tracecore_train.recorder.recorder import Recorder

_NO_SIDECAR = (
    "no sidecar, nothing is recorded; start with `tracecore run` or set TRACECORE_ENDPOINT"
)


class Session:
    """A recording rank, or an inert one. Ends at :meth:`stop`, ``with`` exit, or process exit."""

    def __init__(self, config: Config) -> None:
        """Hold the settings; :func:`init` starts it."""
        self.config = config
        self.recorder: Recorder | None = None
        """Where this rank's records go; None when the session is inert."""
        self.is_stopped = False
        self._rank: Rank | None = None
        self._claim: Claim | None = None

    def __enter__(self) -> Session:
        """Use the session in a ``with`` block."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    @property
    def is_active(self) -> bool:
        """Whether this session records anything."""
        return self.recorder is not None

    def start(self, *, is_quiet: bool = False) -> None:
        """Begin to record, unless there is a reason to stay inert. Raises only ``ConfigError``."""
        if self.config.disable:
            return
        if self.config.endpoint is None:
            if not is_quiet and os.environ.get("LOCAL_RANK", "0") == "0":
                say(_NO_SIDECAR)
            return
        install_faults = _fault_installer(self.config.fault)
        guard = Guard("init()")
        try:
            with guard:
                self._start_rank(self.config.endpoint, install_faults, is_quiet=is_quiet)
        except BaseException:
            # Ctrl-C while hooks are installed: nothing half-way stays behind.
            self.stop()
            raise
        if not guard.is_open:
            self.stop()

    def stop(self) -> None:
        """Hand over what is left (0.4 s at most) and undo everything; twice is harmless."""
        self.is_stopped = True
        rank, claim = self._rank, self._claim
        self.recorder = self._rank = self._claim = None
        if rank is not None:
            rank.stop()
        if claim is not None:
            claim.release()
        atexit.unregister(self.stop)

    def abandon(self) -> None:
        """Go inert in a forked child without touching what the parent shares with it."""
        rank = self._rank
        self.recorder = self._rank = self._claim = None
        if rank is not None:
            rank.abandon()

    def wait_until_forkable(self) -> None:
        """Before a fork: let the export thread finish its imports."""
        if self._rank is not None:
            self._rank.wait_until_forkable()

    def _start_rank(
        self,
        endpoint: str,
        install_faults: Callable[[int, int], Callable[[], None]] | None,
        *,
        is_quiet: bool,
    ) -> None:
        socket_path = Path(endpoint.removeprefix("unix:"))
        job = socket_path.parent
        identity = read_identity(job_id=self.config.job_id, job_name=job.name)
        if self._take_claim(job / str(identity.attempt), identity, is_quiet=is_quiet):
            self._rank = Rank(self.config, identity, socket_path)
            self._rank.start(install_faults)
            self.recorder = self._rank.recorder
            atexit.register(self.stop)

    def _take_claim(self, directory: Path, identity: Identity, *, is_quiet: bool) -> bool:
        """Say whether this process speaks for the rank; it does where nothing can be claimed."""
        claim = Claim(directory, identity.rank)
        try:
            make_private_dir(directory)
            holder = claim.take()
        except (TracecoreError, OSError):
            return True
        if holder == 0:
            self._claim = claim
            return True
        # Loader workers that run the script again are the claimant's own children.
        if not is_quiet and holder != os.getppid():
            say(f"process {holder} records rank {identity.rank}, so {os.getpid()} does not")
        return False


def _fault_installer(text: str | None) -> Callable[[int, int], Callable[[], None]] | None:
    if text is None:
        return None
    from tracecore_train.faults import install, parse_faults

    faults = parse_faults(text)
    return lambda rank, attempt: install(faults, rank=rank, attempt=attempt)


_current: Session | None = None


def init(**settings: object) -> Session:
    """Start recording this rank; give the running session when there is one.

    Settings are those of :class:`tracecore_train.config.Config`. Raises ``ConfigError`` when one
    is unknown or bad, and nothing else.
    """
    return open_session(settings)


def open_session(settings: dict[str, object], *, is_quiet: bool = False) -> Session:
    """Do what :func:`init` does; ``is_quiet`` gives no reasons for staying inert."""
    global _current
    config = load_config(settings)
    if _current is not None and not _current.is_stopped:
        if _current.is_active and settings and config != _current.config:
            say("init() was called again with other settings; those of the first call hold")
        return _current
    # Known before it starts: the hooks import torch, and its import may start a session, and a
    # fork meanwhile must find what to abandon.
    session = _current = Session(config)
    try:
        session.start(is_quiet=is_quiet)
    except BaseException:
        _current = None
        raise
    return session


def shutdown() -> None:
    """End the session, if there is one. A later ``init()`` starts a new one."""
    global _current
    session, _current = _current, None
    if session is not None:
        session.stop()


def current_recorder() -> Recorder | None:
    """Give where the running session records; None when nothing does."""
    return _current.recorder if _current is not None else None


def _before_fork() -> None:
    if _current is not None:
        _current.wait_until_forkable()


def _after_fork_in_child() -> None:
    if _current is not None:
        _current.abandon()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
