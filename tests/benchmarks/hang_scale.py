"""How long the hang analysis takes for many ranks, and what torch's own analyzer takes.

    python tests/benchmarks/hang_scale.py                    # heads and counters, 1,024 to 16,384
    python tests/benchmarks/hang_scale.py --ranks --against-torch    # dumps, with both in turns

The jobs are synthetic: tensor, pipeline and data parallel groups, one rank that never entered.
"heads and counters" is what a lead sidecar gets of each rank: unfinished operations and two
numbers for each process group. Each size runs in a process of its own, so that its memory is its
own.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TP, PP = 8, 16
STEP = 5_000
NUM_GROUPS = 5
START_NS = 1_760_000_000_000_000_000


def measured(world_size: int) -> dict[str, float]:
    """Build a job of this size and judge it."""
    from tracecore_sidecar.detectors.hang.diagnose import diagnose
    from tracecore_sidecar.detectors.hang.report import report
    from tracecore_sidecar.detectors.hang.scene import look
    from tracecore_sidecar.detectors.hang.whereabouts import Patience
    from tracecore_sidecar.state.store import Store

    store = Store(job_id="scale", node_rank=0, host="", boot_id="")
    began = time.perf_counter()
    culprit = world_size // 2 + 3
    for batch in _batches(world_size, culprit):
        store.apply(batch)
    stored = time.perf_counter()
    times: list[float] = []
    num_groups = num_waiting = 0
    for _ in range(3):
        at = time.perf_counter()
        view = store.view()
        assert view is not None
        scene = look(
            view, stopped_ns=1, fresh_after_ns=1, now=START_NS, patience=Patience(), is_live=False
        )
        verdicts = [report(scene, diagnosis) for diagnosis in diagnose(scene)]
        times.append(time.perf_counter() - at)
        num_groups, num_waiting = len(view.groups), scene.graph.num_waiting
        assert [s.rank for v in verdicts for s in v.suspects] == [culprit], verdicts
    return {
        "ranks": world_size,
        "groups": num_groups,
        "waiting": num_waiting,
        "store_s": stored - began,
        "analysis_s": min(times),
        "first_s": times[0],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _families(world_size: int) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Give the groups: ranks are numbered tensor first, then data, then pipeline."""
    num_dp = world_size // (TP * PP)
    stage = TP * num_dp
    ranks = range(world_size)
    return [
        ("world", [tuple(ranks)]),
        ("tp", [tuple(range(b, b + TP)) for b in range(0, world_size, TP)]),
        ("pp", [tuple(r + s * stage for s in range(PP)) for r in range(stage)]),
        (
            "dp",
            [
                tuple(s * stage + d * TP + t for d in range(num_dp))
                for s in range(PP)
                for t in range(TP)
            ],
        ),
        ("cp", [tuple(range(b, b + 2)) for b in range(0, world_size, 2)]),
    ]


def _batches(world_size: int, culprit: int) -> Any:
    from tracecore_train.wire.records import (
        Batch,
        CollectiveRecord,
        GroupRecord,
        ProgressRecord,
        PullRecord,
        Source,
        SourceKind,
    )

    source = Source(
        kind=SourceKind.SIDECAR,
        host="",
        boot_id="",
        pid=0,
        job_id="scale",
        attempt=0,
        wall_offset_ns=0,
        world_size=world_size,
    )
    group_of: dict[tuple[str, int], tuple[str, tuple[int, ...]]] = {}
    groups: list[Any] = []
    for family, members in _families(world_size):
        for index, ranks in enumerate(members):
            name = f"{family}{index}"
            groups.append(
                GroupRecord(
                    time_ns=2,
                    rank=ranks[0],
                    pg_name=name,
                    pg_desc=name,
                    backend="nccl",
                    ranks=ranks,
                )
            )
            group_of.update({(family, rank): (name, ranks) for rank in ranks})
    yield Batch(source=source, records=tuple(groups))
    num_dp = world_size // (TP * PP)
    stage_size = TP * num_dp
    for rank in range(world_size):
        stage, is_near = rank // stage_size, rank // TP == culprit // TP
        records: list[Any] = [
            PullRecord(
                time_ns=START_NS,
                rank=rank,
                is_ok=True,
                reason="",
                num_entries=3,
                num_lost=0,
                is_active_only=True,
            )
        ]
        open_: list[tuple[str, str, bool]] = []
        if rank != culprit:
            is_column = rank % stage_size // TP == culprit % stage_size // TP
            if is_near:
                open_.append(("tp", "all_reduce", False))
            elif is_column and stage > culprit // stage_size:
                open_.append(("pp", f"recv {stage}<-{stage - 1}", True))
            elif is_column:
                open_.append(("pp", f"recv {stage}<-{stage + 1}", True))
            open_ += [("dp", "all_reduce", False), ("world", "all_reduce", False)]
        for family in ("world", "tp", "dp", "cp"):
            name, _ = group_of[family, rank]
            enqueued = STEP + any(family == f for f, _, _ in open_)
            records.append(
                ProgressRecord(
                    time_ns=2,
                    rank=rank,
                    pg_name=name,
                    enqueued=enqueued,
                    started=-1,
                    completed=STEP,
                )
            )
        for index, (family, op, is_p2p) in enumerate(open_):
            name, _ = group_of[family, rank]
            records.append(
                CollectiveRecord(
                    time_ns=2,
                    rank=rank,
                    pg_name=name,
                    collective_seq_id=STEP + 1,
                    record_id=10_000 + index,
                    op=op,
                    input_sizes="[[4096]]",
                    input_dtypes="['Float']",
                    created_ns=START_NS - 1_000_000 * (len(open_) - index),
                    completed_ns=0,
                    is_retired=False,
                    is_p2p=is_p2p,
                    op_id=STEP + 1,
                )
            )
        yield Batch(source=source, records=tuple(records))


