"""Hypothesis strategies for records, made from the record types themselves."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import strategies as st

from tracecore_train.wire.records import (
    RECORD_TYPES,
    Batch,
    Record,
    RecordKind,
    Source,
    SourceKind,
)
from tracecore_train.wire.tables import INT64_MAX, INT64_MIN, Column, columns_of

INT64 = st.integers(min_value=INT64_MIN, max_value=INT64_MAX)
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_ITEMS: dict[type, st.SearchStrategy[Any]] = {
    int: INT64,
    str: TEXT,
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
}


def _values(column: Column) -> st.SearchStrategy[Any]:
    item = _ITEMS[column.item]
    if column.is_tuple:
        item = st.lists(item, max_size=4).map(tuple)
    return st.none() | item if column.is_optional else item


def records_of(kind: RecordKind) -> st.SearchStrategy[Record]:
    """Any record of one kind."""
    columns = {column.name: _values(column) for column in columns_of(kind)}
    return cast("st.SearchStrategy[Record]", st.builds(RECORD_TYPES[kind], **columns))


RECORDS: st.SearchStrategy[Record] = st.one_of([records_of(kind) for kind in RecordKind])

SOURCES: st.SearchStrategy[Source] = st.builds(
    Source,
    kind=st.sampled_from(SourceKind),
    host=TEXT,
    boot_id=TEXT,
    pid=INT64,
    job_id=TEXT,
    attempt=INT64,
    wall_offset_ns=INT64,
    rank=st.none() | INT64,
    local_rank=st.none() | INT64,
    node_rank=st.none() | INT64,
    world_size=st.none() | INT64,
)

BATCHES: st.SearchStrategy[Batch] = st.builds(
    Batch, source=SOURCES, records=st.lists(RECORDS, max_size=8).map(tuple)
)
"""Batches of mixed kinds, in any order."""
