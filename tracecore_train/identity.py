"""Who this rank is: its place in the job, its process, its host, its GPU.

Everything is read from the environment and from ``/proc``; nothing initialises CUDA.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import ConfigError
from tracecore_train.recorder.clock import now_ns
from tracecore_train.runtime import boot_id
from tracecore_train.wire.records import IdentityRecord, Source, SourceKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_WORLD_SIZE = 1_048_576
"""Ranks in a job that we believe; a larger number in the environment is a mistake."""
MAX_NAME = 500
"""Characters of a job id or host name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A rank and its process."""

    job_id: str
    attempt: int
    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    host: str
    boot_id: str
    pid: int
    start_ticks: int

    def source(self, wall_offset_ns: int) -> Source:
        """Give the source of this rank's batches."""
        return Source(
            kind=SourceKind.RANK,
            host=self.host,
            boot_id=self.boot_id,
            pid=self.pid,
            job_id=self.job_id,
            attempt=self.attempt,
            wall_offset_ns=wall_offset_ns,
            rank=self.rank,
            local_rank=self.local_rank,
            node_rank=self.node_rank,
            world_size=self.world_size,
        )

    def record(
        self, *, measured: Sequence[str], blind: Sequence[str], off: Sequence[str]
    ) -> IdentityRecord:
        """Introduce this rank, with how its signals stand and the GPU it should be using."""
        device, gpu_uuid = gpu_of(self.local_rank)
        version = getattr(sys.modules.get("torch"), "__version__", None)
        return IdentityRecord(
            time_ns=now_ns(),
            rank=self.rank,
            local_rank=self.local_rank,
            node_rank=self.node_rank,
            world_size=self.world_size,
            pid=self.pid,
            start_ticks=self.start_ticks,
            device=device,
            gpu_uuid=gpu_uuid,
            torch_version=None if version is None else str(version),
            blind=tuple(text[:MAX_NAME] for text in blind),
            measured=tuple(measured),
            off=tuple(off),
        )


def read_identity(
    *, job_id: str | None, job_name: str, environ: Mapping[str, str] | None = None
) -> Identity:
    """Read who we are: from the launcher's variables, else from torch's process group.

    Lightning starts its own children with LOCAL_RANK and WORLD_SIZE, and no RANK; on one node that
    is enough. Without any of these it is rank 0 of 1.

    ``job_name`` names the job when neither ``job_id``, the scheduler nor the launcher does.
    Raises :class:`ConfigError` when the launcher's variables make no sense.
    """
    environ = os.environ if environ is None else environ
    rank, world_size = _place(environ)
    group_rank = "GROUP_RANK" if environ.get("GROUP_RANK", "") != "" else "NODE_RANK"
    return Identity(
        job_id=_sendable(job_id or _scheduler_job(environ) or job_name),
        attempt=_number(environ, "TORCHELASTIC_RESTART_COUNT", 0, low=0, high=10**6),
        rank=rank,
        local_rank=_number(environ, "LOCAL_RANK", rank, low=0, high=MAX_WORLD_SIZE),
        node_rank=_number(environ, group_rank, 0, low=0, high=MAX_WORLD_SIZE),
        world_size=world_size,
        host=_sendable(os.uname().nodename),
        boot_id=boot_id(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
    )


def start_ticks(pid: int) -> int:
    """Give a process's start time in clock ticks since boot; 0 when it cannot be read."""
    fields = _read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else 0


def gpu_of(local_rank: int) -> tuple[str, str | None]:
    """Give ``cpu`` or ``cuda``, and the UUID of the GPU a rank uses by torchrun's convention.

    That is the visible device with the index ``local_rank``, or the only visible one. Asked
    through NVML, because asking CUDA would initialise it.
    """
    cuda: Any = sys.modules.get("torch.cuda")
    if not os.path.exists("/dev/nvidiactl"):
        return "cpu", None
    try:
        visible = list(cuda._parse_visible_devices())
        uuids = [str(uuid) for uuid in cuda._raw_device_uuid_nvml() or ()]
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError, Warning):
        return "cpu", None
    if not uuids or not visible:
        return "cpu", None
    chosen = visible[local_rank] if local_rank < len(visible) else visible[0]
    if isinstance(chosen, int):
        return "cuda", uuids[chosen] if chosen < len(uuids) else None
    return "cuda", next((uuid for uuid in uuids if uuid.startswith(str(chosen))), str(chosen))


def _place(environ: Mapping[str, str]) -> tuple[int, int]:
    """Give rank and world size."""
    if environ.get("RANK", "") != "":
        world_size = _number(environ, "WORLD_SIZE", 1, low=1, high=MAX_WORLD_SIZE)
        return _number(environ, "RANK", 0, low=0, high=world_size - 1), world_size
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_rank()), int(dist.get_world_size())
    if environ.get("LOCAL_RANK", "") == "" or environ.get("WORLD_SIZE", "") == "":
        return 0, 1
    if _number(environ, "NODE_RANK", 0, low=0, high=MAX_WORLD_SIZE):
        raise ConfigError(
            "there is no RANK beside NODE_RANK; init() after the process group is made"
        )
    world_size = _number(environ, "WORLD_SIZE", 1, low=1, high=MAX_WORLD_SIZE)
    return _number(environ, "LOCAL_RANK", 0, low=0, high=world_size - 1), world_size


def _scheduler_job(environ: Mapping[str, str]) -> str | None:
    if slurm := environ.get("SLURM_JOB_ID"):
        step = environ.get("SLURM_STEP_ID")
        return f"{slurm}.{step}" if step else slurm
    run_id = environ.get("TORCHELASTIC_RUN_ID")
    # torchrun's default is "none" for every job, so that one names nothing.
    return run_id if run_id and run_id != "none" else None


def _number(environ: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    text = environ.get(name, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdigit()) or not low <= int(text[:20]) <= high:
        raise ConfigError(f"{name}={text[:40]!r} in the environment is not {low} to {high}")
    return int(text)


def _sendable(name: str) -> str:
    """Cut a name; bytes of the environment that are no UTF-8 cannot be sent."""
    return name[:MAX_NAME].encode("utf-8", "replace").decode()


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
