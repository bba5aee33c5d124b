"""How far every member of every process group has come, in flat arrays.

One row per (group, member). What a rank entered and finished is read from the entries of its
flight recorder, and from its counters where they count the same thing. What was not read is not
known, never zero:

* a dump that left finished entries out shows what is unfinished; whether something absent is over
  or never came is told by the counters alone;
* gloo calls an operation over also when it failed. Where a rank's very last operation is over and
  a member that was read never entered it, it failed: the rank had waited in it;
* an operation everybody takes part in, finished by one member, was entered by all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.hang.operations import is_device_backend, needs_everybody

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracecore_sidecar.detectors.hang.readings import Readings
    from tracecore_sidecar.state.view import Bools, GroupView, Ints, JobView

NEVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The rows, and the unfinished operations found in them."""

    groups: tuple[GroupView, ...]
    starts: Ints
    """First row of each group; one more entry than groups."""
    rank: Ints
    entered: Ints
    """Highest sequence number known to be entered; -1: none."""
    done: Ints
    """Highest sequence number known to be finished; -1: none."""
    is_known: Bools
    """What it did not enter beyond ``entered`` it really did not."""
    needs_all: Bools
    """By group: every operation seen in it needs all members."""
    is_device: Bools
    """By group: over means finished, not failed."""
    last_created: Ints
    """By rank: when it entered its latest operation, of any group."""
    open_row: Ints
    open_seq: Ints
    open_created: Ints
    open_needs_all: Bools
    """By unfinished operation: no member can finish it before all have entered it."""

    def rows_of(self, group: int) -> slice:
        """Give the rows of a group."""
        return slice(int(self.starts[group]), int(self.starts[group + 1]))

    def rows_of_each(self, groups: Ints) -> tuple[Ints, Ints]:
        """Give the rows of several groups: which of ``groups`` each belongs to, and the row."""
        sizes = self.starts[groups + 1] - self.starts[groups]
        which = np.repeat(np.arange(len(groups)), sizes)
        ends = np.cumsum(sizes)
        within = np.arange(len(which)) - np.repeat(ends - sizes, sizes)
        return which, self.starts[groups][which] + within


@dataclass(slots=True)
class _Rows:
    """What is known of all rows while it is gathered."""

    rank: Ints
    entered: Ints
    done: Ints
    has_open: Bools


def positions(view: JobView, readings: Readings) -> Positions:
    """Gather the rows of all groups in which somebody may wait.

    A group of one member counts where something was seen in it: it waits for others if its
    members could not be told, and for its own device if they could.
    """
    ranks = view.ranks
    groups = tuple(g for g in view.groups.values() if len(g.members) > 1 or g.has_entries)
    sizes = np.array([len(group.members) for group in groups], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
    rank = np.array([r for group in groups for r in group.members], dtype=np.int64)
    is_plain = np.repeat(np.array([g.has_plain_counters for g in groups], dtype=np.bool_), sizes)
    enqueued = _joined([group.enqueued for group in groups])
    last = _joined([group.last_seq for group in groups])
    entered = np.where(is_plain, np.maximum(last, enqueued), last)
    counted = np.minimum(_joined([group.completed for group in groups]), entered)
    rows = _Rows(
        rank=rank,
        entered=entered,
        done=np.where(is_plain, counted, -1),
        has_open=np.zeros(len(rank), dtype=np.bool_),
    )
    has_lost = np.zeros(view.world_size, dtype=np.bool_)
    has_lost[[rank for rank, lost in view.num_lost.items() if lost > 0]] = True
    is_device = np.array([is_device_backend(g.backend) for g in groups], dtype=np.bool_)
    needs_all = np.array([all(map(needs_everybody, g.ops)) for g in groups], dtype=np.bool_)
    seen = [index for index, group in enumerate(groups) if group.has_entries]
    opens = {
        index: _open_entries(view, groups[index], rows, int(starts[index]), has_lost)
        for index in seen
    }
    is_told = rows.has_open | (is_plain & (enqueued >= 0)) | ~ranks.is_active_only[rank]
    is_near = rows.has_open | (entered >= 0) | ~(has_lost | ranks.is_truncated)[rank]
    is_known = (readings.is_fresh[rank] & is_told & is_near) | readings.is_out[rank]
    last_created: Ints = np.zeros(view.world_size, dtype=np.int64)
    for index in seen:
        members = rank[starts[index] : starts[index + 1]]
        np.maximum.at(last_created, members, groups[index].created_ns.max(axis=0, initial=0))
        points = groups[index].points
        if len(points.member):
            np.maximum.at(last_created, members[points.member], points.created_ns)
    for index in seen:
        own = slice(int(starts[index]), int(starts[index + 1]))
        if is_device[index] and needs_all[index]:
            rows.entered[own] = np.maximum(rows.entered[own], rows.done[own].max())
        elif not is_device[index] and not len(opens[index][0]):
            opens[index] = _reopened(groups[index], rows, own, is_known[own], last_created)
    found = [(index, *opens[index]) for index in seen if len(opens[index][0])]
    return Positions(
        groups=groups,
        starts=starts,
        rank=rank,
        entered=rows.entered,
        done=rows.done,
        is_known=is_known,
        needs_all=needs_all,
        is_device=is_device,
        last_created=last_created,
        open_row=_joined([column + starts[i] for i, _, column in found]),
        open_seq=_joined([groups[i].seq_ids[slot] for i, slot, _ in found]),
        open_created=_joined([groups[i].created_ns[slot, column] for i, slot, column in found]),
        open_needs_all=_joined(
            [_needs_all(groups[i])[groups[i].op[slot, column]] for i, slot, column in found]
        ).astype(np.bool_),
    )


def _joined(parts: list[NDArray[np.generic]]) -> Ints:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64, copy=False)


