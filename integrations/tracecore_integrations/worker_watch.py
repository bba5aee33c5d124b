"""What only the parent of the workers knows: their pids, and how each of them ended.

:class:`WorkerWatch` wraps the one method of torchrun's local agent that starts workers, and from
then on looks at their exit status without taking it away from torchrun: it reads what torchrun's
own wait left behind, or peeks with ``WNOWAIT``. The methods are private names of torch; where
they are missing the watch is blind and says why.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_train.wire.records import RendezvousRecord, WorkerExitRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracecore_train.wire.records import Record

MAX_WATCHED = 65_536
"""Workers watched at a time; far above what one host runs, reached only if exits go unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A record of the launcher, with what its source needs to say besides."""

    attempt: int
    node_rank: int
    world_size: int
    record: Record


@dataclass(slots=True, kw_only=True)
class _Worker:
    rank: int
    pid: int
    attempt: int
    node_rank: int
    world_size: int
    process: object
    """torchrun's handle, whose exit status is read once torchrun has waited for it."""


class WorkerWatch:
    """Sees workers start and end. ``emit`` is called on the launcher's threads; it must not wait.

    ``install`` and ``uninstall`` patch and restore torch; :meth:`look` is called regularly.
    """

    def __init__(self, emit: Callable[[Sighting], None]) -> None:
        """Watch nothing yet."""
        self._emit = emit
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._agent_class: Any = None
        self._original: Any = None
        self._installed: Any = None
        self.blind: str | None = None
        """Why worker starts and exits cannot be seen; None while they can."""

    def install(self) -> None:
        """Wrap torchrun's start of workers, or note in ``blind`` why that is impossible."""
        try:
            from torch.distributed.elastic.agent.server.local_elastic_agent import (
                LocalElasticAgent,
            )

            original = vars(LocalElasticAgent)["_start_workers"]
        except (ImportError, KeyError) as error:
            self.blind = f"this torch has no LocalElasticAgent._start_workers ({error!r})"
            return

        @functools.wraps(original)
        def start_workers(agent: Any, worker_group: Any) -> Any:
            pids = original(agent, worker_group)
            self._on_start(agent, worker_group, pids)
            return pids

        self._agent_class, self._original = LocalElasticAgent, original
        self._installed = start_workers
        setattr(LocalElasticAgent, "_start_workers", start_workers)  # noqa: B010  (private name)

    def uninstall(self) -> None:
        """Put back what was replaced, unless somebody wrapped it again since."""
        if self._agent_class is None:
            return
        if vars(self._agent_class).get("_start_workers") is self._installed:
            self._agent_class._start_workers = self._original
        self._agent_class = None

    def look(self) -> None:
        """Emit an exit for every worker that ended since the last look."""
        with self._lock:
            watched = list(self._workers)
        for worker in watched:
            status = _exit_status(worker)
            if status is None:
                continue
            with self._lock:
                self._workers.remove(worker)
            self._emit(
                Sighting(
                    attempt=worker.attempt,
                    node_rank=worker.node_rank,
                    world_size=worker.world_size,
                    record=WorkerExitRecord(
                        time_ns=time.monotonic_ns(),
                        rank=worker.rank,
                        pid=worker.pid,
                        exit_code=status if status >= 0 else None,
                        signal=-status if status < 0 else None,
                    ),
                )
            )

    def _on_start(self, agent: Any, worker_group: Any, pids: Any) -> None:
        # Called by torchrun: whatever a future torch changes here, its start goes on.
        try:
            processes = _processes(agent)
            started = [
                _Worker(
                    rank=int(worker.global_rank),
                    pid=int(pids[worker.local_rank]),
                    attempt=int(worker_group.spec.max_restarts - agent._remaining_restarts),
                    node_rank=int(worker_group.group_rank),
                    world_size=int(worker.world_size),
                    process=processes.get(worker.local_rank),
                )
                for worker in worker_group.workers
            ]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            self.blind = f"torchrun's workers look different in this torch ({error!r})"
            return
        if not started:
            return
        first = started[0]
        self._emit(
            Sighting(
                attempt=first.attempt,
                node_rank=first.node_rank,
                world_size=first.world_size,
                record=RendezvousRecord(
                    time_ns=time.monotonic_ns(),
                    world_size=first.world_size,
                    ranks=tuple(worker.rank for worker in started),
                    pids=tuple(worker.pid for worker in started),
                ),
            )
        )
        with self._lock:
            self._workers = (self._workers + started)[-MAX_WATCHED:]


def _processes(agent: Any) -> dict[int, object]:
    """Give torchrun's handles by local rank; empty where they are kept elsewhere."""
    context = getattr(agent, "_pcontext", None)
    handlers = getattr(context, "subprocess_handlers", None)
    if isinstance(handlers, dict):
        return {rank: getattr(handler, "proc", None) for rank, handler in handlers.items()}
    # --run-path: multiprocessing children, whose Popen keeps the return code.
    spawned = getattr(getattr(context, "_pc", None), "processes", ())
    return {rank: getattr(process, "_popen", None) for rank, process in enumerate(spawned)}


def _exit_status(worker: _Worker) -> int | None:
    """Give the exit code, minus the signal number for a signal, or None while it is unknown."""
    status = getattr(worker.process, "returncode", None)
    if isinstance(status, int):
        return status
    try:
        info = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return None  # torchrun is just collecting it: the next look finds the return code
    if info is None:
        return None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
