"""A simulated job that leaves flight recorder dumps, as torch writes them, and knows the truth.

Each rank runs a program: operations are enqueued by the host and carried out by the device in
order; an operation is over once every member has come to it with the same call. Faults change the
program, the host or the device of some ranks; the run goes on until nothing moves, and then every
rank dumps. Nothing here knows how dumps are judged.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

START_NS = 1_760_000_000_000_000_000
SYNC = "sync"
FLOAT = "Float"


@dataclass(frozen=True, slots=True)
class Op:
    """A collective, or a send or recv where ``peer`` is given."""

    kind: str
    pg: str
    size: int = 64
    dtype: str = FLOAT
    peer: int | None = None
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass(slots=True)
class Entry:
    """What the recorder holds of one operation."""

    op: Op
    record_id: int
    pg_id: int
    seq_id: int
    p2p_seq_id: int
    op_id: int
    created_ns: int
    is_over: bool = False
    is_told: bool = False
    """The recorder knows that it is over."""


@dataclass(slots=True)
class Rank:
    """One process."""

    program: list[Any]
    at: int = 0
    entries: list[Entry] = field(default_factory=list)
    front: int = 0
    seq: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    p2p: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    pair: dict[tuple[str, int, bool], int] = field(default_factory=lambda: defaultdict(int))
    stops_at: int | None = None
    """Place in the program the host never gets past."""
    blind_from: int | None = None
    """Entry from which completions are no longer noticed."""


class DumpedJob:
    """See the module."""

    def __init__(
        self,
        groups: dict[str, tuple[int, ...]],
        programs: list[list[Any]],
        *,
        backend: str = "nccl",
        run_ahead: int = 24,
    ) -> None:
        """Take the members of each group and the program of each rank."""
        self.groups = groups
        self.ranks = [Rank(list(program)) for program in programs]
        self.backend = backend
        self.run_ahead = run_ahead if backend == "nccl" else 1
        self.broken: set[tuple[str, int]] = set()
        """Collectives that never complete although everybody takes part."""
        self.now_ns = START_NS

    def run(self) -> DumpedJob:
        """Let every rank go on until nothing moves."""
        is_moving = True
        while is_moving:
            is_moving = False
            for index in range(len(self.ranks)):
                is_moving |= self._host(index)
            for index in range(len(self.ranks)):
                is_moving |= self._device(index)
        return self

    def _host(self, index: int) -> bool:
        rank, moved = self.ranks[index], False
        while rank.at < len(rank.program):
            item = rank.program[rank.at]
            if rank.stops_at is not None and rank.at >= rank.stops_at:
                break
            waits = sum(not entry.is_over for entry in rank.entries)
            if item == SYNC:
                is_blind = rank.blind_from is not None and len(rank.entries) > rank.blind_from
                if waits or is_blind:
                    break
            elif waits >= self.run_ahead:
                break
            else:
                self._enqueue(index, item)
            rank.at += 1
            moved = True
        return moved

    def _enqueue(self, index: int, op: Op) -> None:
        rank = self.ranks[index]
        self.now_ns += 1_000_000
        if op.peer is None:
            rank.seq[op.pg] += 1
        else:
            rank.p2p[op.pg] += 1
        rank.entries.append(
            Entry(
                op=op,
                record_id=len(rank.entries),
                pg_id=self._own_groups(index).index(op.pg),
                seq_id=rank.seq[op.pg],
                p2p_seq_id=0 if op.peer is None else rank.p2p[op.pg],
                op_id=rank.seq[op.pg] + rank.p2p[op.pg],
                created_ns=self.now_ns,
            )
        )

    def _device(self, index: int) -> bool:
        rank, moved = self.ranks[index], False
        while rank.front < len(rank.entries):
            entry = rank.entries[rank.front]
            if not entry.is_over and not self._complete(index, entry):
                break
            rank.front += 1
            moved = True
        return moved

    def _complete(self, index: int, entry: Entry) -> bool:
        """Carry an operation out if all its members have come to it."""
        op = entry.op
        if (op.pg, entry.seq_id) in self.broken and op.peer is None:
            return False
        members = self.groups[op.pg] if op.peer is None else (index, op.peer)
        partners: list[tuple[int, Entry]] = []
        for member in members:
            other = self.ranks[member]
            if other.front >= len(other.entries):
                return False
            found = other.entries[other.front]
            if found.is_over or found.op.pg != op.pg:
                return False
            if op.peer is None:
                is_same = found.seq_id == entry.seq_id and found.op.peer is None
                is_same &= (found.op.kind, found.op.dtype) == (op.kind, op.dtype)
                is_same &= op.kind == "all_to_all" or found.op.size == op.size
                is_same &= self._splits_agree(members)
            else:
                is_same = member == index or (
                    found.op.peer == index and {found.op.kind, op.kind} == {"send", "recv"}
                )
            if not is_same:
                return False
            partners.append((member, found))
        for member, found in partners:
            found.is_over = True
            blind_from = self.ranks[member].blind_from
            found.is_told = blind_from is None or found.record_id < blind_from
        return True

    def _splits_agree(self, members: tuple[int, ...]) -> bool:
        fronts = [
            self.ranks[m].entries[self.ranks[m].front : self.ranks[m].front + 1] for m in members
        ]
        if not all(front and front[0].op.inputs for front in fronts):
            return True
        ops = [front[0].op for front in fronts]
        size = range(len(ops))
        return all(ops[i].inputs[j] == ops[j].outputs[i] for i in size for j in size)

    def _own_groups(self, index: int) -> list[str]:
        return [name for name, members in self.groups.items() if index in members]

    def dump(
        self, index: int, *, active_only: bool = False, ring: int = 2_000, version: str = "2.9"
    ) -> dict[str, Any]:
        """Give the dump of one rank."""
        rank = self.ranks[index]
        entries = rank.entries[-ring:]
        if self.backend == "gloo":
            entries = [entry for entry in entries if entry.op.peer is None]
        if active_only:
            entries = [entry for entry in entries if not entry.is_told]
        config = {
            name: {"name": name, "desc": desc_of(name), "ranks": str(list(self.groups[name]))}
            for name in self._own_groups(index)
            if any(entry.op.pg == name for entry in rank.entries)
        }
        if self.backend == "gloo":
            config = {"": {"name": "", "desc": "", "ranks": "[]"}}
        return {
            "version": version,
            "pg_config": config,
            "pg_status": self._status(index),
            "entries": [self._entry(index, entry) for entry in entries],
        }

    def _status(self, index: int) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for pg_id, name in enumerate(self._own_groups(index)):
            entries = [entry for entry in self.ranks[index].entries if entry.op.pg == name]
            if not entries:
                continue
            counts = [
                entry.op_id if self.backend == "gloo" else self._count(entry) for entry in entries
            ]
            told = [c for c, entry in zip(counts, entries, strict=True) if entry.is_told]
            found[str(pg_id)] = {
                "last_enqueued_collective": counts[-1],
                "last_started_collective": -1,
                "last_completed_collective": told[-1] if told else -1,
            }
        return found

    @staticmethod
    def _count(entry: Entry) -> int:
        return entry.seq_id if entry.op.peer is None else entry.p2p_seq_id

    def _entry(self, index: int, entry: Entry) -> dict[str, Any]:
        op, members = entry.op, self.groups[entry.op.pg]
        name = op.kind
        if op.peer is not None:
            arrow = "->" if op.kind == "send" else "<-"
            name = f"{op.kind} {members.index(index)}{arrow}{members.index(op.peer)}"
        is_nccl = self.backend == "nccl"
        return {
            "record_id": entry.record_id,
            "pg_id": entry.pg_id,
            "process_group": (op.pg, desc_of(op.pg)),
            "collective_seq_id": entry.seq_id,
            "p2p_seq_id": entry.p2p_seq_id,
            "op_id": entry.op_id,
            "profiling_name": f"{self.backend}:{name}",
            "time_created_ns": entry.created_ns,
            "input_sizes": [[n] for n in op.inputs] or [[op.size]],
            "input_dtypes": [op.dtype],
            "output_sizes": [[n] for n in op.outputs] or [[op.size]],
            "output_dtypes": [op.dtype],
            "state": "completed" if is_nccl and entry.is_told else "scheduled",
            "time_discovered_started_ns": None,
            "time_discovered_completed_ns": entry.created_ns + 1
            if is_nccl and entry.is_told
            else None,
            "retired": entry.is_told,
            "timeout_ms": 600_000,
            "is_p2p": op.peer is not None,
        }

    def pickles(self, **options: Any) -> dict[int, bytes]:
        """Give the dump of every rank as torch would pickle it."""
        return {
            index: pickle.dumps(self.dump(index, **options), protocol=2)
            for index in range(len(self.ranks))
        }


def desc_of(name: str) -> str:
    """Give the description of a group: the first is the default one."""
    return "default_pg" if name == "0" else f"group_{name}"


# Layouts: the groups of a job and the program of each of its ranks.

Layout = tuple[dict[str, tuple[int, ...]], list[list[Any]]]


def data_parallel(num_ranks: int, num_steps: int = 6) -> Layout:
    """Three gradient buckets of different sizes a step, on the default group."""
    step = [Op("all_reduce", "0", size) for size in (4096, 1024, 512)]
    program = [item for _ in range(num_steps) for item in (*step, SYNC)]
    return {"0": tuple(range(num_ranks))}, [program for _ in range(num_ranks)]


def tensor_and_data_parallel(num_tp: int, num_dp: int, num_steps: int = 6) -> Layout:
    """Tensor-parallel collectives in both passes, then gradients over the data-parallel group."""
    num = num_tp * num_dp
    groups: dict[str, tuple[int, ...]] = {"0": tuple(range(num))}
    tp = {r: str(1 + r // num_tp) for r in range(num)}
    dp = {r: str(1 + num_dp + r % num_tp) for r in range(num)}
    for r in range(num):
        groups.setdefault(tp[r], tuple(q for q in range(num) if tp[q] == tp[r]))
    for r in sorted(range(num), key=lambda r: int(dp[r])):
        groups.setdefault(dp[r], tuple(q for q in range(num) if dp[q] == dp[r]))
    programs: list[list[Any]] = []
    for r in range(num):
        step: list[Any] = [Op("all_reduce", tp[r], 256), Op("_all_gather_base", tp[r], 128)]
        step += [Op("_reduce_scatter_base", tp[r], 512), Op("all_reduce", dp[r], 2048)]
        step += [Op("all_reduce", dp[r], 1024), Op("all_reduce", "0", 8), SYNC]
        programs.append(step * num_steps)
    return groups, programs


def pipeline(num_stages: int, num_dp: int, num_steps: int = 4, num_micro: int = 3) -> Layout:
    """All forwards, then all backwards, with send and recv; then gradients."""
    num = num_stages * num_dp
    groups: dict[str, tuple[int, ...]] = {"0": tuple(range(num))}
    for d in range(num_dp):
        groups[str(1 + d)] = tuple(s * num_dp + d for s in range(num_stages))
    for s in range(num_stages):
        groups[str(1 + num_dp + s)] = tuple(range(s * num_dp, (s + 1) * num_dp))
    programs: list[list[Any]] = []
    for r in range(num):
        stage, pp = r // num_dp, str(1 + r % num_dp)
        dp = str(1 + num_dp + stage)
        step: list[Any] = []
        for _ in range(num_micro):
            if stage:
                step.append(Op("recv", pp, 64, peer=r - num_dp))
            if stage < num_stages - 1:
                step.append(Op("send", pp, 64, peer=r + num_dp))
        for _ in range(num_micro):
            if stage < num_stages - 1:
                step.append(Op("recv", pp, 64, peer=r + num_dp))
            if stage:
                step.append(Op("send", pp, 64, peer=r - num_dp))
        step += [Op("all_reduce", dp, 2048), Op("all_reduce", "0", 1), SYNC]
        programs.append(step * num_steps)
    return groups, programs


def experts(num_ep: int, num_dp: int, num_steps: int = 5) -> Layout:
    """Tokens to the experts and back, lists of tensors with uneven splits; then gradients."""
    num = num_ep * num_dp
    groups: dict[str, tuple[int, ...]] = {"0": tuple(range(num))}
    for d in range(num_dp):
        groups[str(1 + d)] = tuple(range(d * num_ep, (d + 1) * num_ep))
    programs: list[list[Any]] = [[] for _ in range(num)]
    for step in range(num_steps):
        for r in range(num):
            ep, own = str(1 + r // num_ep), r % num_ep
            sent = tuple(10 + (own * 3 + j * 5 + step) % 7 for j in range(num_ep))
            taken = tuple(10 + (j * 3 + own * 5 + step) % 7 for j in range(num_ep))
            there = Op("all_to_all", ep, sum(sent), inputs=sent, outputs=taken)
            back = Op("all_to_all", ep, sum(taken), inputs=taken, outputs=sent)
            programs[r] += [Op("all_reduce", ep, 32), there, back, Op("all_reduce", "0", 999), SYNC]
    return groups, programs


def grid(num_tp: int, num_pp: int, num_dp: int, num_steps: int = 3, num_micro: int = 2) -> Layout:
    """Tensor, pipeline, data and expert parallel at once, as large mixture-of-experts jobs are."""
    num, per_stage = num_tp * num_pp * num_dp, num_tp * num_dp
    kinds = {
        r: {
            "tp": ("tp", r // num_tp),
            "dp": ("dp", r // per_stage, r % num_tp),
            "pp": ("pp", r % per_stage),
            "ep": ("ep", r // per_stage),
        }
        for r in range(num)
    }
    groups: dict[str, tuple[int, ...]] = {"0": tuple(range(num))}
    names: dict[tuple[Any, ...], str] = {}
    for key in sorted({key for own in kinds.values() for key in own.values()}, key=str):
        members = tuple(r for r in range(num) if key in kinds[r].values())
        if len(members) > 1:
            names[key] = str(len(groups))
            groups[names[key]] = members
    programs: list[list[Any]] = []
    for r in range(num):
        tp, dp, pp, ep = (names.get(kinds[r][kind]) for kind in ("tp", "dp", "pp", "ep"))
        stage, step = r // per_stage, list[Any]()
        for is_forward in (True, False):
            before, after = (-per_stage, per_stage) if is_forward else (per_stage, -per_stage)
            for _ in range(num_micro):
                if pp and 0 <= r + before < num:
                    step.append(Op("recv", pp, 64, peer=r + before))
                if tp:
                    step += [Op("_all_gather_base", tp, 128), Op("_reduce_scatter_base", tp, 256)]
                    step += [Op("broadcast", tp, 8)] * is_forward
                if ep:
                    step.append(Op("all_to_all", ep, 77 + stage))
                if pp and 0 <= r + after < num:
                    step.append(Op("send", pp, 64, peer=r + after))
        step += [Op("all_reduce", dp, 2048)] if dp else []
        step += [Op("all_reduce", "0", 1), SYNC]
        programs.append(step * num_steps)
    return groups, programs
