"""log(): plain numbers become records, everything else is refused, said once and counted."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tracecore_train
from tests.support.fake_sidecar import FakeSidecar, wait_until
from tracecore_train import refusals, scalars
from tracecore_train.recorder.pace import Pace
from tracecore_train.wire.records import GapRecord, ScalarRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSidecar]:
    monkeypatch.setattr(scalars, "_names", set())
    fresh = refusals.Refusals("log()")
    monkeypatch.setattr(scalars, "log_refusals", fresh)
    monkeypatch.setattr(refusals, "ALL", (fresh,))
    monkeypatch.setattr(scalars, "_pace", Pace(scalars.MAX_RATE))
    with FakeSidecar(tmp_path / "j") as started:
        tracecore_train.init(endpoint=started.endpoint, flush_interval=60)
        yield started


def logged(sidecar: FakeSidecar) -> list[ScalarRecord]:
    tracecore_train.shutdown()
    return sidecar.records(ScalarRecord)


def test_plain_numbers_are_recorded_at_their_step(sidecar: FakeSidecar) -> None:
    """Each number is one record with its name and the number of steps ended before it."""
    tracecore_train.step()
    tracecore_train.log(loss=0.5, tokens=4096, is_warm=True, lr=np.float32(0.25), n=np.int64(3))
    tracecore_train.step()
    tracecore_train.log(**{"train/loss": Fraction(1, 4)})
    assert [(r.step, r.name, r.value) for r in logged(sidecar)] == [
        (1, "loss", 0.5),
        (1, "tokens", 4096.0),
        (1, "is_warm", 1.0),
        (1, "lr", 0.25),
        (1, "n", 3.0),
        (2, "train/loss", 0.25),
    ]


def test_what_is_not_finite_is_recorded_as_such(sidecar: FakeSidecar) -> None:
    """NaN and infinities have no value and say which they are."""
    tracecore_train.log(a=math.nan, b=math.inf, c=np.float64(-math.inf))
    assert [(r.value, r.non_finite) for r in logged(sidecar)] == [
        (None, "nan"),
        (None, "inf"),
        (None, "-inf"),
    ]


class OnDevice:
    """Waits for a device whenever it is read, like a tensor."""

    def __float__(self) -> float:
        raise AssertionError("read")

    __int__ = __index__ = __bool__ = __str__ = __repr__ = item = __float__  # type: ignore[assignment]


def test_what_may_be_on_a_device_is_refused_unread(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value with ``item()`` is never read; the way out is said once, each refusal is counted,
    and the other numbers of the call arrive.
    """
    for _ in range(3):
        tracecore_train.log(loss=OnDevice(), tokens=1)
    assert [r.name for r in logged(sidecar)] == ["tokens"] * 3
    said = capsys.readouterr().err
    assert said.count("OnDevice is not read") == 1
    assert said.count("value.item()") == 1
    gaps = sidecar.records(GapRecord)
    assert {gap.where for gap in gaps} == {"log()"}
    assert sum(gap.num_lost for gap in gaps) == 3


def test_every_tensor_is_refused(sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str]) -> None:
    """A tensor is refused on the CPU too, so that the same script is right on a device."""
    torch = pytest.importorskip("torch")
    tracecore_train.log(loss=torch.tensor(0.5), norm=np.ones(1))
    assert logged(sidecar) == []
    said = capsys.readouterr().err
    assert "loss: a torch.Tensor is not read; give value.item()" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"a b": 1}, "'a b' is not a name"),
        ({"": 1}, "'' is not a name"),
        ({"x" * 81: 1}, "is not a name"),
        ({"loss": "0.5"}, "loss: a builtins.str is not read; give a plain number"),
        ({"loss": None}, "NoneType is not read"),
        ({"loss": 10**400}, "loss: a builtins.int is not read"),
        ({"loss": 1j}, "loss: a builtins.complex is not read"),
    ],
)
def test_a_bad_name_or_value_is_said_and_leaves_no_record(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str], values: dict[str, Any], said: str
) -> None:
    """Nothing is raised for an argument that cannot be taken."""
    tracecore_train.log(**values)
    assert logged(sidecar) == []
    assert said in capsys.readouterr().err


def test_names_and_rate_are_bounded(
    sidecar: FakeSidecar, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 65th name and the 1001st number of a second are refused; the first 64 names go on."""
    for index in range(70):
        tracecore_train.log(**{f"n{index}": 1})
    for _ in range(2_000):
        tracecore_train.log(n0=2)
    found = logged(sidecar)
    assert {r.name for r in found} == {f"n{index}" for index in range(64)}
    assert 1_000 <= len(found) < 2_064
    said = capsys.readouterr().err
    assert said.count("one name too many") == 1
    assert said.count("more than 1000 numbers a second") == 1


def test_without_a_session_it_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a session a call says and does nothing, whatever it is given."""
    tracecore_train.log(loss=OnDevice())
    assert capsys.readouterr().err == ""


def test_a_refusal_is_reported_while_the_session_runs(sidecar: FakeSidecar) -> None:
    """A refused number reaches the sidecar as a gap with the next hand-over."""
    tracecore_train.shutdown()
    tracecore_train.init(endpoint=sidecar.endpoint, flush_interval=0.1)
    tracecore_train.log(loss="x")
    wait_until(lambda: sidecar.records(GapRecord))
