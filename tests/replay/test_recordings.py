"""Recorded real jobs, judged again: the same verdicts as live, and silence where all was well.

The recordings are of `tests/support/programs/train_sleep.py` with the fault each name says, two
gloo ranks, torch 2.13. To record one anew, run the job with `tracecore run` and copy
`<output>/0/records/000001.jsonl.gz`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tracecore_sidecar.replay import replay_path, verdict_json
from tracecore_train.errors import WireError

RECORDINGS = Path(__file__).parent / "recordings"
EXPECTED: dict[str, set[tuple[str, str, tuple[int, ...]]]] = {
    "healthy": set(),
    "alternating": set(),
    "checkpoint_10s": set(),
    "hang_backward": {("hang", "never_entered", (1,))},
    "slow_backward": {("straggler", "late_arrival", (1,))},
}


def named(path: Path) -> set[tuple[str, str, tuple[int, ...]]]:
    """Give (pattern, class, suspected ranks) of every verdict of a replay."""
    verdicts = [verdict_json(item) for item in replay_path(path) if item.event.change != "closed"]
    return {
        (v["pattern"], v["class"], tuple(sorted(s["rank"] for s in v["suspects"])))
        for v in verdicts
    }


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_recording_gives_its_verdicts(name: str) -> None:
    """A replay names exactly who was at fault, and nobody where nobody was."""
    assert named(RECORDINGS / f"{name}.jsonl.gz") == EXPECTED[name]


def test_every_recording_is_expected() -> None:
    """No recording lies there unjudged."""
    assert {path.name.split(".")[0] for path in RECORDINGS.glob("*.gz")} == set(EXPECTED)


def test_a_cut_recording_is_read_up_to_the_cut(tmp_path: Path) -> None:
    """A recording whose writer was killed still gives what came before."""
    raw = (RECORDINGS / "hang_backward.jsonl.gz").read_bytes()
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(raw[: len(raw) * 9 // 10])
    assert named(cut) == EXPECTED["hang_backward"]


def test_ticks_are_made_where_a_recording_has_none(tmp_path: Path) -> None:
    """Records alone, without the sidecar's ticks, give the same verdict."""
    text = gzip.decompress((RECORDINGS / "slow_backward.jsonl.gz").read_bytes()).decode()
    lines = [line for line in text.splitlines(keepends=True) if '"tick"' not in line]
    bare = tmp_path / "bare.jsonl.gz"
    bare.write_bytes(gzip.compress("".join(lines).encode()))
    assert named(bare) == EXPECTED["slow_backward"]


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    """A clear error, not an empty answer."""
    path = tmp_path / "000001.jsonl.gz"
    path.write_bytes(b"not gzip at all")
    with pytest.raises(WireError):
        named(path)
