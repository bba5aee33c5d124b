"""Rank pages as records, of ranks that have done nothing yet."""

from __future__ import annotations

import dataclasses

from tracecore_train.wire.records import RankPageRecord


def rank_page(beat_ns: int, /, *, pid: int, rank: int = 0, **changes: object) -> RankPageRecord:
    """Give the page of a rank that beat at ``beat_ns`` and did nothing, but for ``changes``."""
    base = RankPageRecord(
        time_ns=beat_ns,
        rank=rank,
        pid=pid,
        step=0,
        step_time_ns=0,
        num_batches=0,
        input_since_ns=0,
        checkpoint_since_ns=0,
        phase="",
        phase_since_ns=0,
        heartbeat_ns=beat_ns,
        last_word="",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]