def write_dumps(directory: Path, num_ranks: int, num_entries: int) -> int:
    """Write full dumps of a data parallel job; give the rank that never entered the last one."""
    culprit = num_ranks // 2
    frames = [{"name": f"f{i}", "filename": "train.py", "line": i} for i in range(8)]
    for rank in range(num_ranks):
        last = num_entries - (rank == culprit)
        entries = [
            {
                "frames": frames,
                "record_id": i,
                "pg_id": 0,
                "process_group": ("0", "default_pg"),
                "collective_seq_id": i + 1,
                "p2p_seq_id": 0,
                "op_id": i + 1,
                "profiling_name": "nccl:all_reduce",
                "time_created_ns": START_NS + i * 1_000_000 + rank,
                "input_sizes": [[4096]],
                "input_dtypes": ["Float"],
                "output_sizes": [[4096]],
                "output_dtypes": ["Float"],
                "state": "completed" if i < num_entries - 1 else "scheduled",
                "time_discovered_started_ns": None,
                "time_discovered_completed_ns": START_NS if i < num_entries - 1 else None,
                "retired": i < num_entries - 1,
                "timeout_ms": 600_000,
                "is_p2p": False,
            }
            for i in range(last)
        ]
        ranks = str(list(range(num_ranks)))
        dump = {
            "version": "2.10",
            "pg_config": {"0": {"name": "0", "desc": "default_pg", "ranks": ranks}},
            "pg_status": {
                "0": {
                    "last_enqueued_collective": last,
                    "last_started_collective": -1,
                    "last_completed_collective": num_entries - 1,
                }
            },
            "comm_lib_version": "2.27",
            "entries": entries,
        }
        (directory / f"trace_{rank}").write_bytes(pickle.dumps(dump, protocol=2))
    return culprit


def timed(command: list[str]) -> tuple[float, float, float, str]:
    """Run a command; give its seconds, its CPU seconds, its peak MB, and what it printed."""
    code = (
        "import json, resource, subprocess, sys, time; at = time.perf_counter();"
        " done = subprocess.run(sys.argv[1:], capture_output=True, text=True);"
        " took = time.perf_counter() - at;"
        " used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        " cpu = used.ru_utime + used.ru_stime;"
        " print(json.dumps([took, cpu, used.ru_maxrss / 1024, done.stdout + done.stderr]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    seconds, cpu, peak, output = json.loads(done.stdout)
    return seconds, cpu, peak, output


def against_torch(sizes: list[int], num_entries: int, num_rounds: int) -> None:
    """Judge the same dumps with both, in turns, and print medians and the spread of the ratio."""
    print(f"\n| dumps of {num_entries:,} entries | tracecore | named | torch | named |", end="")
    print(f" torch / tracecore, {num_rounds} rounds | in CPU time |")
    print("|---|---|---|---|---|---|---|")
    for num_ranks in sizes:
        with tempfile.TemporaryDirectory() as name:
            culprit = write_dumps(Path(name), num_ranks, num_entries)
            ours = [sys.executable, "-m", "tracecore_sidecar", "diagnose", "--json", name]
            torch = [sys.executable, "-m", "torch.distributed.flight_recorder.fr_trace"]
            commands = {"ours": ours, "torch": [*torch, name, "-p", "trace_"]}
            runs: dict[str, list[tuple[float, float, float, str]]] = {"ours": [], "torch": []}
            for index in range(num_rounds):
                for who in sorted(commands, reverse=bool(index % 2)):
                    runs[who].append(timed(commands[who]))
        answer = json.loads(runs["ours"][0][3])
        found = [s["rank"] for v in answer["verdicts"] for s in v["suspects"]]
        has_named = f"missing ranks: {{{culprit}}}" in runs["torch"][0][3]
        print(
            f"| {num_ranks} ranks | {_median(runs['ours'])} |"
            f" {'yes' if found == [culprit] else found} |"
            f" {_median(runs['torch'])} | {'yes' if has_named else 'no'} |"
            f" {_ratios(runs, 0)} | {_ratios(runs, 1)} |",
            flush=True,
        )


def _median(runs: list[tuple[float, float, float, str]]) -> str:
    seconds = statistics.median(run[0] for run in runs)
    peak = statistics.median(run[2] for run in runs)
    return f"{seconds:.1f} s, {peak:.0f} MB"


def _used(run: tuple[float, float, float, str]) -> tuple[float, float]:
    return run[0], run[1]


def _ratios(runs: dict[str, list[tuple[float, float, float, str]]], column: int) -> str:
    """Give the median of the rounds' ratios, and the least and greatest."""
    pairs = zip(runs["torch"], runs["ours"], strict=True)
    ratios = sorted(_used(torch)[column] / _used(own)[column] for torch, own in pairs)
    return f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1024, 4096, 16_384])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--against-torch", type=int, nargs="*", metavar="RANKS")
    parser.add_argument("--entries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one)))
        return
    if options.ranks:
        print("| ranks | groups | waiting | into the store | analysis | first | peak memory |")
        print("|---|---|---|---|---|---|---|")
    for world_size in options.ranks:
        command = [sys.executable, __file__, "--one", str(world_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        print(
            f"| {found['ranks']:,} | {found['groups']:,} | {found['waiting']:,} |"
            f" {found['store_s']:.2f} s | {found['analysis_s']:.2f} s | {found['first_s']:.2f} s |"
            f" {found['peak_mb']:.0f} MB |",
            flush=True,
        )
    if options.against_torch is not None:
        against_torch(options.against_torch or [16, 64, 256], options.entries, options.rounds)


if __name__ == "__main__":
    main()
