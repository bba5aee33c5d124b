"""Rank pages read from the runtime directory."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from tracecore_sidecar.sources.rank_pages import MAX_AHEAD_NS, attempts, read_pages
from tracecore_train import runtime
from tracecore_train.recorder.page import PAGE_SIZE, RankPage, Text, Word

if TYPE_CHECKING:
    from pathlib import Path

NOW = 10**18
"""Later than any heartbeat this host can give."""


def write_page(job: Path, rank: int, attempt: int = 0) -> RankPage:
    path = runtime.rank_page(job, attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    return RankPage.create(path, rank=rank, attempt=attempt, start_ticks=1, wall_offset_ns=0)


def test_pages_come_by_rank(tmp_path: Path) -> None:
    """All pages of the attempt are read, in rank order, with what their ranks wrote."""
    for rank in (10, 2, 0):
        write_page(tmp_path, rank).words[Word.STEP] = 100 + rank
    page = write_page(tmp_path, 1)
    page.write_text(Text.PHASE, "warm up")
    records, problems = read_pages(tmp_path, 0, NOW, 15)
    assert [(record.rank, record.step) for record in records] == [
        (0, 100),
        (1, 0),
        (2, 102),
        (10, 110),
    ]
    assert records[1].phase == "warm up"
    assert {record.time_ns for record in records} == {NOW}
    assert problems == []


def test_only_the_asked_attempt_is_read(tmp_path: Path) -> None:
    """Pages of other attempts do not show."""
    write_page(tmp_path, 0, attempt=0)
    write_page(tmp_path, 1, attempt=1)
    records, _ = read_pages(tmp_path, 1, NOW, 7)
    assert [record.rank for record in records] == [1]


def test_attempts_are_directories_with_numbers(tmp_path: Path) -> None:
    """Files, links and other names are no attempts; order is by number."""
    for name in ("2", "10", "0", "x", "-1", "01", "1" * 30):
        (tmp_path / name).mkdir()
    (tmp_path / "3").write_text("")
    (tmp_path / "4").symlink_to(tmp_path / "0")
    assert attempts(tmp_path) == [0, 2, 10]


def test_a_job_without_directory_has_nothing(tmp_path: Path) -> None:
    """Before the first rank starts there are no attempts and no pages."""
    assert attempts(tmp_path / "none") == []
    assert read_pages(tmp_path / "none", 0, NOW, 7) == ([], [])


def test_ranks_beyond_the_job_are_not_read(tmp_path: Path) -> None:
    """A page of a rank above the highest one is a problem, not a record."""
    write_page(tmp_path, 1)
    write_page(tmp_path, 8)
    records, problems = read_pages(tmp_path, 0, NOW, 7)
    assert [record.rank for record in records] == [1]
    assert len(problems) == 1
    assert "r8.page" in problems[0]


def set_word(path: Path, word: Word, value: int) -> None:
    raw = bytearray(path.read_bytes())
    struct.pack_into("=q", raw, word * 8, value)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (Word.RANK, 3),
        (Word.PID, 0),
        (Word.PID, -1),
        (Word.STEP, -1),
        (Word.NUM_BATCHES, -(2**63)),
        (Word.INPUT_SINCE, -5),
        (Word.HEARTBEAT, NOW + MAX_AHEAD_NS + 1),
        (Word.STEP_TIME, 2**63 - 1),
        (Word.VERSION, 99),
        (Word.MAGIC, 0),
    ],
)
def test_a_page_that_cannot_be_believed_is_a_problem(
    tmp_path: Path, word: Word, value: int
) -> None:
    """Impossible numbers give a text that names the page, and the other pages still come."""
    write_page(tmp_path, 0)
    write_page(tmp_path, 1)
    set_word(runtime.rank_page(tmp_path, 0, 0), word, value)
    records, problems = read_pages(tmp_path, 0, NOW, 7)
    assert [record.rank for record in records] == [1]
    assert len(problems) == 1
    assert problems[0].startswith("r0.page: ")


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, 1 << 20])
def test_a_page_of_another_size_is_a_problem(tmp_path: Path, size: int) -> None:
    """Half a page and a huge file are refused."""
    write_page(tmp_path, 0)
    path = runtime.rank_page(tmp_path, 0, 0)
    path.write_bytes((path.read_bytes() * 257)[:size])
    records, problems = read_pages(tmp_path, 0, NOW, 7)
    assert records == []
    assert len(problems) == 1


def test_a_pipe_in_place_of_a_page_does_not_block(tmp_path: Path) -> None:
    """A FIFO without a writer is refused at once."""
    write_page(tmp_path, 1)
    os.mkfifo(runtime.rank_page(tmp_path, 0, 0))
    records, problems = read_pages(tmp_path, 0, NOW, 7)
    assert [record.rank for record in records] == [1]
    assert problems == ["r0.page: not a regular file"]


def test_a_link_in_place_of_a_page_is_not_followed(tmp_path: Path) -> None:
    """A page that is a symbolic link is refused, whatever it points to."""
    write_page(tmp_path, 0)
    path = runtime.rank_page(tmp_path, 0, 0)
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    records, problems = read_pages(tmp_path, 0, NOW, 7)
    assert records == []
    assert len(problems) == 1
