"""expect(): the page tells the limit while a pause lasts, the record tells it afterwards."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar
from tracecore_train import refusals, runtime, steps
from tracecore_train.recorder.page import read_page
from tracecore_train.wire.records import GapRecord, PhaseRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracecore_train.wire.records import RankPageRecord

SECOND = 1_000_000_000


@pytest.fixture
def sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSidecar]:
    fresh = refusals.Refusals("expect()")
    monkeypatch.setattr(steps, "expect_refusals", fresh)
    monkeypatch.setattr(refusals, "ALL", (fresh,))
    with FakeSidecar(tmp_path / "j") as started:
        tracecore_train.init(endpoint=started.endpoint, flush_interval=60)
        yield started


def page(sidecar: FakeSidecar) -> RankPageRecord:
    return read_page(runtime.rank_page(sidecar.path.parent, 0, 0), 1)


def limit_s(sidecar: FakeSidecar) -> float:
    shown = page(sidecar)
    return (shown.expect_until_ns - shown.phase_since_ns) / SECOND


def phases(sidecar: FakeSidecar) -> dict[str, int]:
    tracecore_train.shutdown()
    return {record.name: record.at_most_ns for record in sidecar.records(PhaseRecord)}


def test_the_limit_is_on_the_page_while_the_pause_lasts(sidecar: FakeSidecar) -> None:
    """Inside, the page has name and limit; after it, also after an exception, neither."""
    shown: list[tuple[str, float]] = []

    def export() -> None:
        with tracecore_train.expect("export", at_most=0.5):
            shown.append((page(sidecar).phase, limit_s(sidecar)))
            raise KeyError

    with pytest.raises(KeyError):
        export()
    assert shown == [("export", 0.5)]
    assert (page(sidecar).phase_since_ns, page(sidecar).expect_until_ns) == (0, 0)
    assert phases(sidecar) == {"export": SECOND // 2}


def test_of_nested_announcements_the_one_that_ends_first_binds(sidecar: FakeSidecar) -> None:
    """A longer one inside a shorter one leaves the limit; a shorter one moves it for a while."""
    with tracecore_train.expect("evaluation", at_most=100):
        outer = page(sidecar)
        with tracecore_train.expect("generation", at_most=1_000):
            assert page(sidecar).phase == "generation"
            assert page(sidecar).expect_until_ns == outer.expect_until_ns
        with tracecore_train.expect("scoring", at_most=1):
            assert page(sidecar).expect_until_ns < outer.expect_until_ns
        assert page(sidecar).expect_until_ns == outer.expect_until_ns
        assert page(sidecar).phase == "evaluation"
    assert page(sidecar).expect_until_ns == 0
    assert phases(sidecar) == {
        "generation": 1_000 * SECOND,
        "scoring": SECOND,
        "evaluation": 100 * SECOND,
    }


def test_a_plain_phase_inside_leaves_the_announcement_shown(sidecar: FakeSidecar) -> None:
    """The limit belongs to the name beside it, so a phase inside is recorded and not shown."""
    with tracecore_train.phase("validation"):
        with tracecore_train.expect("export", at_most=9):
            with tracecore_train.phase("upload"):
                assert (page(sidecar).phase, limit_s(sidecar)) == ("export", 9)
            assert (page(sidecar).phase, limit_s(sidecar)) == ("export", 9)
        assert (page(sidecar).phase, page(sidecar).expect_until_ns) == ("validation", 0)
    assert phases(sidecar) == {"upload": 0, "export": 9 * SECOND, "validation": 0}


def test_another_thread_announces_nothing_for_the_rank(sidecar: FakeSidecar) -> None:
    """A pause of a helper thread is recorded with its limit and does not touch the page."""
    tracecore_train.step()

    def pause() -> None:
        with tracecore_train.expect("upload", at_most=5):
            assert page(sidecar).expect_until_ns == 0

    thread = threading.Thread(target=pause)
    thread.start()
    thread.join()
    assert phases(sidecar) == {"upload": 5 * SECOND}


@pytest.mark.parametrize(
    ("at_most", "said"),
    [
        (0, "at_most=0: seconds, above 0"),
        (-1, "at_most=-1"),
        (float("nan"), "at_most=nan"),
        (1e9, "at_most=1e+09"),
        ("600", "at_most: a builtins.str is not read"),
    ],
)
def test_a_bad_limit_is_said_once_and_the_pause_is_a_phase(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str], at_most: Any, said: str
) -> None:
    """Nothing is raised; the phase is there without a limit, and the refusals are counted."""
    for _ in range(2):
        with tracecore_train.expect("export", at_most=at_most):
            assert (page(sidecar).phase, page(sidecar).expect_until_ns) == ("export", 0)
    assert phases(sidecar) == {"export": 0}
    assert capsys.readouterr().err.count(said) == 1
    assert sum(gap.num_lost for gap in sidecar.records(GapRecord)) == 2


def test_without_a_session_it_does_nothing() -> None:
    """Outside a session the block just runs."""
    with tracecore_train.expect("export", at_most=1):
        pass
