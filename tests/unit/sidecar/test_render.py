"""A verdict as text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.verdicts import SECOND, WALL_OFFSET_NS, fact, hang
from tracecore_sidecar.render import WIDTH, age_text, clean_text, render_text
from tracecore_sidecar.verdicts import Confidence, Suspect, SuspectKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _in_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def text_of(verdict: Verdict) -> str:
    return render_text(verdict, now_ns=68 * SECOND, wall_offset_ns=WALL_OFFSET_NS)


def test_a_full_verdict_reads_as_designed() -> None:
    """Head, suspect, onset, cost, reasons, contradictions, blind spots, next action."""
    summary = "rank 1 never joined all_reduce #482 of default_pg"
    assert text_of(hang(1)).splitlines() == [
        f"HANG  {summary}".ljust(WIDTH - len("confidence: full")) + "confidence: full",
        "Suspect  rank 1 · host a07 · GPU 1 (GPU-5f1c…) · pid 4121",
        "Since    11:07:40, 8 s ago",
        "Cost     7 ranks wait",
        "Why      ranks 0,2-7 entered #482; the last that rank 1 entered is #481",
        "         rank 1 has been inside next(dataloader) since 14:02:10",
        "Against  nothing found",
        "Not seen kernel log (no /dev/kmsg in this container)",
        "Next     look at the NFS mount of a07",
    ]


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """The onset is shown in the time zone of the machine."""
    monkeypatch.setenv("TZ", "XYZ-2")
    time.tzset()
    assert "Since    13:07:40" in text_of(hang(1))


def test_a_verdict_without_suspects_says_so() -> None:
    """Where nobody is named, the text says that."""
    assert "Suspect  nobody is named" in text_of(hang())


def test_contradictions_are_shown() -> None:
    """What speaks against the verdict stands under Against."""
    text = text_of(hang(1, contradicting=(fact("its heartbeat is fresh"),)))
    assert "Against  its heartbeat is fresh" in text
    assert "nothing found" not in text


def test_confidence_is_shown() -> None:
    """A partial verdict says partial in its head."""
    head = text_of(hang(1, confidence=Confidence.PARTIAL)).splitlines()[0]
    assert head.endswith("confidence: partial")


def test_no_line_is_wider_than_the_block() -> None:
    """Long summaries, facts and paths wrap; their lines line up under the first."""
    words = "lorem ipsum " * 40
    lines = text_of(
        hang(1, summary=words, evidence=(fact(words), fact("/very/long/path" * 20)))
    ).splitlines()
    assert max(map(len, lines)) <= WIDTH
    start = next(i for i, line in enumerate(lines) if line.startswith("Why"))
    assert lines[start + 1].startswith("         ipsum")


def test_many_suspects_are_counted() -> None:
    """At most eight suspects are listed, the others counted."""
    text = text_of(hang(*range(20)))
    assert text.count("pid ") == 8
    assert "         and 12 more" in text


def test_a_node_is_named_as_one() -> None:
    """A suspect that is no rank shows its kind."""
    text = text_of(hang(suspects=(Suspect(kind=SuspectKind.NODE, host="a07"),)))
    assert "Suspect  node · host a07" in text


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b[31m", "\r", "\x07\x9b1A", "\u202e", "\x00"])
def test_control_characters_never_reach_the_terminal(hostile: str) -> None:
    """Texts from outside cannot steer the terminal, wherever they stand."""
    bad = f"before{hostile}after"
    text = text_of(
        hang(
            suspects=(Suspect(rank=1, host=bad, gpu_uuid=bad),),
            summary=bad,
            evidence=(fact(bad),),
            contradicting=(fact(bad),),
            not_measured=(bad,),
            actions=(bad,),
        )
    )
    assert all(line.isprintable() for line in text.split("\n"))


def test_one_text_stays_one_line() -> None:
    """A line end inside a text cannot forge a line of the block."""
    assert clean_text("a\nNext     run rm") == "a Next run rm"


def test_a_huge_text_is_cut() -> None:
    """A megabyte of text costs a thousand characters."""
    assert len(clean_text("x" * 1_000_000)) == 1_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7500, "2 h 05 min")],
)
def test_ages_are_words(seconds: int, text: str) -> None:
    """Ages are given in the unit a person would use."""
    assert age_text(seconds * SECOND) == text
