"""The end-of-run summary: what each rank did, over the whole run, and how it ended.

Durations go into buckets 2 % wide, so memory does not grow with the run and a quantile is right
to about 1 %.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tracecore_sidecar.blindness import of_the_ranks, standings
from tracecore_sidecar.detectors.endings import EndKind, ending_lines, endings
from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_sidecar.render import clean_text
from tracecore_train.wire.records import SourceKind, StepFlag, StepRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tracecore_sidecar.blindness import NodeSignals
    from tracecore_sidecar.detectors.endings import Ending
    from tracecore_sidecar.state.view import JobView
    from tracecore_train.wire.records import Batch

_BASE = math.log(1.02)
_MAX_RANKS = 16_384
"""Ranks summarised one by one; a node has far fewer."""
_MAX_ATTEMPTS = 100
"""Attempts whose ends are kept; a job that restarts more often keeps the first and the last."""


class Durations:
    """A histogram of durations in nanoseconds."""

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self.total_ns = 0
        self._buckets: dict[int, int] = {}

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self.count += 1
        self.total_ns += duration_ns
        bucket = int(math.log(max(1, duration_ns)) / _BASE)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def quantile_ns(self, share: float) -> int:
        """Give the duration that ``share`` of all are at or below; 0 when there are none."""
        left = share * self.count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return round(math.exp((bucket + 0.5) * _BASE))
        return 0


class RankSummary:
    """What one rank did, over all attempts."""

    def __init__(self) -> None:
        """Start empty."""
        self.num_steps = 0
        self.step = Durations()
        self.input_ns = 0

    def add(self, record: StepRecord) -> None:
        """Count one step."""
        self.num_steps += 1
        if not record.flags & StepFlag.FIRST:
            self.step.add(record.duration_ns)
            self.input_ns += record.input_ns

    def to_json(self) -> dict[str, Any]:
        """Give plain values: seconds and a share from 0 to 1, None where nothing was measured."""
        measured = self.step.count > 0
        return {
            "steps": self.num_steps,
            "step_median_s": self.step.quantile_ns(0.5) / 1e9 if measured else None,
            "step_p95_s": self.step.quantile_ns(0.95) / 1e9 if measured else None,
            "input_share": self.input_ns / max(1, self.step.total_ns) if measured else None,
        }


class RunSummary:
    """Collects step records as they come in."""

    def __init__(self) -> None:
        """Start empty."""
        self.ranks: dict[int, RankSummary] = {}
        self._ends: dict[int, dict[int, Ending]] = {}

    def apply(self, batch: Batch) -> None:
        """Take in the step records of a batch."""
        if batch.source.kind is SourceKind.SIDECAR:
            return  # what it gathers itself, collectives by the hundred, holds no steps
        for record in batch.records:
            if isinstance(record, StepRecord):
                if record.rank not in self.ranks and len(self.ranks) >= _MAX_RANKS:
                    continue
                self.ranks.setdefault(record.rank, RankSummary()).add(record)

    def see_ends(self, view: JobView) -> None:
        """Keep how the ranks of this attempt ended so far; the next attempt starts afresh."""
        attempt = view.job.attempt
        if view.ranks.is_ended.any():
            if attempt not in self._ends and len(self._ends) >= _MAX_ATTEMPTS:
                del self._ends[max(self._ends)]
            self._ends[attempt] = endings(view)

    def ends_to_json(self) -> dict[str, Any]:
        """Give the ends by attempt and rank."""
        return {
            str(attempt): {
                str(rank): {
                    "kind": end.kind.value,
                    "text": end.text,
                    "exit_code": end.exit_code,
                    "last_word": end.last_word,
                    "is_first": end.is_first,
                }
                for rank, end in sorted(found.items())
            }
            for attempt, found in sorted(self._ends.items())
        }

    def render_ends(self) -> list[str]:
        """Give the ends for people, a block for each attempt; nothing where all ended well."""
        blocks = {attempt: ending_lines(found) for attempt, found in sorted(self._ends.items())}
        if all(
            end.kind is EndKind.CLEAN for found in self._ends.values() for end in found.values()
        ):
            return []
        lines: list[str] = []
        for attempt, texts in blocks.items():
            lines.append("ends:" if len(blocks) == 1 else f"ends of attempt {attempt}:")
            lines += [f"  {clean_text(text)}" for text in texts]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Give the figures per rank."""
        return {str(rank): self.ranks[rank].to_json() for rank in sorted(self.ranks)}

    def render(self) -> str:
        """Give the table for people."""
        if not self.ranks:
            return "no steps were recorded"
        lines = ["rank     steps   step median     p95   input share"]
        for rank in sorted(self.ranks):
            row = self.ranks[rank].to_json()
            if row["step_median_s"] is None:
                lines.append(f"{rank:>4} {row['steps']:>9}   not measured")
                continue
            lines.append(
                f"{rank:>4} {row['steps']:>9} {row['step_median_s'] * 1e3:>10.1f} ms"
                f" {row['step_p95_s'] * 1e3:>7.1f} ms {row['input_share']:>9.1%}"
            )
        return "\n".join(lines)


def write_summary(
    path: Path,
    summary: RunSummary,
    *,
    verdicts: Sequence[str],
    view: JobView | None,
    blind: Sequence[str],
    node: NodeSignals,
    intake: Mapping[str, Any],
    forward: Mapping[str, Any],
    num_dropped: Mapping[str, int],
    num_pages: int,
) -> str:
    """Write the summary as JSON and give its text form.

    ``blind`` is which detectors could not judge, ``node`` what this node's sidecar could see. A run
    without verdicts is said to have had none, together with what was not seen: silence is not
    health.
    """
    if view is not None:
        summary.see_ends(view)
    not_measured = [*_not_measured(view), *blind, *node.texts()]
    document = {
        "job_id": None if view is None else view.job.job_id,
        "attempts": 0 if view is None else view.job.attempt + 1,
        "ranks": summary.to_json(),
        "ends": summary.ends_to_json(),
        "verdicts": list(verdicts),
        "not_measured": not_measured,
        "signals": {"node": asdict(node), "ranks": standings(view)},
        "intake": dict(intake),
        "forward": dict(forward),
        "records_dropped": dict(num_dropped),
    }
    lines = ["", "tracecore summary", summary.render(), *summary.render_ends()]
    if verdicts:
        lines += [f"verdicts ({len(verdicts)}):", *(f"  {line}" for line in verdicts)]
    else:
        lines.append("verdicts: none")
    lines += [f"not seen: {text}" for text in not_measured]
    names = "summary.json, verdicts.jsonl, incidents.jsonl, records/"
    names += ", pages/" if num_pages else ""
    names += ", bundles/" if (path.parent / "bundles").is_dir() else ""
    lines.append(f"files: {path.parent}/ ({names})")
    try:
        path.write_text(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        lines.append(f"summary.json could not be written: {error.strerror}")
    return "\n".join(lines)


def _not_measured(view: JobView | None) -> list[str]:
    if view is None:
        return ["ranks: none introduced itself"]
    unseen = np.flatnonzero(~view.ranks.is_seen).tolist()
    found = [f"{ranks_text(unseen)}: nothing came from there"] if unseen else []
    found += of_the_ranks(view)
    found += [f"rank {rank}: {count} records lost" for rank, count in view.num_lost.items()]
    return found
