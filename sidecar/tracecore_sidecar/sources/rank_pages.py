"""Rank pages of an attempt, read from the job's runtime directory.

A page is read at any time, also half written, stale from an earlier boot, or replaced by
something hostile: opening never blocks and never follows a link, and a page that cannot be
believed becomes a problem text instead of a record.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING

from tracecore_train import runtime
from tracecore_train.errors import WireError
from tracecore_train.recorder.page import PAGE_SIZE, parse_page

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_train.wire.records import RankPageRecord

MAX_AHEAD_NS = 60_000_000_000
"""A page may be this far ahead of ``now_ns``: the reader can be stopped between clock and file."""
_ATTEMPT = re.compile(r"(?:0|[1-9]\d{0,5})\Z")


def attempts(job_dir: Path) -> list[int]:
    """List the attempts that have a directory, oldest first."""
    try:
        with os.scandir(job_dir) as entries:
            return sorted(
                int(entry.name)
                for entry in entries
                if _ATTEMPT.match(entry.name) and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []


def read_pages(
    job_dir: Path, attempt: int, now_ns: int, max_rank: int
) -> tuple[list[RankPageRecord], list[str]]:
    """Read all pages of an attempt: records by rank, and a text for each page not believed.

    ``max_rank`` is the highest rank of the job; pages of higher ranks are not opened.
    """
    records: list[RankPageRecord] = []
    problems: list[str] = []
    for rank, path in sorted(runtime.rank_pages(job_dir, attempt).items()):
        if rank > max_rank:
            problems.append(f"{path.name}: the job's highest rank is {max_rank}")
            break
        try:
            page = parse_page(_read(path), now_ns)
            _check(page, rank, now_ns)
        except FileNotFoundError:
            continue
        except (OSError, WireError) as error:
            problems.append(f"{path.name}: {getattr(error, 'strerror', None) or error}")
        else:
            records.append(page)
    return records, problems


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise WireError("not a regular file")
        return os.read(fd, PAGE_SIZE + 1)
    finally:
        os.close(fd)


def _check(page: RankPageRecord, rank: int, now_ns: int) -> None:
    if page.rank != rank:
        raise WireError(f"says it belongs to rank {page.rank}")
    if page.pid <= 0 or page.step < 0 or page.num_batches < 0:
        raise WireError(f"pid {page.pid}, step {page.step}, {page.num_batches} batches")
    times = (
        page.step_time_ns,
        page.input_since_ns,
        page.checkpoint_since_ns,
        page.phase_since_ns,
        page.heartbeat_ns,
    )
    if min(times) < 0:
        raise WireError("a time before the host started")
    if max(times) > now_ns + MAX_AHEAD_NS:
        raise WireError("a time in the future; left by an earlier boot?")


def copy_pages(job_dir: Path, target: Path) -> int:
    """Copy the rank pages of all attempts, so that the output holds what each rank left.

    Gives how many could be copied.
    """
    num_copied = 0
    for attempt in attempts(job_dir):
        for rank, path in runtime.rank_pages(job_dir, attempt).items():
            with contextlib.suppress(OSError, WireError):
                target.mkdir(parents=True, exist_ok=True)
                (target / f"attempt{attempt}-r{rank}.page").write_bytes(_read(path))
                num_copied += 1
    return num_copied
