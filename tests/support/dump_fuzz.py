"""Random hangs of random jobs in random forms, with their truth, and how an answer scores."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.dump_forms import Form, random_form, write
from tests.support.stream_job import SYNC, WAIT, Call, Program, StreamJob
from tracecore_sidecar.offline.diagnose import diagnose_paths

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

Layout = tuple[dict[str, tuple[int, ...]], list[Program]]
CLASSES = {"stop": "never_entered", "device": "stuck_peers_done"}


@dataclass(frozen=True, slots=True)
class Hang:
    """One hang in one form."""

    name: str
    job: StreamJob
    form: Form
    faults: dict[int, str]
    """``stop`` or ``device``, by rank, of those that came to happen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out."""

    hang: Hang
    named: dict[int, str]
    """Class of the verdict, by suspect."""
    classes: tuple[str, ...]

    @property
    def innocents(self) -> set[int]:
        """Ranks named that are at no fault."""
        return self.named.keys() - self.hang.faults.keys()

    @property
    def is_exact(self) -> bool:
        """All faulty ranks, and nobody else."""
        return self.named.keys() == self.hang.faults.keys()

    @property
    def is_class_wrong(self) -> bool:
        """A faulty rank was named for something else than what it did."""
        faults = self.hang.faults
        return any(r in faults and CLASSES[faults[r]] != c for r, c in self.named.items())


def judged(hang: Hang, directory: Path) -> Outcome:
    """Write the dumps and diagnose them."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    write(hang.job, hang.form, directory)
    verdicts = [told.json for told in diagnose_paths([directory]).told]
    return Outcome(
        hang=hang,
        named={s["rank"]: v["class"] for v in verdicts for s in v["suspects"]},
        classes=tuple(v["class"] for v in verdicts),
    )


