"""What this node's launcher calls the job, and which node of it this is.

The job id is a given one (``--job-id``, ``TRACECORE_JOB_ID``), else the scheduler's job, else a
rendezvous id other than torchrun's default ``none``, else a new one. The first three are the
same on every node; a new one is not, and :attr:`JobIdentity.is_shared` says so.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

TORCHRUN_DEFAULT_RDZV_ID = "none"
"""torchrun's rendezvous id where nobody chose one: the same for every job, so it names none."""

MAX_JOB_ID = 500
"""Characters of a job id: as many as the ranks keep of theirs, so that all say the same."""


@dataclass(frozen=True, kw_only=True)
class JobIdentity:
    """The job as this launcher knows it before the rendezvous."""

    job_id: str
    is_shared: bool
    """The other nodes' launchers come to the same id."""
    num_nodes: int
    """Most nodes the job may have."""
    node_rank: int | None
    """None: only the rendezvous will decide."""


def identify_job(
    given: str | None, torchrun_args: Namespace, environ: Mapping[str, str]
) -> JobIdentity:
    """Name the job from a given id, torchrun's parsed arguments and the environment."""
    shared = given or scheduler_job_id(environ) or _rendezvous_id(torchrun_args)
    num_nodes = _max_nodes(str(torchrun_args.nnodes))
    return JobIdentity(
        job_id=(shared or new_job_id())[:MAX_JOB_ID],
        is_shared=shared is not None,
        num_nodes=num_nodes,
        node_rank=_node_rank(torchrun_args, num_nodes, environ),
    )


def scheduler_job_id(environ: Mapping[str, str]) -> str | None:
    """Give the id of the batch scheduler's job (and step) this process runs in, if any."""
    if job := environ.get("SLURM_JOB_ID"):
        step = environ.get("SLURM_STEP_ID")
        return f"{job}.{step}" if step else job
    if job := environ.get("LSB_JOBID"):
        # All elements of an LSF job array share LSB_JOBID; the index is 0 outside arrays.
        index = environ.get("LSB_JOBINDEX", "0")
        return job if index in ("", "0") else f"{job}.{index}"
    return environ.get("PBS_JOBID") or environ.get("FLUX_JOB_ID") or None


def new_job_id() -> str:
    """Make a job id from the local time and four random hexadecimal digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _rendezvous_id(torchrun_args: Namespace) -> str | None:
    # --standalone makes torchrun replace the id by a random one.
    if torchrun_args.standalone or torchrun_args.rdzv_id == TORCHRUN_DEFAULT_RDZV_ID:
        return None
    return str(torchrun_args.rdzv_id) or None


def _max_nodes(nnodes: str) -> int:
    try:
        return int(nnodes.rpartition(":")[2])
    except ValueError:
        return 1  # torchrun refuses it in a moment, in its own words


def _node_rank(torchrun_args: Namespace, num_nodes: int, environ: Mapping[str, str]) -> int | None:
    if num_nodes <= 1:
        return 0
    if torchrun_args.rdzv_backend == "static":
        return int(torchrun_args.node_rank)
    slurm = environ.get("SLURM_NODEID", "")
    return int(slurm) if slurm.isdecimal() else None
