"""What goes out over the wire comes back the same."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import BATCHES, RECORDS
from tracecore_train.errors import WireError
from tracecore_train.wire.otlp import decode_logs, decode_logs_partially, encode_logs
from tracecore_train.wire.tables import from_table, to_tables

if TYPE_CHECKING:
    from tracecore_train.wire.records import Batch, Record, RecordKind


def _by_kind(records: tuple[Record, ...]) -> dict[RecordKind, list[Record]]:
    groups: dict[RecordKind, list[Record]] = {}
    for record in records:
        groups.setdefault(record.kind, []).append(record)
    return groups


@given(BATCHES)
def test_a_batch_survives_otlp(batch: Batch) -> None:
    """Source and records are equal after OTLP; records keep their order within a kind."""
    decoded = decode_logs(encode_logs(batch))
    if not batch.records:
        assert decoded == []
        return
    (back,) = decoded
    assert back.source == batch.source
    assert _by_kind(back.records) == _by_kind(batch.records)


@given(st.lists(RECORDS, max_size=8))
def test_records_survive_tables_as_json(records: list[Record]) -> None:
    """Tables written as JSON, as record files hold them, give the same records."""
    back = [
        record
        for table in to_tables(records)
        for record in from_table(table.kind.value, json.loads(json.dumps(dict(table.columns))))
    ]
    assert Counter(back) == Counter(records)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    """Bytes from outside either decode or raise WireError; nothing else escapes."""
    try:
        decode_logs_partially(raw)
    except WireError:
        return


@given(BATCHES, st.data())
def test_damaged_requests_are_refused_or_read(batch: Batch, data: st.DataObject) -> None:
    """A request with one byte changed either decodes or raises WireError."""
    raw = bytearray(encode_logs(batch))
    if raw:
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.integers(0, 255))
    try:
        decode_logs_partially(bytes(raw))
    except WireError:
        return
