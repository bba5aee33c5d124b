"""Dumps with anything changed in them: an answer or a refusal, never a crash."""

from __future__ import annotations

import json
import pickle
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.recorder_dumps import (
    DumpedJob,
    data_parallel,
    experts,
    pipeline,
    tensor_and_data_parallel,
)
from tracecore_sidecar.offline.diagnose import diagnose_paths
from tracecore_sidecar.offline.text import answer_text

if TYPE_CHECKING:
    from pathlib import Path

VALUES: list[Any] = [
    None,
    -1,
    2**62,
    2**70,
    "",
    "9" * 30,
    [],
    {},
    [[[[1]]]],
    True,
    1.5,
    "[0, 99999999]",
    [0, 1],
    "\x1b[31m",
]
NUM_ROUNDS = 40


def mutated(value: Any, share: float, rng: random.Random) -> Any:
    """Give a value with parts left out, doubled or replaced."""
    if rng.random() < share / 5:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if rng.random() > share / 3}
        return {k: mutated(v, share, rng) for k, v in kept.items()}
    if isinstance(value, (list, tuple)):
        items = [mutated(item, share, rng) for item in value if rng.random() > share / 3]
        return items + items[:1] if rng.random() < share else items
    return rng.choice(VALUES) if rng.random() < share else value


@pytest.mark.parametrize("seed", range(4))
def test_no_change_of_a_dump_is_a_crash(tmp_path: Path, seed: int) -> None:
    """Values, keys, lengths and single bytes: the answer can always be printed."""
    rng = random.Random(seed)
    layouts = (data_parallel(4), tensor_and_data_parallel(2, 2), pipeline(4, 1), experts(2, 2))
    job = DumpedJob(*layouts[seed], backend=rng.choice(["nccl", "gloo"]))
    job.ranks[1].stops_at = 9
    job.run()
    for _ in range(NUM_ROUNDS):
        for rank in range(4):
            dump = mutated(job.dump(rank), rng.choice([0.002, 0.02, 0.1]), rng)
            is_json = rng.random() < 0.5
            raw = bytearray(json.dumps(dump).encode() if is_json else pickle.dumps(dump, 2))
            for _ in range(rng.choice([0, 0, 0, 3])):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            (tmp_path / f"trace_{rank}").write_bytes(raw)
        answer = diagnose_paths([tmp_path])
        assert len(answer.inputs) == 4
        assert json.dumps(answer.to_json())
        assert answer_text(answer).isascii() or answer_text(answer).encode()