def _needs_all(group: GroupView) -> Bools:
    return np.array([needs_everybody(op) for op in group.ops], dtype=np.bool_)


def _open_entries(
    view: JobView, group: GroupView, rows: _Rows, start: int, has_lost: Bools
) -> tuple[Ints, Ints]:
    """Find the unfinished entries of a group, as slots and columns, and what is finished."""
    own = slice(start, start + len(group.members))
    members = rows.rank[own]
    created, seq_ids = group.created_ns, group.seq_ids[:, None]
    is_entry = (created > 0) & (seq_ids >= 0)
    # A group finishes in order: an entry with a finished one after it is finished too, its own
    # completion was overwritten in the ring before we read it.
    done = np.where(is_entry & group.is_retired, seq_ids, -1).max(axis=0, initial=-1)
    done = np.maximum(done, rows.done[own])
    is_open = is_entry & ~group.is_retired & (seq_ids > done)
    # Same reason, for a group whose last entry is the one that was overwritten.
    is_open &= ~has_lost[members] | (created > view.ranks.step_ns[members])
    has_open = is_open.any(axis=0)
    first_open = np.where(is_open, seq_ids, NEVER).min(axis=0, initial=NEVER)
    is_listed = view.ranks.is_active_only[members] & has_open
    rows.done[own] = np.where(is_listed, np.maximum(done, first_open - 1), done)
    rows.has_open[own] = has_open
    slot, column = np.nonzero(is_open)
    return slot, column


def _reopened(
    group: GroupView, rows: _Rows, own: slice, is_known: Bools, last_created: Ints
) -> tuple[Ints, Ints]:
    """Find waits that are over because they failed: see the module."""
    none: Ints = np.zeros(0, dtype=np.int64)
    entered = rows.entered[own]
    if not is_known.any():
        return none, none
    behind = int(entered[is_known].min())
    slots = np.flatnonzero(group.seq_ids == behind + 1)
    if not len(slots) or (entered > behind + 1).any():
        return none, none
    slot = int(slots[0])
    created = group.created_ns[slot]
    has_failed = group.is_retired[slot] & (created > 0) & (created >= last_created[rows.rank[own]])
    has_failed &= _needs_all(group)[group.op[slot]]
    columns = np.flatnonzero(has_failed & is_known)
    rows.done[own] = np.where(has_failed, behind, rows.done[own])
    return np.full(len(columns), slot, dtype=np.int64), columns