def random_hang(rng: random.Random) -> Hang:
    """Draw a job, its faults, and how its dumps look."""
    make: Callable[[random.Random], Layout]
    make = rng.choice([megatron, megatron, megatron, fsdp, uneven])
    groups, programs = make(rng)
    job = StreamJob(groups, programs, run_ahead=rng.choice([8, 24, 200]))
    num = len(programs)
    kind = rng.choice(["stop", "stop", "device", "device", "both", "none"])
    chosen = rng.sample(range(num), min(num // 2, rng.choice([1, 2, 2, 3])))
    # Real faults are injected at one moment: often at nearly the same place on all of them.
    share = rng.uniform(0.3, 0.9)
    faults: dict[int, str] = {}
    for index, rank in enumerate(chosen if kind != "none" else []):
        process = job.ranks[rank]
        place = share if rng.random() < 0.7 else rng.uniform(0.3, 0.9)
        at = int(place * len(process.program)) + rng.randrange(-2, 3)
        faults[rank] = kind if kind != "both" else ("stop", "device")[index % 2]
        if faults[rank] == "stop":
            process.stops_at = at
        else:
            before = sum(isinstance(item, Call) for item in process.program[:at])
            process.blind_from = before
            process.dead_from = before + rng.choice([1, 2, 6, 12, 40])
    job.run()
    happened = {rank: fault for rank, fault in faults.items() if _has_happened(job, rank, fault)}
    name = f"{make.__name__} {num} {kind} {sorted(faults.items())}"
    return Hang(name, job, random_form(rng, num), happened)


def _has_happened(job: StreamJob, rank: int, fault: str) -> bool:
    process = job.ranks[rank]
    if fault == "stop":
        return process.at == process.stops_at
    assert process.blind_from is not None
    return len(process.works) > process.blind_from


def _grid(
    rng: random.Random, sizes: tuple[int, int, int]
) -> tuple[dict[str, tuple[int, ...]], list[dict[str, str]]]:
    """Number ranks tensor first, then data, then pipeline; name groups as they are made."""
    tp, dp, pp = sizes
    num = tp * dp * pp
    keys: dict[str, Callable[[int], tuple[int, ...]]] = {
        "dp": lambda r: (r // (tp * dp), r % tp),
        "mp": lambda r: (r // tp % dp,),
        "tp": lambda r: (r // tp,),
        "pp": lambda r: (r % (tp * dp),),
        "ep": lambda r: (r // (tp * dp),),
    }
    groups = {"0": tuple(range(num))}
    own: list[dict[str, str]] = [{"world": "0"} for _ in range(num)]
    number = 1
    for kind, key in keys.items():
        for value in sorted({key(r) for r in range(num)}):
            members = tuple(r for r in range(num) if key(r) == value)
            groups[str(number)] = members
            for r in members:
                own[r][kind] = str(number)
            number += rng.choice([1, 1, 2])
    return groups, own


def megatron(rng: random.Random) -> Layout:
    """Tensor, expert, data and pipeline parallel, forwards and backwards in turns."""
    tp, dp, pp = rng.choice([(2, 2, 2), (2, 2, 4), (4, 2, 2), (1, 2, 4), (2, 4, 1), (2, 1, 4)])
    groups, own = _grid(rng, (tp, dp, pp))
    stage_size = tp * dp
    is_batched, on_world = rng.random() < 0.4, rng.random() < 0.3
    num_micro = rng.choice([2, 4])
    num_steps = rng.choice([3, 4])
    programs: list[Program] = []
    for rank in range(tp * dp * pp):
        stage = rank // stage_size
        pg = own[rank]
        p2p = pg["world"] if on_world else pg["pp"]
        step: Program = []
        for is_forward in _schedule(num_micro, pp - stage):
            before, after = (-1, 1) if is_forward else (1, -1)
            sent: list[Call] = []
            if 0 <= stage + before < pp:
                sent.append(Call("recv", p2p, (64,), rank + before * stage_size, is_async=True))
            step += [*_numbered(sent, is_batched, rng), WAIT]
            step += _layer(pg, tp, dp, is_forward=is_forward)
            if 0 <= stage + after < pp:
                calls = [Call("send", p2p, (64,), rank + after * stage_size, is_async=True)]
                step += _numbered(calls, is_batched, rng)
        step.append(WAIT)
        if dp > 1:
            sizes = (512, 256, 128) if is_batched else (512,)
            step += [Call("_reduce_scatter_base", pg["dp"], sizes, is_async=True), WAIT]
            step.append(Call("_all_gather_base", pg["dp"], sizes))
        step += [Call("all_reduce", pg["mp"], (1,)), SYNC]
        programs.append(step * num_steps)
    return groups, programs


def _numbered(calls: list[Call], is_batched: bool, rng: random.Random) -> list[Call]:
    number = rng.randrange(1 << 30)
    return [
        Call(c.kind, c.pg, c.sizes, c.peer, is_async=True, batch=number if is_batched else None)
        for c in calls
    ]


def _schedule(num_micro: int, num_warm: int) -> list[bool]:
    """Give forwards (True) and backwards of one stage: some forwards first, then in turns."""
    num_warm = min(num_warm, num_micro)
    turns = [turn for _ in range(num_micro - num_warm) for turn in (False, True)]
    return [True] * num_warm + turns + [False] * num_warm


def _layer(pg: dict[str, str], tp: int, dp: int, *, is_forward: bool) -> Program:
    items: Program = []
    if tp > 1:
        items.append(Call("_all_gather_base", pg["tp"], (128,)))
    if tp * dp > 1:
        items += [Call("all_to_all", pg["ep"], (77,)), Call("all_to_all", pg["ep"], (78,))]
    if tp > 1:
        items.append(Call("_reduce_scatter_base", pg["tp"], (256,)))
        items += [Call("broadcast", pg["tp"], (8,))] * (2 * is_forward)
    return items


def fsdp(rng: random.Random) -> Layout:
    """Shards gathered ahead of each layer and gradients scattered behind it, all asynchronous."""
    num, num_layers = rng.choice([2, 4, 8]), 4
    sizes = rng.choice([(512,), (512, 64)])
    step: Program = []
    for layer in range(2 * num_layers):
        step.append(Call("_all_gather_base", "0", sizes, is_async=True))
        if layer >= num_layers:
            step.append(Call("_reduce_scatter_base", "0", sizes, is_async=True))
        step.append(WAIT)
    step += [Call("all_reduce", "0", (1,)), SYNC]
    return {"0": tuple(range(num))}, [step * 4 for _ in range(num)]


def uneven(rng: random.Random) -> Layout:
    """Groups of unequal sizes that overlap: experts on three and five ranks, pairs beside them."""
    num = 8
    cut = rng.choice([1, 3])
    groups = {"0": tuple(range(num)), "1": tuple(range(cut)), "2": tuple(range(cut, num))}
    pairs = {r: str(3 + r // 2) for r in range(num)}
    for r in range(0, num, 2):
        groups[pairs[r]] = (r, r + 1)
    programs: list[Program] = []
    for r in range(num):
        own = "1" if r < cut else "2"
        step: Program = []
        for _ in range(3):
            step += [Call("all_reduce", pairs[r], (64,)), Call("all_to_all", own, (70,))]
        step += [Call("all_reduce", "0", (100,), is_async=True), WAIT, SYNC]
        programs.append(step * 5)
    return groups, programs
