"""Records to columns and back, with every value checked on the way in.

One table holds records of one kind as columns of plain JSON values. OTLP log records
(``otlp.py``) and record files carry the same tables, so there is one codec and one validator.
A table from outside is hostile: unknown kinds, missing or extra columns, wrong types, uneven
lengths and oversized values are refused with a :class:`~tracecore_train.errors.WireError`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from operator import attrgetter
from typing import Any, cast

from tracecore_train.errors import WireError
from tracecore_train.wire.records import RECORD_TYPES, Record, RecordKind

MAX_ROWS = 100_000
"""Rows in one table; a 20,000-entry flight recorder pull is the largest legitimate one."""
MAX_TEXT = 4_096
"""Characters in one string; stack frames and reasons are far shorter."""
MAX_ITEMS = 65_536
"""Items in one tuple; a process group of 16,384 ranks is the largest legitimate one."""
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Column:
    """What one field of a record type may hold."""

    name: str
    item: type
    is_optional: bool
    is_tuple: bool
    is_later: bool
    """Has a default: added after the first version, and may be missing in what that wrote."""


@dataclass(frozen=True, slots=True)
class Table:
    """Records of one kind as columns: ``columns[name][row]``."""

    kind: RecordKind
    num_rows: int
    columns: Mapping[str, Sequence[Any]]


@cache
def columns_of(kind: RecordKind) -> tuple[Column, ...]:
    """Give the columns of a kind, in field order."""
    record_type = RECORD_TYPES[kind]
    hints = typing.get_type_hints(record_type)
    return tuple(_column(f, hints[f.name]) for f in fields(record_type))


def _column(field: Field[Any], hint: Any) -> Column:
    is_optional = False
    if isinstance(hint, types.UnionType):
        is_optional = True
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    is_tuple = typing.get_origin(hint) is tuple
    item = typing.get_args(hint)[0] if is_tuple else hint
    return Column(
        name=field.name,
        item=item,
        is_optional=is_optional,
        is_tuple=is_tuple,
        is_later=field.default is not MISSING,
    )


def to_tables(records: Iterable[Record]) -> list[Table]:
    """Group records by kind into tables; order within a kind is kept."""
    by_kind: dict[RecordKind, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record.kind, []).append(record)
    return [
        Table(
            kind=kind,
            num_rows=len(rows),
            columns={c.name: list(map(attrgetter(c.name), rows)) for c in columns_of(kind)},
        )
        for kind, rows in by_kind.items()
    ]


def from_table(kind: object, columns: object) -> list[Record]:
    """Rebuild the records of one table, refusing anything the record type does not allow."""
    try:
        record_kind = RecordKind(kind)
    except ValueError:
        raise WireError(f"unknown record kind {_short(kind)}") from None
    if not isinstance(columns, Mapping):
        raise WireError(f"{record_kind.value}: columns are {type(columns).__name__}, not a mapping")
    known = columns_of(record_kind)
    expected = [c for c in known if c.name in columns or not c.is_later]
    if set(columns) != {c.name for c in expected}:
        missing = sorted({c.name for c in expected} - set(columns))
        extra = sorted(_short(name) for name in set(columns) - {c.name for c in known})
        raise WireError(f"{record_kind.value}: missing columns {missing}, unknown columns {extra}")
    checked = [_checked_column(record_kind, c, columns[c.name]) for c in expected]
    num_rows = len(checked[0])
    if any(len(values) != num_rows for values in checked):
        lengths = {c.name: len(v) for c, v in zip(expected, checked, strict=True)}
        raise WireError(f"{record_kind.value}: columns of uneven length {lengths}")
    make = cast("Any", RECORD_TYPES[record_kind])
    names = [c.name for c in expected]
    return [make(**dict(zip(names, row, strict=True))) for row in zip(*checked, strict=True)]


def _checked_column(kind: RecordKind, column: Column, values: object) -> list[Any]:
    if not isinstance(values, (list, tuple)):
        raise WireError(f"{kind.value}.{column.name}: {type(values).__name__}, not a list")
    if len(values) > MAX_ROWS:
        raise WireError(f"{kind.value}.{column.name}: {len(values)} rows, at most {MAX_ROWS}")
    where = f"{kind.value}.{column.name}"
    if column.is_tuple:
        return [_checked_tuple(where, column, value) for value in values]
    return [_checked(where, column, value) for value in values]


def _checked_tuple(where: str, column: Column, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise WireError(f"{where}: {_short(value)} is not a list")
    if len(value) > MAX_ITEMS:
        raise WireError(f"{where}: {len(value)} items, at most {MAX_ITEMS}")
    return tuple(_checked(where, column, item) for item in value)


def _checked(where: str, column: Column, value: object) -> object:
    if value is None and column.is_optional:
        return None
    if type(value) is not column.item:
        raise WireError(f"{where}: {_short(value)} is not {column.item.__name__}")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise WireError(f"{where}: text of {len(value)} characters, at most {MAX_TEXT}")
    if type(value) is int and not INT64_MIN <= value <= INT64_MAX:
        raise WireError(f"{where}: {_short(value)} does not fit 64 bits")
    return value


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 2**200 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."
