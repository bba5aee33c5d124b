"""Settings of the sidecar, checked once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tracecore_sidecar.intake.listen import parse_listen
from tracecore_sidecar.on_hang.choice import parse_on_hang
from tracecore_sidecar.pull_policy import NcclPull


class Display(str, Enum):
    """How the sidecar speaks to the terminal (its standard error)."""

    LIVE = "live"
    """One pinned status line, verdicts above it."""
    PLAIN = "plain"
    """Plain lines: a status now and then, verdicts, the summary."""
    QUIET = "quiet"
    """Plain lines: the start line, verdicts, the summary."""


class SidecarConfig(BaseModel):
    """Settings of one sidecar; `tracecore run` fills them in, `tracecore sidecar` takes options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_dir: Path
    """The job's runtime directory: socket, rank pages."""
    job_id: str = Field(min_length=1, max_length=512)
    output: Path
    """Directory of the job's files; this node writes to ``output/<node rank>/``."""
    node_rank: int = Field(default=0, ge=0, le=65_535)
    parent_pid: int | None = Field(default=None, gt=0)
    """Stop when this process is gone (the launcher)."""
    display: Display = Display.PLAIN
    tick_interval: float = Field(default=1.0, ge=0.1, le=60)
    """Seconds between two evaluations."""
    pull_interval: float = Field(default=5.0, ge=1, le=600)
    """Seconds between two reads of every rank's flight recorder, at wall-clock multiples.
    A ring of 2,000 entries bears 400 collectives a second at 5 s."""
    nccl_pull: NcclPull = NcclPull.NEVER
    """Whether the flight recorder of legacy NCCL may be read; see ``pull_policy``."""
    listen: str | None = None
    """Loopback address for OTLP over TCP, ``127.0.0.1:4318``; None: unix socket only."""

    on_hang: str = "report"
    """What follows a hang once its bundle is in place: ``report``, ``dump``, ``abort``, or a
    command line; see ``on_hang.choice``."""

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str | None) -> str | None:
        if value is not None:
            parse_listen(value)
        return value

    @field_validator("on_hang")
    @classmethod
    def _check_on_hang(cls, value: str) -> str:
        parse_on_hang(value)
        return value

    @property
    def node_output(self) -> Path:
        """This node's own directory, so that nodes sharing a disk never write one file."""
        return self.output / str(self.node_rank)
