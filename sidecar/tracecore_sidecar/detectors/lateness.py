"""How late each rank is, step by step, from the order in which ranks enter collectives.

Compared are only members of a process group that share a host, hence a clock. In a collective
that everybody waits for, the late rank costs the others its distance to the last but one.

Two things would count a delay twice or blame the wrong rank:

* *Carried lateness.* Asynchronous collectives (DDP buckets) are entered without waiting for the
  one before, so a rank that is late at the first is late at all of them. Collectives that nobody
  was seen to wait for form a run with the next one, and a run counts once, by its last
  collective: what the others really wait for. Whether ranks wait shows in their next entry, which
  moves with the latest arrival if they did (:func:`_is_waited_for`).
* *Passed-on lateness.* A rank that was kept waiting in another group is late through no fault of
  its own: that wait is taken off its lateness. Where it cannot be known, the run is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_sidecar.state.view import Bools, GroupView, Ints, JobView

Floats = NDArray[np.float64]

MIN_CHANGES = 16
"""Changes from step to step without which nothing is concluded about waiting."""
OUTLIER = 5.0
"""Changes above this many medians are pauses and onsets, not the usual variation."""
WAITING_SLOPE = 0.25
"""Between what waiting (0.5 to 1) and not waiting (-0.5 to 0) give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Members of one process group on one host."""

    group: GroupView
    columns: Ints
    """Their columns in the group's arrays."""
    ranks: tuple[int, ...]

    @property
    def key(self) -> str:
        """Name that stays the same between evaluations."""
        return f"{self.group.pg_name}/{self.ranks[0]}"

    @property
    def is_whole(self) -> bool:
        """Every member of the group is in it."""
        return len(self.ranks) == len(self.group.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lateness:
    """Lateness of a cohort over its last sampled steps; arrays have one row per step."""

    numbers: Ints
    end_ns: Ints
    duration_ns: Ints
    lateness_ns: Floats
    """Arrival less the median of the others, summed over the step; shape (steps, ranks)."""
    removable_ns: Floats
    """What the step would save if the rank had come with the last but one."""
    num_collectives: int

    @property
    def coverage(self) -> float:
        """Share of the steps between the first and the last that were sampled."""
        return len(self.numbers) / max(1, int(self.numbers[-1] - self.numbers[0]) + 1)


def cohorts(view: JobView) -> Iterator[Cohort]:
    """Give the cohorts of a job.

    A group with a member on an unknown host has none, nor one with a member that may have been
    kept waiting where nobody looks: lateness passed on could not be told from its own.
    """
    may_wait_unseen = view.is_in_blind_group()
    for group in view.groups.values():
        members = np.asarray(group.members, dtype=np.int64)
        hosts = view.ranks.host_index[members]
        if len(members) < 2 or (hosts < 0).any() or may_wait_unseen[members].any():
            continue
        for host in np.unique(hosts).tolist():
            columns = np.flatnonzero(hosts == host)
            columns = columns[np.argsort(members[columns])]
            if len(columns) > 1:
                ranks = tuple(members[columns].tolist())
                yield Cohort(group=group, columns=columns, ranks=ranks)


def measure(view: JobView, cohort: Cohort, *, first_step: int, max_steps: int) -> Lateness | None:
    """Work out the lateness of a cohort; None when no step was sampled completely."""
    arrivals = _arrivals(cohort)
    if len(arrivals) < 2:
        return None
    lead = cohort.ranks[0]
    steps = view.steps
    is_usable = (steps.numbers >= first_step) & (steps.end_ns[:, lead] > 0)
    is_usable &= steps.duration_ns[:, lead] > 0
    slots = np.flatnonzero(is_usable)
    slots = slots[np.argsort(steps.end_ns[slots, lead])]
    end, duration = steps.end_ns[slots, lead], steps.duration_ns[slots, lead]
    is_complete = (end <= view.ranks.pull_ns[list(cohort.ranks)].min()) & (
        end - duration >= arrivals[0].min()
    )
    slots, end, duration = slots[is_complete], end[is_complete], duration[is_complete]
    if not len(slots):
        return None
    step_of = _step_of(arrivals[:, 0], end, duration)
    ends = np.flatnonzero(_is_last_of_run(arrivals, step_of))
    runs, step = arrivals[ends], step_of[ends]
    excuse = _passed_on(view, cohort, np.vstack([arrivals[:1], runs[:-1]]), runs)
    lateness = runs - excuse - _median_of_others(runs)
    removable = np.clip(_lead_of_last(runs) - excuse, 0, None)
    is_inside = (step >= 0) & ~np.isnan(excuse).any(axis=1)
    sums = np.zeros((2, len(end), len(cohort.ranks)))
    np.add.at(sums[0], step[is_inside], lateness[is_inside])
    np.add.at(sums[1], step[is_inside], removable[is_inside])
    is_sampled = np.zeros(len(end), dtype=np.bool_)
    is_sampled[step[is_inside]] = True
    kept = np.flatnonzero(is_sampled)[-max_steps:]
    if not len(kept):
        return None
    first_ns, last_ns = end[kept[0]] - duration[kept[0]], end[kept[-1]]
    return Lateness(
        numbers=steps.numbers[slots[kept]],
        end_ns=end[kept],
        duration_ns=duration[kept],
        lateness_ns=sums[0][kept],
        removable_ns=sums[1][kept],
        num_collectives=int(((arrivals[:, 0] > first_ns) & (arrivals[:, 0] <= last_ns)).sum()),
    )


def _arrivals(cohort: Cohort) -> Ints:
    """Give when each rank entered, for collectives all of the cohort were seen to enter."""
    group = cohort.group
    created: Ints = group.created_ns[:, cohort.columns]
    rows = np.flatnonzero((group.seq_ids >= 0) & (created > 0).all(axis=1))
    return created[rows[np.argsort(group.seq_ids[rows])]]


def _step_of(times: Ints, end: Ints, duration: Ints) -> Ints:
    """Give the index of the step each time falls into; -1: none of them."""
    step = np.searchsorted(end, times, side="left")
    nearest = np.minimum(step, len(end) - 1)
    is_inside = (step < len(end)) & (times > (end - duration)[nearest])
    index: Ints = np.where(is_inside, step, -1)
    return index


def _is_last_of_run(arrivals: Ints, step_of: Ints) -> Bools:
    """Say after which collectives lateness starts afresh, because everybody waited."""
    # Somebody went on before the last one came: plainly nobody waits here.
    is_carried = np.append(arrivals[1:].min(axis=1) < arrivals[:-1].max(axis=1), False)
    is_first = np.append(True, step_of[1:] != step_of[:-1])
    index = np.arange(len(step_of))
    position = index - np.maximum.accumulate(np.where(is_first, index, 0))
    has_next = np.append(step_of[1:] == step_of[:-1], False) & (step_of >= 0)
    for place in np.unique(position[has_next]).tolist():
        rows = np.flatnonzero(has_next & (position == place))
        if not _is_waited_for(arrivals[rows], arrivals[rows + 1]):
            is_carried[rows] = True
    return ~is_carried


def _is_waited_for(arrivals: Ints, following: Ints) -> bool:
    """Say whether ranks wait for a collective, from the same place in many steps.

    A rank that waits goes on a fixed time after the last one came, so what it could wait (``x``)
    is in the gap (``g``) to its next entry: from step to step, g changes as x does (slope 1, or
    one half if all of a step is slow together). A rank that does not wait has no x in its gap
    (slope 0, or minus one half). Without enough variation to tell, lateness counts once.
    """
    x = arrivals.max(axis=1, keepdims=True) - arrivals
    change_x = np.diff(x, axis=0).ravel().astype(np.float64)
    change_g = np.diff(following - arrivals, axis=0).ravel().astype(np.float64)
    is_moving = change_x != 0
    change_x, change_g = change_x[is_moving], change_g[is_moving]
    if len(change_x) < MIN_CHANGES:
        return False
    is_usual = np.abs(change_x) <= OUTLIER * np.median(np.abs(change_x))
    is_usual &= np.abs(change_g) <= OUTLIER * np.median(np.abs(change_g))
    change_x, change_g = change_x[is_usual], change_g[is_usual]
    slope = float((change_x * change_g).sum() / max(1.0, (change_x**2).sum()))
    return slope > WAITING_SLOPE


def _median_of_others(values: Ints) -> Floats:
    """Give for each entry of a row the median of the row's other entries."""
    num_others = values.shape[1] - 1
    ordered = np.sort(values, axis=1)
    place = np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1, kind="stable")

    def other(index: int) -> Ints:
        """Give the ``index``-th smallest of the others."""
        column: Ints = np.where(place > index, ordered[:, [index]], ordered[:, [index + 1]])
        return column

    upper = other(num_others // 2)
    lower = other((num_others - 1) // 2)
    # Differences stay small; the sum of two clock readings in nanoseconds is exact in int64.
    return (lower + upper) / 2


def _lead_of_last(values: Ints) -> Ints:
    """Give for the last of each row its distance to the last but one; 0 for everybody else."""
    ordered = np.sort(values, axis=1)
    is_last = values == ordered[:, [-1]]
    gap: Ints = np.where(is_last, ordered[:, [-1]] - ordered[:, [-2]], 0)
    return gap


def _passed_on(view: JobView, cohort: Cohort, begins: Ints, runs: Ints) -> Floats:
    """Give how long each rank was kept waiting in other groups during each run; NaN: unknown."""
    excuse = np.zeros(runs.shape)
    others = [
        group
        for group in view.groups.values()
        if group.pg_name != cohort.group.pg_name and len(group.members) > 1
    ]
    for column, rank in enumerate(cohort.ranks):
        times: list[Ints] = []
        waits: list[Floats] = []
        for group in others:
            if rank not in group.members:
                continue
            rows = np.flatnonzero(
                (group.seq_ids >= 0) & (group.created_ns[:, group.members.index(rank)] > 0)
            )
            created = group.created_ns[rows]
            own = created[:, group.members.index(rank)]
            hosts = view.ranks.host_index[list(group.members)]
            is_known = (created > 0).all(axis=1) & (hosts == hosts[0]).all() & (hosts[0] >= 0)
            times.append(own)
            waits.append(np.where(is_known, created.max(axis=1, initial=0) - own, np.nan))
        if not times:
            continue
        time = np.concatenate(times)
        order = np.argsort(time)
        wait = np.concatenate(waits)[order]
        total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(wait))])
        unknown = np.concatenate([[0], np.cumsum(np.isnan(wait))])
        first = np.searchsorted(time[order], begins[:, column], side="right")
        last = np.searchsorted(time[order], runs[:, column], side="left")
        last = np.maximum(first, last)
        found = total[last] - total[first]
        excuse[:, column] = np.where(unknown[last] > unknown[first], np.nan, found)
    return excuse
