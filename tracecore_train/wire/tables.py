"""Records to columns and back, with every value checked on the way in.

One table holds records of one kind as columns of plain JSON values. OTLP log records
(``otlp.py``) and record files carry the same tables, so there is one codec and one validator.
A table from outside is hostile: unknown kinds, missing or extra columns, wrong types, uneven
lengths and oversized values are refused with a :class:`~tracecore_train.errors.WireError`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from itertools import groupby, repeat
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
    default: Any
    """MISSING where there is none."""
    store: Callable[[Record, Any], None]
    """Sets the field of a new record."""

    @property
    def is_later(self) -> bool:
        """Has a default: added after the first version, and may be missing in what that wrote."""
        return self.default is not MISSING


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
    return tuple(_column(record_type, f, hints[f.name]) for f in fields(record_type))


@cache
def _names_of(kind: RecordKind) -> Mapping[str, None]:
    """Give the names of the columns, in field order."""
    return dict.fromkeys(column.name for column in columns_of(kind))


@cache
def _row_of(kind: RecordKind) -> Callable[[Record], tuple[Any, ...]]:
    """Give what reads all fields of a record of this kind, in field order."""
    return attrgetter(*_names_of(kind))


def _column(record_type: type[Record], field: Field[Any], hint: Any) -> Column:
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
        default=field.default,
        store=getattr(record_type, field.name).__set__,
    )


def to_tables(records: Iterable[Record]) -> list[Table]:
    """Group records by kind into tables; order within a kind is kept."""
    by_kind: dict[RecordKind, list[Record]] = {}
    for kind, run in groupby(records, attrgetter("kind")):
        by_kind.setdefault(kind, []).extend(run)
    return [_table(kind, rows) for kind, rows in by_kind.items()]


def _table(kind: RecordKind, rows: Sequence[Record]) -> Table:
    values = zip(*map(_row_of(kind), rows), strict=True)
    columns = dict(zip(_names_of(kind), values, strict=True))
    return Table(kind=kind, num_rows=len(rows), columns=columns)


def from_table(kind: object, columns: object) -> list[Record]:
    """Rebuild the records of one table, refusing anything the record type does not allow."""
    try:
        record_kind = RecordKind(kind)
    except ValueError:
        raise WireError(f"unknown record kind {_short(kind)}") from None
    if not isinstance(columns, Mapping):
        raise WireError(f"{record_kind.value}: columns are {type(columns).__name__}, not a mapping")
    known = columns_of(record_kind)
    if columns.keys() != _names_of(record_kind).keys():
        _check_names(record_kind, columns)
    checked = {
        column.name: _checked_column(record_kind, column, columns[column.name])
        for column in known
        if column.name in columns
    }
    if len(set(map(len, checked.values()))) != 1:
        lengths = {name: len(values) for name, values in checked.items()}
        raise WireError(f"{record_kind.value}: columns of uneven length {lengths}")
    return from_columns(record_kind, checked)


def _check_names(kind: RecordKind, columns: Mapping[Any, object]) -> None:
    known = columns_of(kind)
    missing = sorted(c.name for c in known if not (c.is_later or c.name in columns))
    extra = sorted(_short(name) for name in columns.keys() - _names_of(kind).keys())
    if missing or extra:
        raise WireError(f"{kind.value}: missing columns {missing}, unknown columns {extra}")


def from_columns(kind: RecordKind, columns: Mapping[str, Sequence[Any]]) -> list[Record]:
    """Build records from whole columns of equal length, whose values are believed.

    Column by column through the slots, which takes a quarter of the time that a frozen dataclass
    takes to fill them one record after the other. Later columns may be missing.
    """
    record_type = RECORD_TYPES[kind]
    num_rows = len(columns["time_ns"])
    records = list(map(object.__new__, repeat(cast("Any", record_type), num_rows)))
    for column in columns_of(kind):
        values = columns.get(column.name) or repeat(column.default, num_rows)
        any(map(column.store, records, values))  # a slot gives None: this runs to the end
    return records


def _checked_column(kind: RecordKind, column: Column, values: object) -> Sequence[Any]:
    if not isinstance(values, (list, tuple)):
        raise WireError(f"{kind.value}.{column.name}: {type(values).__name__}, not a list")
    if len(values) > MAX_ROWS:
        raise WireError(f"{kind.value}.{column.name}: {len(values)} rows, at most {MAX_ROWS}")
    if _is_plain(column, values):
        return values
    where = f"{kind.value}.{column.name}"
    if column.is_tuple:
        return [_checked_tuple(where, column, value) for value in values]
    return [_checked(where, column, value) for value in values]


def _is_plain(column: Column, values: Sequence[Any]) -> bool:
    """Say whether all values are good, from a look at the whole column; if not, which is not?"""
    if not values or column.is_tuple or set(map(type, values)) != {column.item}:
        return False
    if column.item is int:
        return bool(min(values) >= INT64_MIN and max(values) <= INT64_MAX)
    return column.item is bool or (column.item is str and max(map(len, values)) <= MAX_TEXT)


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
