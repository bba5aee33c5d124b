"""Tables from outside are checked value by value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tracecore_train.errors import WireError
from tracecore_train.wire.records import RECORD_TYPES, RecordKind, StepRecord, WorkerExitRecord
from tracecore_train.wire.tables import MAX_TEXT, from_table, to_tables

STEP = StepRecord(
    time_ns=5,
    rank=0,
    step=1,
    duration_ns=3,
    input_ns=1,
    num_batches=1,
    checkpoint_ns=0,
    flags=0,
)
EXIT = WorkerExitRecord(time_ns=5, rank=1, pid=77, exit_code=None, signal=9)


def columns(**changes: Any) -> dict[str, Any]:
    (table,) = to_tables([EXIT])
    return {**table.columns, **changes}


def test_a_good_table_gives_its_records() -> None:
    """The record that went in comes out."""
    assert from_table("worker_exit", columns()) == [EXIT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pid": ["77"]}, "'77' is not int"),
        ({"pid": [True]}, "True is not int"),
        ({"pid": [None]}, "None is not int"),
        ({"pid": [2**63]}, "does not fit 64 bits"),
        ({"pid": [1, 2]}, "uneven length"),
        ({"pid": 77}, "int, not a list"),
        ({"extra": [1]}, "unknown columns"),
        ({"pid": [10**5000]}, "a huge integer"),
    ],
)
def test_a_bad_column_is_named(changes: dict[str, Any], message: str) -> None:
    """The error names what is wrong."""
    with pytest.raises(WireError, match=message):
        from_table("worker_exit", columns(**changes))


@pytest.mark.parametrize("bad", [True, None, "7", 2**63, -(2**63) - 1, 1.0])
def test_one_bad_value_in_a_long_column_is_found(bad: object) -> None:
    """A column is checked as a whole, and still no value passes unchecked."""
    (table,) = to_tables([STEP] * 1_000)
    values: list[object] = [*table.columns["duration_ns"]]
    values[617] = bad
    with pytest.raises(WireError, match=r"step\.duration_ns: "):
        from_table("step", {**table.columns, "duration_ns": values})


def test_kinds_that_alternate_become_one_table_each() -> None:
    """Records of a kind stay in order however they are mixed with others."""
    steps = [replace(STEP, step=number) for number in range(3)]
    tables = to_tables([steps[0], EXIT, steps[1], EXIT, steps[2]])
    assert [table.num_rows for table in tables] == [3, 2]
    assert from_table("step", tables[0].columns) == steps


def test_a_missing_column_is_named() -> None:
    """A table without a column is refused with its name."""
    incomplete = columns()
    del incomplete["signal"]
    with pytest.raises(WireError, match=r"missing columns \['signal'\]"):
        from_table("worker_exit", incomplete)


@pytest.mark.parametrize("kind", ["nonsense", 7, None, [], {}])
def test_an_unknown_kind_is_refused(kind: object) -> None:
    """A kind this version does not know is an error, not a guess."""
    with pytest.raises(WireError, match="unknown record kind"):
        from_table(kind, {})


def test_oversized_text_is_refused() -> None:
    """One string may not be longer than the limit."""
    table = {"time_ns": [1], "rank": [0], "word": ["x" * (MAX_TEXT + 1)]}
    with pytest.raises(WireError, match=f"at most {MAX_TEXT}"):
        from_table("last_word", table)


def test_every_kind_has_one_record_type() -> None:
    """The vocabulary and the types list the same kinds."""
    assert set(RECORD_TYPES) == set(RecordKind)


def test_a_column_added_later_may_be_missing() -> None:
    """A recording made before a field with a default existed is still read."""
    (table,) = to_tables([STEP])
    earlier = {name: values for name, values in table.columns.items() if name != "global_step"}
    assert from_table("step", earlier) == [STEP]
