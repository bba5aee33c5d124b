"""The job's name and the node's rank come from where the design says."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import Any

import pytest

from tracecore_integrations.job_identity import identify_job, scheduler_job_id


def args(**changes: Any) -> Namespace:
    """Give torchrun's parsed arguments as they are for `torchrun x.py`."""
    defaults = {
        "nnodes": "1:1",
        "rdzv_id": "none",
        "rdzv_backend": "static",
        "standalone": False,
        "node_rank": 0,
    }
    return Namespace(**{**defaults, **changes})


@pytest.mark.parametrize(
    ("given", "environ", "rdzv_id", "expected"),
    [
        ("mine", {"SLURM_JOB_ID": "9"}, "r", "mine"),
        (None, {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "2"}, "r", "9.2"),
        (None, {}, "r", "r"),
    ],
)
def test_the_id_comes_from_the_first_that_has_one(
    given: str | None, environ: dict[str, str], rdzv_id: str, expected: str
) -> None:
    """Given, then scheduler, then rendezvous id; each is shared by all nodes."""
    job = identify_job(given, args(rdzv_id=rdzv_id), environ)
    assert (job.job_id, job.is_shared) == (expected, True)


@pytest.mark.parametrize("changes", [{}, {"standalone": True, "rdzv_id": "ignored"}])
def test_a_new_id_is_made_where_nobody_gives_one(changes: dict[str, Any]) -> None:
    """torchrun's default id names nothing, and --standalone replaces a given one."""
    first, second = (identify_job(None, args(**changes), {}) for _ in range(2))
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", first.job_id)
    assert not first.is_shared
    assert first.job_id != second.job_id


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "9"}, "9"),
        ({"LSB_JOBID": "8", "LSB_JOBINDEX": "0"}, "8"),
        ({"LSB_JOBID": "8", "LSB_JOBINDEX": "3"}, "8.3"),
        ({"PBS_JOBID": "7.host"}, "7.host"),
        ({"FLUX_JOB_ID": "f6"}, "f6"),
        ({"SLURM_JOB_ID": ""}, None),
    ],
)
def test_schedulers_are_known(environ: dict[str, str], expected: str | None) -> None:
    """Each scheduler's variables give its job's id."""
    assert scheduler_job_id(environ) == expected


@pytest.mark.parametrize(
    ("changes", "environ", "expected"),
    [
        ({}, {}, (1, 0)),
        ({"nnodes": "1", "node_rank": 3}, {}, (1, 0)),
        ({"nnodes": "4", "node_rank": 3}, {}, (4, 3)),
        ({"nnodes": "2:4", "rdzv_backend": "c10d"}, {"SLURM_NODEID": "2"}, (4, 2)),
        ({"nnodes": "2:4", "rdzv_backend": "c10d"}, {}, (4, None)),
        ({"nnodes": "many"}, {}, (1, 0)),
    ],
)
def test_the_node_rank_is_known_or_said_to_be_unknown(
    changes: dict[str, Any], environ: dict[str, str], expected: tuple[int, int | None]
) -> None:
    """Static rendezvous and the scheduler tell the node rank; c10d alone does not."""
    job = identify_job("j", args(**changes), environ)
    assert (job.num_nodes, job.node_rank) == expected
